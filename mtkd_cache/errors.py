"""The errors a user is meant to read."""


class MtkdError(Exception):
    """A failure explained in one or two lines: what, where, what to do. The command line prints it and exits with status 1."""


class LockedError(MtkdError):
    """Another process is writing there at the moment."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else its type, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def said(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    first = first_line(error)
    return f"{type(error).__name__}: {first}" if str(error).strip() else first
