"""A DCAL model from names and keywords, for one's own training code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dcal.attention.options import GLCAOptions, PWCAOptions
from dcal.backbone import create_backbone
from dcal.model import DCAL
from dcal.utils.errors import UserError, choose, nearest


def create_dcal_model(
    backbone_name: str,
    num_classes: int,
    image_size: int | Sequence[int] = (448, 448),
    top_ratio: float = 0.1,
    attention: str = "dcal",
    pretrained: bool = False,
    checkpoint_path: str | Path | None = None,
    **options: Any,
) -> DCAL:
    """DCAL on any supported timm ViT, for use in one's own training code.

        model = dcal.create_dcal_model("deit_tiny_patch16_224", num_classes=200, image_size=224, pretrained=True)

    Args:
        backbone_name: timm model name.
        num_classes: classes, or training identities.
        image_size: (height, width) in pixels, or one number for both.
        top_ratio: share of patches that GLCA selects; the paper has 0.1 for FGVC and 0.3 for Re-ID.
        attention: `none`, `glca`, `pwca` or `dcal` (both).
        pretrained: fetch timm's weights.
        checkpoint_path: weight file for the backbone.
        options: those of `GLCAOptions` and `PWCAOptions` by their names (`blocks` as `glca_blocks` and `pwca_blocks`);
            of `DCAL` `head_fusion`, `bnneck`, `side_information`; of the backbone `drop_path_rate`, `patch_stride`,
            `freeze`, `lora`.

    Raises:
        UserError: unknown name, attention or option; an image size that does not fit the patches. Messages name the
            arguments of this function.
        CheckpointError: weights that cannot be fetched, read or matched.
    """
    choose("attention", attention, ("none", "glca", "pwca", "dcal"))
    targets = {name: ("glca", name.removeprefix("glca_")) for name in _keywords(GLCAOptions, "glca_blocks")}
    targets |= {name: ("pwca", name.removeprefix("pwca_")) for name in _keywords(PWCAOptions, "pwca_blocks")}
    targets |= {name: ("vit", name) for name in ("drop_path_rate", "patch_stride", "freeze", "lora")}
    targets |= {name: ("model", name) for name in ("head_fusion", "bnneck", "side_information")}
    found: dict[str, dict[str, Any]] = {"glca": {}, "pwca": {}, "vit": {}, "model": {}}
    for name, value in {"top_ratio": top_ratio, **options}.items():
        if name not in targets:
            raise UserError(f"create_dcal_model has no option {name!r}: {nearest(name, list(targets))}")
        where, own = targets[name]
        found[where][own] = value
    for branch in ("glca", "pwca"):
        if attention not in (branch, "dcal"):
            found[branch]["blocks"] = 0
    try:
        vit = create_backbone(backbone_name, image_size, pretrained, checkpoint_path, **found["vit"])
        return DCAL(vit, num_classes, glca=found["glca"], pwca=found["pwca"], **found["model"])
    except UserError as error:  # its message names configuration keys
        words = re.compile("|".join(rf"\b{re.escape(key)}" for key in ARGUMENTS))
        error.args = (words.sub(lambda match: ARGUMENTS[match[0]], str(error)),)
        raise


ARGUMENTS = {
    "attention.glca.blocks": "glca_blocks",
    "attention.pwca.blocks": "pwca_blocks",
    "attention.glca.": "",
    "attention.pwca.": "",
    "attention.": "",
    "backbone.name": "backbone_name",
    "backbone.checkpoint": "checkpoint_path",
    "backbone.pretrained=true": "pretrained=True",
    "backbone.": "",
    "dataset.image_size": "image_size",
    "null": "None",
}
"""Words of the configuration, in which the modules below name an option, and those of `create_dcal_model`."""


def _keywords(kind: type[GLCAOptions] | type[PWCAOptions], blocks: str) -> list[str]:
    return [blocks if option.name == "blocks" else option.name for option in fields(kind)]
