"""Predictions as a CSV file: what another program needs to write for its model to be compared with a run.

    item,label,prediction                           classification
    016.Painted_Bunting/a.jpg,Bunting,Finch

    item,label,Bunting,Finch                        the same by a score for each class, of which the largest counts
    016.Painted_Bunting/a.jpg,Bunting,0.3,1.7

    item,label,average_precision,first_rank         re-identification: one line a query; first_rank may be left out
    query/0002_c1s1_000451_03.jpg,2,0.83,1

Lines may come in any order. Two more columns are optional: `seed`, where the file holds several runs, and `group`:
items with the same one are no independent observations (in re-identification it is the label, unless given).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcal.report.items import Array, Items
from dcal.run.files import atomic_write
from dcal.utils.errors import UserError

if TYPE_CHECKING:  # comparing takes no torch
    from dcal.task.evaluation import Evaluation

COLUMNS = ("item", "label", "seed", "group", "prediction", "average_precision", "first_rank")


def read_predictions(path: Path) -> dict[int | None, Items]:
    """The items of a CSV file by seed; by None where it has no column `seed`.

    Raises:
        UserError: the file cannot be read, or is none that this module describes; the message names the line.
    """
    table = read_columns(path)
    for needed in ("item", "label"):
        if needed not in table:
            raise UserError(f"{path}: no column {needed}; its columns are {', '.join(table)}, separated by commas")
    task, outcomes = judge(path, table)
    groups = table.get("group", table["label"] if task == "reid" else None)
    items = Items(task, None, table["item"], table["label"], groups, outcomes)
    if "seed" not in table:
        return {None: items}
    seeds = numbers(path, "seed", table["seed"])
    return {int(seed): items.take(np.flatnonzero(seeds == seed)) for seed in np.unique(seeds)}


def read_columns(path: Path) -> dict[str, Array]:
    """The cells of a CSV file by column, as text."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            names, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    header = [name.strip() for name in names]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} cells in {len(header)} columns")
    if not rows or len(set(header)) < len(header):
        raise UserError(f"{path}: {'two columns have the same name' if rows else 'no line below its header'}")
    return {name: np.array(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def judge(path: Path, table: Mapping[str, Array]) -> tuple[str, dict[str, Array]]:
    """The task of a table of predictions and what each item came to, by metric."""
    labels = table["label"]
    if "average_precision" in table:
        found = {"mAP": numbers(path, "average_precision", table["average_precision"])}
        outside = np.flatnonzero((found["mAP"] < 0) | (found["mAP"] > 1))
        if len(outside):
            raise UserError(f"{path}, line {outside[0] + 2}: average_precision must be between 0 and 1")
        if "first_rank" in table:
            found["rank1"] = numbers(path, "first_rank", table["first_rank"]) == 1
        return "reid", found
    if "prediction" in table:
        return "fgvc", {"top1": table["prediction"] == labels}
    classes = [name for name in table if name not in COLUMNS]
    if not classes:
        raise UserError(f"{path}: needs a column prediction, a column for each class, or average_precision")
    foreign = np.flatnonzero(~np.isin(labels, classes))
    if len(foreign):
        raise UserError(
            f"{path}, line {foreign[0] + 2}: there is no column of scores for its label {labels[foreign[0]]}"
        )
    scores = np.stack([numbers(path, name, table[name]) for name in classes], axis=1)
    return "fgvc", {"top1": np.array(classes)[scores.argmax(1)] == labels}


def numbers(path: Path, name: str, cells: Array) -> Array:
    """The cells of a column as float64; whole ones in the columns that count."""
    for line, cell in enumerate(cells, 2):
        try:
            value = float(cell)
        except ValueError:
            value = np.nan
        if not np.isfinite(value) or (name in ("seed", "first_rank") and value != int(value)):
            kind = "a whole number" if name in ("seed", "first_rank") else "a number"
            raise UserError(f"{path}, line {line}: {name} is {cell or 'empty'}, and must be {kind}")
    return cells.astype(np.float64)


def write_predictions(evaluation: Evaluation, path: Path, class_names: Sequence[str]) -> None:
    """Writes the items of an evaluation, in classification with the names of their classes."""
    items: dict[str, Any] = {key: value.tolist() for key, value in evaluation.items.items()}
    if "average_precision" in items:
        header = ["item", "label", "average_precision", "first_rank"]
        every = zip(evaluation.names, *(items[key] for key in (*header[1:], "valid")), strict=True)
        rows = [row[:-1] for row in every if row[-1]]  # queries without a match count nowhere
    else:
        header = ["item", "label", "prediction"]
        classes = ([class_names[number] for number in items[key]] for key in header[1:])
        rows = list(zip(evaluation.names, *classes, strict=True))
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
