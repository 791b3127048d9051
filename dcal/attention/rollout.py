"""Attention rollout (Abnar & Zuidema 2020) as DCAL uses it: how much each patch matters to the class token.

With S̄_l = ½ S_l + ½ E for the head-fused attention S_l of block l, the rollout is Ŝ = S̄_L ⋯ S̄_1. Its
class-token row is all that is ranked, and e_clsᵀ Ŝ is a chain of vector-matrix products from the last block
down to the first; the N×N product is never formed. A backbone that is read by pooling has no class token: the weights
of its tokens in the pooled feature take the place of e_cls, which gives the mean row of Ŝ over the patches, or the
mean weighted by the attention of the pool's query (`dcal.attention.pooling`). No gradient flows through it, and
stochastic depth is ignored: a block that is dropped for one training step still counts with the attention it would
have had.

Shapes: B images, N tokens, P patches, H heads, D channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from dcal.attention.pooling import CLASS_TOKEN, pooling_of
from dcal.attention.support import check_supported
from dcal.attention.timm_blocks import intercept
from dcal.attention.trace import (
    Trace,
    at_least_float32,
    attention_rows,
    attention_with_trace,
    fuse_heads,
    row_times_attention,
    without_autocast,
)
from dcal.utils.errors import check_number, choose

HEAD_FUSIONS = ("mean", "max", "min")


@torch.no_grad()
def rollout_row(traces: Sequence[Trace], fusion: str = "mean", weights_BN: Tensor | None = None) -> Tensor:
    """The class token's row of the rollout matrix over the traced blocks, first block first: (B, N).

    float32, or float64 where the traces are. Autocast is off inside: ranks need the precision.

    Args:
        fusion: `mean`, `max` or `min` over heads.
        weights_BN: the mean of the rows with these weights instead, each (N,) with sum 1.
    """
    q = traces[-1].q_BHND
    dtype = at_least_float32(q.dtype)
    with without_autocast(q.device):
        if weights_BN is None:
            # e_cls times the last block's map is the first row of the map: nothing else of it is computed.
            s_BN = fuse_heads(attention_rows(traces[-1], slice(0, 1), dtype), fusion).squeeze(1)
            r_BN = torch.cat([s_BN[:, :1] + 1.0, s_BN[:, 1:]], dim=1) / 2
            traces = traces[:-1]
        else:
            r_BN = weights_BN.to(dtype)
        for trace in reversed(traces):
            r_BN = (r_BN + row_times_attention(r_BN, trace, fusion)) / 2
    return r_BN


def num_selected(ratio: float, patches: int) -> int:
    """How many patches a ratio selects: `int(ratio · patches)`, at least one.

    Raises:
        UserError: the ratio is not in (0, 1].
    """
    check_number("attention.glca.top_ratio", ratio, gt=0, le=1, note="it is the share of patches to select")
    return max(1, math.floor(ratio * patches + 1e-9))  # 0.29 * 100 must be 29, not 28


class AttentionRollout:
    """Rollout over all blocks of any supported timm ViT, recorded while the context is open.

    ```python
    with AttentionRollout(vit) as rollout, torch.no_grad():
        vit(images)
    rollout.cls_attention()  # (B, patches)
    ```

    Each forward pass replaces the record of the one before. Fused attention stays on; blocks whose fused
    attention was switched off have it on while the context is open. What `torch.compile` has compiled runs
    uncompiled there: it would pass the recording by.

    Args:
        vit: a supported timm Vision Transformer, see `dcal.attention.support.check_supported`.
        head_fusion: `mean` (as in the paper), `max` or `min` over heads.

    Raises:
        UserError: unknown fusion.
        dcal.attention.support.UnsupportedBackbone: the model's attention cannot be seen.
    """

    def __init__(self, vit: nn.Module, head_fusion: str = "mean") -> None:
        check_supported(vit)
        self.head_fusion = choose("head_fusion", head_fusion, HEAD_FUSIONS)
        self.num_prefix_tokens = int(vit.num_prefix_tokens)  # type: ignore[arg-type]
        self._blocks = list(vit.blocks)  # type: ignore[arg-type]
        self._pool = getattr(vit, "attn_pool", None)
        self._pooling = pooling_of(vit) or CLASS_TOKEN
        # of the blocks, and last of the attention pool where there is one
        self._attentions = [*(block.attn for block in self._blocks), *([self._pool] if self._pool else [])]
        self._traces: list[Trace | None] = [None] * len(self._attentions)
        self._undo: ExitStack | None = None

    def __enter__(self) -> AttentionRollout:
        if self._undo is not None:
            raise RuntimeError("this AttentionRollout is already open")
        self._traces = [None] * len(self._attentions)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # dynamo does not guard on hooks
            for index, module in enumerate(self._attentions):
                stack.callback(setattr, module, "fused_attn", module.fused_attn)
                module.fused_attn = True
                for handle in _record_calls(module, self._traces, index):
                    stack.callback(handle.remove)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        undo, self._undo = self._undo, None
        assert undo is not None
        undo.close()

    def _recorded(self) -> list[Trace]:
        traces = [trace for trace in self._traces[: len(self._blocks)] if trace is not None]
        if len(traces) != len(self._blocks):
            raise RuntimeError(
                f"{len(traces)} of {len(self._blocks)} blocks were recorded: run the model inside `with rollout:` first"
            )
        return traces

    def _weights(self, traces: Sequence[Trace]) -> Tensor | None:
        """The weight of every token in the model's feature; None for a class token."""
        pool = self._traces[-1] if self._pool is not None else None
        if self._pool is not None and pool is None:
            raise RuntimeError("the attention pool was not recorded: run the whole model, not `forward_features` alone")
        q = traces[0].q_BHND
        return self._pooling.weights(q.shape[2], pool, self.head_fusion, q)

    def cls_attention(self, blocks: int | None = None) -> Tensor:
        """The class token's rollout over the patches: (B, P), float32; with the prefix columns it would sum to 1.

        Of a model without class token: the mean of the rows of all patches, or their mean weighted by the attention of
        the pool's query.

        Args:
            blocks: over the first that many blocks, as GLCA beside the last M ranks by the L - M before; None for all.

        Raises:
            RuntimeError: no forward pass was recorded.
        """
        traces = self._recorded()
        row_BN = rollout_row(traces[:blocks], self.head_fusion, self._weights(traces))
        return row_BN[:, self.num_prefix_tokens :].float()

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The full rollout matrix Ŝ: (B, N, N), rows of sum 1. O(N²) memory: for inspection, not for training.

        Raises:
            RuntimeError: no forward pass was recorded.
        """
        traces = self._recorded()
        dtype = at_least_float32(traces[0].q_BHND.dtype)
        maps = (fuse_heads(attention_rows(trace, slice(None), dtype), self.head_fusion) for trace in traces)
        mixed = ((s + torch.eye(s.shape[-1], dtype=dtype, device=s.device)) / 2 for s in maps)
        return reduce(lambda product, block: block @ product, mixed)

    def select_top_tokens(self, ratio: float) -> Tensor:
        """The patches that matter most: bool (B, P), True at the `int(ratio · P)` (at least one) highest.

        Args:
            ratio: share of the patches, in (0, 1].

        Raises:
            UserError: another ratio.
            RuntimeError: no forward pass was recorded.
        """
        attention_BP = self.cls_attention()
        top = attention_BP.topk(num_selected(ratio, attention_BP.shape[1]), dim=1).indices
        return torch.zeros_like(attention_BP, dtype=torch.bool).scatter(1, top, True)


def _record_calls(attention: nn.Module, traces: list[Trace | None], index: int) -> list[Any]:
    """Hooks that put the trace of an attention module into `traces[index]` at each of its forward passes."""

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        out, traces[index] = attention_with_trace(q, k, v, **options)
        return out

    modes: list[intercept] = []

    def enter(module: nn.Module, args: Any) -> None:
        modes.append(intercept(attend))
        modes[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if modes:  # a hook of somebody else that ran before may have failed
            modes.pop().__exit__(None, None, None)

    return [attention.register_forward_pre_hook(enter), attention.register_forward_hook(leave, always_call=True)]
