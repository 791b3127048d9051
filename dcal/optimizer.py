"""Optimizer and learning-rate schedule of a model, through timm's factory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dcal.utils.errors import UserError, check_number

log = logging.getLogger(__name__)
FUSED_ON = ("cuda", "mps", "xpu")
"""Types of devices for which torch has fused kernels of these optimizers, since 2.6."""


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
    head_steps: int = 0,
    *,
    opt: str,
    lr: float,
    lr_batch_size: int | None,
    weight_decay: float,
    momentum: float,
    bias_lr_scale: float,
    new_lr_scale: float,
    schedule: Mapping[str, float],
    layer_decay: float = 1.0,
) -> Optimization:
    """Builds the optimizer over the model and the learned loss weights, and its schedule per step.

    Vectors (biases, norms), tokens, position embeddings and the loss weights are not weight-decayed. Parameters that
    need no gradient are left out.

    Args:
        model: with the backbone as `vit`.
        objective: holds the learned loss weights.
        new_parameters: names of the model's parameters that get `lr · new_lr_scale`.
        total_steps: of the run, `head_steps` included.
        steps_per_epoch: of the optimizer.
        batch_size: images per optimizer step over all processes; scales `lr` where `lr_batch_size` is given.
        head_steps: steps at the full rate before the schedule begins: those in which heads learn alone.
        opt: an optimizer of timm.
        lr: the highest learning rate.
        lr_batch_size: the batch size that `lr` is for; None uses `lr` unscaled.
        weight_decay: of matrices.
        momentum: of SGD; the first beta of Adam.
        bias_lr_scale: factor of the learning rate of biases.
        new_lr_scale: factor of the learning rate of `new_parameters`.
        schedule: `warmup_epochs`, `warmup_lr_ratio`, `final_lr_ratio`. A warm-up that is not shorter than the
            schedule takes half of it, with a warning.
        layer_decay: factor of the learning rate from each layer of the backbone to the one below, see `layer_scales`.

    Raises:
        UserError: a setting out of its range or unknown; the message names its key.
    """
    check_number("optimizer.lr", lr, gt=0)
    check_number("optimizer.lr_batch_size", lr_batch_size, ge=1, note="null uses optimizer.lr unscaled")
    check_number("optimizer.momentum", momentum, ge=0, lt=1)
    check_number("optimizer.layer_decay", layer_decay, gt=0, le=1, note="1 switches it off")
    shares = {"weight_decay": weight_decay, "bias_lr_scale": bias_lr_scale, "new_lr_scale": new_lr_scale}
    for key, value in {**shares, **{f"schedule.{name}": value for name, value in schedule.items()}}.items():
        check_number(f"optimizer.{key}", value, ge=0)
    base_lr = lr if lr_batch_size is None else lr * batch_size / lr_batch_size
    skip = set(getattr(model.vit, "no_weight_decay", lambda: set())())
    depth_scale = layer_scales(model, layer_decay) if layer_decay < 1.0 else {}
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    loss_weights = set(objective.parameters())  # a group of their own: FSDP shards the model's parameters only
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if not parameter.requires_grad:
            continue
        is_bias, is_new = name.endswith(".bias"), name in new_parameters
        plain = parameter.ndim <= 1 or name.removeprefix("vit.") in skip or name == "side"
        scale = (bias_lr_scale if is_bias else 1.0) * (new_lr_scale if is_new else depth_scale.get(name, 1.0))
        decay = 0.0 if plain else weight_decay
        kind = (scale, decay, parameter in loss_weights)
        group = groups.setdefault(kind, {"params": [], "lr": base_lr * scale, "weight_decay": decay})
        group["params"].append(parameter)
    try:
        optimizer = create_optimizer_v2(
            list(groups.values()), opt=opt, lr=base_lr, weight_decay=weight_decay, momentum=momentum
        )
    except (ValueError, AssertionError) as error:
        raise UserError(f"optimizer.opt={opt!r}: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise UserError(f"optimizer.opt={opt!r}: needs second derivatives, which a step here does not compute")
    fuse(optimizer)
    return Optimization(optimizer, _schedule(optimizer, schedule, total_steps, steps_per_epoch, head_steps))


def fuse(optimizer: Optimizer) -> None:
    """Has the step computed by one kernel, where the optimizer has one for the device of its parameters.

    Not on the CPU, whose kernel rounds otherwise than the one that runs so far were trained with, and saves nothing.
    """
    for group in optimizer.param_groups if isinstance(optimizer, Adam | AdamW | SGD) else ():
        if isinstance(optimizer, SGD) and any(isinstance(parameter, DTensor) for parameter in group["params"]):
            continue  # torch has no rule that shards this kernel
        group["fused"] = all(parameter.device.type in FUSED_ON for parameter in group["params"])
    if isinstance(optimizer, SGD):
        optimizer.register_step_pre_hook(begin_momentum)


def begin_momentum(optimizer: Optimizer, *_: Any) -> None:
    """Gives a parameter that has its first gradient later than others of its group a momentum of 0.

    torch's fused kernel takes a momentum of all parameters of a group or of none; the others begin so by themselves.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """The learning rate of each pre-trained parameter relative to the heads', by its name (BEiT, arXiv 2106.08254).

    The layers are those of timm's `group_matcher`: embeddings, each block (the last one with the final norm), and the
    classifier, which has the factor 1. The last block has the factor `decay`, the one before it `decay` squared, and so
    on down to the embeddings. GLCA's blocks, norm and attention pool are copies of the backbone's and have the factors
    of these.

    Args:
        model: with the backbone as `vit` and perhaps a branch `glca`.
        decay: in (0, 1].
    """
    vit: Any = model.vit
    layers = group_parameters(vit, vit.group_matcher(coarse=False), reverse=True)
    classifier = 1 + max(layer for name, layer in layers.items() if name.startswith("blocks."))
    scales = {f"vit.{name}": decay ** (classifier - layer) for name, layer in layers.items()}
    glca = getattr(model, "glca", None)
    if glca is None:
        return scales
    first = len(vit.blocks) - len(glca.blocks)
    norm = "norm" if "vit.norm.weight" in scales else "fc_norm"
    for name, _ in glca.named_parameters():
        part, _, rest = name.partition(".")
        if part == "blocks":
            # by the block's norm: around its other layers the backbone may have adapters
            scales[f"glca.{name}"] = scales[f"vit.blocks.{first + int(rest.partition('.')[0])}.norm1.weight"]
        else:
            scales[f"glca.{name}"] = scales[f"vit.{norm if part == 'norm' else part}.{rest}"]
    return scales


def _schedule(
    optimizer: Optimizer, schedule: Mapping[str, float], total_steps: int, steps_per_epoch: int, head_steps: int
) -> LambdaLR:
    """Full rate for `head_steps`, then linear warm-up and cosine over the other steps."""
    warmup_steps = round(schedule["warmup_epochs"] * steps_per_epoch)
    left = total_steps - head_steps
    if warmup_steps >= left > 1:
        warmup_steps = left // 2
        log.warning(
            "optimizer.schedule.warmup_epochs=%g is not below the %g epochs of its schedule: the warm-up takes half of "
            "them",
            schedule["warmup_epochs"],
            left / steps_per_epoch,
        )

    def factor(step: int) -> float:
        step -= head_steps
        if step < 0:
            return 1.0
        if step < warmup_steps:
            first = schedule["warmup_lr_ratio"]
            return first + (1.0 - first) * step / warmup_steps
        progress = (step - warmup_steps) / max(1, left - warmup_steps)
        last = schedule["final_lr_ratio"]
        return last + (1.0 - last) * (1.0 + math.cos(math.pi * min(1.0, progress))) / 2

    return LambdaLR(optimizer, factor)
