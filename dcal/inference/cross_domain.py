"""A run on data sets that it was not trained on: one figure per set, with its interval, kept with the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dcal.inference.images import check_sides, data_title, open_data
from dcal.inference.restore import Restored
from dcal.metric.interval import mean_interval
from dcal.run.digest import sha256
from dcal.run.files import read_json, write_json
from dcal.visualize.cross_table import FILE


class Cell(NamedTuple):
    """The primary metric of a run on a data set, and its 95 % interval over identities, or over images."""

    value: float
    low: float
    high: float
    items: int
    """Queries, or images."""
    data: str
    """The data set in words: its name, its folder and its splits."""


def evaluate_on(restored: Restored, dataset: Mapping[str, Any]) -> Cell:
    """Evaluates a run on the test split of a data set, with the run's own settings.

    Args:
        dataset: the data set's whole configuration.

    Raises:
        UserError, DataError: the run cannot be evaluated on these data.
    """
    data, task, train = open_data(restored, dataset), restored.task, restored.config.train
    for part in task.splits("test"):
        check_sides(restored, data.records(part))
    evaluation = task.evaluate(restored.model, data, "test", train.eval_batch_size, train.workers, restored.device)
    items = {key: value.numpy() for key, value in evaluation.items.items()}
    if "average_precision" in items:
        kept = items["valid"].astype(bool)
        outcome, groups = items["average_precision"][kept], items["label"][kept]
    else:
        outcome, groups = (items["prediction"] == items["label"]).astype(np.float64), None
    units = len(outcome) if groups is None else len(np.unique(groups))
    low, high = mean_interval(outcome, groups) if units > 1 else (np.nan, np.nan)
    value, title = evaluation.metrics[task.primary_metric], data_title(data, *task.splits("test"))
    return Cell(value, max(0.0, low), min(1.0, high), len(outcome), title)


def keep_cells(restored: Restored, found: Mapping[str, Cell]) -> None:
    """Adds cells by data set to those that are kept with the run, if they are of its last weights.

    Raises:
        UserError: the file that is kept is no JSON.
    """
    file = restored.directory / FILE
    weights = sha256(restored.weights)
    before: dict[str, Any] = read_json(file) if file.is_file() else {}
    cells = {} if before.get("weights") != weights else before["cells"]
    cells |= {name: {k: v for k, v in one._asdict().items() if v == v} for name, one in found.items()}
    content = {"weights": weights, "metric": restored.task.primary_metric, "cells": cells}
    write_json(file, content)
