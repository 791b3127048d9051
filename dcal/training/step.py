"""One optimizer step on one batch: forward, loss, backward, clipping, schedule, moving average.

A batch may be split into parts that follow one another (`train.accumulate`). The result is that of the whole batch:
pairs are drawn and blended images made before the split, and where the loss or BNNeck looks at the whole batch,
features are computed first, all of them, without a graph; the batch's loss is differentiated with respect to them; and
each part is computed a second time, with a graph, to carry those gradients on to the weights (Gao et al. 2021,
"GradCache", arXiv 2101.06983). Random choices inside the model (stochastic depth, random selection) are the same both
times; they are other ones than those of the whole batch at once, from the same distribution.

Shapes: B images, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcal.distributed.collectives import average_gradients, gather, place
from dcal.output import Branches
from dcal.task.objective import Losses
from dcal.training.accumulation import Part, split_batch
from dcal.training.parallel import gradients_averaged
from dcal.training.state import Setup
from dcal.utils.memory import is_out_of_memory, out_of_memory_names
from dcal.utils.rng import restore_rng_state, restore_torch_state, rng_state, torch_state

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A whole batch on the device."""

    images: Tensor
    """Normalised, blended if mixup is on: (B, 3, H, W)."""
    targets: Tensor
    """What the classifiers learn: labels (B,), or class probabilities (B, C) under mixup."""
    labels: Tensor
    side: Tensor | None
    """Index of the side embedding, (B,)."""


