"""Settings of glibc's malloc, of which programs decide and not libraries: the command line calls `keep_freed_memory`."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST, MOST_BEFORE_2_35 = 2**31 - 1, 2**25  # bytes; older versions of glibc refuse a larger mmap threshold


def keep_freed_memory() -> None:
    """Let malloc reuse freed memory instead of returning it to the system; without glibc this does nothing.

    Otherwise each large tensor of a step is returned, and the system clears its pages before handing them out again: up to a
    third of the time of a forward or training step on the CPU. In exchange the process keeps its peak memory until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        if not mallopt(M_MMAP_THRESHOLD, MOST):
            mallopt(M_MMAP_THRESHOLD, MOST_BEFORE_2_35)
        mallopt(M_TRIM_THRESHOLD, MOST)


def give_back_freed_memory() -> None:
    """Return freed memory to the system, so that the process's size shows the memory in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
