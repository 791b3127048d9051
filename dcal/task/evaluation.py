"""What an evaluation gives back, for either task; and what those of several data sets come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcal.dataset.data import Data
from dcal.dataset.joint import Joint
from dcal.distributed.env import rank_zero_only
from dcal.run.files import atomic_write
from dcal.run.result import COUNTS

PER_CLASS = "top1_macro"
"""Beginning of the metrics that are means over classes."""
OF_ANNOTATED = ("part_hit", "pointing")
"""Beginnings of metrics over those images alone that are annotated: each member keeps its own."""
POSITIONS = {"index": 0, "nearest": -1}
"""Items that are positions in the first, or in the last, of the splits that an evaluation reads."""


class Evaluation(NamedTuple):
    """The metrics of a split, and what each item did."""

    metrics: dict[str, float]
    items: dict[str, Tensor]
    """One row per item: predictions (fgvc), or average precision and rank of the first match (reid)."""
    names: Sequence[str] = ()
    """Of the items, see `Data.names`: by them other programs' predictions are paired with these."""
    reliability: dict[str, Any] | None = None
    """Of `classifier_reliability` or `verification` in `dcal.metric.decision`; None where it was not asked for."""

    @rank_zero_only
    def save(self, path: Path) -> None:
        """Writes the items as .npz (no pickle), for paired tests between runs."""
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in self.items.items()}
        if self.names:
            arrays["name"] = np.array(self.names)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)


def pool(data: Data, found: Mapping[str, Evaluation], splits: Sequence[str]) -> Evaluation:
    """The evaluation of joint data.

    A metric is the mean over the test images, or the queries, of all members, and so the mean of the items, for which
    intervals and paired tests hold: a large member counts for more. `MEMBER/METRIC` is that of one member.

    Args:
        data: the joint data.
        found: the evaluation of each member.
        splits: that an evaluation reads.
    """
    assert isinstance(data, Joint)
    first = next(iter(found.values()))
    metrics: dict[str, float] = {}
    for key in first.metrics:
        if key.startswith(OF_ANNOTATED) or not all(key in own.metrics for own in found.values()):
            continue
        values = [own.metrics[key] for own in found.values()]
        weights = [1.0 if key in COUNTS else weight(own, key) for own in found.values()]
        total = sum(value * weight for value, weight in zip(values, weights, strict=True))
        metrics[key] = total if key in COUNTS else total / sum(weights)
    metrics |= {f"{name}/{key}": value for name, own in found.items() for key, value in own.metrics.items()}
    starts = {key: data.starts(splits[position]) for key, position in POSITIONS.items()}
    items = {}
    for key in first.items:
        parts = [own.items[key] + starts[key][name] if key in starts else own.items[key] for name, own in found.items()]
        if parts[0].ndim == 2:  # lists of what is nearest, which are as short as a small gallery
            length = min(part.shape[1] for part in parts)
            parts = [part[:, :length] for part in parts]
        items[key] = torch.cat(parts)
    return Evaluation(metrics, items, [f"{name}/{one}" for name, own in found.items() for one in own.names])


def weight(evaluation: Evaluation, metric: str) -> float:
    """Over how many items or classes a metric of a member is a mean."""
    items = evaluation.items
    if metric.startswith(PER_CLASS):
        return float(len(items["label"].unique()))
    return float(items["valid"].sum()) if "valid" in items else float(len(items["label"]))
