"""Pictures of a run: what the model looked at, and whether it was right."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcal.attention.rollout import AttentionRollout
from dcal.device import Device
from dcal.model import DCAL

matplotlib.use("Agg")  # no display on a training machine
EXAMPLES = 6


@torch.no_grad()
def look(model: DCAL, images: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """Where the model looks: the class token's rollout over the patches, and the patches GLCA selects.

    Args:
        images: uint8 (B, 3, H, W).

    Returns:
        rollout (B, h, w) summing to at most 1, and bool (B, h, w); on the CPU.
    """
    model.eval()
    with AttentionRollout(model.vit) as rollout, device.autocast():
        normalised = device.normalise(images)
        model.vit(normalised)
    grid = tuple(model.vit.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
    attention = rollout.cls_attention()
    with device.autocast():
        selected = model(normalised).selected
    mask = torch.zeros_like(attention, dtype=torch.bool)
    if selected is not None:
        mask = mask.scatter(1, selected, True)
    return attention.view(-1, *grid).cpu(), mask.view(-1, *grid).cpu()


def draw_examples(setup: Any, evaluation: Any, run: Any, tracker: Any) -> None:
    pass