def update(setup: Setup, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """One optimizer step on one batch; returns for the log the detached losses, `loss` and one per branch, and the
    shares of self-pairs and same-class pairs, `pairs_self` and `pairs_same_class`.

    Args:
        progress: share of the training that is done, in [0, 1].

    Raises:
        OutOfMemory: the message names the keys to change.
    """
    setup.model.train()
    with out_of_memory_names(
        f"train.accumulate={2 * setup.parts} (the same result in smaller parts; train.auto_accumulate=true finds the "
        "number), train.activation_checkpointing=true, a smaller train.batch_size or dataset.image_size"
    ):
        losses = compute_gradients(setup, batch, progress)
        apply_gradients(setup)
    return losses


def compute_gradients(setup: Setup, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """`differentiate`, in twice as many parts whenever memory runs out, if `train.auto_accumulate` says so.

    Every attempt starts from the same random numbers and buffers. The number of parts stays for the steps to come.
    """
    if not setup.train.auto_accumulate:
        return differentiate(setup, batch, progress)
    random_numbers = rng_state()
    buffers = {name: buffer.clone() for name, buffer in setup.model.named_buffers()}
    while True:
        try:
            return differentiate(setup, batch, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or setup.parts == len(batch["label"]):
                raise
        # not in the handler: there the error still holds the tensors of the attempt that failed
        setup.parts = min(2 * setup.parts, len(batch["label"]))
        log.warning("out of memory: from this step on every batch is split into %d parts", setup.parts)
        restore_rng_state(random_numbers)
        for name, buffer in setup.model.named_buffers():
            buffer.copy_(buffers[name])
        if setup.device.torch.type == "cuda":
            torch.cuda.empty_cache()


def differentiate(setup: Setup, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """Leaves the gradients of the batch's loss in the parameters; returns what `update` does."""
    setup.optimization.optimizer.zero_grad(set_to_none=True)
    whole = prepare(setup, batch)
    # an autocast of its own: weights that it has cast without a graph must not be those of the forward pass
    with setup.device.autocast():
        drawn = setup.model.draw_partners(whole.images, batch["label"], progress, whole.side, setup.parts)
    parts = split_batch(len(whole.images), setup.parts, drawn, setup.model.pwca.stream, place())
    together = setup.objective.triplet_weight > 0 or setup.task.bnneck
    passes = in_two_passes if together and len(parts) > 1 else in_one_pass
    losses = passes(setup, whole, parts)
    if drawn is not None:
        losses |= {f"pairs_{kind}": share for kind, share in drawn.shares(whole.labels).items()}
    average_gradients([*setup.objective.parameters(), *(p for head in setup.model.heads for p in head.parameters())])
    return losses


def prepare(setup: Setup, batch: Mapping[str, Tensor]) -> Batch:
    """The loader's batch on the device, normalised and blended."""
    device = setup.device
    images, labels = device.normalise(batch["image"]), batch["label"].to(device.torch, non_blocking=True)
    side = device.side_index(batch)
    if setup.mixup is None:
        return Batch(images, labels, labels, side)
    blended, targets = setup.mixup(images, labels)
    return Batch(blended, targets, labels, side)


def in_one_pass(setup: Setup, whole: Batch, parts: Sequence[Part]) -> dict[str, Tensor]:
    """For a loss that is a mean over images: each part's, by its share of the batch."""
    losses: dict[str, Tensor] = {}
    for part in parts:
        labels = whole.labels[part.rows]
        share = len(labels) / len(whole.labels)
        with gradients_averaged(setup.network, now=part is parts[-1]):
            with setup.device.autocast():
                output = setup.model.classify(each(gather, features_of(setup, whole, part)))
                loss = setup.objective(output, whole.targets[part.rows], labels)
            setup.scaler.scale(loss.total * share).backward()
        for name, value in named(loss).items():
            losses[name] = losses.get(name, 0.0) + value * share
    return losses


def in_two_passes(setup: Setup, whole: Batch, parts: Sequence[Part]) -> dict[str, Tensor]:
    """For a loss that looks at the batch as a whole: features first, gradients after."""
    states, pieces = [], []
    for part in parts:
        states.append(torch_state())
        with torch.no_grad(), setup.device.autocast():
            features = features_of(setup, whole, part)
        pieces.append(each(lambda branch: branch.clone().requires_grad_(), features))
    rows = torch.cat([part.rows for part in parts])  # type: ignore[misc]  # slices only where there is one part
    with setup.device.autocast():
        output = setup.model.classify(each(lambda *branch: torch.cat([gather(rows) for rows in branch]), *pieces))
        loss = setup.objective(output, whole.targets[rows], whole.labels[rows])
    setup.scaler.scale(loss.total).backward()
    for part, state, piece in zip(parts, states, pieces, strict=True):
        restore_torch_state(state)
        with gradients_averaged(setup.network, now=part is parts[-1]):
            with setup.device.autocast():
                again = [branch for branch in features_of(setup, whole, part) if branch is not None]
            torch.autograd.backward(again, [leaf.grad for leaf in piece if leaf is not None])
    return named(loss)


def features_of(setup: Setup, whole: Batch, part: Part) -> Branches:
    """The branches' features of a part's own images."""
    side = None if whole.side is None else whole.side[part.images]
    features, _ = setup.features(whole.images[part.images], part.partners, side)
    return each(lambda branch: branch[: part.size], features)


def each(function: Callable[..., Tensor], *many: Branches) -> Branches:
    """`function` of every branch that is there, over the same branch of all `many`."""
    return Branches(*(None if branch[0] is None else function(*branch) for branch in zip(*many, strict=True)))  # type: ignore[arg-type]


def named(loss: Losses) -> dict[str, Tensor]:
    """The detached losses by the names they have in the log."""
    return {name: value.detach() for name, value in {"loss": loss.total, **loss.branches}.items()}


def apply_gradients(setup: Setup) -> None:
    """Clips, steps the optimizer, the schedule and the moving average."""
    optimizer, schedule = setup.optimization
    if setup.train.clip_grad is not None:
        setup.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(setup.model.parameters(), setup.train.clip_grad)
    setup.scaler.step(optimizer)
    setup.scaler.update()
    schedule.step()
    if setup.ema is not None:
        setup.ema.update(setup.model, schedule.last_epoch)  # without the step timm leaves its warm-up out
