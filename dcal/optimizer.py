"""Optimizer and learning-rate schedule of a model, through timm's factory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)


class Optimization(NamedTuple):
    """An optimizer and the schedule that is stepped after it."""

    optimizer: Optimizer
    schedule: LambdaLR


def create_optimization(
    model: nn.Module,
    objective: nn.Module,
    new_parameters: set[str],
    total_steps: int,
    steps_per_epoch: int,
    batch_size: int,
    *,
    opt: str,
    lr: float,
    lr_batch_size: int | None,
    weight_decay: float,
    momentum: float,
    bias_lr_scale: float,
    new_lr_scale: float,
    schedule: Mapping[str, float],
) -> Optimization:
    """Builds the optimizer over the model and the learned loss weights, and its schedule per step.

    Vectors (biases, norms), tokens, position embeddings and the loss weights are not weight-decayed.

    Args:
        objective: holds the learned loss weights.
        new_parameters: names of the model's parameters that get `lr · new_lr_scale`.
        batch_size: images per optimizer step over all processes; scales `lr` where `lr_batch_size` is given.
        schedule: `warmup_epochs`, `warmup_lr_ratio`, `final_lr_ratio`. A warm-up that is not shorter than the run
            takes half of it, with a warning.

    Raises:
        ValueError: a negative or unknown setting; the message names its key.
    """
    if lr <= 0:
        raise ValueError(f"optimizer.lr={lr}: must be positive")
    base_lr = lr if lr_batch_size is None else lr * batch_size / lr_batch_size
    skip = set(getattr(model.vit, "no_weight_decay", lambda: set())())
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    loss_weights = set(objective.parameters())  # a group of their own: FSDP shards the model's parameters only
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if not parameter.requires_grad:
            continue
        is_bias, is_new = name.endswith(".bias"), name in new_parameters
        plain = parameter.ndim <= 1 or name.removeprefix("vit.") in skip or name == "side"
        scale = (bias_lr_scale if is_bias else 1.0) * (new_lr_scale if is_new else 1.0)
        decay = 0.0 if plain else weight_decay
        kind = (scale, decay, parameter in loss_weights)
        group = groups.setdefault(kind, {"params": [], "lr": base_lr * scale, "weight_decay": decay})
        group["params"].append(parameter)
    try:
        optimizer = create_optimizer_v2(
            list(groups.values()), opt=opt, lr=base_lr, weight_decay=weight_decay, momentum=momentum
        )
    except (ValueError, AssertionError) as error:
        raise ValueError(f"optimizer.opt={opt!r}: {error}") from error
    warmup_steps = round(schedule["warmup_epochs"] * steps_per_epoch)
    if warmup_steps >= total_steps > 1:
        warmup_steps = total_steps // 2
        log.warning(
            "optimizer.schedule.warmup_epochs=%g is not below the length of the run, %g epochs: the warm-up takes half "
            "of it",
            schedule["warmup_epochs"],
            total_steps / steps_per_epoch,
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            first = schedule["warmup_lr_ratio"]
            return first + (1.0 - first) * step / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        last = schedule["final_lr_ratio"]
        return last + (1.0 - last) * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2

    return Optimization(optimizer, LambdaLR(optimizer, factor))
