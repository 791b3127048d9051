"""The drawn data sets: the same everywhere, different only where they should be, safe to make and to keep."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from dcal.config import DatasetConfig
from dcal.dataset.record import Catalog, DataError
from dcal.dataset.synthetic import birds as synthetic_birds
from dcal.dataset.synthetic import people as synthetic_people
from dcal.dataset.synthetic.bird import PLACES, draw_pose
from dcal.dataset.synthetic.birds import CLASS_NAMES, SPECIES, draw_image, read_synthetic_birds
from dcal.dataset.synthetic.drawing import SUPERSAMPLE
from dcal.dataset.synthetic.people import read_synthetic_people
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir

SMALL_BIRDS: dict[str, Any] = {"image_size": 48, "train_per_class": 1, "test_per_class": 1}
SMALL_PEOPLE: dict[str, Any] = {
    "image_size": (64, 32),
    "train_identities": 4,
    "test_identities": 3,
    "cameras": 3,
    "images_per_camera": 2,
}


def birds(root: Path) -> Catalog:
    return read_synthetic_birds(root, **SMALL_BIRDS)


def people(root: Path) -> Catalog:
    return read_synthetic_people(root, **SMALL_PEOPLE)


def pixels(catalog: Catalog) -> list[Any]:
    return [cv2.imread(str(r.path)) for split in catalog.splits.values() for r in split]


@pytest.mark.parametrize("read", [birds, people])
def test_drawn_twice_gives_the_same_pixels_and_records(read: Callable[[Path], Catalog], tmp_path: Path) -> None:
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert all(np.array_equal(x, y) for x, y in zip(pixels(first), pixels(second), strict=True))
    for split, records in first.splits.items():
        for one, other in zip(records, second.splits[split], strict=True):
            path = tmp_path / "b" / one.path.relative_to(tmp_path / "a")
            assert replace(one, path=path) == other


def test_processes_draw_what_one_process_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"image_size": 48, "train_per_class": 6, "test_per_class": 1}  # enough for several processes
    several = read_synthetic_birds(tmp_path / "several", **options)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    one = read_synthetic_birds(tmp_path / "one", **options)
    assert all(np.array_equal(x, y) for x, y in zip(pixels(several), pixels(one), strict=True))


@pytest.mark.parametrize("group", range(4))
def test_species_of_a_group_differ_at_the_part_and_nowhere_else(group: int) -> None:
    size, labels = 96, range(4 * group, 4 * group + 4)
    visible = []
    for seed in range(12):
        drawn = [draw_image(label, np.random.default_rng(seed), size) for label in labels]
        images, parts, boxes = zip(*drawn, strict=True)
        assert len(set(parts)) == len(set(boxes)) == 1
        part, (x, y, w, h) = parts[0], boxes[0]
        assert 0 <= part.x < size and 0 <= part.y < size
        assert 0 <= x < x + w <= size and 0 <= y < y + h <= size
        assert x - 1 <= part.x <= x + w + 1 and y - 1 <= part.y <= y + h + 1
        unit = draw_pose(np.random.default_rng(seed), size * SUPERSAMPLE).unit / SUPERSAMPLE
        yy, xx = np.mgrid[:size, :size]
        near = np.hypot(xx + 0.5 - part.x, yy + 0.5 - part.y) <= PLACES[part.name][2] * unit + 1.5
        for i in range(4):
            for j in range(i):
                differs = np.abs(images[i].astype(int) - images[j]).max(2)
                assert not differs[~near].any()
                visible.append((differs > 24).sum() / unit**2)
    # In squares of the bird's unit (its trunk is 1.4 units long): seen in every image, leaves or not.
    assert min(visible) > 0.01 and np.median(visible) > 0.03


def test_the_scene_says_nothing_about_the_species() -> None:
    """The same generator state gives the same scene; the generator is used up alike."""
    states = set()
    for label in range(len(SPECIES)):
        rng = np.random.default_rng(5)
        draw_image(label, rng, 48)
        states.add(rng.random())
    assert len(states) == 1


def test_bird_catalog(tmp_path: Path) -> None:
    catalog = birds(tmp_path)
    assert catalog.num_classes == len(set(CLASS_NAMES)) == 16
    assert {k: Counter(r.label for r in v) for k, v in catalog.splits.items()} == {
        "train": dict.fromkeys(range(16), 1),
        "test": dict.fromkeys(range(16), 1),
    }
    images = pixels(catalog)
    assert {i.shape for i in images} == {(48, 48, 3)}
    assert len({i.tobytes() for i in images}) == len(images)
    assert all(len(r.parts) == 1 for r in catalog.splits["test"])


def test_people_catalog(tmp_path: Path) -> None:
    catalog = people(tmp_path)
    train, query, gallery = (catalog.splits[k] for k in ("train", "query", "gallery"))
    assert {r.label for r in train} == set(range(4)) and catalog.num_classes == 4
    assert {r.label for r in query} == {5, 6, 7}
    assert {r.label for r in gallery} == {-1, 0, 5, 6, 7}
    assert set(Counter((r.label, r.camera) for r in query).values()) == {1}
    for q in query:
        assert any(g.label == q.label and g.camera != q.camera for g in gallery)
    assert {r.camera for r in train} <= {0, 1, 2} and {r.view for r in train} <= {0, 1, 2}
    assert {i.shape for i in pixels(catalog)} == {(64, 32, 3)}
    assert len({r.path for s in catalog.splits.values() for r in s}) == sum(map(len, catalog.splits.values()))


@pytest.mark.parametrize("damage", ["missing image", "short image", "bad index", "no index"])
def test_a_damaged_folder_is_drawn_anew(damage: str, tmp_path: Path) -> None:
    catalog = birds(tmp_path)
    before = pixels(catalog)
    victim = catalog.splits["train"][7].path
    index = victim.parents[2] / "index.json"
    if damage == "missing image":
        victim.unlink()
    elif damage == "short image":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "bad index":
        index.write_text('[{"bytes": 3}]')
    else:
        index.unlink()
    after = pixels(birds(tmp_path))
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_complete_folder_is_not_touched(tmp_path: Path) -> None:
    stamps = [r.path.stat().st_mtime_ns for r in birds(tmp_path).splits["train"]]
    assert [r.path.stat().st_mtime_ns for r in birds(tmp_path).splits["train"]] == stamps


def _read_when_all_are_ready(root: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(sum(r.path.stat().st_size for r in birds(root).splits["train"]))


def test_two_processes_at_once(tmp_path: Path) -> None:
    (tmp_path / ".synthetic_birds-0.part-x").mkdir()  # of another recipe: not ours to remove
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_read_when_all_are_ready, args=(tmp_path, barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert results.get(timeout=60) == results.get(timeout=60)
    for worker in workers:
        worker.join()
    names = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock"))
    assert names[0] == ".synthetic_birds-0.part-x" and len(names) == 2


def test_an_interrupted_drawing_leaves_nothing_to_be_taken_for_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: object, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_birds, "_draw_job", fail)
    with pytest.raises(KeyboardInterrupt):
        birds(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    monkeypatch.undo()
    assert len(birds(tmp_path).splits["train"]) == 16


def test_another_seed_or_size_is_another_folder(tmp_path: Path) -> None:
    folders = {
        read_synthetic_birds(tmp_path, **{**SMALL_BIRDS, **change}).splits["train"][0].path.parents[2]
        for change in ({}, {"seed": 1}, {"image_size": 56})
    }
    assert len(folders) == 3


def test_the_default_root_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    catalog = read_synthetic_people(None, **SMALL_PEOPLE)
    assert catalog.splits["train"][0].path.is_relative_to(tmp_path / "dcal")


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*dataset\.root"):
        birds(tmp_path / "file")


@pytest.mark.parametrize("option", [{"image_size": 20}, {"train_per_class": 0}, {"seed": -1}])
def test_bad_bird_options_are_named(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset\.reader"):
        read_synthetic_birds(tmp_path, **option)


@pytest.mark.parametrize("option", [{"image_size": (63, 32)}, {"cameras": 1}, {"images_per_camera": 1}])
def test_bad_people_options_are_named(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^dataset\.reader"):
        read_synthetic_people(tmp_path, **option)


def test_a_person_looks_the_same_to_every_camera() -> None:
    """Median colour of the chest, light undone: closer within a person than between persons, mostly."""
    jobs = [synthetic_people._Job("train", who, camera, 0) for who in range(1, 9) for camera in range(3)]
    chests = []
    for job in jobs:
        image, record = synthetic_people._draw_job(job, (128, 64), 0)
        assert record.box is not None
        x, y, w, h = record.box
        chest = image[int(y + 0.22 * h) : int(y + 0.3 * h), int(x + 0.4 * w) : int(x + 0.6 * w)]
        colour = np.median(chest.reshape(-1, 3), axis=0)
        chests.append(colour / (np.linalg.norm(colour) + 1e-6))
    similarity = np.array(chests) @ np.array(chests).T
    who = np.repeat(np.arange(8), 3)
    same = who[:, None] == who
    assert similarity[same & ~np.eye(24, dtype=bool)].mean() > similarity[~same].mean()


@pytest.mark.parametrize("name", ["synthetic_birds", "synthetic_people"])
def test_configuration_has_all_keys_of_its_group(name: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        options = compose(f"dataset/{name}").dataset
    assert list(options) == [f.name for f in fields(DatasetConfig)]
    assert options.reader._target_.endswith(f"read_{name}")
