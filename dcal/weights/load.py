"""Weights of any known layout into a timm ViT: timm's own filter first, then position embeddings for the model's grid.

What the file has and the model has not is left out and listed; what the model has and the file has not is an error, so
that no part of the backbone is left with random weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import re
from collections.abc import Iterable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from dcal.utils.errors import UserError, first_line
from dcal.weights.files import CheckpointError, read_tensors
from dcal.weights.layouts import CLIP, HF_CLIP, Found, State, find_backbone

log = logging.getLogger(__name__)

HEAD_KEYS = ("head.", "head_dist.", "fc.")
PARTS = (
    *("cls_token", "dist_token", "reg_token", "storage_tokens", "pos_embed", "patch_embed"),
    *("norm_pre", "blocks", "norm", "fc_norm"),
)
"""Parts of a backbone that its features depend on: where the file has one and the model has not, they differ."""
WRONG_MODEL = "the weights are of another architecture: choose the matching backbone or backbone.name"
NPZ_BLOCKS = r"(.*)Transformer/encoderblock(?:_(\d+))?/LayerNorm_0/scale"


class Loaded(NamedTuple):
    """What was taken from a weight file."""

    layout: str
    tensors: int
    prefix: str
    """What was before the backbone's names in the file."""
    notes: tuple[str, ...]
    """What was changed or left out."""
    warnings: tuple[str, ...] = ()
    """What may not be as it was meant."""

    def __str__(self) -> str:
        prefix = f" of {self.prefix}*" if self.prefix else ""
        return "; ".join([f"{self.tensors} tensors{prefix} ({self.layout})", *self.notes])


def load_weights(vit: nn.Module, checkpoint: str | Path) -> Loaded:
    """Loads a weight file into the backbone and logs in one line what was taken and what was left out.

    Args:
        vit: a supported timm ViT; its classifier, if it has one, keeps its weights.
        checkpoint: a file in one of the layouts of `dcal.weights.layouts`, or Google's `.npz`.

    Raises:
        CheckpointError: missing or unreadable file, or weights of another architecture; the model is as before.
    """
    tensors = read_tensors(checkpoint)
    try:
        state, loaded = _from_jax(vit, Path(checkpoint).expanduser(), tensors) or _from_torch(vit, tensors)
        _check(vit, state)
    except CheckpointError as error:
        raise CheckpointError(f"backbone.checkpoint={checkpoint}: {error}") from error
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"backbone.checkpoint={checkpoint}: {first_line(error)}; {WRONG_MODEL}") from error
    vit.load_state_dict(state, strict=False)
    log.info("backbone.checkpoint=%s: %s", checkpoint, loaded)
    for warning in loaded.warnings:
        log.warning("backbone.checkpoint=%s: %s", checkpoint, warning)
    return loaded


def _from_torch(vit: nn.Module, tensors: State) -> tuple[State, Loaded]:
    """The backbone's state and what to say of it.

    Raises:
        CheckpointError: a file that is refused for what it is.
        ValueError, KeyError, AttributeError, RuntimeError: tensors that timm's filter or the resampling cannot use.
    """
    try:
        found = find_backbone(tensors)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if "dist_token" in found.state and not hasattr(vit, "dist_token"):
        raise CheckpointError("weights of a distilled model, which has a second class token (dist_token); choose it")
    _check_key_biases(vit, found.state)
    state = _timm_names(vit, found)
    notes = [*_move_norm(vit, state), *_fit_position_embedding(vit, state)]
    own = vit.state_dict()
    surplus = [name for name in state if name not in own and name.split(".")[0] not in PARTS]
    if found.others:
        notes.append(f"of the backbones in the file {found.prefix}* is taken, {'*, '.join(found.others)}* left out")
    dropped = _summary([*surplus, *(_below(name, found.prefix) for name in found.beside)])
    if dropped:
        notes.append(f"left out: {dropped}")
    warnings = []
    cameras = [name for name in (*surplus, *found.beside) if name.split(".")[-1] in ("sie_embed", "cv_embed")]
    if cameras:
        warnings.append(f"{cameras[0]} embeds the cameras of the file's data set: that is learned anew")
    clip = found.layout is CLIP or (found.layout is HF_CLIP and "cls_token" in found.state)  # SigLIP has none
    quick = isinstance(vit, eva.Eva) or any(type(module).__name__ == "QuickGELU" for module in vit.modules())
    if clip and not quick:
        warnings.append("OpenAI's own weights were trained with QuickGELU: for those choose a *_quickgelu_* backbone")
    state = {name: value for name, value in state.items() if name not in surplus and not name.startswith(HEAD_KEYS)}
    return state, Loaded(found.layout.title, len(state), found.prefix, tuple(notes), tuple(warnings))


