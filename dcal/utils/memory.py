"""Memory: what is said when it runs out, and on a CPU, that the process keeps what it has freed.

glibc gives every large tensor back to the system as it is freed, and the next step faults its pages in again, zeroed.
On a virtual machine that is most of the time of a training step. One arena for all threads, no mappings of their own
and no trimming keep the memory in the process; the price is that it stays as large as it has once been.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


class OutOfMemory(Exception):
    """Memory ran out; the message names the keys to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the allocator of a device, of torch on the CPU or of Python has given up."""
    import torch  # not for `keep_freed_memory`, which every command begins with

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


@contextmanager
def out_of_memory_names(remedies: str) -> Iterator[None]:
    """Turns running out of memory inside into an `OutOfMemory` that proposes `remedies`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: try {remedies}. Repeat the command to go on") from error
