"""Running a model over a split, one branch next to the other, for whatever evaluation follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcal.device import Device
from dcal.model import DCAL

BRANCHES = ("sa", "glca")


class Inferred(NamedTuple):
    """Everything evaluated, on the CPU, in the order of the split. Float32."""

    logits: dict[str, Tensor]
    """(items, classes) by branch."""
    features: dict[str, Tensor]
    """(items, channels) by branch."""
    labels: Tensor
    cameras: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Position of each item in the split; items that could not be read are missing."""


@torch.no_grad()
def infer(
    model: DCAL, batches: Iterable[Mapping[str, Any]], device: Device, flip: bool, features_only: bool = False
) -> Inferred:
    """Evaluates `model` on every batch.

    Args:
        flip: average the features (and the probabilities, in the log domain) over the image and its mirror image.
        features_only: leave the logits out, where the classes are not those of the training.
    """
    model.eval()
    logits: dict[str, list[Tensor]] = {}
    features: dict[str, list[Tensor]] = {}
    rows: dict[str, list[Tensor]] = {"label": [], "camera": [], "index": []}
    for batch in batches:
        images = device.normalise(batch["image"])
        side = device.side_index(batch)
        views = [images, images.flip(-1)] if flip else [images]
        with device.autocast():
            outputs = [model(view, side=side) for view in views]
        for branch in BRANCHES:
            if getattr(outputs[0], branch) is None:
                continue
            feature = torch.stack([getattr(output.features, branch).float() for output in outputs]).mean(0)
            features.setdefault(branch, []).append(feature.cpu())
            if not features_only:
                scores = torch.stack([getattr(output, branch).float().softmax(-1) for output in outputs]).mean(0)
                logits.setdefault(branch, []).append(scores.log().cpu())
        for key, values in rows.items():
            values.append(batch[key])
    join = lambda table: {branch: torch.cat(parts) for branch, parts in table.items()}  # noqa: E731
    return Inferred(join(logits), join(features), *(torch.cat(rows[key]) for key in ("label", "camera", "index")))
