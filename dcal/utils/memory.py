"""Memory: what is said when it runs out, and on a CPU, that the process keeps what it has freed.

glibc gives every large tensor back to the system as it is freed, and the next step faults its pages in again, zeroed.
On a virtual machine that is most of the time of a training step. One arena for all threads, no mappings of their own
and no trimming keep the memory in the process; the price is that it stays as large as it has once been.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcal.utils.errors import UserError

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
KEEP_ALL = 2**31 - 1
MEMINFO, OWN_CGROUPS, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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


def available_memory() -> int:
    """Bytes that this process may still fill: what is free on the machine, or left of a container's or job's limit.

    What the system would give up at once (file caches) counts as free. Of the limits of control groups (version 2, or
    the memory controller of version 1), that of this process and those above it count.
    """
    room = [_free_on_the_machine()]
    for limit, used, statistics in _cgroups():
        with suppress(OSError, ValueError):  # no limit reads `max`
            left = int(limit.read_text()) - int(used.read_text())
            cached = dict(line.split() for line in statistics.read_text().splitlines())
            room.append(left + int(cached.get("total_inactive_file", cached.get("inactive_file", 0))))
    return max(0, min(room))


def _free_on_the_machine() -> int:
    try:
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        return 1024 * next(int(words[1]) for words in lines if words[0] == "MemAvailable:")
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups() -> Iterator[tuple[Path, Path, Path]]:
    """Files with limit, usage and statistics of the control groups of this process, from its own upwards."""
    try:
        lines = [line.split(":", 2) for line in OWN_CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in lines:
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        top = CGROUPS / "memory" if version_1 else CGROUPS
        names = ("limit_in_bytes", "usage_in_bytes") if version_1 else ("max", "current")
        group = top / name.lstrip("/")
        for folder in (group, *group.parents):
            yield folder / f"memory.{names[0]}", folder / f"memory.{names[1]}", folder / "memory.stat"
            if folder == top:
                break


def peak_memory(device: str) -> int | None:
    """Most bytes that this process has held so far: of the GPU as torch counts them, of a CPU the resident set.

    Args:
        device: `cuda` or `cpu`.

    Returns:
        None where the system does not say.
    """
    if device == "cuda":
        import torch  # not for `keep_freed_memory`, which every command begins with

        return torch.cuda.max_memory_allocated()
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class OutOfMemory(UserError):
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
