"""Attention at random, and its map in float64: what tests of attention are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from dcal.attention.trace import Trace


def heads(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Queries, keys or values as timm's blocks have them: heads before tokens, but tokens before heads in memory."""
    batch, head, tokens, channels = shape
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, tokens, head, channels, dtype=torch.float64, generator=generator).transpose(1, 2).to(dtype)
    )


def full_map(trace: Trace) -> Tensor:
    """The attention map in float64, (B, H, N, M)."""
    return (trace.q_BHND.double() @ trace.k_BHMD.double().mT * trace.scale).softmax(-1)
