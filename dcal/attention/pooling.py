"""How a backbone makes one feature of its tokens, and the weight of every token in it.

A Vision Transformer is read at its class token, at the mean of its patches, or by an attention pool: a learned query
that attends to the tokens (SigLIP's MAP head). The weights of the tokens in the feature are the row vector with which
the rollout begins: 1 at the class token, the same for all patches, or the attention of the pool's query.

Shapes: B images, N tokens (prefix first), M pooled tokens, H heads, D channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from dcal.attention.timm_blocks import Attend, intercept
from dcal.attention.trace import (
    Trace,
    at_least_float32,
    attention,
    attention_rows,
    fuse_heads,
    record,
    without_autocast,
)


class Pooling(NamedTuple):
    """How the tokens after the last block become a feature."""

    kind: str = "token"
    """`token`: the class token; `mean`: the mean of the pooled tokens; `attention`: a learned query's attention."""
    first: int = 0
    """The pooled tokens are those from this one on: the patches, or all where prefix tokens are pooled, too."""
    norm_first: bool = True
    """Whether the final norm comes before pooling, or after it."""

    def feature(
        self, x_BND: Tensor, norm: nn.Module, attention_pool: nn.Module | None = None, attend: Attend = attention
    ) -> Tensor:
        """The feature of tokens that are not normalised yet: (B, D).

        Args:
            x_BND: the tokens after the last block, all of them or the prefix and some of the patches; of a class token
                only the prefix is read.
            norm: the final norm.
            attention_pool: timm's `AttentionPoolLatent`, for the kind `attention`.
            attend: the attention of the pool's query.
        """
        if self.kind == "token":
            return norm(x_BND[:, 0])
        x_BMD = (norm(x_BND) if self.norm_first else x_BND)[:, self.first :]
        if attention_pool is None or self.kind == "mean":
            x_BD = x_BMD.mean(1)
        else:
            with intercept(attend):
                x_BD = attention_pool(x_BMD)
        return x_BD if self.norm_first else norm(x_BD)

    def feature_with_weights(
        self, x_BND: Tensor, norm: nn.Module, attention_pool: nn.Module | None = None, fusion: str = "mean"
    ) -> tuple[Tensor, Tensor | None]:
        """The feature, and the weight of every token in it, (B, N), which sums to 1; None for a class token."""
        if self.kind == "token":
            return self.feature(x_BND, norm), None
        traces: list[Trace] = []
        feature = self.feature(x_BND, norm, attention_pool, record(traces))
        return feature, self.weights(x_BND.shape[1], traces[0] if traces else None, fusion, x_BND)

    def weights(self, tokens: int, trace: Trace | None, fusion: str, like: Tensor) -> Tensor | None:
        """The weight of every token in the feature: (B, N), float32 or wider; None for a class token, whose is 1.

        Args:
            tokens: N.
            trace: of the pool's attention, for the kind `attention`.
            fusion: `mean`, `max` or `min` over its heads.
            like: a tensor of the batch, for its size and device.
        """
        if self.kind == "token":
            return None
        dtype = at_least_float32(like.dtype)
        if trace is None:
            weights_BM = like.new_full((like.shape[0], tokens - self.first), 1.0 / (tokens - self.first), dtype=dtype)
        else:
            # no decorator: torch 2.8 cannot compile the call of a decorated method of a named tuple
            with torch.no_grad(), without_autocast(like.device):
                weights_BM = fuse_heads(attention_rows(trace, slice(None), dtype), fusion).squeeze(1)
        return F.pad(weights_BM, (self.first, 0))


CLASS_TOKEN = Pooling()


def pooling_of(vit: nn.Module) -> Pooling | None:
    """How a timm Vision Transformer is read; None where it is in none of the three ways.

    An attention pool is read where there is one; else the class token, whatever timm's own classifier averages; else
    the mean of the patches.
    """
    model: Any = vit
    pool = getattr(model, "attn_pool", None)
    norm_first = not isinstance(model.norm, nn.Identity)
    # timm's Eva hands all tokens to its attention pool, its VisionTransformer only the patches by default
    every = getattr(model, "pool_include_prefix", pool is not None)
    first = 0 if every else int(model.num_prefix_tokens)
    if type(pool) is AttentionPoolLatent:
        return Pooling("attention", first, norm_first)
    if pool is not None:
        return None
    if getattr(model, "cls_token", None) is not None:
        return CLASS_TOKEN
    return Pooling("mean", first, norm_first) if model.global_pool == "avg" else None
