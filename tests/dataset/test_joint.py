"""Several data sets as one: nothing of one member is taken for another's, and no batch depends on who loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcal.dataset.joint import Joint, in_member, merged_apart
from dcal.dataset.record import Catalog, DataError, Record
from dcal.dataset.sampler import BalancedBatches
from dcal.utils.errors import UserError

OPTIONS: dict[str, Any] = {
    "image_size": [24, 16],
    "resize": [24, 16],
    "augment": {"flip": 0.5, "pad": 2, "erase": 0.5},
}


def people(folder: Path, identities: int, cameras: int, first: int = 0, split_id: int = 0) -> Catalog:
    """Persons 0 to identities - 1 under each camera: two images of training, one query and one of the gallery."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[Record]] = {"train": [], "query": [], "gallery": []}
    junk = folder / "junk.png"
    Image.effect_noise((16, 24), 30 + first).convert("RGB").save(junk)
    for person in range(identities):
        for camera in range(cameras):
            for number, split in enumerate(("train", "query", "gallery", "train")):
                path = folder / f"{person:04}_c{camera}_{split}{number}.png"
                noise = np.random.default_rng((first, person, camera, number)).integers(0, 256, (24, 16, 3))
                Image.fromarray(noise.astype(np.uint8)).save(path)
                splits[split].append(Record(path, person if split == "train" else person + split_id, camera))
    splits["gallery"].append(replace(splits["gallery"][0], path=junk, label=-1, camera=-1))
    return Catalog(folder.name, splits, [f"{person:04}" for person in range(identities)])


def joint(*catalogs: Catalog, batches: str = "proportional", **own: Any) -> Joint:
    members = {catalog.name: {"reader": partial(lambda one: one, catalog), **own} for catalog in catalogs}
    return Joint(members, batches, **OPTIONS)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Catalog, Catalog]:
    """Two sets with persons and cameras of the same names; the second one has other pictures."""
    return people(tmp_path / "north", 6, 2), people(tmp_path / "south", 4, 3, first=1, split_id=10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 4)), min_size=1, max_size=8),
            st.integers(-1, 4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_no_two_members_share_a_label_an_identity_or_a_camera(sets: list[Any]) -> None:
    catalogs = {}
    for number, (identities, sought, camera) in enumerate(sets):
        train = [Record(Path(f"{number}/{label}"), label, camera) for label in range(identities)]
        found = [Record(Path(f"{number}/q{row}"), *pair) for row, pair in enumerate(sought)]
        splits = {"train": train, "query": found, "gallery": found[::-1]}
        catalogs[f"set{number}"] = Catalog(f"set{number}", splits, ["same name"] * identities)
    apart = merged_apart(catalogs)
    seen: dict[str, list[set[int]]] = {"label": [], "identity": [], "camera": []}
    for name, catalog in apart.items():
        before = catalogs[name]
        sought = [record for split in ("query", "gallery") for record in catalog.splits[split]]
        seen["label"].append({record.label for record in catalog.splits["train"]})
        seen["identity"].append({record.label for record in sought if record.label >= 0})
        every = [record for records in catalog.splits.values() for record in records]
        seen["camera"].append({record.camera for record in every if record.camera >= 0})
        assert [record.label < 0 for record in sought] == [
            record.label < 0 for split in ("query", "gallery") for record in before.splits[split]
        ]
        for split, records in catalog.splits.items():  # within a member, who is who remains
            pairs = {(one.label, other.label) for one, other in zip(before.splits[split], records, strict=True)}
            assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)
    for members in seen.values():
        assert sum(map(len, members)) == len(set().union(*members))
    names = next(iter(apart.values())).class_names
    assert len(set().union(*seen["label"])) == len(names) == sum(identities for identities, _, _ in sets)


def test_the_same_person_in_two_sets_is_two_persons(two: tuple[Catalog, Catalog]) -> None:
    data = joint(*two)
    assert data.num_classes == 10 and data.class_names[:2] == ["north/0000", "north/0001"]
    assert data.class_names[6] == "south/0000"
    train = data.records("train")
    assert {record.label for record in train if "north" in str(record.path)} == set(range(6))
    assert {record.label for record in train if "south" in str(record.path)} == set(range(6, 10))
    assert {record.camera for record in train if "south" in str(record.path)} == {2, 3, 4}
    assert data.records("gallery")[12].label == -1  # junk remains junk
    assert [name.split("/")[0] for name in data.names("query")] == ["north"] * 12 + ["south"] * 12
    assert data.starts("gallery") == {"north": 0, "south": 13}
    for index in (0, 11, 12, 23):
        member, start = ("north", 0) if index < 12 else ("south", 12)
        assert torch.equal(data.image("query", index), data.members[member].image("query", index - start))


def test_the_order_in_which_members_are_named_decides_nothing(two: tuple[Catalog, Catalog]) -> None:
    one, other = joint(*two), joint(*two[::-1])
    assert one.class_names == other.class_names and one.records("train") == other.records("train")


