"""One optimizer step on one batch: forward, loss, backward, clipping, schedule, moving average.

A batch may be split into micro-batches that follow one another (`train.accumulate`). The result is that of the whole
batch: pairs are drawn and blended images made before the split, and where the loss or BNNeck looks at the whole batch,
features are computed first, all of them, without a graph; the batch's loss is differentiated with respect to them; and
each micro-batch is computed a second time, with a graph, to carry those gradients on to the weights (Gao et al. 2021,
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

from dcal.distributed.collectives import all_gather, average_gradients, rank_and_world_size
from dcal.output import Branches
from dcal.task.objective import Losses
from dcal.training.accumulation import MicroBatch, split_batch
from dcal.training.parallel import full_state_dict, gradients_averaged
from dcal.training.state import TrainState
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
    heads_only: bool = False
    """The trunk does not learn in this step: its features are computed without a graph."""


def update(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """One optimizer step on one batch; returns for the log the detached losses, `loss` and one per branch, the shares
    of self-pairs and same-class pairs, `pairs_self` and `pairs_same_class`, and the norm of the gradients, `grad_norm`.

    Args:
        progress: share of the training that is done, in [0, 1].

    Raises:
        OutOfMemory: the message names the keys to change.
    """
    state.model.train()
    with out_of_memory_names(
        f"train.accumulate={2 * state.accumulate} (the same result in smaller pieces; train.auto_accumulate=true "
        "finds the number), train.activation_checkpointing=true, a smaller train.batch_size or dataset.image_size"
    ):
        losses = compute_gradients(state, batch, progress)
        norm = apply_gradients(state)
    return {**losses, "grad_norm": norm}


def compute_gradients(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """`differentiate`, in twice as many micro-batches whenever memory runs out, if `train.auto_accumulate` says so.

    Every attempt starts from the same random numbers and buffers. The number of micro-batches stays.
    """
    if not state.train.auto_accumulate:
        return differentiate(state, batch, progress)
    random_numbers = rng_state()
    buffers = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
    while True:
        try:
            return differentiate(state, batch, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or state.accumulate == len(batch["label"]):
                raise
        # not in the handler: there the error still holds the tensors of the attempt that failed
        state.accumulate = min(2 * state.accumulate, len(batch["label"]))
        log.warning("out of memory: from this step on every batch is split into %d micro-batches", state.accumulate)
        restore_rng_state(random_numbers)
        for name, buffer in state.model.named_buffers():
            buffer.copy_(buffers[name])
        if state.device.torch.type == "cuda":
            torch.cuda.empty_cache()


def differentiate(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """Leaves the gradients of the batch's loss in the parameters; returns what `update` does, but for their norm."""
    state.optimization.optimizer.zero_grad(set_to_none=True)
    # images and targets
    heads_only = progress < state.train.head_epochs / state.train.epochs
    whole = prepare(state, batch)._replace(heads_only=heads_only)
    # partners, drawn over the whole batch; an autocast of its own: weights that it has cast without a graph must not be
    # those of the forward pass
    with state.device.autocast():
        drawn = state.model.draw_partners(whole.images, batch["label"], progress, whole.side, state.accumulate)
    micro_batches = split_batch(
        len(whole.images), state.accumulate, drawn, state.model.pwca.stream, rank_and_world_size()
    )
    # losses and gradients
    together = state.objective.triplet_weight > 0 or state.task.bnneck
    passes = in_two_passes if together and len(micro_batches) > 1 else in_one_pass
    losses = passes(state, whole, micro_batches)
    if drawn is not None:
        losses |= {f"pairs_{kind}": share for kind, share in drawn.shares(whole.labels).items()}
    average_gradients([*state.objective.parameters(), *(p for head in state.model.heads for p in head.parameters())])
    return losses


