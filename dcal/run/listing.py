"""The run directories below a folder: how far each one is, which ones count, and which one `run=` means."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcal.run.directory import CONFIG_FILE, FAILURE_FILE, LABEL_FILE, REPLACED, RESULT_FILE
from dcal.run.lock import LOCK, lock_holder
from dcal.utils.errors import UserError

STATES = ("finished", "running", "failed", "interrupted", "not yet")
LAST = "last"
OWN_FOLDER = re.compile(r"seed=\d+")
"""Name of the folder of a run; a copy beside it, or what `run.fresh=true` has set aside, has another."""


def run_directories(root: Path) -> Iterator[Path]:
    """The directories below `root` that hold a run, `root` included; not those that `run.fresh=true` has replaced.

    A run directory is not searched for others, so a folder of 10 000 runs takes a second.
    """
    with os.scandir(root) as entries:
        found = list(entries)
    if any(entry.name in (CONFIG_FILE, FAILURE_FILE) for entry in found):  # the latter alone of a start that failed
        if REPLACED not in root.name:
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
        if REPLACED not in file.parent.name:
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


def find_run(spec: str | Path, root: str | Path) -> Path:
    """The directory of a run.

    Args:
        spec: the directory; or `last`, the run below `root` that was started or finished last; or a `cfg_id`, the
            eight hex digits in a run's path, where one of its seeds may follow: `9bf6c8fb/seed=1`; or words of its
            label (`dcal.run.label`), among them perhaps its seed: `glca lr=0.001 seed=1`.
        root: folder of runs.

    Raises:
        UserError: there is no such run, or there are several.
    """
    folder, root = Path(spec).expanduser(), Path(root).expanduser()
    if (folder / CONFIG_FILE).is_file():
        return folder
    runs = sorted(file.parent for file in root.glob(f"*/**/{CONFIG_FILE}") if OWN_FOLDER.fullmatch(file.parent.name))
    if str(spec) == LAST:
        if not runs:
            raise UserError(f"run={LAST}: no run below root={root}: train one, or name another folder of runs")
        return max(runs, key=_changed)
    words = Path(spec).parts
    found = [
        run for run in runs if (words and run.parts[-len(words) :] == words) or run.parent.parts[-len(words) :] == words
    ]
    asked = set(str(spec).split())
    found = found or [run for run in runs if asked and asked <= {*_label(run).split(), run.name}]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(f"{run} ({_label(run)})" for run in found[:4])
        raise UserError(f"run={spec}: {len(found)} runs, {named}: name one of them")
    below = sorted(str(file.parent) for file in folder.glob(f"**/{CONFIG_FILE}"))[:3] if folder.is_dir() else []
    hint = (
        f"did you mean {' or '.join(below)}?"
        if below
        else f"give a directory, {LAST}, an id or words of a label below root={root}"
    )
    raise UserError(f"run={spec}: no run directory, {CONFIG_FILE} is missing; {hint}")


def _label(run: Path) -> str:
    """The readable name of a run; empty for an older one, which has none."""
    file = run / LABEL_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _changed(run: Path) -> float:
    """When something of a run was written last: its result, or the configuration with which it was started."""
    return max(file.stat().st_mtime for file in (run / CONFIG_FILE, run / RESULT_FILE) if file.is_file())
