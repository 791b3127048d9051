"""A multirun to its end: a point that fails does not stop the others, and the last lines say how each one went.

A sweeper raises the first failure it meets and forgets the other results, and a launcher may run the points in other
processes or on other machines. So a point of a multirun raises nothing: its value is NaN, the traceback is in its run
directory (`failure.txt`), and it leaves a note in the directory of the sweep, `<run.root>/sweeps/<time>/`. `Summary`
makes the table and the exit code of these notes, with every launcher alike.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from dcal.run.directory import Run
from dcal.run.files import write_atomically
from dcal.utils.errors import is_for_user

FAILED = "failed"


class Outcome(NamedTuple):
    """How a point went."""

    status: str
    """finished, finished before, interrupted or failed."""
    headline: str = ""
    """Name of the metric that `value` is of."""
    value: float = math.nan
    error: str = ""


def run_point(find: Callable[[], Run], work: Callable[[Run], Outcome]) -> float:
    """Calls `work` on the run that `find` gives; returns its value, in a multirun NaN and a note where it fails.

    Who asks a point to stop (Ctrl-C, a batch system) means the sweep: only an `Exception` is the point's own affair.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return work(find()).value
    run = None
    try:
        run = find()
        outcome = work(run)
    except Exception as error:
        told = str(error) if is_for_user(error) else f"{type(error).__name__}: {error}"
        outcome = Outcome(FAILED, error=told)
        print(f"{run.directory if run else 'no run'}: {outcome.error}", file=sys.stderr)
    except BaseException:
        _note(run, Outcome("interrupted"))
        raise
    _note(run, outcome)
    return outcome.value


def _note(run: Run | None, outcome: Outcome) -> None:
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir) / "points"
    folder.mkdir(parents=True, exist_ok=True)
    note = {
        **outcome._asdict(),
        "overrides": list(hydra.overrides.task),
        "directory": str(run.directory) if run else "",
    }
    write_atomically(folder / f"{hydra.job.num:04d}.json", json.dumps(note, indent=1))


class Summary(Callback):
    """Named in `conf/train.yaml`: Hydra calls it in the process that the user has started."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints and keeps the table of a sweep.

        Raises:
            SystemExit: a point has failed. (An exception would be a warning to Hydra, and the exit code 0.)
        """
        folder = Path(config.hydra.sweep.dir)
        notes = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("points/*.json"))]
        if not notes:
            return
        text = table(notes)
        write_atomically(folder / "summary.txt", text + "\n")
        print(f"\n{text}")
        if any(note["status"] == FAILED for note in notes):
            raise SystemExit(1)


def table(notes: Sequence[dict[str, Any]]) -> str:
    """One line per point (the overrides in which points differ, headline, status, directory), the errors, the sum."""
    common = set.intersection(*(set(note["overrides"]) for note in notes))
    points = [" ".join(word for word in note["overrides"] if word not in common) or "-" for note in notes]
    values = ["-" if math.isnan(note["value"]) else f"{note['headline']} {note['value']:.4f}" for note in notes]
    widths = [max(map(len, column)) for column in (points, values, [note["status"] for note in notes])]
    lines = []
    for point, value, note in zip(points, values, notes, strict=True):
        cells = zip((point, value, note["status"]), widths, strict=True)
        lines.append("  ".join([*(f"{cell:<{width}}" for cell, width in cells), note["directory"]]))
        lines += [f"    {note['error']}"] if note["error"] else []
    statuses = [note["status"] for note in notes]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    failed = FAILED in statuses
    lines.append(f"{len(notes)} points: {counts}" + (": repeat the command to run these again" if failed else ""))
    return "\n".join(lines)
