"""A multirun to its end: a point that fails does not stop the others, and the last lines say how each one went.

A sweeper raises the first failure it meets and forgets the other results, and a launcher may run the points in other
processes or on other machines. So a point of a multirun raises nothing: its value is NaN, the traceback is in its run
directory (`failure.txt`), and it leaves a note in the directory of the sweep, `<run.root>/sweeps/<time>/`. `Summary`
makes the table and the exit code of these notes, with every launcher alike; an interrupted sweep shows its table, too.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from dcal.run.directory import Run
from dcal.run.files import read_json, write_atomically, write_json
from dcal.utils.errors import is_for_user
from dcal.utils.text import aligned

FAILED, INTERRUPTED = "failed", "interrupted"


class Outcome(NamedTuple):
    """How a point went."""

    status: str
    """finished, finished before, interrupted or failed."""
    primary_metric: str = ""
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
        _note(run, Outcome(INTERRUPTED))
        show_table()  # a request to stop ends the sweep with it
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
        "directory": str(run.directory) if run and run.directory.is_dir() else "",
    }
    write_json(folder / f"{hydra.job.num:04d}.json", note)


class Summary(Callback):
    """Named in `conf/train.yaml`: Hydra calls it in the process that the user has started."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remembers the sweep, which may be interrupted before its end."""
        _begun[:] = [(Path(config.hydra.sweep.dir), planned(config))]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints and keeps the table of a sweep.

        Raises:
            SystemExit: a point has failed. (An exception would be a warning to Hydra, and the exit code 0.)
        """
        if any(note["status"] == FAILED for note in show_table()):
            raise SystemExit(1)


_begun: list[tuple[Path, int | None]] = []
"""The sweep whose table is still to be shown: its folder, and the number of its points."""


def show_table() -> list[dict[str, Any]]:
    """Prints and keeps the table of the sweep that was begun in this process, once; returns the notes on its points."""
    if not _begun:
        return []
    folder, points = _begun.pop()
    notes = [read_json(file) for file in sorted(folder.glob("points/*.json"))]
    if notes:
        text = sweep_table(notes, points)
        write_atomically(folder / "summary.txt", text + "\n")
        print(f"\n{text}")
    return notes


def planned(config: DictConfig) -> int | None:
    """How many points a sweep has; None for a sweeper of which that is not known."""
    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith(".BasicSweeper"):
        return sweeper.get("n_trials")
    words = [*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *config.hydra.overrides.task]
    running = GlobalHydra.instance().hydra
    loader = None if running is None else running.config_loader  # which knows the options that a glob(...) stands for
    overrides = OverridesParser.create(loader).parse_overrides(words)
    return math.prod(len(list(entry.sweep_iterator())) for entry in overrides if entry.is_sweep_override())


def sweep_table(notes: Sequence[dict[str, Any]], points: int | None = None) -> str:
    """One line per point (its overrides, primary metric, status, directory), errors, means over seeds, the sum.

    Args:
        notes: of the points that were begun.
        points: of the whole sweep, if that is known.
    """
    common = set.intersection(*(set(note["overrides"]) for note in notes)) if len(notes) > 1 else set()
    names = [[word for word in note["overrides"] if word not in common] for note in notes]
    values = ["-" if math.isnan(note["value"]) else f"{note['primary_metric']} {note['value']:.4f}" for note in notes]
    rows = [
        (" ".join(name) or "-", value, note["status"], note["directory"])
        for name, value, note in zip(names, values, notes, strict=True)
    ]
    lines = []
    for row, note in zip(aligned(rows), notes, strict=True):
        lines += [row, f"    {note['error']}"] if note["error"] else [row]
    statuses = [note["status"] for note in notes]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    total = f"{len(notes)} points" if points in (None, len(notes)) else f"{len(notes)} of {points} points"
    again = bool({FAILED, INTERRUPTED} & set(statuses)) or points not in (None, len(notes))
    repeat = ": repeat the command to run the others" if again else ""
    return "\n".join([*lines, *means(names, notes), f"{total}: {counts}{repeat}"])


def means(names: Sequence[Sequence[str]], notes: Sequence[dict[str, Any]]) -> list[str]:
    """Mean and standard deviation over the seeds of each point, where there are several seeds.

    Args:
        names: the overrides in which each note differs from others.
    """
    values: dict[str, list[float]] = {}
    for name, note in zip(names, notes, strict=True):
        point = " ".join(word for word in name if not word.startswith("seed="))
        values.setdefault(point, []).append(note["value"])
    if not any(len(found) > 1 for found in values.values()):
        return []
    width = max(map(len, values))
    primary_metric = next((note["primary_metric"] for note in notes if note["primary_metric"]), "")
    lines = ["over seeds:"]
    for point, every in values.items():
        known = [value for value in every if not math.isnan(value)]
        mean = f"{primary_metric} {statistics.fmean(known):.4f}" if known else "-"
        spread = f", standard deviation {statistics.stdev(known):.4f}" if len(known) > 1 else ""
        lines.append(f"{point:<{width}}  {mean}{spread}, {len(known)} of {len(every)} seeds".lstrip())
    return lines