def prepare(state: TrainState, batch: Mapping[str, Tensor]) -> Batch:
    """The loader's batch on the device, normalised and blended."""
    device = state.device
    images, labels = device.normalise(batch["image"]), batch["label"].to(device.torch, non_blocking=True)
    side = device.side_index(batch)
    if state.mixup is None:
        return Batch(images, labels, labels, side)
    blended, targets = state.mixup(images, labels)
    return Batch(blended, targets, labels, side)


def in_one_pass(state: TrainState, whole: Batch, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """For a loss that is a mean over images: each micro-batch's, by its share of the batch."""
    losses: dict[str, Tensor] = {}
    for micro in micro_batches:
        labels = whole.labels[micro.rows]
        share = len(labels) / len(whole.labels)
        with gradients_averaged(state.network, now=micro is micro_batches[-1]):
            with state.device.autocast():
                output = state.model.classify(map_branches(all_gather, features_of(state, whole, micro)))
                loss = state.objective(output, whole.targets[micro.rows], labels)
            state.scaler.scale(loss.total * share).backward()
        for name, value in named(loss).items():
            losses[name] = losses.get(name, 0.0) + value * share
    return losses


def in_two_passes(state: TrainState, whole: Batch, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """For a loss that looks at the batch as a whole: features first, gradients after."""
    random_states, pieces = [], []
    for micro in micro_batches:
        random_states.append(torch_state())
        with torch.no_grad(), state.device.autocast():
            features = features_of(state, whole, micro)
        pieces.append(map_branches(lambda branch: branch.clone().requires_grad_(), features))
    rows = torch.cat([micro.rows for micro in micro_batches])  # type: ignore[misc]  # no slices: several micro-batches
    with state.device.autocast():
        features = map_branches(lambda *branch: torch.cat([all_gather(rows) for rows in branch]), *pieces)
        output = state.model.classify(features)
        loss = state.objective(output, whole.targets[rows], whole.labels[rows])
    state.scaler.scale(loss.total).backward()
    for micro, random_state, piece in zip(micro_batches, random_states, pieces, strict=True):
        if whole.heads_only:
            break
        restore_torch_state(random_state)
        with gradients_averaged(state.network, now=micro is micro_batches[-1]):
            with state.device.autocast():
                again = [branch for branch in features_of(state, whole, micro) if branch is not None]
            leaves = [leaf for leaf in piece if leaf is not None]
            # of a frozen backbone's features nothing below learns
            learned = [(new, old.grad) for new, old in zip(again, leaves, strict=True) if new.requires_grad]
            if learned:
                torch.autograd.backward([new for new, _ in learned], [gradient for _, gradient in learned])
    return named(loss)


def features_of(state: TrainState, whole: Batch, micro: MicroBatch) -> Branches:
    """The branches' features of a micro-batch's own images."""
    side = None if whole.side is None else whole.side[micro.images]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not whole.heads_only):
        features, _ = state.features(whole.images[micro.images], micro.partners, side)
    return map_branches(lambda branch: branch[: micro.size], features)


def map_branches(function: Callable[..., Tensor], *many: Branches) -> Branches:
    """`function` of every branch that is there, over the same branch of all `many`."""
    return Branches(*(None if branch[0] is None else function(*branch) for branch in zip(*many, strict=True)))  # type: ignore[arg-type]


def named(loss: Losses) -> dict[str, Tensor]:
    """The detached losses by the names they have in the log."""
    return {name: value.detach() for name, value in {"loss": loss.total, **loss.branches}.items()}


def apply_gradients(state: TrainState) -> Tensor:
    """Clips, steps the optimizer, the schedule and the moving average; returns the gradients' norm before clipping."""
    optimizer, schedule = state.optimization
    state.scaler.unscale_(optimizer)
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    if state.train.clip_grad is not None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, state.train.clip_grad)
    else:
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
    state.scaler.step(optimizer)
    state.scaler.update()
    schedule.step()
    if state.ema is not None:
        state.ema.update(state.model, schedule.last_epoch)  # without the step timm leaves its warm-up out
    whole: Tensor = full_state_dict(norm.detach())
    return whole
