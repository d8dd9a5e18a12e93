"""The memory of the process."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; the parameter is an int


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for the next step instead of returning it to the system, which would hand out every
    large tensor page by page anew: up to a third of a step on a CPU. Does nothing with another C library, or where
    MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ is set in the environment."""
    if sys.platform != "linux" or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & {*os.environ}:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(M_TRIM_THRESHOLD, LARGEST)
    mallopt(M_MMAP_THRESHOLD, LARGEST)
