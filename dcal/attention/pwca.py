"""Pair-wise cross-attention (DCAL section 3.3): an image attends to itself and to a partner that distracts
it.

softmax(Q₁[K₁;K₂]ᵀ/√d)[V₁;V₂], one softmax over the keys of both images. The branch shares every weight with
the backbone, predicts the label of image 1 and exists in training only. It is one extra stream of tokens `z`
that shares the batch dimension with the backbone's stream `x` in every linear layer and parts from it only
inside attention.

Where K₂ and V₂ come from above the first block is not in the paper; `stream` names the readings:

- `clean`: the partner's self-attention keys and values of the same depth; image 1 keeps its own distracted
  stream;
- `symmetric`: both images carry a distracted stream and attend to each other's;
- `figure`: Q₁, K₁, V₁ from image 1's self-attention stream, K₂, V₂ from the previous PWCA output, which
  starts as the partner's embeddings.

Attending to oneself changes nothing (`pwca(x, x) = sa(x)`) in all three.

The partner need not be met in every block. The second stream starts at the first block in which it is; in a later
block in which it is not, both streams run plain self-attention, each on its own tokens.

Shapes: B images, S ≥ B images in the backbone's stream (the first B of them, then noise partners), N tokens,
D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcal.attention.rows import project_keys_values, run_prefix
from dcal.attention.timm_blocks import Attend
from dcal.attention.trace import Trace, attention, attention_with_trace
from dcal.utils.errors import UserError, choose

STREAMS = ("clean", "symmetric", "figure")


def pwca_block_indices(blocks: int | Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The blocks in which the distracted stream meets the partner, by their index from 0, in order.

    Args:
        blocks: as `attention.pwca.blocks`: how many of the backbone's last blocks (None for all, 0 for none), or a
            list of block numbers, from 1.
        depth: blocks of the backbone.

    Raises:
        UserError: neither, or blocks that the backbone does not have.
    """
    key = "attention.pwca.blocks"
    if blocks is None:
        return tuple(range(depth))
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        if not 0 <= blocks <= depth:
            raise UserError(f"{key}={blocks}: this backbone allows 0 to {depth}")
        return tuple(range(depth - blocks, depth))
    if isinstance(blocks, Sequence) and not isinstance(blocks, str):
        numbers = list(blocks)
        known = all(type(number) is int and 1 <= number <= depth for number in numbers)
        if numbers and known and len(set(numbers)) == len(numbers):
            return tuple(sorted(number - 1 for number in numbers))
        raise UserError(
            f"{key}={numbers}: a list names one or more blocks of the backbone, each once, from 1 to {depth}; 0 "
            "instead of a list switches PWCA off"
        )
    raise UserError(f"{key}={blocks!r}: a number of blocks (the last ones), null for all, or a list such as [6,7,8,9]")


class PairWiseCrossAttention(nn.Module):
    """Runs one block of the backbone on its own stream and on the distracted one. Has no parameters.

    Args:
        stream: `clean`, `symmetric` or `figure`, see the module's docstring.

    Raises:
        UserError: unknown stream.
    """

    def __init__(self, stream: str = "clean") -> None:
        super().__init__()
        self.stream = choose("attention.pwca.stream", stream, STREAMS)

    def start(self, x_SND: Tensor, partner_B: Tensor) -> Tensor:
        """Both streams where the distracted one parts from the backbone's: (S + B, N, D).

        Args:
            x_SND: the backbone's tokens there.
            partner_B: position among the S images of each image's partner.
        """
        z_BND = x_SND.index_select(0, partner_B) if self.stream == "figure" else x_SND[: len(partner_B)]
        return torch.cat([x_SND, z_BND])

    def forward(
        self,
        block: nn.Module,
        streams: Tensor,
        partner_B: Tensor,
        rope: Tensor | None = None,
        prefix_only: int | None = None,
        attend_pair: Attend = attention,
    ) -> tuple[Tensor, Trace]:
        """One block on both streams.

        Args:
            block: a block of the backbone.
            streams: the backbone's tokens entering the block and after them the distracted ones, (S + B, N, D); from
                `start` or the block before.
            partner_B: position among the S images of each image's partner.
            rope: rotary embedding of the block, None where the family has none.
            prefix_only: compute only that many prefix rows, for the last block, of which nothing else is read.
            attend_pair: the attention of the distracted stream, for who wants to see it; keys and values of the
                partner stand behind the image's own.

        Returns:
            both streams after the block, and the trace of the backbone's own attention.
        """
        if self.stream == "figure":
            return self._on_the_backbones_tokens(block, streams, len(partner_B), rope, prefix_only, attend_pair)
        sizes = [len(streams) - len(partner_B), len(partner_B)]
        traces: list[Trace] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            (q_x, q_z), (k_x, k_z), (v_x, v_z) = (t.split(sizes) for t in (q, k, v))
            out_x, trace = attention_with_trace(q_x, k_x, v_x, **options)
            traces.append(trace)
            k_2, v_2 = self._partner(k_x, k_z, partner_B), self._partner(v_x, v_z, partner_B)
            out_z = attend_pair(q_z, torch.cat([k_z, k_2], dim=2), torch.cat([v_z, v_2], dim=2), **options)
            # joined with tokens before heads, as fused attention has them in memory: no copy when heads are joined
            return torch.cat([out_x.transpose(1, 2), out_z.transpose(1, 2)]).transpose(1, 2)

        return run_prefix(block, streams, rope, prefix_only, attend), traces[0]

    def _partner(self, x_SHND: Tensor, z_BHND: Tensor, partner_B: Tensor) -> Tensor:
        """The partner's keys (or values) out of those of both streams, (B, H, N, D).

        By `index_select`: the gradient of plain indexing sorts the indices on a GPU.
        """
        if self.stream == "clean":
            return x_SHND.index_select(0, partner_B)
        # A noise partner comes after the batch and has no distracted stream: its plain keys and values are used.
        return torch.cat([z_BHND, x_SHND[len(z_BHND) :]]).index_select(0, partner_B)

    def _on_the_backbones_tokens(
        self,
        block: nn.Module,
        streams: Tensor,
        batch: int,
        rope: Tensor | None,
        prefix_only: int | None,
        attend_pair: Attend,
    ) -> tuple[Tensor, Trace]:
        """The stream `figure`: queries, and the first half of keys and values, are the backbone's own.

        The block runs twice on the same tokens, the second time with the attention that the first has left behind;
        its own queries, keys and values go unused, so that they cost nothing in the backward pass.
        """
        x_SND, z_BND = streams.split([len(streams) - batch, batch])
        k_2, v_2 = project_keys_values(block, z_BND, rope)
        traces: list[Trace] = []
        distracted: list[Tensor] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            out, trace = attention_with_trace(q, k, v, **options)
            traces.append(trace)
            k_pair, v_pair = torch.cat([k[:batch], k_2], dim=2), torch.cat([v[:batch], v_2], dim=2)
            distracted.append(attend_pair(q[:batch], k_pair, v_pair, **options))
            return out

        out_x = run_prefix(block, x_SND, rope, prefix_only, attend)
        out_z = run_prefix(block, x_SND[:batch], rope, prefix_only, lambda *heads, **options: distracted[0])
        return torch.cat([out_x, out_z]), traces[0]