def batches(data: Joint, workers: int = 0, rank: int = 0, world_size: int = 1, seek: int = 0) -> list[dict[str, Any]]:
    loader = data.train_loader(8 // world_size, 2, 5, workers, rank, world_size)
    loader.batch_sampler.seek(1, seek)  # type: ignore[union-attr]
    return list(loader)


@pytest.mark.parametrize("choice", ["proportional", "balanced"])
def test_an_epoch_depends_neither_on_workers_nor_on_processes(two: tuple[Catalog, Catalog], choice: str) -> None:
    data = joint(*two, batches=choice)
    alone = batches(data)
    for key in ("image", "label", "camera", "index"):
        for other in (batches(data, workers=2), batches(joint(*two, batches=choice))):
            assert all(torch.equal(a[key], b[key]) for a, b in zip(alone, other, strict=True))
        assert all(torch.equal(a[key], b[key]) for a, b in zip(alone[1:], batches(data, seek=1), strict=True))
        halves = [batches(data, rank=rank, world_size=2) for rank in range(2)]
        for whole, first, second in zip(alone, *halves, strict=True):
            assert torch.equal(whole[key], torch.cat([first[key], second[key]]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(4, 30), min_size=2, max_size=3), st.integers(1, 2), st.integers(0, 99))
def test_balanced_batches_have_as_many_of_each_set(sizes: list[int], instances: int, seed: int) -> None:
    labels, start = [], 0
    for size in sizes:
        labels.append([start + image // 2 for image in range(size)])
        start += -(-size // 2)
    size = 2 * instances * len(sizes)
    sampler = BalancedBatches(labels, size, instances, seed)
    whole = [label for own in labels for label in own]
    set_of = np.repeat(np.arange(len(sizes)), sizes)
    epoch = list(sampler)
    assert len(epoch) == len(sampler)
    for batch in epoch:
        assert np.bincount(set_of[[draw.index for draw in batch]], minlength=len(sizes)).tolist() == [
            2 * instances
        ] * len(sizes)
        groups = np.array([whole[draw.index] for draw in batch]).reshape(-1, instances)
        assert (groups == groups[:, :1]).all()  # the images of an identity are one after the other
        if instances > 1:
            assert len(set(groups[:, 0].tolist())) == len(groups)  # and no identity comes twice in a batch
    assert epoch != list(sampler)


def test_a_small_set_comes_several_times_and_a_large_one_in_part() -> None:
    small, large = list(range(4)), list(range(4, 104))
    sampler = BalancedBatches([small, large], 8, 1, seed=0)
    assert len(sampler) == 104 // 8
    first, second = ([draw.index for batch in sampler for draw in batch] for _ in range(2))
    counts = np.bincount(first, minlength=104)
    assert counts[:4].tolist() == [13] * 4 and counts[4:].max() == 1 and counts[4:].sum() == 52
    assert {index for index in first if index > 3} != {index for index in second if index > 3}


@pytest.mark.parametrize(
    ("sizes", "batch", "instances", "told"),
    [
        ([20, 20], 9, 1, "train.batch_size=9: dataset.batches=balanced divides its images among the 2 members"),
        ([20, 20], 12, 2, ""),
        ([20, 20], 10, 2, "take a multiple of 4"),
        ([20, 3], 8, 1, "takes 4 training images of each member, and one has 3"),
        ([20, 4], 16, 2, "takes 4 identities of each member, and one has 2"),
    ],
)
def test_batches_that_cannot_be_divided(sizes: list[int], batch: int, instances: int, told: str) -> None:
    labels = [[image // 2 for image in range(size)] for size in sizes]
    if not told:
        assert len(BalancedBatches(labels, batch, instances, 0)) > 0
        return
    with pytest.raises(UserError, match=told):
        BalancedBatches(labels, batch, instances, 0)


def raising(error: Exception) -> Callable[[], Catalog]:
    def reader() -> Catalog:
        raise error

    return reader


def test_what_is_wrong_with_a_member_names_its_keys(two: tuple[Catalog, Catalog], tmp_path: Path) -> None:
    north, south = two
    with pytest.raises(DataError, match=r"^dataset\.members\.a\.root=/x: no such folder; dataset\.cache"):
        Joint({"a": {"reader": raising(DataError("dataset.root=/x: no such folder; dataset.cache"))}}, **OPTIONS)
    with pytest.raises(UserError, match=r"^dataset\.members\.north\.val_ids=99: "):
        joint(north, south, val_ids=99)
    assert in_member("set dataset.reader.level, not dataset.readers", "a") == (
        "set dataset.members.a.reader.level, not dataset.readers"
    )
    birds = Catalog("birds", {"train": north.splits["train"], "test": north.splits["query"]}, north.class_names)
    with pytest.raises(UserError, match=r"dataset\.members\.north: is a set for re-identification, and birds one for"):
        joint(north, birds)
    with pytest.raises(UserError, match=r"dataset\.batches='even'"):
        joint(north, batches="even")
    members = {
        "north": {"reader": lambda: north, "val_ids": 2},
        "south": {"reader": lambda: south},
    }
    with pytest.raises(UserError, match=r"dataset\.members\.south: has no split val_gallery, but north has one"):
        Joint(members, **OPTIONS)


def test_a_test_image_that_another_member_trains_on_is_told(two: tuple[Catalog, Catalog], tmp_path: Path) -> None:
    north, south = two
    assert joint(north, south).notes == []
    copied = south.splits["query"][0].path
    copied.write_bytes(north.splits["train"][3].path.read_bytes())
    (note,) = joint(north, south).notes
    assert note.startswith("south: 1 of the 12 images of split 'query' are training images of north")
