"""Running a model over a split, one branch next to the other, for whatever evaluation follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcal.distributed.collectives import gather_items
from dcal.model import DCAL
from dcal.output import join_features
from dcal.utils.device import Device

BRANCHES = ("sa", "glca")


class Inferred(NamedTuple):
    """What was evaluated, on the CPU, in the order of the split. Float32."""

    logits: dict[str, Tensor]
    """(items, classes) by branch."""
    features: dict[str, Tensor]
    """(items, channels) by branch."""
    selected: Tensor | None
    """Patches that GLCA selected, (items, patches), of the image and not of its mirror image; None without GLCA."""
    labels: Tensor
    cameras: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Position of each item in the split; items that could not be read are missing."""


@torch.no_grad()
def infer_batches(
    model: DCAL, batches: Iterable[Mapping[str, Any]], device: Device, flip: bool, features_only: bool = False
) -> Iterator[Inferred]:
    """Evaluates `model` batch by batch, so that memory does not grow with their number.

    Args:
        flip: average the features (and the probabilities, in the log domain) over the image and its mirror image.
        features_only: leave the logits out, where the classes are not those of the training.
    """
    model.eval()
    for batch in batches:
        images = device.normalise(batch["image"])
        side = device.side_index(batch)
        views = [images, images.flip(-1)] if flip else [images]
        with device.autocast():
            outputs = [model(view, side=side) for view in views]
        logits: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for branch in BRANCHES:
            if getattr(outputs[0], branch) is None:
                continue
            features[branch] = torch.stack([getattr(output.features, branch).float() for output in outputs]).mean(0)
            if not features_only:
                scores = torch.stack([getattr(output, branch).float().log_softmax(-1) for output in outputs])
                logits[branch] = scores.logsumexp(0) - math.log(len(outputs))
        chosen = outputs[0].selected
        selected = None if chosen is None else chosen.cpu()
        yield Inferred(_on_cpu(logits), _on_cpu(features), selected, batch["label"], batch["camera"], batch["index"])


def infer(
    model: DCAL, batches: Iterable[Mapping[str, Any]], device: Device, flip: bool, features_only: bool = False
) -> Inferred:
    """Evaluates `model` on every batch and joins the results; arguments as of `infer_batches`.

    Of several processes each gives its own batches and gets the results of all. Random selection has random numbers of
    its own here, for each batch: an evaluation repeats, and training does not notice it.
    """

    def seeded() -> Iterator[Mapping[str, Any]]:
        for batch in batches:
            torch.manual_seed(int(batch["index"][0]))
            yield batch

    columns: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng([torch.cuda.current_device()] if device.torch.type == "cuda" else []):
        for seen in infer_batches(model, seeded(), device, flip, features_only):
            row = {"label": seen.labels, "camera": seen.cameras, "index": seen.index}
            row |= {f"logits/{branch}": value for branch, value in seen.logits.items()}
            row |= {f"features/{branch}": value for branch, value in seen.features.items()}
            if seen.selected is not None:
                row["selected"] = seen.selected
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    items = gather_items({key: torch.cat(parts) for key, parts in columns.items()}, "index")

    def by_branch(kind: str) -> dict[str, Tensor]:
        return {branch: items[f"{kind}/{branch}"] for branch in BRANCHES if f"{kind}/{branch}" in items}

    logits, features, selected = by_branch("logits"), by_branch("features"), items.get("selected")
    return Inferred(logits, features, selected, items["label"], items["camera"], items["index"])


def combined_features(features: Mapping[str, Tensor], branches: Sequence[str]) -> Tensor:
    """The features of these branches, those that the model has, as `join_features` joins them: (N, D).

    Raises:
        ValueError: the model has none of them.
    """
    return join_features(_present(features, branches))


def combined_scores(log_probabilities: Mapping[str, Tensor], branches: Sequence[str]) -> Tensor:
    """Log of the mean of these branches' probabilities, of those that the model has: (N, C).

    Raises:
        ValueError: the model has none of them.
    """
    present = _present(log_probabilities, branches)
    return torch.stack(present).logsumexp(0) - torch.tensor(float(len(present))).log()


def _present(tensors: Mapping[str, Tensor], branches: Sequence[str]) -> list[Tensor]:
    present = [tensors[branch] for branch in branches if branch in tensors]
    if not present:
        raise ValueError(f"task.inference={list(branches)}: the model has none of these branches")
    return present


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
