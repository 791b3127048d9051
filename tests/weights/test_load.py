"""Weight files of other code bases load to the last bit, or are refused by a sentence that says what they are."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from tiny import SMALL
from torch import Tensor, nn
from weight_files import (
    BY_TITLE,
    CLIP,
    DINOV2_REG,
    DINOV3,
    FILES,
    PLAIN,
    RADIO,
    WeightFile,
    dinov3,
    hf_vit,
    other,
    under,
    write,
)

from dcal.backbone import create_backbone
from dcal.weights.files import CheckpointError
from dcal.weights.load import load_weights

LOADED = [file for file in FILES if not file.refused]
REFUSED = [file for file in FILES if file.refused]


def source(name: str = PLAIN, size: tuple[int, int] = (112, 112)) -> nn.Module:
    return WeightFile("", "", dict, name).source(size)


def title(file: WeightFile) -> str:
    return file.title


@pytest.mark.parametrize("file", LOADED, ids=title)
def test_every_layout_gives_the_weights_that_were_written(
    file: WeightFile, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = file.source()
    path = write(file, vit.state_dict(), tmp_path)
    with caplog.at_level(logging.INFO, "dcal.weights.load"):
        loaded = create_backbone(file.model, (112, 112), checkpoint=path, kwargs=file.small)
    expected, state = vit.state_dict(), loaded.state_dict()
    assert set(state) == set(expected)
    assert [name for name, value in state.items() if not torch.equal(value, expected[name])] == []
    line, *warnings = caplog.messages
    assert line.startswith(f"backbone.checkpoint={path}: {len(expected)} tensors")
    assert re.search(file.said, line), line
    assert len(warnings) == bool(file.warned) and all(re.search(file.warned, warning) for warning in warnings)
    assert capsys.readouterr().out == ""  # timm's filters print


@pytest.mark.parametrize("file", REFUSED, ids=title)
def test_what_cannot_be_loaded_says_what_it_is_and_what_to_do(file: WeightFile, tmp_path: Path) -> None:
    vit = file.source()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    path = write(file, before, tmp_path)
    with pytest.raises(CheckpointError, match=rf"backbone.checkpoint={path}: .*{file.refused}"):
        load_weights(vit, path)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


RESAMPLED = [file for file in LOADED if "pos_embed" in file.source().state_dict() and file.model != RADIO]
"""RADIO's positions are cropped from a larger square, by timm's filter."""


@pytest.mark.parametrize("file", RESAMPLED, ids=title)
def test_position_embeddings_of_every_layout_are_resampled(file: WeightFile, tmp_path: Path) -> None:
    """To a grid that is not square, the same from every layout as from timm's own names."""
    vit = file.source()
    plain = write(BY_TITLE["timm, `.safetensors`"], vit.state_dict(), tmp_path)
    size = (168, 56) if "patch14" in file.model else (192, 64)
    expected = create_backbone(file.model, size, checkpoint=plain, kwargs=file.small).pos_embed
    (tmp_path / "other").mkdir()
    path = write(file, vit.state_dict(), tmp_path / "other")
    actual = create_backbone(file.model, size, checkpoint=path, kwargs=file.small).pos_embed
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("file", [file for file in LOADED if file.plain], ids=title)
def test_real_weights_give_the_same_features_from_every_layout(
    file: WeightFile, deit_tiny: Path, tmp_path: Path
) -> None:
    reference = create_backbone(PLAIN, (224, 224), checkpoint=deit_tiny).eval()
    path = write(file, reference.state_dict(), tmp_path)
    vit = create_backbone(PLAIN, (224, 224), checkpoint=path).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(vit(images), reference(images))


def test_dinov2_at_its_real_size_has_37_patches_a_side(tmp_path: Path) -> None:
    """1370 positions and a model of registers, which have none: no grid but 37 x 37 is right."""
    vit = source(DINOV2_REG, (518, 518))
    path = write(BY_TITLE["DINOv2 with registers of Meta"], vit.state_dict(), tmp_path)
    small = create_backbone(DINOV2_REG, (56, 42), kwargs=SMALL)
    assert "resampled from 37x37 to 4x3 patches" in str(load_weights(small, path))


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_several_backbones_and_none_of_them_an_average(tmp_path: Path) -> None:
    state = source().state_dict()
    path = save({**under("left.", state), **under("right.", other(state))}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 backbones, left\.\*, right\.\*, .* in a file of its own"):
        load_weights(source(), path)


def test_dinov3_with_biases_wants_the_model_that_has_them(tmp_path: Path) -> None:
    path = save(dinov3(source(DINOV3).state_dict()), tmp_path / "biased.pth")
    with pytest.raises(CheckpointError, match=r"biases that are not 0: choose the backbone vit_.*_qkvb"):
        create_backbone("vit_small_patch16_dinov3", (64, 64), checkpoint=path, kwargs=SMALL)
    vit = source("vit_small_patch16_dinov3")
    zero = {name: torch.zeros(32) for n in range(3) for name in (f"blocks.{n}.attn.q_bias", f"blocks.{n}.attn.v_bias")}
    path = save(dinov3({**vit.state_dict(), **zero}), tmp_path / "zero.pth")
    loaded = create_backbone("vit_small_patch16_dinov3", (112, 112), checkpoint=path, kwargs=SMALL)
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, vit.blocks[1].attn.qkv.weight)


