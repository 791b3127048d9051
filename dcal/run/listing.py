"""All run directories below a folder, and how far each is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dcal.run.directory import CONFIG_FILE, FAILURE_FILE, RESULT_FILE
from dcal.run.lock import LOCK, lock_holder

STATES = ("finished", "running", "failed", "interrupted", "not yet")


def run_directories(root: Path) -> Iterator[Path]:
    """The directories below `root` that hold a run, `root` included; not those that `run.fresh=true` has replaced.

    A run directory is not searched for others, so a folder of 10 000 runs takes a second.
    """
    with os.scandir(root) as entries:
        found = list(entries)
    if any(entry.name == CONFIG_FILE for entry in found):
        if ".replaced-" not in root.name:
            yield root
        return
    for entry in sorted(found, key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from run_directories(Path(entry.path))


def state_of(directory: Path) -> str:
    """How far the run in a directory is, one of `STATES`."""
    names = set(os.listdir(directory)) if directory.is_dir() else set()
    if RESULT_FILE in names:
        return "finished"
    if LOCK in names and lock_holder(directory):
        return "running"
    if FAILURE_FILE in names:
        return "failed"
    return "interrupted" if CONFIG_FILE in names else "not yet"
