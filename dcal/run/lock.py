"""The lock of a directory: one process at a time works in it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dcal.utils.errors import UserError

LOCK = "run.lock"


class RunLocked(UserError):
    """Another process works in the directory."""


def acquire_lock(directory: Path) -> BaseFileLock:
    """Takes a directory for this process, until the lock is released or the process ends; a fork does not inherit it.

    Raises:
        RunLocked: another process holds it; the message says which.
        UserError: the file system has no locks.
    """
    path = directory / LOCK
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunLocked(f"{directory} is being worked on by {_holder(path)}: wait for it or stop it") from None
    except (PermissionError, FileNotFoundError):
        raise
    except (OSError, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be locked ({error}): the file system knows no locks; put run.root= (or out=) on another one"
        ) from error
    if not isinstance(lock, SoftFileLock):  # whose file is the lock, and says who holds it
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return lock


def lock_holder(directory: Path) -> str | None:
    """Who works in a run directory, as it says in the lock; None if nobody does, or it cannot be found out."""
    path = directory / LOCK
    if not path.is_file():
        return None
    try:
        with FileLock(path, timeout=0, thread_local=False):
            return None
    except Timeout:
        return _holder(path)
    except (OSError, NotImplementedError):
        return None


def _holder(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # of a lock that is the file itself: process, host, time
        return " on ".join(lines[:2]) or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
