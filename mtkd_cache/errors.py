"""The errors a user is meant to read."""


class MtkdError(Exception):
    """A failure explained in one or two lines: what, where, what to do. The command line prints it and exits with status 1."""


class LockedError(MtkdError):
    """Another process is writing there at the moment."""
