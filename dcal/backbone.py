"""Any supported timm Vision Transformer, at any input size, with weights from a file or from timm's hub."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from dcal.attention.support import check_supported

HEAD_KEYS = ("head.", "head_dist.", "fc.")
WRAPPERS = ("model", "state_dict", "teacher", "student")


class CheckpointError(Exception):
    """A weight file cannot be read or holds another architecture; the message names it and the remedy."""


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

    Returns:
        the model, a timm `VisionTransformer` or `Eva` with fused attention.

    Raises:
        ValueError: unknown name, image size that is not a multiple of the patch size, both sources of weights.
        UnsupportedBackbone: a family the branches cannot use.
        CheckpointError: weights that cannot be fetched, read or matched.
    """
    if pretrained and checkpoint:
        raise ValueError("backbone.pretrained=true and backbone.checkpoint are both set: choose one source of weights")
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=4) or ["see timm.list_models('vit_*')"]
        raise ValueError(f"backbone.name={name!r} is not a timm model; near it: {', '.join(near)}")
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
    except Exception as error:  # what a failed download raises depends on the hub client and its HTTP library
        if not pretrained:
            raise
        raise CheckpointError(
            f"backbone.pretrained=true, but weights of {name} could not be fetched ({_first_line(error)}). "
            "Without internet, give a weight file: backbone.checkpoint=PATH (.safetensors or .pth) and "
            "backbone.pretrained=false"
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
    """The input size at which timm builds the patch grid we want: the image's, or the overlapping grid's."""
    height, width = (int(side) for side in image_size)
    with torch.device("meta"):
        patch_embed: Any = getattr(timm.create_model(name, num_classes=0, **kwargs), "patch_embed", None)
    if not hasattr(patch_embed, "feat_ratio"):
        return height, width  # no ViT: refused later, with the reason
    patch_h, patch_w = patch_embed.feat_ratio(as_scalar=False)
    if patch_stride is not None:
        rows, columns = (height - patch_h) // patch_stride + 1, (width - patch_w) // patch_stride + 1
        return rows * patch_h, columns * patch_w
    if height % patch_h or width % patch_w:
        near = [max(1, round(height / patch_h)) * patch_h, max(1, round(width / patch_w)) * patch_w]
        raise ValueError(
            f"dataset.image_size=[{height},{width}] is not a multiple of the {patch_h}x{patch_w} patches of "
            f"{name}; near it: [{near[0]},{near[1]}]"
        )
    return height, width


def _overlap_patches(vit: nn.Module, image_size: Sequence[int], stride: int) -> None:
    """Overlapping patches as in TransReID: the grid is there already, the projection steps by `stride`."""
    patch_embed: Any = vit.patch_embed
    if not isinstance(getattr(patch_embed, "proj", None), nn.Conv2d) or hasattr(patch_embed, "backbone"):
        raise ValueError("backbone.patch_stride needs a plain patch projection; hybrids have none")
    patch_embed.proj.stride = (stride, stride)
    # the size is fixed, but need not be a multiple of the patch: timm is to check equality alone
    patch_embed.img_size, patch_embed.strict_img_size = tuple(image_size), True


def load_weights(vit: nn.Module, checkpoint: str | Path) -> None:
    """Loads a weight file into the backbone, strictly but for classifiers; position embeddings are resampled.

    Raises:
        CheckpointError: missing or unreadable file, or weights of another architecture.
    """
    module = eva if isinstance(vit, eva.Eva) else vision_transformer
    try:
        state = read_weights(checkpoint)
        if "dist_token" in state and not hasattr(vit, "dist_token"):
            raise ValueError("weights of a distilled model, which has a second class token (dist_token)")
        _fit_position_embedding(state, vit)
        state = module.checkpoint_filter_fn(state, vit)
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"backbone.checkpoint={checkpoint}: {_first_line(error)}; {_WRONG_MODEL}") from error
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


def _fit_position_embedding(state: dict[str, Tensor], vit: nn.Module) -> None:
    """Resamples position embeddings of a grid that is not square, which timm would take for a square one.

    Its shape is not in the file; it is taken to be the one nearest to the model's, e.g. 16 × 8 for 128
    patches and a model of 24 × 12.

    Raises:
        ValueError: the number of patches fits no grid of about the model's shape.
    """
    own: Tensor | None = getattr(vit, "pos_embed", None)
    given = state.get("pos_embed")
    if own is None or given is None or given.ndim != 3 or given.shape == own.shape:
        return
    rows, columns = vit.patch_embed.grid_size  # type: ignore[union-attr,misc]
    prefix = own.shape[1] - rows * columns
    count = given.shape[1] - prefix
    if count < 1 or math.isqrt(count) ** 2 == count:
        return

    def difference(height: int) -> float:
        return abs(math.log(height * height / count * columns / rows))

    height = min((h for h in range(1, count + 1) if count % h == 0), key=difference)
    if difference(height) > math.log(1.5):
        raise ValueError(f"{count} position embeddings, which fit no grid of about {rows} x {columns} patches")
    grid = [height, count // height]
    state["pos_embed"] = resample_abs_pos_embed(given, [rows, columns], grid, num_prefix_tokens=prefix)


_WRONG_MODEL = "the weights are of another architecture: choose the matching backbone or backbone.name"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The backbone's tensors in a weight file, by name. Runs no pickled code.

    Wrappers (`model`, `state_dict`, `teacher`, `student`) are taken off, and so is what stands before the
    backbone's own names (`module.`, `backbone.`, `vit.` in a checkpoint of DCAL); tensors beside the backbone
    are left out.

    Raises:
        CheckpointError: missing, torn or unsafe file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"backbone.checkpoint={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise a dozen types for one thing: it cannot be read
        raise CheckpointError(
            f"backbone.checkpoint={path} cannot be read as weights ({_first_line(error)}): "
            "give a .safetensors file, or a .pth that holds tensors only"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict):
            state = state.get(wrapper, state)
    tensors = (
        {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    )
    if not tensors:
        raise CheckpointError(f"backbone.checkpoint={path} holds no weights: give a file of named tensors")
    anchor = "patch_embed.proj.weight"
    prefix = next((key.removesuffix(anchor) for key in tensors if key.endswith(anchor)), "")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


class Normalisation(NamedTuple):
    """What the backbone's weights were trained with, per channel, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
