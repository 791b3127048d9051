"""`dcal-extract`, `dcal-query` and `dcal-explain` on a plain backbone: timm's own features, and no run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from run_command import refused, run_command
from safetensors.torch import save_file
from tiny import SMALL, scramble
from torch import nn
from weight_files import BY_TITLE, write

from dcal.dataset.transform import eval_transform
from dcal.inference.index import read_index

DEIT = "deit_tiny_patch16_224"
MEMBERS = {
    "class token": DEIT,
    "attention pool": "vit_base_patch16_siglip_224",
    "mean of the patches": "vit_base_patch16_siglip_gap_224",
    "rotary embedding": "vit_small_patch16_dinov3",
}
SIZE = [48, 64]
TINY = f"++backbone.kwargs={{{', '.join(f'{key}: {value}' for key, value in SMALL.items())}}}"


def model(name: str = DEIT, seed: int = 0) -> nn.Module:
    vit = timm.create_model(name, img_size=SIZE, num_classes=0, **SMALL)
    scramble(vit)
    with torch.no_grad():
        vit.patch_embed.proj.bias += seed
    return vit.eval()


def saved(vit: nn.Module, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(vit.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def words(name: str, checkpoint: Path, sizes: bool = True) -> list[str]:
    own = ["backbone.image_size=[48,64]", "backbone.resize=[50,70]"] if sizes else []
    return [f"backbone.name={name}", f"backbone.checkpoint={checkpoint}", TINY, *own, "train.workers=0"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(random.integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", MEMBERS.values(), ids=MEMBERS.keys())
def test_features_are_those_of_timm(name: str, photos: Path, tmp_path: Path) -> None:
    vit = model(name)
    out = tmp_path / "photos.npz"
    run_command("extract", *words(name, saved(vit, tmp_path)), f"images={photos}", f"out={out}")
    transform = eval_transform(SIZE, [50, 70])
    pixels = [transform(image=np.asarray(Image.open(file)))["image"] for file in sorted(photos.iterdir())]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255.0
    config = vit.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        tokens = vit.forward_features((images - mean) / std)
        # timm averages DINOv3's patches although it has a class token, which is what is read here
        feature = tokens[:, 0] if name.endswith("dinov3") else vit.forward_head(tokens, pre_logits=True)
    expected = F.normalize(feature)
    torch.testing.assert_close(torch.from_numpy(read_index(out, "out").features), expected, rtol=1e-4, atol=1e-5)


def test_the_size_is_that_at_which_timm_evaluates_the_model(photos: Path, tmp_path: Path) -> None:
    vit = timm.create_model(DEIT, num_classes=0, **SMALL)
    out = tmp_path / "photos.npz"
    run_command("extract", *words(DEIT, saved(vit, tmp_path), sizes=False), f"images={photos}", f"out={out}")
    settings = read_index(out, "out").settings
    assert (settings["image_size"], settings["resize"]) == ([224, 224], [249, 249])  # timm keeps 90 % of the sides
    assert settings["run"] == f"backbone {DEIT}"


def test_the_nearest_is_found_and_other_weights_are_refused(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "photos.npz"
    vit = model()
    run_command("extract", *words(DEIT, saved(vit, tmp_path)), f"images={photos}", f"out={out}")
    asked = [f"index={out}", f"image={photos / '2.png'}", "picture=null", "top=1"]
    # the sizes are in the index; the same weights in another layout are the same weights
    other_layout = write(BY_TITLE["transformers, ViT"], vit.state_dict(), tmp_path)
    run_command("query", *words(DEIT, other_layout, sizes=False), *asked)
    said = capfd.readouterr().out
    assert "2.png" in said and "1.0000" in said
    others = saved(model(seed=1), tmp_path / "others")
    assert "made by another model" in refused("query", *words(DEIT, others, sizes=False), *asked, capfd=capfd)


def test_a_figure_shows_the_rollout_and_what_a_distractor_would_draw(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = words(DEIT, saved(model(), tmp_path))
    run_command("explain", *start, f"images={photos / '0.png'}", f"pair={photos / '1.png'}", f"out={tmp_path / 'e'}")
    assert (tmp_path / "e" / "0.png.png").is_file()
    said = refused("explain", *start, "faithfulness=2", f"out={tmp_path / 'e'}", capfd=capfd)
    assert "a plain backbone has none" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give run=DIR, or a plain backbone"),
        (["run=somewhere", f"backbone.name={DEIT}"], "run=somewhere and backbone.name are both given"),
        ([f"backbone.name={DEIT}"], "without weights its features say nothing"),
        ([f"backbone.name={DEIT}", "backbone.pretrained=true", "weights=best"], "weights=best: goes with run="),
        ([f"backbone.name={DEIT}", "backbone.checkpoint=/none.pth", "images=null", "split=test"], "/none.pth"),
    ],
)
def test_mistakes_are_one_sentence(
    given: list[str], message: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused("extract", f"images={photos}", f"out={tmp_path / 'out.npz'}", *given, capfd=capfd)
    assert message in said


def test_a_plain_backbone_has_no_split(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = words(DEIT, saved(model(), tmp_path))
    said = refused("extract", *start, "split=test", f"out={tmp_path / 'out.npz'}", capfd=capfd)
    assert f"split=test: backbone {DEIT} has no data set of its own" in said
