"""Any supported timm Vision Transformer, at any input size, with weights from a file or from timm's hub."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import eva, parse_model_name
from torch import Tensor, nn

from dcal.attention.adapters import add_adapters
from dcal.attention.options import LoRAOptions, options_of
from dcal.attention.support import check_supported
from dcal.utils.errors import UserError, check_number, first_line
from dcal.weights.files import CheckpointError
from dcal.weights.hub import cache_without_internet
from dcal.weights.load import load_weights


def create_backbone(
    name: str,
    image_size: int | Sequence[int],
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    drop_path_rate: float = 0.0,
    patch_stride: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    freeze: str | int = "none",
    lora: LoRAOptions | Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm ViT without classifier, its position embeddings resampled to `image_size`.

    Args:
        name: any timm model name of a supported family, e.g. `deit_tiny_patch16_224`; or a model that timm has saved:
            `hf-hub:organisation/name` on the hub, `local-dir:folder` with its `config.json`.
        image_size: (height, width) in pixels, or one number for both; multiples of the patch size unless patches
            overlap.
        pretrained: fetch timm's weights from its hub, or take those of the saved model.
        checkpoint: weight file in one of the layouts of docs/weights.md; classifiers in it are dropped.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        patch_stride: step between patches where they overlap (TransReID: 12); None for the patch size.
        kwargs: further arguments of the timm model, e.g. `{depth: 8}`; such a model has no pretrained
            weights.
        freeze: what does not learn, see `freeze_backbone`.
        lora: `rank`, `alpha` and `layers` of low-rank adapters; with a rank above 0 they alone learn.

    Returns:
        the model, a timm `VisionTransformer` or `Eva` with fused attention.

    Raises:
        UserError: unknown name, image size that is not a multiple of the patch size, both sources of weights, an option
            out of its range, or adapters on a frozen backbone or without peft.
        UnsupportedBackbone: a family the branches cannot use.
        CheckpointError: weights or a configuration that cannot be fetched, read or matched.
    """
    image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if checkpoint is not None and not str(checkpoint):
        raise UserError(
            "backbone.checkpoint is empty, as after a shell variable that is not set: give a weight file, or leave the "
            "key out for random weights"
        )
    if pretrained and checkpoint:
        raise UserError("backbone.pretrained=true and backbone.checkpoint are both set: choose one source of weights")
    if not isinstance(kwargs, Mapping | None):
        raise UserError(f"backbone.kwargs={kwargs!r}: must be arguments by their names, as +backbone.kwargs.depth=8")
    check_number("backbone.drop_path_rate", drop_path_rate, ge=0, lt=1)
    check_number("backbone.patch_stride", patch_stride, ge=1, whole=True, note="null is the patch size")
    name = _known(name)
    on_hub = pretrained or name.startswith("hf-hub:")
    with cache_without_internet() if on_hub else contextlib.nullcontext():
        grid_size = _pretend_size(name, image_size, patch_stride, kwargs or {})
        options = {"num_classes": 0, "drop_path_rate": drop_path_rate, "img_size": grid_size, **(kwargs or {})}
        vit = _create(name, pretrained, options)
    check_supported(vit)
    if patch_stride is not None:
        _overlap_patches(vit, image_size, patch_stride)
    if checkpoint:
        load_weights(vit, checkpoint)
    freeze_backbone(vit, freeze)
    adapters = options_of(LoRAOptions, lora)
    if adapters.rank and freeze != "none":
        raise UserError(
            f"backbone.lora.rank={adapters.rank} and backbone.freeze={freeze} are both set: adapters freeze all else "
            "of the backbone already, so leave backbone.freeze=none"
        )
    add_adapters(vit, adapters)
    return vit


