"""Attention with what rollout needs of it, and a row vector times an attention matrix that is never kept.

Rollout needs `r S` for the attention `S = softmax(q kᵀ s)` of a block and a vector `r`. With `lse_i` the row
normaliser, which fused attention computes anyway, `(r S)_j = Σ_i 2^(log₂e·(s q_i·k_j − lse_i) + log₂ r_i)`: a
matrix product, `exp2` and a sum over rows do it in blocks of rows, with O(N) memory. (`exp2`, because torch's
is 2.7 times as fast as its `exp` on AVX-512.) Without the normaliser the rows in hand go through a softmax.

Shapes: B images, H heads, G = B·H, N queries, M keys, D channels per head, C rows in hand.
"""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dcal.attention.cpu_kernels import CACHE_BLOCK, AttentionByRows, Tiles
from dcal.attention.timm_blocks import Attend

LOG2_E = math.log2(math.e)


class Trace(NamedTuple):
    """What rollout needs of one block's attention, detached from the graph."""

    q_BHND: Tensor
    k_BHMD: Tensor
    scale: float
    lse_BHN: Tensor | None
    """Row normaliser of `softmax(q kᵀ scale)`, where the forward pass gave it."""

    def of_images(self, count: int, own: bool = False) -> Trace:
        """The trace of the first `count` images; `own`: copied, so that it keeps no larger tensor alive."""
        q, k = self.q_BHND[:count], self.k_BHMD[:count]
        lse = None if self.lse_BHN is None else self.lse_BHN[:count]
        return Trace(q.clone(), k.clone(), self.scale, lse) if own else Trace(q, k, self.scale, lse)


def attention_with_trace(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Trace]:
    """`F.scaled_dot_product_attention` (same options; autocast too) and the trace of its attention map.

    The map is the one before attention dropout: rollout ranks what the block would attend to, not a draw of
    it.
    """
    scale = options.get("scale") or 1.0 / math.sqrt(q.shape[-1])
    q, k, v = (_as_autocast(t) for t in (q, k, v))
    plain = options.get("attn_mask") is None and not options.get("dropout_p") and not options.get("is_causal")
    # an exported graph is to run anywhere, so nothing of this machine may be in it
    if plain and q.device.type == "cpu" and not torch.compiler.is_exporting():
        if q.dtype in (torch.float32, torch.float64) and CPU_FLASH:
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)[:2]
            return out, Trace(q.detach(), k.detach(), scale, lse.detach())
        if q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            return AttentionByRows.apply(q, k, v, scale), Trace(q.detach(), k.detach(), scale, None)
    out = F.scaled_dot_product_attention(q, k, v, **options)
    return out, Trace(q.detach(), k.detach(), scale, None)


