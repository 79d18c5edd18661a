"""What this process keeps of the memory it was given."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST, LARGEST_OF_OLD = 2**31 - 1, 2**25  # bytes; glibc before 2.35 takes no mmap threshold above the latter


def keep_freed_memory() -> None:
    """Let malloc keep what is freed for what is allocated next, where it is glibc's; elsewhere nothing happens.

    Otherwise a step's large tensors go back to the system one by one, which clears every page before it gives them again: up to a
    third of the time of a forward or training step on the CPU. The process then holds its peak to its end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        if not mallopt(M_MMAP_THRESHOLD, MOST):
            mallopt(M_MMAP_THRESHOLD, LARGEST_OF_OLD)
        mallopt(M_TRIM_THRESHOLD, MOST)


def give_back_freed_memory() -> None:
    """Give the system what malloc keeps, so that memory in use can be seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
