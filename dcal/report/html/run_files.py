"""Everything that run directories hold for a report, read once and checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcal.report.records import BadRun, RunRecord, own_place, parse, read_metrics, read_run, read_yaml
from dcal.report.typed import read_overrides
from dcal.run.directory import REPLACED
from dcal.run.listing import finished_runs
from dcal.utils.errors import UserError
from dcal.visualize import gallery
from dcal.visualize.cross_table import FILE as CROSS_DOMAIN
from dcal.visualize.gallery import Gallery
from dcal.visualize.reliability import FILE as RELIABILITY


class RunFiles(NamedTuple):
    """One finished run."""

    directory: Path
    name: str
    record: RunRecord
    """What `dcal-results` keeps of it."""
    config: dict[str, Any]
    """Resolved, in dotted keys, with everything that is in it."""
    lines: list[dict[str, Any]]
    """What was logged after each epoch."""
    items: dict[str, NDArray[Any]]
    """By name: one entry per test item."""
    class_names: list[str]
    """By label; empty where the run does not keep them."""
    gallery: Gallery | None
    """None where the run keeps no pictures."""
    overrides: list[str]
    """What was typed."""
    reliability: dict[str, Any]
    """What `dcal-evaluate reliability=true` has found; empty where it was not asked."""
    elsewhere: dict[str, Any]
    """By data set: the figures of the members of a joint one, and what `dcal-evaluate datasets=[...]` has found."""


class Folder(NamedTuple):
    """The runs of a folder, and what is not in the report."""

    root: Path
    runs: list[RunFiles]
    problems: list[str]
    """A sentence for each file that cannot be used."""
    unfinished: list[Path]
    plain: list[RunFiles]
    """Runs of the plain ViT under the same names that are next to the folder, and not in the report."""


def read_folder(root: Path, device: str | None = None) -> Folder:
    """Reads a run directory, or all that lie below a folder.

    Args:
        device: names the hardware of runs that do not say it themselves.

    Raises:
        UserError: no finished run is there; the message says what is.
    """
    runs: list[RunFiles] = []
    directories, copies = finished_runs(root)
    problems = [f"left out: {copy}" for copy in copies]
    for directory in directories:
        try:
            run, missing = read_files(directory)
        except BadRun as problem:
            problems.append(f"left out: {problem}")
            continue
        run.record["device"] = run.record["device"] or device
        runs.append(run)
        problems += missing
    started = (file.parent for file in sorted(root.rglob("config_resolved.yaml")))
    unfinished = [f for f in started if not (f / "result.json").is_file() and REPLACED not in f.name]
    if not runs:
        found = (
            problems or [f"{folder} is not finished" for folder in unfinished] or ["nothing there is a run directory"]
        )
        raise UserError(f"report={root}: no finished run to report ({'; '.join(found[:3])})")
    return Folder(root, runs, problems, unfinished, plain_beside(runs))


def plain_beside(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The plain ViT's finished runs in the folders of these runs' names, `<name>/<cfg_id>/seed=<seed>`."""
    known = {run.directory.resolve(): own_place(run.record) for run in runs}
    found = []
    for folder in sorted({directory.parents[1] for directory, own in known.items() if directory.parts[-2:] == own}):
        for directory in finished_runs(folder)[0]:
            with suppress(BadRun):  # whose report it is hears of it
                if directory not in known and is_plain(read_run(directory)[1]):
                    found.append(read_files(directory)[0])
    return found


def is_plain(record: RunRecord) -> bool:
    """Whether a run is one of the plain ViT."""
    return bool(record["config"]["attention"] == "none")


def read_files(directory: Path) -> tuple[RunFiles, list[str]]:
    """One run, and a sentence for each optional file that is torn.

    Raises:
        BadRun: a file that every run has is missing or torn.
    """
    name, record = read_run(directory)
    problems: list[str] = []

    def optional(file: str, reader: Callable[[Path], Any]) -> Any:
        try:
            return reader(directory / file) if (directory / file).is_file() else None
        except (UserError, OSError) as error:
            problems.append(str(error))
            return None

    config = dict(flatten(parse(directory / "config_resolved.yaml", read_yaml)))
    lines = read_metrics(directory, record["split"])
    with np.load(directory / "items.npz", allow_pickle=False) as arrays:  # read_run has seen that it can be read
        items = dict(arrays)
    found = (optional(file, partial(parse, parser=json.loads)) for file in ("model.json", RELIABILITY, CROSS_DOMAIN))
    card, reliability, elsewhere = (content if isinstance(content, dict) else {} for content in found)
    names = [str(entry) for entry in card.get("class_names", [])]
    end, metrics = f"/{record['primary_metric']}", record["metrics"]
    cells = {key.removesuffix(end): {"value": value} for key, value in metrics.items() if key.endswith(end)}
    cells |= elsewhere.get("cells", {})
    pictures = optional(gallery.FILE, gallery.load_gallery)
    overrides = read_overrides(directory)
    run = RunFiles(directory, name, record, config, lines, items, names, pictures, overrides, reliability, cells)
    return run, problems


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested configuration as dotted keys and their values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
