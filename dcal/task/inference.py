"""Running a model over a split, one branch next to the other, for whatever evaluation follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dcal.dataset.data import Loader
from dcal.distributed.collectives import gather_items
from dcal.model import DCAL
from dcal.output import join_features
from dcal.run.progress import Work
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.utils.rng import preserved_torch_state

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


class Scores(NamedTuple):
    """What a model makes of a batch, averaged over each image and its mirror image if that is asked for; float32."""

    logits: dict[str, Tensor]
    """Log-probabilities by branch, (B, C); empty where only features are wanted."""
    features: dict[str, Tensor]
    """By branch, (B, D)."""
    selected: Tensor | None
    """Patches that GLCA selected in the image itself, (B, K)."""


@torch.no_grad()
def infer_images(
    model: DCAL, images: Tensor, side: Tensor | None, device: Device, flip: bool, features_only: bool = False
) -> Scores:
    """Evaluates a batch: the one place where branches and mirror images are put together, whoever asks.

    Args:
        images: normalised, (B, 3, H, W), on the device.
        side: index of each image's side embedding, if the model has one.
        device: for its precision.
        flip: average the features (and the probabilities, in the log domain) over the image and its mirror image.
        features_only: leave the logits out, where the classes are not those of the training.
    """
    with device.autocast():
        outputs = [model(view, side=side) for view in ([images, images.flip(-1)] if flip else [images])]
    logits: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    for branch in BRANCHES:
        if getattr(outputs[0], branch) is None:
            continue
        features[branch] = torch.stack([getattr(output.features, branch).float() for output in outputs]).mean(0)
        if not features_only:
            scores = torch.stack([getattr(output, branch).float().log_softmax(-1) for output in outputs])
            logits[branch] = scores.logsumexp(0) - math.log(len(outputs))
    return Scores(logits, features, outputs[0].selected)


def infer_batches(
    model: DCAL,
    batches: Iterable[Mapping[str, Any]],
    device: Device,
    flip: bool,
    features_only: bool = False,
    first: int = 0,
) -> Iterator[Inferred]:
    """Evaluates `model` batch by batch, so that memory does not grow with their number.

    Random selection has random numbers of its own here, for each batch: an evaluation repeats, an extraction writes
    the same bytes, and training does not notice either.

    Args:
        flip, features_only: see `infer_images`.
        first: added to a batch's first index to seed it, where the batches continue an earlier computation.
    """
    model.eval()
    for batch in batches:
        with preserved_torch_state(device.torch):
            torch.manual_seed(int(batch["index"][0]) + first)
            images, side = device.normalise(batch["image"]), device.side_index(batch)
            scores = infer_images(model, images, side, device, flip, features_only)
        logits, features, selected = tree_map_only(Tensor, Tensor.cpu, scores)
        yield Inferred(logits, features, selected, batch["label"], batch["camera"], batch["index"])


def infer(model: DCAL, batches: Loader, device: Device, flip: bool, features_only: bool = False) -> Inferred:
    """Evaluates `model` on every batch and joins the results; arguments as of `infer_batches`.

    Of several processes each gives its own batches and gets the results of all.

    Raises:
        NotFinite: an image has a feature or score that is no finite number; the message counts them.
    """
    columns: dict[str, list[Tensor]] = {}
    with Work("evaluation", len(batches), "batch") as piece:
        for seen in infer_batches(model, batches, device, flip, features_only):
            row = {"label": seen.labels, "camera": seen.cameras, "index": seen.index}
            row |= {f"logits/{branch}": value for branch, value in seen.logits.items()}
            row |= {f"features/{branch}": value for branch, value in seen.features.items()}
            if seen.selected is not None:
                row["selected"] = seen.selected
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
            piece.advance(1)
    items = gather_items({key: torch.cat(parts) for key, parts in columns.items()}, "index")

    def by_branch(kind: str) -> dict[str, Tensor]:
        return {branch: items[f"{kind}/{branch}"] for branch in BRANCHES if f"{kind}/{branch}" in items}

    seen = Inferred(
        by_branch("logits"), by_branch("features"), items.get("selected"), items["label"], items["camera"],
        items["index"],
    )  # fmt: skip
    bad = int((~finite(seen)).sum())
    if bad:
        raise NotFinite(
            f"features or scores of {bad} of {len(seen.index)} images are not finite, and cannot be ranked or counted: "
            "the weights have diverged (try a smaller optimizer.lr), or train.precision is too narrow (fp32, bf16)"
        )
    return seen


class NotFinite(UserError):
    """A model's answers hold NaN or infinity; the message says for how many images."""


def finite(seen: Inferred | Scores) -> Tensor:
    """Whether all features of an image are finite and none of its scores is NaN: bool (items,).

    A log-probability may be -inf, that of a class which the model rules out.
    """
    features_N = [value.isfinite().all(1) for value in seen.features.values()]
    scores_N = [~value.isnan().any(1) for value in seen.logits.values()]
    return torch.stack([*features_N, *scores_N]).all(0)


def combined_features(features: Mapping[str, Tensor], branches: Sequence[str]) -> Tensor:
    """The features of these branches, those that the model has, as `join_features` joins them: (N, D).

    Raises:
        UserError: the model has none of them.
    """
    return join_features(_present(features, branches))


def combined_scores(log_probabilities: Mapping[str, Tensor], branches: Sequence[str]) -> Tensor:
    """Log of the mean of these branches' probabilities, of those that the model has: (N, C).

    Raises:
        UserError: the model has none of them.
    """
    present = _present(log_probabilities, branches)
    return torch.stack(present).logsumexp(0) - torch.tensor(float(len(present))).log()


def _present(tensors: Mapping[str, Tensor], branches: Sequence[str]) -> list[Tensor]:
    present = [tensors[branch] for branch in branches if branch in tensors]
    if not present:
        raise UserError(f"task.inference={list(branches)}: the model has none of these branches")
    return present
