"""Attention with its log-sum-exp, and the product of a row vector with an attention matrix that is never kept.

Rollout needs `r S` for the attention `S = softmax(q kᵀ s)` of a block and a vector `r`. With `lse_i` the row normaliser
that fused attention computes anyway, `(r S)_j = Σ_i r_i exp(s q_i·k_j − lse_i)`, so one pass over blocks of rows does
it with O(N) memory; without the normaliser the same pass takes the softmax of the rows in hand.

Shapes: B images, H heads, N queries, M keys, D channels per head, C rows in hand.
"""

from __future__ import annotations

import contextlib
import functools
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_BLOCK_ELEMENTS = 1 << 18
"""Attention entries per image and head that `row_times_attention` holds at once: 1 MiB in fp32, so it stays in cache."""


class Trace(NamedTuple):
    """What rollout needs of one block's attention, detached from the graph."""

    q_BHND: Tensor
    k_BHMD: Tensor
    scale: float
    lse_BHN: Tensor | None
    """Row normaliser of `softmax(q kᵀ scale)`, where the forward pass gave it."""


def attention_with_trace(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Trace]:
    """`F.scaled_dot_product_attention` (same result, same options) and the trace of its attention map.

    The map is the one before attention dropout: rollout ranks what the block would attend to, not a random draw of it.
    """
    scale = options.get("scale") or 1.0 / math.sqrt(q.shape[-1])
    if _returns_lse(q, options):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)[:2]
        return out, Trace(q.detach(), k.detach(), scale, lse.detach())
    out = F.scaled_dot_product_attention(q, k, v, **options)
    return out, Trace(q.detach(), k.detach(), scale, None)


def _returns_lse(q: Tensor, options: dict[str, Any]) -> bool:
    plain = options.get("attn_mask") is None and not options.get("dropout_p") and not options.get("is_causal")
    return (
        plain and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and _cpu_flash_works()
    )


@functools.cache
def _cpu_flash_works() -> bool:
    """Whether this torch has the private CPU kernel that returns its log-sum-exp, probed once by using it."""
    try:
        q = torch.linspace(-1.0, 1.0, 16).view(1, 1, 4, 4)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, scale=0.5)[:2]
        expected = torch.logsumexp(q @ q.mT * 0.5, -1)
        return (
            lse.shape == expected.shape and torch.allclose(lse, expected, atol=1e-5) and out.shape == q.shape
        )
    except (AttributeError, RuntimeError, TypeError):
        return False


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off; also on the meta device, on which FLOPs are counted and which knows no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def row_times_attention(r_BN: Tensor, trace: Trace, fusion: str = "mean") -> Tensor:
    """`r S̃` for the head-fused attention S̃ of one block: (B, M), in the dtype of `r`.

    Args:
        r_BN: a row vector per image, float32 or float64.
        fusion: `mean`, `max` or `min` over heads; max and min are renormalised to rows of sum 1.
    """
    total_BM = torch.zeros_like(r_BN)
    rows = max(16, ROW_BLOCK_ELEMENTS // trace.k_BHMD.shape[2])
    for start in range(0, trace.q_BHND.shape[2], rows):
        window = slice(start, start + rows)
        total_BM = total_BM + _rows_times_attention(r_BN[:, window], trace, window, fusion)
    return total_BM


def _rows_times_attention(r_BC: Tensor, trace: Trace, window: slice, fusion: str) -> Tensor:
    s_BCM = fuse_heads(attention_rows(trace, window, r_BC.dtype), fusion)
    return torch.bmm(r_BC.unsqueeze(1), s_BCM).squeeze(1)


def attention_rows(trace: Trace, window: slice, dtype: torch.dtype) -> Tensor:
    """The attention map at the query rows of `window`: (B, H, C, M) in `dtype`."""
    q, k = trace.q_BHND[:, :, window].to(dtype), trace.k_BHMD.to(dtype)
    scores = q @ k.mT * trace.scale
    if trace.lse_BHN is None:
        return scores.softmax(-1)
    return (scores - trace.lse_BHN[:, :, window, None]).exp()


def fuse_heads(s_BHCM: Tensor, fusion: str) -> Tensor:
    """One attention map from those of the heads: (B, C, M), rows of sum 1."""
    if fusion == "mean":
        return s_BHCM.mean(1)
    fused = s_BHCM.amax(1) if fusion == "max" else s_BHCM.amin(1)
    return fused / fused.sum(-1, keepdim=True)
