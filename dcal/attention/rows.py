"""Running a transformer block at some of its rows against the keys and values of all tokens.

Queries, LayerNorm, projection and FFN of a block are row-wise; only keys and values are global. So a block
can be evaluated exactly at the rows that are read: GLCA at the prefix and the selected patches, the last SA
and PWCA block at the prefix alone.

Shapes: B images, N tokens (prefix first), R rows, H heads, D channels (of a token, or of a head after an H).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from dcal.attention.timm_blocks import Attend, intercept
from dcal.attention.trace import Trace, attention, record


def run_block(block: nn.Module, x_BND: Tensor, rope: Tensor | None) -> Tensor:
    """The block as timm runs it; `rope` is None where the family has no rotary embedding."""
    return block(x_BND) if rope is None else block(x_BND, rope=rope)


def run_rows(
    block: nn.Module,
    rows_BRD: Tensor,
    keys_values: tuple[Tensor, Tensor],
    rope: Tensor | None = None,
    attend: Attend = attention,
) -> Tensor:
    """Evaluates `block` at `rows_BRD` while its attention sees `keys_values` instead of the rows' own.

    The rows must begin with all prefix tokens, because rotary embedding skips that many rows.

    Args:
        rows_BRD: the block's input at the wanted rows.
        keys_values: from `project_keys_values`, each (B, H, N, D).
        rope: rotary embedding of the patch rows, from `rope_rows`.
    """
    k_BHND, v_BHND = keys_values

    def attend_globally(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        return attend(q, k_BHND, v_BHND, **options)

    with intercept(attend_globally):
        return run_block(block, rows_BRD, rope)


def run_prefix(block: nn.Module, x_BND: Tensor, rope: Tensor | None, prefix_only: int | None, attend: Attend) -> Tensor:
    """The whole block, or that many rows from the first on, with `attend` as its attention."""
    if prefix_only is not None:
        keys_values = project_keys_values(block, x_BND, rope)
        return run_rows(block, x_BND[:, :prefix_only], keys_values, rope_rows(rope, None), attend)
    with intercept(attend):
        return run_block(block, x_BND, rope)


def run_traced(
    block: nn.Module, x_BND: Tensor, rope: Tensor | None = None, prefix_only: int | None = None
) -> tuple[Tensor, Trace]:
    """`run_prefix` with the block's own attention, and the trace of it."""
    traces: list[Trace] = []
    return run_prefix(block, x_BND, rope, prefix_only, record(traces)), traces[0]


def project_keys_values(block: nn.Module, x_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values of all tokens as the block's own attention would compute them, queries left out.

    Covers timm's `Attention`, `AttentionRope` and `EvaAttention`: fused or separate projections, every bias
    layout, qk-norm, rotary embedding and grouped heads; and projections with an adapter around them.

    Returns:
        keys and values, each (B, H, N, D).
    """
    attn: Any = block.attn  # timm's attention classes share these names, not a type
    y_BND: Tensor = block.norm1(x_BND)  # type: ignore[operator]
    if attn.qkv is not None:
        kv = _fused_keys_values(attn, y_BND)
        k, v = kv.unflatten(-1, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        k = attn.k_proj(y_BND).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        v = attn.v_proj(y_BND).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
    k = attn.k_norm(k)
    if rope is not None:
        prefix = attn.num_prefix_tokens
        half = getattr(attn, "rotate_half", False)
        k = torch.cat([k[:, :, :prefix], apply_rot_embed_cat(k[:, :, prefix:], rope, half=half)], dim=2).type_as(v)
    groups = getattr(attn, "num_kv_groups", 1)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return k, v


def _fused_keys_values(attn: Any, y_BND: Tensor) -> Tensor:
    """Keys and values, side by side in the channels, of an attention with one projection for all three: (B, N, 2 D)."""
    width = attn.qkv.out_features // 3
    beside = None  # Eva keeps the biases beside a bias-free projection
    if getattr(attn, "q_bias", None) is not None:
        beside = torch.cat((attn.k_bias, attn.v_bias))
    if type(attn.qkv) is not nn.Linear:  # an adapter: what it computes is not in its weight
        kv = attn.qkv(y_BND)[..., width:]
        return kv if beside is None else kv + beside
    bias = beside if beside is not None or attn.qkv.bias is None else attn.qkv.bias[width:]
    return F.linear(y_BND, attn.qkv.weight[width:], bias)


def gather_rows(x_BND: Tensor, index_BR: Tensor) -> Tensor:
    """Rows `index_BR` of every image: (B, R, D)."""
    return x_BND.gather(1, index_BR.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


def rope_rows(rope: Tensor | None, patches_BK: Tensor | None) -> Tensor | None:
    """Rotary embedding of the given patches (of none when `patches_BK` is None), broadcastable over heads.

    Args:
        rope: (patches, D), or (H, patches, D) where every head has its own.
        patches_BK: patch indices, 0 being the first patch after the prefix.
    """
    if rope is None:
        return None
    if patches_BK is None:
        return rope[..., :0, :]
    rows = rope[..., patches_BK, :]
    return rows.unsqueeze(1) if rope.ndim == 2 else rows.transpose(0, 1)
