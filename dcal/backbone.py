"""Any supported timm Vision Transformer, at any input size, with weights from a file or from timm's hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from dcal.attention.support import check_supported

HEAD_KEYS = ("head.", "head_dist.", "fc.")


class CheckpointError(Exception):
    """A weight file cannot be read, or holds another architecture; the message names the file and the remedy."""


def create_backbone(
    name: str,
    image_size: Sequence[int],
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    drop_path_rate: float = 0.0,
    patch_stride: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm ViT without classifier, its position embeddings resampled to `image_size`.

    Args:
        name: any timm model name of a supported family, e.g. `deit_tiny_patch16_224`.
        image_size: (height, width) in pixels; multiples of the patch size unless patches overlap.
        pretrained: fetch timm's weights from its hub.
        checkpoint: weight file (.safetensors, or .pth read with `weights_only`); timm and DeiT layouts;
            classifiers in it are dropped.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        patch_stride: step between patches where they overlap (TransReID: 12); None for the patch size.
        kwargs: further arguments of the timm model, e.g. `{depth: 8}`; such a model has no pretrained
            weights.

    Raises:
        ValueError: unknown name, image size that is not a multiple of the patch size.
        UnsupportedBackbone: a family the branches cannot use.
        CheckpointError: weights that cannot be fetched, read or matched.
    """
    if pretrained and checkpoint:
        raise ValueError(
            "backbone.pretrained=true and backbone.checkpoint are both set: choose one source of weights"
        )
    if not timm.is_model(name.split(".")[0]):
        near = (
            ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]) or "see timm.list_models('vit_*')"
        )
        raise ValueError(f"backbone.name={name!r} is not a timm model; near it: {near}")
    grid_size = _pretend_size(name, image_size, patch_stride, kwargs or {})
    options: dict[str, Any] = {
        "num_classes": 0,
        "drop_path_rate": drop_path_rate,
        "img_size": tuple(grid_size),
        **(kwargs or {}),
    }
    try:
        vit: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:  # a convolutional model knows no img_size
        raise ValueError(f"backbone.name={name!r} is not a Vision Transformer: {error}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise CheckpointError(
            f"backbone.pretrained=true, but the weights of {name} could not be fetched ({_first_line(error)}). Without "
            "internet, give a weight file: backbone.checkpoint=PATH (.safetensors or .pth) and backbone.pretrained=false"
        ) from error
    check_supported(vit)
    if patch_stride is not None:
        _overlap_patches(vit, image_size, patch_stride)
    if checkpoint:
        load_weights(vit, checkpoint)
    return vit


def _pretend_size(
    name: str, image_size: Sequence[int], patch_stride: int | None, kwargs: Mapping[str, Any]
) -> tuple[int, int]:
    """The input size at which timm builds the patch grid we want: the image's, or that of the overlapping grid."""
    height, width = (int(side) for side in image_size)
    with torch.device("meta"):
        patch_embed = getattr(timm.create_model(name, num_classes=0, **kwargs), "patch_embed", None)
    patch_h, patch_w = getattr(patch_embed, "patch_size", (1, 1))
    if patch_stride is not None:
        return ((height - patch_h) // patch_stride + 1) * patch_h, (
            (width - patch_w) // patch_stride + 1
        ) * patch_w
    if height % patch_h or width % patch_w:
        raise ValueError(
            f"dataset.image_size=[{height},{width}] is not a multiple of the {patch_h}x{patch_w} patches of {name}; "
            f"near it: [{round(height / patch_h) * patch_h},{round(width / patch_w) * patch_w}]"
        )
    return height, width


def _overlap_patches(vit: nn.Module, image_size: Sequence[int], stride: int) -> None:
    """Overlapping patches as in TransReID: the grid is already built, now the projection steps by `stride`."""
    patch_embed: Any = vit.patch_embed
    if not isinstance(getattr(patch_embed, "proj", None), nn.Conv2d) or hasattr(patch_embed, "backbone"):
        raise ValueError("backbone.patch_stride needs a plain patch projection; hybrids have none")
    patch_embed.proj.stride = (stride, stride)
    patch_embed.img_size = tuple(image_size)


def load_weights(vit: nn.Module, checkpoint: str | Path) -> None:
    """Loads a weight file into the backbone, strictly but for classifiers; position embeddings are resampled.

    Raises:
        CheckpointError: missing or unreadable file, or weights of another architecture.
    """
    module = eva if isinstance(vit, eva.Eva) else vision_transformer
    try:
        state = module.checkpoint_filter_fn(read_weights(checkpoint), vit)
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"backbone.checkpoint={checkpoint}: {_first_line(error)}; {_WRONG_MODEL}"
        ) from error
    state = {key: value for key, value in state.items() if not key.startswith(HEAD_KEYS)}
    own = vit.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(HEAD_KEYS)]
    surplus = [key for key in state if key not in own]
    wrong = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if missing or surplus or wrong:
        found = "; ".join(
            f"{what}: {', '.join(keys[:2])}{' …' if len(keys) > 2 else ''}"
            for what, keys in (("missing", missing), ("not in the model", surplus), ("wrong shape", wrong))
            if keys
        )
        raise CheckpointError(f"backbone.checkpoint={checkpoint}: {found}; {_WRONG_MODEL}")
    vit.load_state_dict(state, strict=False)


_WRONG_MODEL = "the weights are of another architecture: choose the matching backbone or backbone.name"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, wrappers (`model`, `state_dict`, `module.`) taken off. Runs no
    pickled code.

    Raises:
        CheckpointError: missing, torn or unsafe file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"backbone.checkpoint={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # safetensors and torch raise a dozen types for one thing: the file cannot be read
        raise CheckpointError(
            f"backbone.checkpoint={path} cannot be read as weights ({_first_line(error)}): give a .safetensors file, or "
            "a .pth that holds tensors only"
        ) from error
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state)
    return {key.removeprefix("module."): value for key, value in state.items()}


class Normalisation(NamedTuple):
    """What the backbone's weights were trained with, per channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def normalisation(vit: nn.Module) -> Normalisation:
    """Mean and standard deviation from the weights' own configuration (DeiT: ImageNet's; AugReg: 0.5)."""
    config: Any = vit.pretrained_cfg
    return Normalisation(tuple(config["mean"]), tuple(config["std"]))


def embed(vit: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Tokens that enter the first block, (B, N, D), and the rotary embedding of every block (None without)."""
    x = vit.patch_embed(images_BCHW)  # type: ignore[operator]
    x = vit._pos_embed(x)  # type: ignore[operator]
    depth = len(vit.blocks)  # type: ignore[arg-type]
    if not isinstance(vit, eva.Eva):
        return vit.norm_pre(vit.patch_drop(x)), [None] * depth  # type: ignore[operator]
    tokens, rope = x
    per_block = list(rope) if getattr(vit, "rope_mixed", False) and rope is not None else [rope] * depth
    return vit.norm_pre(tokens), per_block


def final_norm(vit: nn.Module) -> nn.Module:
    """The norm between the last block and the classifier; timm calls it `fc_norm` where a model averages patches."""
    norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
    assert isinstance(norm, nn.Module)
    return norm


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