def _timm_names(vit: nn.Module, found: Found) -> State:
    """The state under the names of timm's model, by timm's own filter for it.

    The filter takes every grid of patches for a square one, or for that of the pretrained configuration, and prefix
    tokens for those of the model: position embeddings pass it unchanged.
    """
    if isinstance(vit, eva.Eva):
        convert: Any = eva.checkpoint_filter_fn
    else:
        convert = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)
    radio = found.layout.title == "RADIO"  # positions on a grid that is cropped, not resampled
    with contextlib.redirect_stdout(io.StringIO()):  # the filter prints an error that it expects
        return convert(dict(found.state), vit if radio else _WithoutPositions(vit))


class _WithoutPositions:
    """The model as timm's filter sees it, but for `pos_embed`."""

    pos_embed = None

    def __init__(self, vit: nn.Module) -> None:
        self._vit = vit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vit, name)


def _check_key_biases(vit: nn.Module, state: State) -> None:
    """timm has DINOv3 with and without biases of queries, keys and values, and drops those that the model has not."""
    attention: Any = vit.blocks[0].attn  # type: ignore[index,union-attr]
    if not isinstance(vit, eva.Eva) or getattr(attention, "q_bias", None) is not None:
        return
    biases = [value.chunk(3) for name, value in state.items() if name.endswith("attn.qkv.bias")]
    if "storage_tokens" in state and any(q.any() or v.any() for q, _, v in biases):
        raise CheckpointError("its attention has biases that are not 0: choose the backbone vit_*_dinov3_qkvb")


def _move_norm(vit: nn.Module, state: State) -> list[str]:
    """The last norm is `norm` before pooling and `fc_norm` after it; whichever the model has gets the file's."""
    own = vit.state_dict()
    for mine, other in (("norm", "fc_norm"), ("fc_norm", "norm")):
        if f"{mine}.weight" in own and f"{mine}.weight" not in state and f"{other}.weight" in state:
            for name in [name for name in state if name.startswith(f"{other}.")]:
                state[f"{mine}.{name.removeprefix(f'{other}.')}"] = state.pop(name)
            return [f"{other} is taken for {mine}"]
    return []


