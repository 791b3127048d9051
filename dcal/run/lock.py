"""The lock of a directory: one process at a time works in it."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import IO

LOCK = "run.lock"


class RunLocked(Exception):
    """Another process works in the directory."""


def acquire_lock(directory: Path) -> IO[str]:
    """Takes a directory for this process, until the lock is closed or the process ends.

    Raises:
        RunLocked: another process holds it; the message says which.
    """
    lock = (directory / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise RunLocked(f"{directory} is being worked on by {holder}: wait for it or stop it") from None
    # A data worker outlives a killed process by seconds, and with the descriptor it would inherit the lock.
    os.register_at_fork(after_in_child=lock.close)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    return lock


def lock_holder(directory: Path) -> str | None:
    """Who works in a run directory, as it says in the lock; None if nobody does."""
    path = directory / LOCK
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return lock.read().strip() or "another process"
    return None