def test_gelu_that_openai_did_not_use_is_said(tmp_path: Path) -> None:
    path = write(BY_TITLE["OpenAI CLIP, state dict"], source(CLIP).state_dict(), tmp_path)
    other_gelu = create_backbone("vit_base_patch16_clip_224", (112, 112), kwargs=SMALL)
    assert "choose a *_quickgelu_* backbone" in load_weights(other_gelu, path).warnings[0]
    path = write(BY_TITLE["transformers, CLIP"], source(CLIP).state_dict(), tmp_path)
    assert "choose a *_quickgelu_* backbone" in load_weights(other_gelu, path).warnings[0]


def test_positions_without_one_of_the_class_token_are_refused(tmp_path: Path) -> None:
    """As FlexiViT and big_vision have them: 49 rows are a 7 x 7 grid, and no class token and 48 patches."""
    state: dict[str, Tensor] = source().state_dict()
    torch.manual_seed(0)
    smooth = resample_abs_pos_embed(torch.randn(1, 9, 32), [7, 7], [3, 3], num_prefix_tokens=0)
    path = save({**state, "pos_embed": smooth}, tmp_path / "flexi.pth")
    for size in ((112, 112), (96, 128), (64, 64), (96, 64)):
        with pytest.raises(CheckpointError, match="49 position embeddings, none of the class token"):
            create_backbone(PLAIN, size, checkpoint=path, kwargs=SMALL)
    smooth = resample_abs_pos_embed(torch.randn(1, 10, 32), [6, 8], [3, 3], num_prefix_tokens=1)
    path = save({**state, "pos_embed": smooth}, tmp_path / "oblong.pth")
    for size in ((112, 112), (96, 128), (96, 64)):
        create_backbone(PLAIN, size, checkpoint=path, kwargs=SMALL)


def test_parts_that_the_model_has_not_are_not_dropped(tmp_path: Path) -> None:
    """Registers, a norm before the blocks, a further block: without them the features are others."""
    state: dict[str, Tensor] = source().state_dict()
    for name in ("reg_token", "norm_pre.weight", "blocks.3.norm1.weight"):
        path = save({**state, name: torch.zeros(1, 4, 32)}, tmp_path / "more.pth")
        with pytest.raises(CheckpointError, match=rf"not in the model: {name}; .*another architecture"):
            load_weights(source(), path)
    del state["blocks.2.mlp.fc1.bias"]
    with pytest.raises(CheckpointError, match=r"missing: blocks.2.mlp.fc1.bias; .*another architecture"):
        load_weights(source(), save(state, tmp_path / "less.pth"))


def test_npz_of_another_depth_or_code(tmp_path: Path) -> None:
    path = write(BY_TITLE["Google's ViT and AugReg, `.npz`"], source().state_dict(), tmp_path)
    shallow = timm.create_model(PLAIN, img_size=112, **{**SMALL, "depth": 2})
    with pytest.raises(CheckpointError, match="3 blocks instead of 2"):
        load_weights(shallow, path)
    with pytest.raises(CheckpointError, match="do not fit Eva"):
        load_weights(source(DINOV3), path)
    np.savez(tmp_path / "own.npz", weights=np.zeros(3))
    with pytest.raises(CheckpointError, match="without Google's names of a ViT"):
        load_weights(source(), tmp_path / "own.npz")
    np.savez(tmp_path / "objects.npz", weights=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match=r"objects\.npz cannot be read as weights"):
        load_weights(source(), tmp_path / "objects.npz")


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = save({"encoder.weight": torch.zeros(3), "decoder.weight": torch.zeros(3)}, tmp_path / "some.pth")
    with pytest.raises(
        CheckpointError, match=r"no Vision Transformer is in it; it begins with encoder.weight, decoder"
    ):
        load_weights(source(), path)
    with pytest.raises(CheckpointError, match="is a folder: give the weight file in it"):
        load_weights(source(), tmp_path)
    path = save(under("vit.", hf_vit(source("deit_tiny_distilled_patch16_224").state_dict())), tmp_path / "hf.pth")
    with pytest.raises(CheckpointError, match="weights of a distilled model"):
        load_weights(source(), path)
