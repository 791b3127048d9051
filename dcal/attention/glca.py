"""Global-local cross-attention (DCAL section 3.2): the patches that matter most attend to the whole image.

M transformer blocks with weights of their own run beside the last M blocks of the backbone. Queries are the
prefix tokens and the R patches that the selection ranks highest; keys and values are *all* tokens of the
backbone's stream at the same depth. Only the selected rows are computed.

The readout matters. Attention rows, LayerNorm and FFN are row-wise and the keys are global, so a branch read
at its class token (`cls`, the paper's figure to the letter) does not depend on the selection at all. `mean`
reads the mean of the selected patches, `cls_mean` the average of both. Where the backbone is read by pooling, so is the
branch, over its own rows: by the mean of its patches, which all three then are; or by an attention pool, with the
weights of the pool's query (`cls`), equal ones (`mean`) or the average of both features (`cls_mean`).

Shapes: B images, N tokens, P patches, K selected patches, R = prefix + K rows, D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from dcal.attention.adapters import without_adapters
from dcal.attention.pooling import CLASS_TOKEN, Pooling
from dcal.attention.rollout import HEAD_FUSIONS, num_selected, rollout_row
from dcal.attention.rows import gather_rows, project_keys_values, rope_rows, run_rows
from dcal.attention.timm_blocks import Attend
from dcal.attention.trace import Trace, attention
from dcal.utils.errors import choose

SELECTIONS = ("rollout", "last", "random", "all")
READOUTS = ("cls", "mean", "cls_mean")
INITS = ("copy", "fresh")


class GlobalLocalCrossAttention(nn.Module):
    """The GLCA branch: M full transformer blocks and a final norm of its own.

    Args:
        blocks: the backbone's last M blocks; copied, never shared, without their adapters.
        norm: the backbone's final norm; copied.
        num_prefix_tokens: class, distillation and register tokens before the patches.
        top_ratio: share of the patches that are selected, in (0, 1]; at least one is.
        selection: `rollout` (the paper's), `last` (class-token attention of the last block before the
            branch), `random` or `all`.
        readout: `cls`, `mean` or `cls_mean`, see the module's docstring.
        init: `copy` keeps the copied weights, `fresh` draws new ones.
        head_fusion: `mean`, `max` or `min` over heads in the rollout.
        pooling: how the backbone is read, from `pooling_of`.
        attention_pool: the backbone's attention pool, where it is read by one; copied.

    Raises:
        UserError: an unknown option; the message names its key.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        num_prefix_tokens: int = 1,
        *,
        top_ratio: float = 0.1,
        selection: str = "rollout",
        readout: str = "cls_mean",
        init: str = "copy",
        head_fusion: str = "mean",
        pooling: Pooling = CLASS_TOKEN,
        attention_pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        choose("attention.glca.selection", selection, SELECTIONS)
        choose("attention.glca.readout", readout, READOUTS)
        choose("attention.glca.init", init, INITS)
        choose("attention.head_fusion", head_fusion, HEAD_FUSIONS)
        num_selected(top_ratio, 1)
        self.blocks = nn.ModuleList(without_adapters(copy.deepcopy(block)) for block in blocks)
        self.norm = copy.deepcopy(norm)
        self.pooling, self.attn_pool = pooling, copy.deepcopy(attention_pool)
        self.requires_grad_()  # of a frozen backbone too: the copies are this branch's own
        self.num_prefix_tokens = num_prefix_tokens
        self.top_ratio, self.selection, self.readout, self.head_fusion = top_ratio, selection, readout, head_fusion
        self.copied = init == "copy"
        if not self.copied:
            self.blocks.apply(_reset)

    @property
    def needs_traces(self) -> bool:
        """Whether the selection looks at the attention of the blocks before the branch."""
        return self.selection in ("rollout", "last")

    def select(self, x_BND: Tensor, traces: Sequence[Trace], weights_BN: Tensor | None = None) -> Tensor:
        """Indices of the selected patches, 0 being the first patch: int64 (B, K).

        Args:
            x_BND: the tokens that enter the branch.
            traces: as for `forward`.
            weights_BN: as for `forward`.
        """
        batch, patches = x_BND.shape[0], x_BND.shape[1] - self.num_prefix_tokens
        if self.selection == "all":
            return torch.arange(patches, device=x_BND.device).expand(batch, -1)
        if self.selection == "random":
            rank_BP = torch.rand(batch, patches, device=x_BND.device)
        else:
            blocks = traces if self.selection == "rollout" else traces[-1:]
            rank_BP = rollout_row(blocks, self.head_fusion, weights_BN)[:, self.num_prefix_tokens :]
        return rank_BP.topk(num_selected(self.top_ratio, patches), dim=1, sorted=False).indices

    def forward(
        self,
        inputs: Sequence[Tensor],
        traces: Sequence[Trace],
        ropes: Sequence[Tensor | None],
        attend: Attend = attention,
        weights_BN: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the branch.

        Args:
            inputs: the backbone's tokens that enter its last M blocks, each (B, N, D).
            traces: attention traces of the blocks before those, first block first (unused by `random` and
                `all`).
            ropes: rotary embedding of the last M blocks, None where the family has none.
            attend: the attention of its blocks, for who wants to see it.
            weights_BN: the weight of every token in the backbone's feature, where that is pooled; None for a class
                token.

        Returns:
            the branch's feature (B, D) and the selected patches (B, K).
        """
        selected_BK = self.select(inputs[0], traces, weights_BN)
        prefix = self.num_prefix_tokens
        rows_BRD = torch.cat([inputs[0][:, :prefix], gather_rows(inputs[0][:, prefix:], selected_BK)], dim=1)
        for block, x_BND, rope in zip(self.blocks, inputs, ropes, strict=True):
            keys_values = project_keys_values(block, x_BND, rope)
            rows_BRD = run_rows(block, rows_BRD, keys_values, rope_rows(rope, selected_BK), attend)
        return self.read(rows_BRD), selected_BK

    def read(self, rows_BRD: Tensor) -> Tensor:
        """The branch's feature from its rows, by `readout`: (B, D).

        Args:
            rows_BRD: the rows after the last block, prefix first; not yet normalised.
        """
        if self.pooling.kind != "token":
            return self._pool(rows_BRD)
        rows_BRD = self.norm(rows_BRD)
        cls_BD, mean_BD = rows_BRD[:, 0], rows_BRD[:, self.num_prefix_tokens :].mean(1)
        return {"cls": cls_BD, "mean": mean_BD, "cls_mean": (cls_BD + mean_BD) / 2}[self.readout]

    def _pool(self, rows_BRD: Tensor) -> Tensor:
        """The backbone's pooling over the branch's rows: (B, D)."""

        def attend_equally(q: Tensor, k: Tensor, v_BHMD: Tensor, **options: object) -> Tensor:
            return v_BHMD[:, :, self.num_prefix_tokens - self.pooling.first :].mean(2, keepdim=True)

        ways: dict[str, tuple[Attend, ...]] = {
            "cls": (attention,),
            "mean": (attend_equally,),
            "cls_mean": (attention, attend_equally),
        }
        if self.pooling.kind == "mean":
            return self.pooling.feature(rows_BRD, self.norm)
        features = [self.pooling.feature(rows_BRD, self.norm, self.attn_pool, attend) for attend in ways[self.readout]]
        return torch.stack(features).mean(0)


def _reset(module: nn.Module) -> None:
    """Fresh weights as timm draws them for a ViT (`init_weights_vit_timm`), LayerNorm and LayerScale included."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
