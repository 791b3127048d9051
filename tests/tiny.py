"""Tiny members of every supported family: timm's own classes and options, but narrow, shallow and fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dcal.backbone import create_backbone
from dcal.model import DCAL

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2}


class Family(NamedTuple):
    """timm models that differ only in size, input and weights."""

    title: str
    member: str
    """The one that tests shrink."""
    patterns: str
    """timm names of all members; the first family that matches a name has it."""
    patch: int = 16
    options: Mapping[str, Any] = {}


FAMILIES = (
    Family("DeiT", "deit_tiny_patch16_224", "deit_*_patch16_*"),
    Family("DeiT, distilled", "deit_tiny_distilled_patch16_224", "deit_*_distilled_*"),
    Family("DeiT-3", "deit3_small_patch16_224", "deit3_*"),
    Family("SigLIP and SigLIP 2", "vit_base_patch16_siglip_224", "vit_*_siglip_???"),
    Family("SigLIP, mean of the patches", "vit_base_patch16_siglip_gap_224", "vit_*_siglip_gap_*"),
    Family("AIMv2", "aimv2_large_patch14_224", "aimv2_*", 14),
    Family(
        "ViT with RoPE, registers and no class token", "vit_medium_patch16_rope_reg1_gap_256", "vit_*_rope_reg*_gap_*"
    ),
    Family("SO150M", "vit_so150m_patch16_reg4_gap_256", "vit_so150m_*_gap_*"),
    Family("ViT with registers and no class token", "vit_medium_patch16_reg4_gap_256", "vit_*_reg?_gap_*"),
    Family("ViT without class token", "vit_medium_patch16_gap_240", "vit_*_gap_*"),
    Family("test models without class token", "test_vit2", "test_vit2"),
    Family("test models with an attention pool over registers", "test_vit3", "test_vit3"),
    Family(
        "Perception Encoder, core, without class token",
        "vit_pe_core_gigantic_patch14_448",
        "vit_pe_core_gigantic_*",
        14,
    ),
    Family(
        "Perception Encoder, language and spatial, without class token",
        "vit_pe_lang_gigantic_patch14_448",
        "vit_pe_*_gigantic_*",
        14,
    ),
    Family("hybrids of a ResNet and a ViT", "vit_tiny_r_s16_p8_224", "vit_*_r_s16_* vit_*_r26_* vit_*_r50_*", 32),
    Family("DINOv2", "vit_small_patch14_dinov2", "vit_*_patch14_dinov2", 14),
    Family("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", "vit_*_reg4_dinov2", 14),
    Family("CLIP", "vit_base_patch16_clip_quickgelu_224", "vit_*_clip_*"),
    Family("BEiT-3", "beit3_base_patch16_224", "beit3_*"),
    Family("TIPSv2", "vit_base_patch14_reg1_tipsv2", "vit_*_tipsv2", 14),
    Family("RADIO", "vit_base_patch16_radio_v3", "vit_*_radio_*"),
    Family("InternViT", "vit_intern300m_patch14_448", "vit_intern*", 14),
    Family("FlexiViT", "flexivit_small", "flexivit_*"),
    Family("EVA-01", "eva_giant_patch14_224", "eva_*", 14),
    Family("EVA-02", "eva02_tiny_patch14_224", "eva02_*_patch14_2* eva02_*_patch14_3* eva02_*_patch14_4*", 14),
    Family("EVA-02 CLIP", "eva02_base_patch16_clip_224", "eva02_*_clip_*"),
    Family("DINOv3", "vit_small_patch16_dinov3", "vit_*_dinov3 vit_*_dinov3_qkvb"),
    Family("DINOv3 with SwiGLU", "vit_small_plus_patch16_dinov3", "vit_*_plus_*_dinov3 vit_*_plus_*_dinov3_qkvb"),
    Family("LingBot", "vit_small_patch16_lingbot", "vit_*_lingbot"),
    Family("ViT with RoPE", "vit_small_patch16_rope_ape_224", "vit_*_rope_224 vit_*_rope_ape_224"),
    Family("ViT with mixed RoPE", "vit_small_patch16_rope_mixed_224", "vit_*_rope_mixed_*"),
    Family("Perception Encoder, core", "vit_pe_core_tiny_patch16_384", "vit_pe_core_*"),
    Family("Perception Encoder, language and spatial", "vit_pe_lang_large_patch14_448", "vit_pe_*", 14),
    Family(
        "Sapiens2 (grouped keys)",
        "vit_base_patch16_sapiens2",
        "vit_*_sapiens2",
        16,
        {"num_kv_heads": (2, 1, 1)},
    ),
    Family("ViT (AugReg, ImageNet-21k, MIIL, ...)", "vit_tiny_patch16_224", "vit_* test_vit"),
)
BY_MEMBER = {family.member: family for family in FAMILIES}
MEMBERS = tuple(BY_MEMBER)
RATIO = 0.3  # 3 of 12 patches


def image_size(member: str) -> tuple[int, int]:
    """4 × 3 patches: a code that takes the grid for a square fails."""
    patch = BY_MEMBER[member].patch
    return 4 * patch, 3 * patch


def tiny_vit(member: str, **options: Any) -> nn.Module:
    family = BY_MEMBER[member]
    return create_backbone(member, image_size(member), kwargs={**SMALL, **family.options, **options})


def tiny_model(
    member: str = "deit_tiny_patch16_224",
    glca: Mapping[str, Any] | None = None,
    pwca: Mapping[str, Any] | None = None,
    vit: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> DCAL:
    """DCAL with both branches on a tiny member, every parameter drawn anew so that none is 0, 1 or tiny."""
    torch.manual_seed(0)
    model = DCAL(
        tiny_vit(member, **(vit or {})),
        5,
        glca={"blocks": 1, "top_ratio": RATIO, **(glca or {})},
        pwca={"blocks": None, **(pwca or {})},
        **options,
    )
    scramble(model.vit)
    if model.glca is not None and model.glca_blocks:
        copied = [*model.glca.blocks, model.glca.norm]
        norm = model.vit.fc_norm if isinstance(model.vit.norm, nn.Identity) else model.vit.norm
        sources = [*model.vit.blocks[-model.glca_blocks :], norm]
        if model.glca.attn_pool is not None:
            copied, sources = [*copied, model.glca.attn_pool], [*sources, model.vit.attn_pool]
        for target, source in zip(copied, sources, strict=True):
            target.load_state_dict(source.state_dict())
    return model.to(dtype)


@torch.no_grad()
def scramble(module: nn.Module) -> None:
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        scale = name.endswith(("norm.weight", "gamma", "gamma_1", "gamma_2")) or ("norm" in name and "weight" in name)
        parameter.copy_(0.3 * torch.randn_like(parameter) + float(scale))


def images_for(member: str, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, *image_size(member), generator=torch.Generator().manual_seed(1), dtype=dtype)
