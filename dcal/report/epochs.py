"""What a run has logged by epoch: its curve, and how fast it was."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def renamed(lines: Iterable[Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    """The lines with evaluations under the name of their split: older runs called all `val/`, also of the test split.

    Args:
        split: that the run was judged on.
    """
    return [{re.sub("^val/", f"{split}/", key): value for key, value in line.items()} for line in lines]


def speed(lines: list[dict[str, Any]], batch_size: int) -> dict[str, float]:
    """Seconds of training over all sessions, without evaluation, and images per second: an epoch's median.

    A speed of 0 is none: older versions forgot it when a run was stopped in the evaluation and resumed.
    """
    steps = [0, *(line["step"] for line in lines)]
    rates = [line["train/images_per_second"] for line in lines]
    images = [(after - before) * batch_size for before, after in itertools.pairwise(steps)]
    measured = [rate for rate in rates if rate]
    if not measured:
        raise KeyError("train/images_per_second")
    usual = statistics.median(measured)
    seconds = sum(number / (rate or usual) for number, rate in zip(images, rates, strict=True))
    return {"train_seconds": round(seconds, 1), "images_per_second": round(usual, 1)}


def curve(lines: list[dict[str, Any]], primary_metric: str) -> dict[str, list[float | None]]:
    """By epoch: losses and their weights, and the primary metric where it was evaluated.

    Args:
        primary_metric: with its split: `test/top1`.
    """
    keys = sorted({key for line in lines for key in line if key.startswith(("train/loss", "train/weight"))})
    if "train/loss_glca" not in keys and "train/loss_pwca" not in keys:
        keys = ["train/loss"]  # a single branch: nothing to weigh
    values = {
        key: [None if (value := line.get(key)) is None else round(value, 4) for line in lines]
        for key in [*keys, primary_metric]
    }
    return {"epoch": [line["epoch"] for line in lines], **values}