def portable(vit: nn.Module, name: str, kwargs: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Name and further arguments with which `create_backbone` builds the same model without its folder or the hub.

    Args:
        vit: the model that `create_backbone` built.
        name: by which it was built; `hf-hub:` and `local-dir:` names become that of timm's architecture.
        kwargs: with which it was built.
    """
    kwargs = dict(kwargs or {})
    if parse_model_name(name)[0] is None:
        return name, kwargs
    config: Any = vit.pretrained_cfg
    saved: dict[str, Any] = dict(vit.pretrained_model_args)  # type: ignore[arg-type]
    saved = {key: value for key, value in saved.items() if key not in ("img_size", "num_classes")}
    wanted = {"mean": list(config["mean"]), "std": list(config["std"])}
    return config["architecture"], {**saved, **kwargs, "pretrained_cfg": wanted}


def freeze_backbone(vit: nn.Module, freeze: str | int) -> None:
    """Takes part of a backbone out of the training: no gradients are computed for it, and it needs none of its
    activations. Its stochastic depth and dropout stay as they are.

    Args:
        vit: a timm ViT; changed in place.
        freeze: `none`; `patch_embed`, the patch projection alone (Chen, Xie, He 2021, arXiv 2104.02057); `all`; or a
            number of blocks, the first that many, and all that comes before them.

    Raises:
        UserError: anything else, or more blocks than there are.
    """
    blocks, freeze = list(vit.blocks), str(freeze)  # type: ignore[arg-type]
    if freeze == "none":
        return
    if freeze in ("all", "patch_embed"):
        frozen = [vit] if freeze == "all" else [vit.patch_embed]
        parameters = [parameter for module in frozen for parameter in module.parameters()]  # type: ignore[union-attr]
    elif freeze.isdecimal() and int(freeze) <= len(blocks):
        # everything of a ViT but its blocks and what follows them comes before its blocks
        later = ("blocks.", "norm.", "fc_norm.", "attn_pool.")
        before = [parameter for name, parameter in vit.named_parameters() if not name.startswith(later)]
        parameters = [*before, *(p for block in blocks[: int(freeze)] for p in block.parameters())]
    else:
        raise UserError(f"backbone.freeze={freeze}: none, patch_embed, all, or a number of blocks up to {len(blocks)}")
    for parameter in parameters:
        parameter.requires_grad_(False)


def _known(name: str) -> str:
    """The name as timm takes it.

    Raises:
        UserError: no model of timm, an unknown scheme, or a folder that is none of timm's.
    """
    try:
        source, model = parse_model_name(name)
    except ValueError as error:
        raise UserError(f"backbone.name={name!r}: {first_line(error)}") from error
    if source == "local-dir":
        folder = Path(model).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(
                f"backbone.name={name!r}: {folder} holds no config.json, as timm saves it with a model's weights; "
                "for a weight file alone give its architecture as backbone.name, and backbone.checkpoint=FILE"
            )
        return f"local-dir:{folder}"
    if source is None and not timm.is_model(model.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=4) or ["see timm.list_models('vit_*')"]
        raise UserError(f"backbone.name={name!r} is not a timm model; near it: {', '.join(near)}")
    return f"{source}:{model}" if source else model


def _create(name: str, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    """`timm.create_model`; what it raises, in terms of the configuration's keys."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:  # a convolutional model knows no img_size
        raise UserError(f"backbone.name={name!r} is not a Vision Transformer: {error}") from error
    except Exception as error:  # what a failed download raises depends on the hub client and its HTTP library
        if name.startswith("local-dir:"):
            raise CheckpointError(f"backbone.name={name} cannot be loaded: {first_line(error)}") from error
        if name.startswith("hf-hub:"):
            raise CheckpointError(
                f"backbone.name={name} could not be fetched ({first_line(error)}). Without internet, copy the "
                "repository's folder to this machine and give backbone.name=local-dir:FOLDER"
            ) from error
        if not pretrained:
            raise
        raise CheckpointError(
            f"backbone.pretrained=true, but weights of {name} could not be fetched ({first_line(error)}). "
            "Without internet, give a weight file: backbone.checkpoint=PATH and backbone.pretrained=false"
        ) from error


def _pretend_size(
    name: str, image_size: Sequence[int], patch_stride: int | None, kwargs: Mapping[str, Any]
) -> tuple[int, int]:
    """The input size at which timm builds the patch grid we want: the image's, or the overlapping grid's."""
    height, width = (int(side) for side in image_size)
    with torch.device("meta"):
        patch_embed: Any = getattr(_create(name, False, {"num_classes": 0, **kwargs}), "patch_embed", None)
    if not hasattr(patch_embed, "feat_ratio"):
        return height, width  # no ViT: refused later, with the reason
    patch_h, patch_w = patch_embed.feat_ratio(as_scalar=False)
    small = height < patch_h or width < patch_w
    if patch_stride is not None and not small:
        rows, columns = (height - patch_h) // patch_stride + 1, (width - patch_w) // patch_stride + 1
        return rows * patch_h, columns * patch_w
    if small or height % patch_h or width % patch_w:
        near = [max(1, round(height / patch_h)) * patch_h, max(1, round(width / patch_w)) * patch_w]
        raise UserError(
            f"dataset.image_size=[{height},{width}] is {'smaller than' if small else 'not a multiple of'} the "
            f"{patch_h}x{patch_w} patches of {name}; near it: [{near[0]},{near[1]}]"
        )
    return height, width


def _overlap_patches(vit: nn.Module, image_size: Sequence[int], stride: int) -> None:
    """Overlapping patches as in TransReID: the grid is there already, the projection steps by `stride`."""
    patch_embed: Any = vit.patch_embed
    if not isinstance(getattr(patch_embed, "proj", None), nn.Conv2d) or hasattr(patch_embed, "backbone"):
        raise UserError("backbone.patch_stride needs a plain patch projection; hybrids have none")
    patch_embed.proj.stride = (stride, stride)
    # the size is fixed, but need not be a multiple of the patch: timm is to check equality alone
    patch_embed.img_size, patch_embed.strict_img_size = tuple(image_size), True


class Normalisation(NamedTuple):
    """What the backbone's weights were trained with, per channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def evaluation_input(name: str, kwargs: Mapping[str, Any] | None = None) -> tuple[tuple[int, int], float]:
    """At which size timm evaluates a model, and which share of the resized image's sides is kept by the crop to it.

    Args:
        name: as in `create_backbone`.
        kwargs: further arguments of the timm model.

    Returns:
        (height, width) in pixels, and a share in (0, 1].

    Raises:
        UserError: unknown name.
    """
    name = _known(name)
    with cache_without_internet() if name.startswith("hf-hub:") else contextlib.nullcontext(), torch.device("meta"):
        config: Any = _create(name, False, {"num_classes": 0, **(kwargs or {})}).pretrained_cfg
    height, width = config["input_size"][1:]
    return (height, width), config["crop_pct"]


def normalisation(vit: nn.Module) -> Normalisation:
    """Mean and standard deviation from the weights' own configuration (DeiT: ImageNet's; AugReg: 0.5).

    Args:
        vit: a model of timm; what counts is its `pretrained_cfg`.
    """
    config: Any = vit.pretrained_cfg
    return Normalisation(tuple(config["mean"]), tuple(config["std"]))


def embed(vit: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Tokens that enter the first block, (B, N, D), and the rotary embedding of every block (or None)."""
    x = vit.patch_embed(images_BCHW)  # type: ignore[operator]
    x = vit._pos_embed(x)  # type: ignore[operator]
    depth = len(vit.blocks)  # type: ignore[arg-type]
    if not isinstance(vit, eva.Eva):
        return vit.norm_pre(vit.patch_drop(x)), [None] * depth  # type: ignore[operator]
    tokens, rope = x
    per_block = list(rope) if getattr(vit, "rope_mixed", False) and rope is not None else [rope] * depth
    return vit.norm_pre(tokens), per_block


def patch_boxes(vit: nn.Module, image_size: Sequence[int]) -> Tensor:
    """Where the patches lie: left, top, right and bottom in pixels of the input, (P, 4), in the order of the tokens.

    Overlapping patches keep their size. A hybrid's are taken for the cells of its grid, whatever its stem sees.
    """
    patch_embed: Any = vit.patch_embed
    rows, columns = patch_embed.grid_size
    size = step = (image_size[0] / rows, image_size[1] / columns)
    if not hasattr(patch_embed, "backbone"):
        size = patch_embed.patch_size
        step = getattr(patch_embed.proj, "stride", size)  # a linear projection has none
    top, left = torch.meshgrid(torch.arange(rows) * step[0], torch.arange(columns) * step[1], indexing="ij")
    return torch.stack([left, top, left + size[1], top + size[0]], dim=-1).reshape(-1, 4).float()


def final_norm(vit: nn.Module) -> nn.Module:
    """The norm between the last block and the classifier; `fc_norm` in models that average the patches."""
    norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    assert isinstance(norm, nn.Module)
    return norm
