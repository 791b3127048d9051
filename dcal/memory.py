"""Training on a CPU: let the process keep the memory it has freed.

glibc gives every large tensor back to the system as it is freed, and the next step faults its pages in again, zeroed.
On a virtual machine that is most of the time of a training step. One arena for all threads, no mappings of their own
and no trimming keep the memory in the process; the price is that it stays as large as it has once been.
"""

from __future__ import annotations

import ctypes
import sys

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
KEEP_ALL = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep freed memory; returns whether it did. Does nothing with other allocators."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    options = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEEP_ALL), (M_TOP_PAD, 1 << 26))
    return all([mallopt(key, value) for key, value in options])
