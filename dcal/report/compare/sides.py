"""What a user names to be compared: a run, a group of runs, or a file of what was judged, made one `Side`."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcal.report.compare.predictions import read_predictions
from dcal.report.items import Items, read_items
from dcal.report.records import RunRecord, read_run, with_defaults
from dcal.report.table import differing, label_of, with_sa, with_shared_ids
from dcal.run.directory import RESULT_FILE
from dcal.run.listing import finished_runs
from dcal.utils.errors import UserError

WAYS = "a run directory, a folder or a glob of the runs of one configuration, an items.npz, or a CSV of predictions"


class Side(NamedTuple):
    """One configuration over its seeds."""

    name: str
    """As it was typed."""
    runs: dict[int | None, Items]
    """By seed; None where it is not known, of a single run."""
    records: list[RunRecord]
    """Of the runs; empty for files, which say nothing but what each item came to."""

    @property
    def config(self) -> dict[str, Any]:
        """Of the runs, flat; empty for files."""
        return self.records[0]["config"] if self.records else {}

    @property
    def items(self) -> Items:
        """Of the first seed; those of the others are the same items."""
        return next(iter(self.runs.values()))


def read_side(name: str) -> Side:
    """Reads what a user has named.

    Args:
        name: a run directory, a folder of runs, a file, or a glob of several of these.

    Raises:
        UserError: nothing is there, it cannot be read, or it is several configurations.
    """
    path = Path(name).expanduser()
    paths = [path] if path.exists() else [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]
    paths = [found.parent if found.name == RESULT_FILE else found for found in paths]
    if not paths:
        raise UserError(f"compare: {name}: no such file or folder; give {WAYS}")
    runs, records = of_runs(name, paths) if all(found.is_dir() for found in paths) else (of_files(name, paths), [])
    return Side(name, dict(sorted(runs.items(), key=lambda run: run[0] or 0)), records)


def of_runs(name: str, folders: Sequence[Path]) -> tuple[dict[int | None, Items], list[RunRecord]]:
    """The finished runs in folders, which must be of one configuration: by seed, and their records."""
    directories = sorted({directory for folder in folders for directory in finished_runs(folder)[0]})
    if not directories:
        raise UserError(f"compare: {name}: no finished run is there; dcal-results list={folders[0]} shows what is")
    records = with_shared_ids(with_defaults(with_sa(read_run(directory)[1]) for directory in directories))
    if len({record["cfg_id"] for record in records}) > 1:
        by = differing(records)
        pairs = zip(directories, records, strict=True)
        each = {record["cfg_id"]: f"{directory.parent} ({label_of(record, by)})" for directory, record in pairs}
        raise UserError(f"compare: {name}: {len(each)} configurations; name one of {', '.join(each.values())}")
    runs: dict[int | None, Items] = {}
    for directory, record in zip(directories, records, strict=True):
        items = read_items(directory / "items.npz")
        if record["seed"] in runs:
            raise UserError(f"compare: {name}: two runs have the seed {record['seed']}; name one of their folders")
        outcomes, primary_metric = items.outcomes, record["primary_metric"]
        if f"{primary_metric}_sa" in record["items"]:  # that of `with_sa` is not in the file
            outcomes = {f"{primary_metric}_sa": outcomes[primary_metric], **outcomes}
        runs[int(record["seed"])] = items._replace(outcomes=outcomes)
    return runs, records


def of_files(name: str, files: Sequence[Path]) -> dict[int | None, Items]:
    """By seed one `items.npz`, or CSV files, of which each has a column `seed` if they are several."""
    if odd := [file for file in files if file.suffix not in (".npz", ".csv")]:
        raise UserError(f"compare: {odd[0]}: give {WAYS}")
    runs: dict[int | None, Items] = {}
    for file in files:
        own: dict[int | None, Items] = {}
        own |= read_predictions(file) if file.suffix == ".csv" else {None: read_items(file)}
        if len(files) > 1 and None in own:
            raise UserError(
                f"compare: {name}: {len(files)} files, and {file} does not say of which seed it is; give "
                "CSV files with a column seed, or run directories"
            )
        if twice := [seed for seed in own if seed in runs]:
            raise UserError(f"compare: {name}: two files have the seed {twice[0]}; leave one of them out")
        runs |= own
    return runs
