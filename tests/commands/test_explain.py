"""`dcal-explain`: a figure per image, PWCA's attention to a distractor, deletion and insertion, and errors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_command import incomplete, refused, run_command
from torch import Tensor

from dcal.create import create_dcal_model
from dcal.metric.faithfulness import Curves, area, curves, summarize
from dcal.model import DCAL
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.visualize.attention_maps import attention_maps, distraction
from dcal.visualize.examples import draw_examples, shaded

SIZE = (32, 16)
"""Not square: 2 × 1 patches."""


def model_of(**options: object) -> tuple[DCAL, Device]:
    torch.manual_seed(0)
    model = create_dcal_model("test_vit", 5, SIZE, **options)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():  # attention of fresh weights is too even to tell rows apart
        if "qkv.weight" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), Device("cpu", "fp32", (0.5,) * 3, (0.5,) * 3)


def noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (60, 50), (200, 80, 40)).save(folder / "a.png")
    Image.new("RGB", (40, 90), (20, 180, 40)).save(folder / "deep" / "a.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("task", ["fgvc", "reid"])  # the people's images are 64 × 32
def test_a_figure_for_each_image(
    task: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    run, out = request.getfixturevalue(f"{task}_run"), tmp_path / "out"
    incomplete("explain", f"run={run}", f"images={folder}", f"pair={folder / 'a.png'}", f"out={out}")
    said = capfd.readouterr()
    assert "2 figures" in said.out and "1 of 3 images were left out" in said.err
    assert sorted(out.rglob("*.*")) == [out / "a.png.png", out / "deep" / "a.png.png"]
    with Image.open(out / "a.png.png") as with_pair:
        pair_height = with_pair.height
    run_command("explain", f"run={run}", f"images={folder / 'a.png'}", f"out={out}")
    with Image.open(out / "a.png.png") as alone:
        assert alone.height < pair_height and alone.width > alone.height


@pytest.mark.parametrize("stream", ["clean", "symmetric", "figure"])
def test_half_of_the_attention_goes_to_oneself(stream: str) -> None:
    model, device = model_of(stream=stream)
    one, other = noise(2)
    to_itself = distraction(model, one, one, device)
    depth = model.depth
    torch.testing.assert_close(to_itself.class_token, torch.full((depth,), 0.5), rtol=0, atol=1e-6)
    torch.testing.assert_close(to_itself.patches[:-1], torch.full((depth - 1,), 0.5), rtol=0, atol=1e-6)
    assert to_itself.patches[-1].isnan()  # the last block computes no patch
    to_other = distraction(model, one, other, device)
    assert (to_other.class_token[1:] - 0.5).abs().min() > 1e-4
    prefix_share = to_other.class_token.mean() - to_other.where.sum()
    assert to_other.where.shape == (2, 1) and 0 < prefix_share < to_other.class_token.mean()


def test_maps_are_of_the_rows_that_are_read() -> None:
    images = noise(2)
    found = {}
    for readout in ("cls", "mean", "cls_mean"):
        model, device = model_of(readout=readout, top_ratio=0.5)
        maps = attention_maps(model, images, device)
        assert maps.glca is not None and maps.selected is not None
        assert maps.selected.sum((1, 2)).tolist() == [1, 1]
        found[readout] = maps.glca
    torch.testing.assert_close(found["cls_mean"], (found["cls"] + found["mean"]) / 2)
    assert not torch.allclose(found["cls"], found["mean"])
    model, device = model_of(attention="pwca")
    assert attention_maps(model, images, device)[1:] == (None, None)
    model, device = model_of(attention="glca")
    with pytest.raises(UserError, match="no PWCA"):
        distraction(model, images[0], images[1], device)


def test_half_precision_of_the_model_is_not_that_of_the_maps() -> None:
    model, device = model_of(top_ratio=0.5)
    half = Device("cpu", "bf16", (0.5,) * 3, (0.5,) * 3)
    one, other = noise(2)
    for expected, found in zip(
        (attention_maps(model, noise(2), device).glca, *distraction(model, one, other, device)[:3]),
        (attention_maps(model, noise(2), half).glca, *distraction(model, one, other, half)[:3]),
        strict=True,
    ):
        assert expected is not None and found is not None and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02, equal_nan=True)
        assert (found.to(torch.bfloat16) != found).any()  # not rounded in between


def test_what_is_not_selected_is_dark(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 3), 200, dtype=np.uint8)
    half = shaded(pixels, torch.tensor([[True, False]]))
    assert (half[:, :3] == 200).all() and (half[:, 3:] == 50).all() and half.dtype == np.uint8
    assert (shaded(pixels, torch.ones(2, 3, dtype=torch.bool)) == 200).all()
    heights = []
    for selected in (True, False):  # a model without GLCA selects nothing: no row for it
        mask = torch.full((2, 2, 1), selected)
        draw_examples(noise(2), mask.float(), mask, ["a", "b"], [True, False], tmp_path / "examples.png")
        with Image.open(tmp_path / "examples.png") as picture:
            heights.append(picture.height)
    assert heights[0] > 1.3 * heights[1]


def test_areas_of_a_known_score() -> None:
    """A score that adds the weights of visible patches: the curves are sums over the order."""
    weights = torch.tensor([[0.1, 0.4], [0.2, 0.3]])
    image = torch.ones(3, 8, 6)

    def score(images: Tensor) -> Tensor:  # one pixel of each patch tells whether it is visible
        return (images[:, 0, 1::4, 1::3] * weights).sum((1, 2))

    best, worst = (curves(image, order, score, 4) for order in (weights, -weights))
    torch.testing.assert_close(best.deletion, torch.tensor([1.0, 0.6, 0.3, 0.1, 0.0]))
    torch.testing.assert_close(best.insertion, torch.tensor([0.0, 0.4, 0.7, 0.9, 1.0]))
    assert area(best.deletion) == pytest.approx(0.375) and area(best.insertion) == pytest.approx(0.625)
    assert area(worst.deletion) == pytest.approx(0.625)  # hiding the worst first is showing the best last

    def visible(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    for steps in (1, 2, 4):  # a count of patches does not care for their order
        both = curves(image, weights, visible, steps)
        assert area(both.deletion) == pytest.approx(0.5) == area(both.insertion)


def test_intervals_are_paired() -> None:
    """A map that is better by a constant on every image: its lead has no width, whatever the images."""
    base = [Curves(torch.tensor([1.0, level]), torch.tensor([0.0, level])) for level in (0.2, 0.5, 0.9)]
    lead = [Curves(one.deletion - 0.1, one.insertion + 0.1) for one in base]
    result = summarize({"rollout": lead, "random": base}, "random")
    entry = result["rollout"]["insertion"]
    assert entry["low"] < entry["auc"] < entry["high"]
    for kind, expected in (("deletion", -0.1), ("insertion", 0.1)):
        assert list(result["rollout"][kind]["minus_random"].values()) == pytest.approx([expected] * 3)
    assert "minus_random" not in result["random"]["deletion"]


def test_faithfulness_of_a_run(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command("explain", f"run={fgvc_run}", "faithfulness=3", "steps=2", f"out={tmp_path}")
    assert "split test, 3 images: " in capfd.readouterr().out
    written = json.loads((tmp_path / "faithfulness.json").read_text())
    assert list(written["maps"]) == ["rollout", "glca", "random"] and written["images"] == 3
    for entry in written["maps"].values():  # nothing hidden on one end is everything shown on the other
        deletion, insertion = entry["deletion"]["curve"], entry["insertion"]["curve"]
        assert len(deletion) == 3
        assert deletion[0] == pytest.approx(insertion[-1]) and deletion[-1] == pytest.approx(insertion[0])
    with Image.open(tmp_path / "faithfulness.png") as picture:
        assert picture.width > picture.height


def test_mistakes_are_one_sentence(
    fgvc_run: Path, reid_run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str, run: Path = fgvc_run) -> str:
        return refused("explain", f"run={run}", f"out={tmp_path / 'out'}", *words, capfd=capfd)

    image = f"images={folder / 'a.png'}"
    assert "give images=PATH" in said()
    assert "re-identification has none" in said("faithfulness=3", run=reid_run)
    assert "needs images=" in said(f"pair={folder / 'a.png'}", "faithfulness=2")
    assert "names 3 images; give one" in said(image, f"pair={folder}")
    assert "no such file or folder" in said(image, "pair=none.png")
    assert "is no image" in said(f"images={folder / 'bad.png'}")
    assert "faithfulness=1: must be at least 2" in said("faithfulness=1")
    assert "steps=0: must be" in said("faithfulness=2", "steps=0")
    assert "no split 'query'" in said("faithfulness=2", "split=query")
    assert "dataset.root=B: has no effect on images=" in said(image, "dataset.root=B")
    assert "steps=5: is for faithfulness=N" in said(image, "steps=5")
    assert "top=five: must be a whole number" in said(image, "top=five")
    assert not (tmp_path / "out").exists()


def test_figures_stay_below_their_folder(tmp_path: Path, fgvc_run: Path, folder: Path) -> None:
    """Whatever a list calls its images: `..`, absolute names, letters of no encoding, a formula."""
    odd = folder / os.fsdecode(b"\xff $\\x$.png")
    shutil.copy(folder / "a.png", odd)
    listed = folder / "deep" / "list.txt"
    listed.write_text(f"../../{folder.name}/a.png\n{folder / 'deep' / 'a.png'}\n")
    run_command("explain", f"run={fgvc_run}", f"images=[{listed},{folder}/*x$.png]", f"out={tmp_path / 'out'}")
    figures = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")]
    assert sorted(figures) == sorted([Path("a.png.png"), Path("deep/a.png.png"), Path(f"{odd.name}.png")])
    assert not list(tmp_path.glob("*.png")) and not list(folder.rglob("*.png.png"))
