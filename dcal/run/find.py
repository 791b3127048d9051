"""Which run directory a command means by `run=`: a path, the last one, or a configuration by its id or label."""

from __future__ import annotations

from pathlib import Path

from dcal.run.directory import CONFIG_FILE, LABEL_FILE, RESULT_FILE
from dcal.utils.errors import UserError

LAST = "last"


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
    runs = sorted(file.parent for file in root.glob(f"*/**/{CONFIG_FILE}"))
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