def record(traces: list[Trace]) -> Attend:
    """Attention that leaves its trace in `traces`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        out, trace = attention_with_trace(q, k, v, **options)
        traces.append(trace)
        return out

    return attend


def _as_autocast(t: Tensor) -> Tensor:
    """What autocast does to the arguments of fused attention; the functions used in its place are not on its list."""
    if t.dtype == torch.float32 and _autocast_is_on(t.device):
        return t.to(torch.get_autocast_dtype(t.device.type))
    return t


def _autocast_is_on(device: torch.device) -> bool:
    """Whether autocast is on; never on the meta device, on which FLOPs are counted and which knows no autocast.

    `torch.amp.is_autocast_available` would say that, but torch before 2.12 cannot compile a call of it.
    """
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _cpu_flash_works() -> bool:
    """Whether this torch has the private CPU kernel that returns its log-sum-exp, found out by using it."""
    try:
        q = torch.linspace(-1.0, 1.0, 16).view(1, 1, 4, 4)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, scale=0.5)[:2]
        expected = torch.logsumexp(q @ q.mT * 0.5, -1)
        return lse.shape == expected.shape and out.shape == q.shape and torch.allclose(lse, expected, atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


CPU_FLASH = _cpu_flash_works()  # at import: inside a compiled function the probe would be traced


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`F.scaled_dot_product_attention`, by the fastest way there is for the device and precision."""
    return attention_with_trace(q, k, v, **options)[0]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32.

    `torch.promote_types` says the same, but torch 2.8 writes its call into an exported graph and cannot read it back.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off."""
    return torch.autocast(device.type, enabled=False) if _autocast_is_on(device) else contextlib.nullcontext()


def row_times_attention(r_BN: Tensor, trace: Trace, fusion: str = "mean") -> Tensor:
    """`r S̃` for the head-fused attention S̃ of one block: (B, M), in the dtype of `r`.

    Args:
        r_BN: a non-negative row vector per image, float32 or float64.
        fusion: `mean`, `max` or `min` over heads; max and min are renormalised to rows of sum 1.
    """
    if fusion != "mean":
        return _row_times_extreme(r_BN, trace, fusion)
    if torch.compiler.is_exporting():  # the loop over blocks counts maps, and would fix the batch size of the graph
        return (r_BN[:, None, None] @ attention_rows(trace, slice(None), r_BN.dtype)).squeeze(2).mean(1)
    batch, heads = trace.q_BHND.shape[:2]
    product = _product_by_normaliser if trace.lse_BHN is not None else _product_by_softmax
    return product(r_BN, trace).view(batch, heads, -1).mean(1)


def _product_by_normaliser(r_BN: Tensor, trace: Trace) -> Tensor:
    """`r S` of every head, (G, M), from the row normalisers."""
    assert trace.lse_BHN is not None
    # what depends on the row alone is one more channel of q, against a one in k
    bias_BHN = r_BN.log2().unsqueeze(1) - trace.lse_BHN * LOG2_E
    q = torch.cat([trace.q_BHND * (trace.scale * LOG2_E), bias_BHN.unsqueeze(-1)], dim=-1)
    q_GND, k_GMD = q.flatten(0, 1), F.pad(trace.k_BHMD, (0, 1), value=1.0).flatten(0, 1)
    total_GM = torch.zeros_like(k_GMD[..., 0])
    blocks = Tiles(q_GND, k_GMD)
    memory = blocks.memory(q.dtype)
    for block in blocks:
        total_GM[block[0]] += blocks.scores(memory, block, 1.0).exp2_().sum(1)
    return total_GM


def _product_by_softmax(r_BN: Tensor, trace: Trace) -> Tensor:
    """`r S` of every head, (G, M), by the softmax of the rows in hand; scores in the precision of q and k."""
    q_GND, k_GMD = trace.q_BHND.flatten(0, 1), trace.k_BHMD.flatten(0, 1)
    r_G1N = r_BN.repeat_interleave(trace.q_BHND.shape[1], dim=0).unsqueeze(1)
    total_GM = torch.zeros_like(k_GMD[..., 0], dtype=r_BN.dtype)
    blocks = Tiles(q_GND, k_GMD)
    memory, wide = blocks.memory(q_GND.dtype), blocks.memory(r_BN.dtype)
    for block in blocks:
        scores = blocks.scores(memory, block, trace.scale)
        s_GCM = torch.softmax(scores, -1, dtype=r_BN.dtype, out=blocks.view(wide, block))
        total_GM[block[0]] += torch.bmm(r_G1N[block[0], :, block[1]], s_GCM).squeeze(1)
    return total_GM


def _row_times_extreme(r_BN: Tensor, trace: Trace, fusion: str) -> Tensor:
    """`r S̃` for the largest or smallest attention over heads, (B, M): needs the rows of all heads side by side."""
    total_BM = torch.zeros_like(trace.k_BHMD[:, 0, :, 0], dtype=r_BN.dtype)
    rows = max(16, CACHE_BLOCK // trace.k_BHMD.shape[2])
    for start in range(0, trace.q_BHND.shape[2], rows):
        window = slice(start, start + rows)
        s_BCM = fuse_heads(attention_rows(trace, window, r_BN.dtype), fusion)
        total_BM += torch.bmm(r_BN[:, window].unsqueeze(1), s_BCM).squeeze(1)
    return total_BM


def attention_rows(trace: Trace, window: slice, dtype: torch.dtype) -> Tensor:
    """The attention map at the query rows of `window`: (B, H, C, M) in `dtype`."""
    q, k = trace.q_BHND[:, :, window].to(dtype), trace.k_BHMD.to(dtype)
    return (q * trace.scale @ k.mT).softmax(-1)


def fuse_heads(s_BHCM: Tensor, fusion: str) -> Tensor:
    """One attention map from those of the heads: (B, C, M), rows of sum 1."""
    if fusion == "mean":
        return s_BHCM.mean(1)
    fused = s_BHCM.amax(1) if fusion == "max" else s_BHCM.amin(1)
    return fused / fused.sum(-1, keepdim=True)
