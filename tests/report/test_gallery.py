"""What a run keeps for reports: pictures with attention, and which classes it confuses."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import RATIO, image_size, tiny_model

from dcal.attention.rollout import num_selected
from dcal.metric.classes import class_accuracies, confusion_matrix, examples_of, most_confused
from dcal.metric.classification import classification_metrics
from dcal.metric.ranking import MARKS, judge
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.visualize.examples import log_cameras, log_classes, rollout_and_selection
from dcal.visualize.gallery import FILE, LONGEST_SIDE, Gallery, encode_jpeg, load_gallery, save_gallery

CLASSES = 5
# the last class has no item
outcomes = st.lists(st.tuples(*[st.integers(0, CLASSES - 2)] * 2), min_size=1, max_size=60)


@given(outcomes)
def test_classes_as_counted_by_hand(pairs: list[tuple[int, int]]) -> None:
    label, prediction = np.array(pairs).T
    cells = confusion_matrix(label, prediction, CLASSES)
    assert all(cells[t, p] == pairs.count((t, p)) for t in range(CLASSES) for p in range(CLASSES))
    accuracy = class_accuracies(label, prediction, CLASSES)
    for number in range(CLASSES):
        own = [given == truth for truth, given in pairs if truth == number]
        assert accuracy[number] == pytest.approx(sum(own) / len(own)) if own else np.isnan(accuracy[number])
    scores = torch.nn.functional.one_hot(torch.from_numpy(prediction), CLASSES).double().log_softmax(1)
    metrics = classification_metrics(scores, torch.from_numpy(label))
    assert metrics["top1_macro"] == pytest.approx(np.nanmean(accuracy))


@given(outcomes)
def test_the_most_confused_classes_come_with_examples(pairs: list[tuple[int, int]]) -> None:
    label, prediction = np.array(pairs).T
    found = most_confused(label, prediction, 3)
    wrong = sorted({pair: pairs.count(pair) for pair in pairs if pair[0] != pair[1]}.values(), reverse=True)
    assert [pair.times for pair in found] == wrong[:3]
    for pair in found:
        mistaken, recognised = examples_of(pair, label, prediction)
        assert pairs[mistaken] == (pair.truth, pair.taken_for)
        expected = (pair.taken_for, pair.taken_for)
        assert pairs[recognised] == expected if recognised is not None else expected not in pairs


def test_tables_for_wandb() -> None:
    logged: dict[str, Any] = {}
    tracker = SimpleNamespace(log=logged.update)
    log_classes(tracker, ["ant", "bee", "cow"], torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert logged["classes"].data[:2] == [["ant", 2, 0.5], ["bee", 1, 1.0]]
    assert logged["confused"].data == [["ant", "ant", 1], ["ant", "bee", 1], ["bee", "bee", 1]]
    assert logged["confusion"].table.data[1] == ["ant", "bee", 1]
    log_cameras(tracker, {3: {"mAP": 0.5, "queries": 7}})
    assert logged["cameras"].columns == ["camera", "mAP", "queries"] and logged["cameras"].data == [[3, 0.5, 7]]


def test_marks_of_a_ranked_list() -> None:
    ids, cameras = torch.tensor([7, 7]), torch.tensor([2, -1])
    marks = judge(ids, cameras, torch.tensor([[7, 7, 3, -1]] * 2), torch.tensor([[2, 1, 2, 2], [-1, 1, 2, -1]]))
    told = [[MARKS[code] for code in row] for row in marks]
    assert told == [["same camera", "right", "wrong", "junk"], ["right", "right", "wrong", "junk"]]
    pictures = torch.tensor([10, 11]), torch.tensor([[10, 20, 10, 10], [20, 11, 20, 21]])
    own = judge(ids, cameras, torch.tensor([[7, 7, 3, -1]] * 2), torch.full((2, 4), -1), *pictures)
    told = [[MARKS[code] for code in row] for row in own]
    assert told == [["same image", "right", "wrong", "junk"], ["right", "same image", "wrong", "junk"]]


def test_pictures_survive_their_file(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(0, 240, dtype=np.uint8)[:, None, None], (2, 300, 3))
    maps = np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)
    gallery = Gallery(
        ["query", "gallery"], [5, 5], [encode_jpeg(pixels), encode_jpeg(pixels[::-1].copy())], maps, maps > 0.5
    )
    save_gallery(gallery, tmp_path / FILE)
    again = load_gallery(tmp_path / FILE)
    assert again.part == gallery.part and again.number == gallery.number and again.jpeg == gallery.jpeg
    np.testing.assert_array_equal(again.attention, maps)
    np.testing.assert_array_equal(again.selected, maps > 0.5)
    assert again.position("gallery", 5) == 1 and again.position("gallery", 4) is None
    assert all(code.startswith(b"\xff\xd8") and len(code) < 20_000 for code in again.jpeg) and LONGEST_SIDE <= 256

    whole = (tmp_path / FILE).read_bytes()
    with zipfile.ZipFile(tmp_path / FILE) as archive:
        first = archive.getinfo("attention.npy").header_offset + 70  # of its compressed bytes
    damaged = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(first, first + 20)]
    for code in (whole[:-40], *damaged):
        (tmp_path / FILE).write_bytes(code)
        with pytest.raises(UserError, match=rf"{FILE}: cannot be read"):
            load_gallery(tmp_path / FILE)


def test_the_attention_that_is_kept_is_what_glca_selects_by() -> None:
    model = tiny_model(dtype=torch.float32)
    size = image_size("deit_tiny_patch16_224")
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    attention, selected = rollout_and_selection(model, images, Device("cpu", "fp32", (0.5,) * 3, (0.5,) * 3))
    count = num_selected(RATIO, attention[0].numel())
    ranked = attention.flatten(1).argsort(1, descending=True)[:, :count]
    assert torch.equal(ranked.sort(1).values, selected.flatten(1).nonzero()[:, 1].view(3, -1))