def _fit_position_embedding(vit: nn.Module, state: State) -> list[str]:
    """Resamples position embeddings to the model's grid; what it did, for the log.

    The grid is not in the file: it is taken to be that of the pretrained configuration if the number of patches agrees,
    else a square, else the one nearest to the model's, e.g. 16 x 8 for 128 patches and a model of 24 x 12.

    Raises:
        ValueError: the number of patches fits no grid of about the model's shape.
    """
    own: Tensor | None = getattr(vit, "pos_embed", None)
    given = state.get("pos_embed")
    if own is None or given is None or given.ndim != 3:
        return []
    grid = tuple(vit.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
    prefix = own.shape[1] - math.prod(grid)
    count = given.shape[1] - prefix
    if prefix == 1 and _has_patches_alone(given[0].float()):
        raise ValueError(f"{count + 1} position embeddings, none of the class token, which has one in the model")
    source = _source_grid(vit, count, grid)
    if source == grid or count < 1:
        return []
    state["pos_embed"] = resample_abs_pos_embed(given, list(grid), list(source), num_prefix_tokens=prefix)
    return [f"position embeddings resampled from {source[0]}x{source[1]} to {grid[0]}x{grid[1]} patches"]


def _has_patches_alone(table_ND: Tensor) -> bool:
    """Whether position embeddings are of a square grid, without a class token, as FlexiViT's and big_vision's are.

    49 may be 7 x 7, or a class token and 6 x 8: patches one above the other are alike, and tell which.
    """
    side = math.isqrt(len(table_ND))
    if side * side != len(table_ND) or side < 3:
        return False
    centred_ND = table_ND - table_ND.mean(0)

    def alike(first: int, width: int) -> float:
        own_ND = centred_ND[first:]
        return float(torch.cosine_similarity(own_ND[:-width], own_ND[width:], dim=-1).mean())

    return alike(0, side) > max(alike(1, side - 1), alike(1, side + 1)) + 0.05


def _source_grid(vit: nn.Module, count: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    size = getattr(vit, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    patch_h, patch_w = vit.patch_embed.feat_ratio(as_scalar=False)  # type: ignore[union-attr,operator]
    pretrained = (size[0] // patch_h, size[1] // patch_w)
    if math.prod(pretrained) == count:
        return pretrained
    if math.prod(grid) == count:
        return grid
    side = math.isqrt(max(count, 0))
    if side * side == count:
        return side, side

    def difference(height: int) -> float:
        return abs(math.log(height * height / count * grid[1] / grid[0]))

    height = min((h for h in range(1, count + 1) if count % h == 0), key=difference, default=0)
    if not height or difference(height) > math.log(1.5):
        raise ValueError(f"{count} position embeddings, which fit no grid of about {grid[0]} x {grid[1]} patches")
    return height, count // height


def _check(vit: nn.Module, state: State) -> None:
    """Every tensor of the backbone has to be there, in its shape, and none that it does not have.

    Raises:
        CheckpointError: the first differences.
    """
    own = {name: value for name, value in vit.state_dict().items() if not name.startswith(HEAD_KEYS)}
    differences = {
        "missing": [name for name in own if name not in state],
        "not in the model": [name for name in state if name not in own],
        "wrong shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ],
    }
    found = [f"{what}: {', '.join(n[:2])}{' …' if len(n) > 2 else ''}" for what, n in differences.items() if n]
    if found:
        raise CheckpointError(f"{'; '.join(found)}; {WRONG_MODEL}")


def _from_jax(vit: nn.Module, path: Path, tensors: State) -> tuple[State, Loaded] | None:
    """Google's `.npz` (ViT, AugReg, hybrids, SigLIP) through timm's reader; None if the file is none.

    Raises:
        CheckpointError: another depth, or a model that timm's reader does not know.
    """
    if path.suffix != ".npz":
        return None
    matches = [match for name in tensors if (match := re.fullmatch(NPZ_BLOCKS, name))]
    if not matches:
        raise CheckpointError("a .npz file without Google's names of a ViT, Transformer/encoderblock...")
    depth = len(matches) if matches[0][2] else len(tensors[matches[0][0]])
    blocks = len(vit.blocks)  # type: ignore[arg-type]
    if depth != blocks:
        raise CheckpointError(f"{depth} blocks instead of {blocks}; {WRONG_MODEL}")
    if not hasattr(vit, "load_pretrained") or not hasattr(vit.norm, "weight"):
        raise CheckpointError(f"Google's weights do not fit {type(vit).__name__}; {WRONG_MODEL}")
    filled: Any = copy.deepcopy(vit)  # the reader fills the model as it goes and may fail half way
    names = [f"{matches[0][1]}{rest}" for rest in ("pos_embedding", "Transformer/posembed_input/pos_embedding")]
    positions = next((tensors[name] for name in names if name in tensors), None)
    if positions is None:
        raise CheckpointError(f"no learned position embeddings, which {type(vit).__name__} has; {WRONG_MODEL}")
    filled.pos_embed = nn.Parameter(positions.clone())  # of the file's size: resampled below as those of other layouts
    filled.load_pretrained(str(path))
    state = {name: value for name, value in filled.state_dict().items() if not name.startswith(HEAD_KEYS)}
    notes = _fit_position_embedding(vit, state)
    return state, Loaded("Google's .npz", len(state), "", tuple(notes))


def _below(name: str, prefix: str) -> str:
    """The name without the containers that it shares with the backbone."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(name.split("."), prefix.split("."), strict=False))
    return name.split(".", sum(1 for _ in shared))[-1]


def _summary(names: Iterable[str], most: int = 8) -> str:
    """The first parts of dotted names, each once."""
    parts = list(dict.fromkeys(name.split(".")[0] for name in names))
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")
