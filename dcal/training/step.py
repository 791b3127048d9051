"""One optimizer step on one batch: forward, loss, backward, clipping, optimizer; then schedule and moving average.

What is drawn on the CPU (partners, blended images) is drawn first, by `prepare`. The rest, `take_step`, is a function
of its `Batch` and the state, in which nothing waits for the device and all shapes are those of the batch before: so
`dcal.training.execution.graph` can record it once and repeat it without Python.

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

from dcal.attention.pairing import Partners, may_use_features
from dcal.distributed.collectives import all_gather, average_gradients, rank_and_world_size
from dcal.output import Branches
from dcal.task.objective import Losses
from dcal.training.accumulation import MicroBatch, split_batch
from dcal.training.parallel import full_state_dict, gradients_averaged
from dcal.training.state import TrainState
from dcal.utils.accelerator import empty_cache
from dcal.utils.memory import is_out_of_memory, out_of_memory_names
from dcal.utils.rng import restore_rng_state, restore_torch_state, rng_state, torch_state

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """A whole batch on the device, with all that a step reads."""

    images: Tensor
    """As they were loaded, uint8; normalised and blended if mixup is on: (B, 3, H, W)."""
    targets: Tensor
    """What the classifiers learn: labels (B,), or class probabilities (B, C) under mixup."""
    labels: Tensor
    side: Tensor | None
    """Index of the side embedding, (B,)."""
    partners: Partners | None
    """Drawn over the whole batch; None where PWCA is off, or off in this step."""
    heads_only: bool = False
    """The trunk does not learn in this step: its features are computed without a graph."""
    glca_alone: bool = False
    """Gradients of GLCA's loss stay in the branch in this step; the norm that is clipped counts them still."""


def update(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """One optimizer step on one batch; returns what `take_step` does, for the log.

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
        if state.train.auto_accumulate:
            losses = differentiate_in_memory(state, batch, progress)
            losses |= {"grad_norm": apply_gradients(state)}
        elif state.graph is not None:
            losses = state.graph(prepare(state, batch, progress))
        else:
            losses = take_step(state, prepare(state, batch, progress))
        advance(state)
    return losses


def prepare(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> Batch:
    """The loader's batch on the device, blended if mixup is on, with its partners."""
    device, model = state.device, state.model
    images, labels = (batch[key].to(device.torch, non_blocking=device.pins_memory) for key in ("image", "label"))
    targets, side = labels, device.side_index(batch)
    if state.mixup is not None:
        images, targets = state.mixup(device.normalise(images), labels)
    seen = images
    if may_use_features(model.pairing, progress) and not images.is_floating_point():
        seen = device.normalise(images)
    # an autocast of its own: weights that it has cast without a graph must not be those of the forward pass
    with device.autocast():
        partners = model.draw_partners(seen, batch["label"], progress, side, state.accumulate)
    heads_only, glca_alone = (
        progress < epochs / state.train.epochs for epochs in (state.train.head_epochs, model.glca_warmup_epochs)
    )
    return Batch(images, targets, labels, side, partners, heads_only, glca_alone)


def take_step(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """What a step computes on the device: new weights, buffers and optimizer state, in place.

    Returns:
        the detached losses, `loss` and one per branch, the shares of self-pairs and same-class pairs, `pairs_self` and
        `pairs_same_class`, and the norm of the gradients, `grad_norm`; scalars on the device.
    """
    losses = differentiate(state, batch)
    return {**losses, "grad_norm": apply_gradients(state)}


def differentiate(state: TrainState, batch: Batch) -> dict[str, Tensor]:
    """Leaves the gradients of the batch's loss in the parameters; returns what `take_step` does, but for their norm."""
    state.optimization.optimizer.zero_grad(set_to_none=True)
    whole = batch if batch.images.is_floating_point() else batch._replace(images=state.device.normalise(batch.images))
    micro_batches = split_batch(
        len(whole.images), state.accumulate, whole.partners, state.model.pwca.stream, rank_and_world_size()
    )
    # losses and gradients
    together = state.objective.triplet_weight > 0 or state.task.bnneck
    passes = in_two_passes if together and len(micro_batches) > 1 else in_one_pass
    losses = passes(state, whole, micro_batches)
    if whole.partners is not None:
        losses |= {f"pairs_{kind}": share for kind, share in whole.partners.shares(whole.labels).items()}
    average_gradients([*state.objective.parameters(), *(p for head in state.model.heads for p in head.parameters())])
    return losses


def in_one_pass(state: TrainState, whole: Batch, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """For a loss that is a mean over images: each micro-batch's, by its share of the batch."""
    losses: dict[str, Tensor] = {}
    for micro in micro_batches:
        labels = whole.labels[micro.rows]
        share = len(labels) / len(whole.labels)
        with gradients_averaged(state.model, state.features, now=micro is micro_batches[-1]):
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
        random_states.append(torch_state(state.device.torch))
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
        restore_torch_state(random_state, state.device.torch)
        with gradients_averaged(state.model, state.features, now=micro is micro_batches[-1]):
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
        features, _ = state.features(whole.images[micro.images], micro.partners, side, whole.glca_alone)
    return map_branches(lambda branch: branch[: micro.size], features)


def map_branches(function: Callable[..., Tensor], *many: Branches) -> Branches:
    """`function` of every branch that is there, over the same branch of all `many`."""
    return Branches(*(None if branch[0] is None else function(*branch) for branch in zip(*many, strict=True)))  # type: ignore[arg-type]


def named(loss: Losses) -> dict[str, Tensor]:
    """The detached losses by the names they have in the log."""
    return {name: value.detach() for name, value in {"loss": loss.total, **loss.branches}.items()}


def apply_gradients(state: TrainState) -> Tensor:
    """Clips, and steps the optimizer; returns the gradients' norm before clipping."""
    optimizer = state.optimization.optimizer
    state.scaler.unscale_(optimizer)
    parameters = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    if state.train.clip_grad is not None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, state.train.clip_grad)
    else:
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
    state.scaler.step(optimizer)
    state.scaler.update()
    whole: Tensor = full_state_dict(norm.detach())
    return whole


def advance(state: TrainState) -> None:
    """Steps the schedule and the moving average, whose factors are other numbers in every step."""
    schedule = state.optimization.schedule
    schedule.step()
    if state.ema is not None:
        state.ema.update(state.model, schedule.last_epoch)  # without the step timm leaves its warm-up out


def differentiate_in_memory(state: TrainState, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """`differentiate`, in twice as many micro-batches whenever memory runs out: `train.auto_accumulate`.

    Every attempt starts from the same random numbers and buffers. The number of micro-batches stays.
    """
    random_numbers = rng_state(state.device.torch)
    buffers = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
    while True:
        try:
            return differentiate(state, prepare(state, batch, progress))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or state.accumulate == len(batch["label"]):
                raise
        # not in the handler: there the error still holds the tensors of the attempt that failed
        state.accumulate = min(2 * state.accumulate, len(batch["label"]))
        log.warning("out of memory: from this step on every batch is split into %d micro-batches", state.accumulate)
        restore_rng_state(random_numbers, state.device.torch)
        for name, buffer in state.model.named_buffers():
            buffer.copy_(buffers[name])
        empty_cache(state.device.torch)
