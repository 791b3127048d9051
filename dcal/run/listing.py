"""All run directories below a folder: how far each is, and which count, also where a backup is next to a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcal.run.directory import CONFIG_FILE, FAILURE_FILE, RESULT_FILE
from dcal.run.lock import LOCK, lock_holder

STATES = ("finished", "running", "failed", "interrupted", "not yet")


def run_directories(root: Path) -> Iterator[Path]:
    """The directories below `root` that hold a run, `root` included; not those that `run.fresh=true` has replaced.

    A run directory is not searched for others, so a folder of 10 000 runs takes a second.
    """
    with os.scandir(root) as entries:
        found = list(entries)
    if any(entry.name in (CONFIG_FILE, FAILURE_FILE) for entry in found):  # the latter alone of a start that failed
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


def finished_runs(root: Path) -> tuple[list[Path], list[str]]:
    """The directories of finished runs below `root`, each run once; a sentence for each that is a copy of another.

    A directory that `run.fresh=true` has replaced is passed over. Of several with the same name, id and seed the one
    counts that is where it belongs, `<cfg_id>/seed=<seed>`; where that is none or several, all are left out.
    """
    groups: dict[Any, list[Path]] = {}
    for file in sorted(root.rglob("result.json")):
        if ".replaced-" not in file.parent.name:
            groups.setdefault(_claim(file), []).append(file.parent)
    directories, problems = [], []
    for run, copies in groups.items():
        if len(copies) > 1:
            _, cfg_id, seed = run
            own = [path for path in copies if path.parts[-2:] == (cfg_id, f"seed={seed}")]
            if len(own) != 1:
                named = ", ".join(map(str, copies))
                problems.append(f"{named}: copies of one run, none of them is read; leave one of them below {root}")
                continue
            problems += [f"{path}: a copy of {own[0]}, not read" for path in copies if path != own[0]]
            copies = own
        directories += copies
    return sorted(directories), problems


def _claim(file: Path) -> Any:
    """Name, id and seed that a `result.json` says; its path if it cannot be read, as who reads the run will say."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return str(result["name"]), str(result["cfg_id"]), int(result["seed"])
    except (OSError, ValueError, LookupError, TypeError):
        return file
