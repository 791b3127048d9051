"""Which run directories count: every run once, also where a backup is next to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
