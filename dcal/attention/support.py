"""Which timm models the branches can be attached to, and the reason where they cannot.

The branches need: a feature that is read at the class token, at the mean of the patches or by an attention pool; blocks
in one sequence at one resolution; attention that calls `F.scaled_dot_product_attention` without a bias over the keys;
and projections that `rows.project_keys_values` knows.
"""

from __future__ import annotations

from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from dcal.attention.pooling import pooling_of
from dcal.utils.errors import UserError

REASONS = {
    "Beit": "its attention adds a position bias as wide as its own keys, so a partner's keys cannot be appended",
    "Cait": "its talking-heads attention mixes heads around the softmax and never calls fused attention",
    "VisionTransformerSAM": "it attends in windows",
    "Hiera": "its resolution changes between stages, so there is no rollout over one set of patches",
    "SwinTransformer": "it attends in windows of changing resolution",
    "SwinTransformerV2": "it attends in windows of changing resolution",
    "Xcit": "it attends over channels, not over tokens",
    "NaFlexVit": "it packs patches of images of any shape into one sequence, so there is no one grid; the plain model "
    "of the same weights (vit_base_patch16_siglip_256 for naflexvit_base_patch16_siglip) is supported",
    "VisionTransformerRelPos": "its attention adds a relative-position bias as wide as its own keys",
}


class UnsupportedBackbone(UserError):
    """The branches cannot be attached to this model; the message says why."""


def check_supported(vit: nn.Module) -> None:
    """Refuses, at construction and with the reason, a model whose attention the branches cannot use.

    Args:
        vit: any module.

    Raises:
        UnsupportedBackbone: with the reason and what is supported.
    """
    reason = _why_unsupported(vit)
    if reason:
        raise UnsupportedBackbone(
            f"backbone {type(vit).__name__} is not supported: {reason}. Supported are timm's VisionTransformer and Eva "
            "families (DeiT, AugReg, R50 hybrids, CLIP, SigLIP, DINOv2, DINOv3, EVA-02, AIMv2, ...)"
        )


def _why_unsupported(vit: nn.Module) -> str | None:
    name = type(vit).__name__
    if name in REASONS:
        return REASONS[name]
    if not isinstance(vit, (VisionTransformer, Eva)):
        return "it is none of timm's plain Vision Transformer classes"
    if pooling_of(vit) is None:
        return f"it pools its tokens by {vit.global_pool!r}, which gives them no weights to rank them by"
    for block in vit.blocks:
        if type(block) not in (Block, EvaBlock):
            return f"its {type(block).__name__} is not a pre-norm block of attention followed by an MLP"
        if type(block.attn) not in (Attention, AttentionRope, EvaAttention):
            return f"its {type(block.attn).__name__} is not plain softmax attention over all tokens"
    return None
