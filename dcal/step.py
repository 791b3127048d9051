"""One optimizer step on one batch: forward, loss, backward, clipping, schedule, moving average."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dcal.setup import Setup


def update(setup: Setup, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """One optimizer step on one batch; returns the detached losses: `loss` and one per branch.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    model, device, parts = setup.model, setup.device, setup.train.accumulate
    model.train()
    setup.optimization.optimizer.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    for part in split(batch, parts):
        images, labels = device.normalise(part["image"]), part["label"]
        targets = labels.to(device.torch, non_blocking=True)
        if setup.mixup is not None:
            images, targets = setup.mixup(images, targets)
        side = device.side_index(part)
        with device.autocast():
            partners = model.draw_partners(images, labels, progress, side)
            output = model(images, partners=partners, side=side)
            loss = setup.objective(output, targets, labels.to(device.torch, non_blocking=True))
        setup.scaler.scale(loss.total / parts).backward()
        for name, value in {"loss": loss.total, **loss.branches}.items():
            losses[name] = losses.get(name, 0.0) + value.detach() / parts
    apply_gradients(setup)
    return losses


def split(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """The batch in `parts` equal pieces along its first dimension."""
    if parts == 1:
        return [dict(batch)]
    pieces = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: value[number] for key, value in pieces.items()} for number in range(parts)]


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
        setup.ema.update(setup.model)
