"""The part-hit score: against an oracle in plain Python, through every step from the photograph to the figure."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcal.backbone import create_backbone, patch_boxes
from dcal.dataset.data import Data
from dcal.dataset.keypoints import locate
from dcal.dataset.readers.fgvc import read_cub
from dcal.dataset.record import Catalog, Part, Record
from dcal.dataset.transform import eval_transform
from dcal.metric.part_hit import selection_metrics
from dcal.model import DCAL
from dcal.task.fgvc import FGVC
from dcal.utils.device import Device

OPTIONS: dict[str, Any] = {
    "loss_weighting": "equal", "label_smoothing": 0.0, "triplet": {"weight": 0.0, "margin": None}, "bnneck": False,
    "instances": 1, "mixup": 0.0, "cutmix": 0.0, "inference": ["sa", "glca"], "flip_test": False, "metric": "cosine",
    "rerank": False, "side_information": "none",
}  # fmt: skip


def oracle(parts: Any, boxes: Any, selected: Any, patches: Any) -> dict[str, float]:
    """By counting; chance as the mean over every possible selection."""

    def inside(x: float, y: float, box: Any) -> bool:
        return box[0] <= x < box[2] and box[1] <= y < box[3]

    every = list(itertools.combinations(range(len(patches)), len(selected[0])))
    found: dict[str, list[float]] = {"part_hit": [], "part_hit_chance": [], "pointing": [], "pointing_chance": []}
    for points, box, chosen in zip(parts, boxes, selected, strict=True):
        for x, y in points:
            if any(inside(x, y, patch) for patch in patches):
                hits = [any(inside(x, y, patches[p]) for p in some) for some in every]
                found["part_hit"].append(any(inside(x, y, patches[p]) for p in chosen))
                found["part_hit_chance"].append(sum(hits) / len(hits))
        if not math.isnan(box[0]):
            on = [inside((p[0] + p[2]) / 2, (p[1] + p[3]) / 2, box) for p in patches]
            found["pointing"].append(sum(on[p] for p in chosen) / len(chosen))
            found["pointing_chance"].append(sum(on) / len(on))
    return {key: sum(values) / len(values) for key, values in found.items() if values}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(8, 14), chosen=st.integers(1, 5))
def test_metrics_are_those_of_counting(seed: int, size: int, chosen: int) -> None:
    """Patches of `size` pixels every 8 pixels: side by side, or overlapping."""
    rng = random.Random(seed)
    patches = [(8.0 * x, 8.0 * y, 8.0 * x + size, 8.0 * y + size) for y in range(2) for x in range(4)]
    parts = [[(rng.uniform(-9, 50), rng.uniform(-9, 30)) for _ in range(rng.randrange(4))] for _ in range(5)]
    boxes = [(rng.uniform(-5, 20), rng.uniform(-5, 8), rng.uniform(20, 40), rng.uniform(8, 25)) for _ in range(5)]
    boxes[rng.randrange(5)] = (math.nan,) * 4
    selected = [rng.sample(range(8), chosen) for _ in range(5)]
    got = selection_metrics(
        [torch.tensor(points, dtype=torch.float64).reshape(-1, 2) for points in parts],
        torch.tensor(boxes, dtype=torch.float64),
        torch.tensor(selected),
        torch.tensor(patches, dtype=torch.float64),
    )
    assert got == pytest.approx(oracle(parts, boxes, selected, patches), abs=1e-12)


def test_nothing_annotated_gives_nothing() -> None:
    nothing = torch.full((2, 4), math.nan)
    assert selection_metrics([torch.empty(0, 2)] * 2, nothing, torch.tensor([[0], [1]]), torch.rand(3, 4)) == {}


@pytest.mark.parametrize(
    ("name", "size", "stride", "count", "last"),
    [
        ("test_vit", (32, 64), None, 8, (48.0, 16.0, 64.0, 32.0)),
        ("deit_tiny_patch16_224", (64, 44), 12, 15, (24.0, 48.0, 40.0, 64.0)),
        ("vit_tiny_r_s16_p8_224", (64, 96), None, 6, (64.0, 32.0, 96.0, 64.0)),
    ],
)
def test_patches_lie_where_the_projection_takes_them(
    name: str, size: tuple[int, int], stride: int | None, count: int, last: tuple[float, ...]
) -> None:
    small = {} if name == "test_vit" else {"depth": 1, "embed_dim": 32, "num_heads": 2}
    vit = create_backbone(name, size, patch_stride=stride, kwargs=small)
    boxes = patch_boxes(vit, size)
    assert boxes.shape == (count, 4) and tuple(boxes[-1].tolist()) == last
    if "_r_" in name:
        return  # the stem of a hybrid sees more than the cell
    for x, y in ((13, 14), (30, 20), (43, 27)):  # a bright pixel changes the patches it lies in
        image = torch.zeros(1, 3, *size)
        image[..., y, x] = 1.0
        changed = (vit.patch_embed(image) - vit.patch_embed(torch.zeros_like(image))).abs().sum(-1).flatten() > 0
        left, top, right, bottom = boxes.T
        assert changed.tolist() == ((left <= x) & (x < right) & (top <= y) & (y < bottom)).tolist()


def test_points_go_where_the_pixels_go(tmp_path: Path) -> None:
    """A white square is drawn where the part is; after the pipeline it is still where the part is."""
    records = []
    for number, (height, width) in enumerate([(90, 140), (140, 90), (60, 60), (90, 140)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        x, y = width * 0.4, height * 0.55
        pixels[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4] = 255
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        box = (round(x) - 4.0, round(y) - 4.0, 8.0, 8.0)
        records.append(Record(path, 0, box=box, parts=(Part("bill", round(x), round(y)),)))
    records.insert(1, Record(tmp_path / "missing.png", 0, parts=(Part("bill", 1.0, 1.0),)))
    records.insert(2, Record(tmp_path / "0.png", 0))
    transform = eval_transform([48, 64], [64, 80])
    found = locate(records, transform)
    assert list(found) == [0, 3, 4, 5]  # without the missing file and the image without annotations
    for index, marks in found.items():
        image = transform(image=np.array(Image.open(records[index].path)))["image"]
        rows, columns = np.nonzero(image[..., 0] > 127)
        left, top, right, bottom = marks.box
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == pytest.approx(
            [left, top, right, bottom], abs=1
        )
        assert marks.parts[0].tolist() == pytest.approx([(left + right) / 2, (top + bottom) / 2], abs=1e-4)


@pytest.fixture
def birds(tmp_path: Path) -> Catalog:
    """Grey images with one part, and a box that is a quarter of the image."""
    records = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 64), (number * 40,) * 3).save(path)
        part = Part("bill", 16.0 + number, 5.0)
        records.append(Record(path, number % 2, box=(0.0, 0.0, 32.0, 32.0), parts=(part,)))
    return Catalog("birds", {"train": records, "test": records}, ["a", "b"])


def evaluate(catalog: Catalog, blocks: int = 1, selection: str = "rollout", ratio: float = 0.25) -> dict[str, float]:
    data = Data(catalog, image_size=[64, 64], resize=[64, 64], augment={"flip": 0.0, "pad": 0, "erase": 0.0})
    torch.manual_seed(0)
    glca = {"blocks": blocks, "top_ratio": ratio, "selection": selection}
    model = DCAL(create_backbone("test_vit", (64, 64)), 2, glca=glca, pwca={"blocks": 0})
    device = Device("cpu", "fp32", (0.5,) * 3, (0.5,) * 3)
    return FGVC(**OPTIONS).evaluate(model, data, "test", 4, 0, device).metrics


def test_an_evaluation_reports_it_where_it_can(birds: Catalog) -> None:
    some = evaluate(birds)
    assert some["part_hit_chance"] == some["pointing_chance"] == 0.25
    assert 0 <= some["part_hit"] <= 1
    whole = evaluate(birds, selection="all", ratio=1.0)
    assert whole["part_hit"] == whole["part_hit_chance"] == 1.0 and whole["pointing"] == 0.25
    assert "part_hit" not in evaluate(birds, blocks=0)
    bare = [Record(record.path, record.label) for record in birds.splits["test"]]
    assert "part_hit" not in evaluate(Catalog("bare", {"train": bare, "test": bare}, ["a", "b"]))


def test_a_perfect_selection_scores_one(birds: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part lies in the second patch of the first row, for all images."""
    from dcal.attention.glca import GlobalLocalCrossAttention

    for chosen, score in (([1, 2, 3, 4], 1.0), ([0, 2, 3, 4], 0.0)):
        picked = torch.tensor(chosen)
        monkeypatch.setattr(
            GlobalLocalCrossAttention, "select", lambda self, x, *traces, picked=picked: picked.expand(len(x), -1)
        )
        assert evaluate(birds)["part_hit"] == score


def test_real_birds(data_root: Path) -> None:
    """Parts of cub10 lie on the bird: nearly all in its box, and nearly all within a crop."""
    records = read_cub(data_root / "cub10").splits["test"][:40]
    found = locate(records, eval_transform([224, 224], [256, 256]))
    assert list(found) == list(range(40))
    parts = [(x, y, *marks.box) for marks in found.values() for x, y in marks.parts]
    on = [left - 2 <= x <= right + 2 and top - 2 <= y <= bottom + 2 for x, y, left, top, right, bottom in parts]
    assert len(parts) > 400 and np.mean(on) > 0.95
    assert np.mean([0 <= x < 224 and 0 <= y < 224 for x, y, *_ in parts]) > 0.9
