"""Attention maps in blocks of rows that stay in the CPU's cache, and plain attention computed so.

torch's fused attention is slow in bfloat16 on the CPU: forward and backward together take 3.5 times as long as
here at 65 tokens, 1.6 at 197 and 1.2 at 785. Nothing of size N×N outlives its block in either direction.

Shapes: B images, H heads, G = B·H, N queries, M keys, D channels per head, C rows in hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CACHE_BLOCK = 1 << 20
"""Attention entries held at once on the CPU: 2 MiB in bf16, which stays in cache."""
LARGE_BLOCK = 1 << 24
"""The same where launches count and not the cache: on a GPU, and in a compiled or exported graph."""

Block = tuple[slice, slice]
"""Which attention maps, and which of their rows."""


class Tiles:
    """The blocks of G attention maps of N × M entries.

    On the CPU every block is computed in the same memory: fresh memory costs as much as the arithmetic.
    """

    def __init__(self, q_GND: Tensor, k_GMD: Tensor) -> None:
        self.q_GND, self.k_GMD = q_GND, k_GMD
        self.maps, self.queries, self.keys = len(q_GND), q_GND.shape[1], k_GMD.shape[1]
        self.in_cache = q_GND.device.type == "cpu" and not torch.compiler.is_compiling()
        room = max(1, (CACHE_BLOCK if self.in_cache else LARGE_BLOCK) // self.keys)
        self.rows = min(self.queries, room)
        self.group = min(self.maps, max(1, room // self.rows))

    def __iter__(self) -> Iterator[Block]:
        for first in range(0, self.maps, self.group):
            for row in range(0, self.queries, self.rows):
                yield (
                    slice(first, min(first + self.group, self.maps)),
                    slice(row, min(row + self.rows, self.queries)),
                )

    def memory(self, dtype: torch.dtype) -> Tensor | None:
        """Room for the entries of any one block; None where the allocator is better left to itself."""
        return self.q_GND.new_empty(self.group * self.rows * self.keys, dtype=dtype) if self.in_cache else None

    def view(self, memory: Tensor | None, block: Block) -> Tensor | None:
        """That room as a (G, C, M) tensor for this block, to be given as `out`."""
        if memory is None:
            return None
        maps, rows = block
        shape = (maps.stop - maps.start, rows.stop - rows.start, self.keys)
        return memory[: math.prod(shape)].view(shape)

    def scores(self, memory: Tensor | None, block: Block, scale: float) -> Tensor:
        """`q kᵀ scale` of this block, in `memory` if there is one."""
        out, q_GCD = self.view(memory, block), self.q_GND[block]
        ignored = q_GCD.new_empty(1, 1, 1).expand(*q_GCD.shape[:2], self.keys) if out is None else out
        return torch.baddbmm(ignored, q_GCD, self.k_GMD[block[0]].mT, beta=0, alpha=scale, out=out)


class AttentionByRows(torch.autograd.Function):
    """`softmax(q kᵀ scale) v` for bfloat16 on the CPU; scores are rounded to it, as in timm's unfused attention.

    Keeps less than torch's fused attention for the backward pass: q, k, v and nothing else.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        q_GND, k_GMD, v_GMD = (t.flatten(0, 1) for t in (q, k, v))
        out_GND = torch.empty_like(q_GND)
        blocks = Tiles(q_GND, k_GMD)
        memory = blocks.memory(q.dtype)
        for block in blocks:
            scores = blocks.scores(memory, block, scale)
            torch.bmm(scores.softmax(-1), v_GMD[block[0]], out=out_GND[block])
        return out_GND.view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        q_GND, k_GMD, v_GMD, grad_GND = (t.flatten(0, 1) for t in (q, k, v, grad_out))
        grad_q = torch.empty_like(q_GND)
        grad_k, grad_v = (torch.zeros_like(t, dtype=torch.float32) for t in (k_GMD, v_GMD))
        blocks = Tiles(q_GND, k_GMD)
        memory, other = blocks.memory(q.dtype), blocks.memory(q.dtype)
        for block in blocks:
            maps = block[0]
            scores = blocks.scores(memory, block, ctx.scale)
            s_GCM = torch.softmax(scores, -1, out=blocks.view(other, block))
            grad_v[maps] += torch.bmm(s_GCM.mT, grad_GND[block])
            grad_s = torch.bmm(grad_GND[block], v_GMD[maps].mT, out=scores)
            grad_scores = torch._softmax_backward_data(grad_s, s_GCM, -1, q.dtype)
            torch.baddbmm(q_GND[block], grad_scores, k_GMD[maps], beta=0, alpha=ctx.scale, out=grad_q[block])
            grad_k[maps] += torch.bmm(grad_scores.mT, q_GND[block])
        grad_k = grad_k.mul_(ctx.scale).to(k.dtype)
        return grad_q.view(q.shape), grad_k.view(k.shape), grad_v.to(v.dtype).view(v.shape), None
