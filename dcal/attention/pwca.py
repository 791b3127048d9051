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

Shapes: B images, S ≥ B images in the backbone's stream (the first B of them, then noise partners), N tokens,
D channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcal.attention.intercept import intercept
from dcal.attention.kernel import Trace, attention_with_trace
from dcal.attention.rows import project_keys_values, rope_rows, run_block, run_rows

STREAMS = ("clean", "symmetric", "figure")


class PairWiseCrossAttention(nn.Module):
    """Runs one block of the backbone on its own stream and on the distracted one. Has no parameters.

    Args:
        stream: `clean`, `symmetric` or `figure`, see the module's docstring.

    Raises:
        ValueError: unknown stream.
    """

    def __init__(self, stream: str = "clean") -> None:
        super().__init__()
        if stream not in STREAMS:
            raise ValueError(f"attention.pwca.stream={stream!r}: choose one of {', '.join(STREAMS)}")
        self.stream = stream

    def start(self, x_SND: Tensor, partner_B: Tensor) -> Tensor:
        """The distracted stream where it parts from the backbone's: (B, N, D)."""
        return x_SND.index_select(0, partner_B) if self.stream == "figure" else x_SND[: len(partner_B)]

    def forward(
        self,
        block: nn.Module,
        x_SND: Tensor,
        z_BND: Tensor,
        partner_B: Tensor,
        rope: Tensor | None = None,
        prefix_only: int | None = None,
    ) -> tuple[Tensor, Tensor, Trace]:
        """One block on both streams.

        Args:
            block: a block of the backbone.
            x_SND: the backbone's tokens entering the block.
            z_BND: the distracted tokens entering the block, from `start` or the block before.
            partner_B: position in `x_SND` of each image's partner.
            rope: rotary embedding of the block, None where the family has none.
            prefix_only: compute only that many prefix rows, for the last block, of which nothing else is
                read.

        Returns:
            both streams after the block, and the trace of the backbone's own attention.
        """
        images, batch = len(x_SND), len(z_BND)
        carried = x_SND[:batch] if self.stream == "figure" else z_BND
        both = torch.cat([x_SND, carried])
        own_z = project_keys_values(block, z_BND, rope) if self.stream == "figure" else None
        traces: list[Trace] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            out_x, trace = attention_with_trace(q[:images], k[:images], v[:images], **options)
            traces.append(trace)
            k2, v2 = own_z or (self._partner(k, images, partner_B), self._partner(v, images, partner_B))
            k_pair, v_pair = torch.cat([k[images:], k2], dim=2), torch.cat([v[images:], v2], dim=2)
            return torch.cat([out_x, F.scaled_dot_product_attention(q[images:], k_pair, v_pair, **options)])

        if prefix_only is None:
            with intercept(attend):
                out = run_block(block, both, rope)
        else:
            keys_values = project_keys_values(block, both, rope)
            out = run_rows(block, both[:, :prefix_only], keys_values, rope_rows(rope, None), attend)
        return out[:images], out[images:], traces[0]

    def _partner(self, both: Tensor, images: int, partner_B: Tensor) -> Tensor:
        """The partner's keys (or values) out of those of both streams, (S + B, H, N, D).

        By `index_select`: the gradient of plain indexing sorts the indices on a GPU.
        """
        if self.stream == "clean":
            return both.index_select(0, partner_B)
        batch = len(both) - images
        # A noise partner stands behind the batch and carries no distracted stream: it is met as it is.
        return torch.cat([both[images:], both[batch:images]]).index_select(0, partner_B)
