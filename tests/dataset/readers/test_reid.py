"""Readers of re-identification sets: official counts on the real lists, layouts in small, and faults."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcal.dataset.data import Data
from dcal.dataset.readers import reid_custom as reid_identity
from dcal.dataset.readers import reid_person as reid
from dcal.dataset.readers import reid_protocol
from dcal.dataset.readers.reid_custom import read_identity_csv, read_identity_folder
from dcal.dataset.readers.reid_person import read_dukemtmc, read_market1501, read_msmt17, read_occluded_duke
from dcal.dataset.readers.reid_vehicle import read_vehicleid, read_veri
from dcal.dataset.record import Catalog, DataError
from dcal.metric.retrieval import evaluate_retrieval
from dcal.utils.errors import UserError


def touch(root: Path, names: Iterable[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def names(catalog: Catalog, split: str) -> list[str]:
    return [record.path.name for record in catalog.splits[split]]


# --- the real sets


def test_market1501_has_the_official_counts(data_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        catalog = read_market1501(data_root / "Market-1501-v15.09.15")
    assert "train 751 ids, 12936 images, 6 cameras" in caplog.text and "3819 junk" in caplog.text
    assert {s: len(r) for s, r in catalog.splits.items()} == {"train": 12936, "query": 3368, "gallery": 19732}
    assert catalog.protocol["gallery"] == {"identities": 751, "images": 15913, "cameras": 6}
    assert catalog.protocol["train"] == {"identities": 751, "images": 12936, "cameras": 6}
    assert catalog.protocol["query"] == {"identities": 750, "images": 3368, "cameras": 6}
    assert (catalog.protocol["gallery_junk"], catalog.protocol["distractors"]) == (3819, 2798)
    assert catalog.protocol["mismatch"] == []
    labels = [record.label for record in catalog.splits["train"]]
    assert sorted(set(labels)) == list(range(751)) and catalog.num_classes == 751
    assert catalog.class_names[0] == "2"
    assert all(record.path.name.startswith("0002_") for record in catalog.splits["train"] if not record.label)
    endings = Counter("".join(Path(n).suffixes) for n in names(catalog, "query") + names(catalog, "gallery"))
    assert endings[".jpg.jpg"] > 0 and set(endings) == {".jpg", ".jpg.jpg"}  # real oddities, and no Thumbs.db
    assert read_market1501(data_root) == catalog  # the folder above will do


@pytest.mark.parametrize(("train", "images"), [("train", 30248), ("train+val", 32621)])
def test_msmt17_lists_have_the_official_counts(data_root: Path, train: str, images: int) -> None:
    catalog = read_msmt17(data_root / "annotations" / "MSMT17_V1", train=train, check_images=False)
    assert catalog.protocol["train"] == {"identities": 1041, "images": images, "cameras": 15}
    assert catalog.protocol["query"] == {"identities": 3060, "images": 11659, "cameras": 15}
    assert catalog.protocol["gallery"] == {"identities": 3060, "images": 82161, "cameras": 15}
    assert (catalog.protocol["version"], catalog.protocol["train_lists"]) == ("V1", train)
    assert catalog.protocol["mismatch"] == []
    first = catalog.splits["gallery"][0]
    assert first.path.parts[-3:] == ("test", "0000", "0000_008_01_0303morning_0019_2.jpg")
    assert (first.label, first.camera) == (0, 1)


def test_occluded_duke_lists_have_the_official_counts(data_root: Path) -> None:
    catalog = read_occluded_duke(data_root / "annotations" / "Occluded_Duke", check_images=False)
    assert catalog.protocol["train"] == {"identities": 702, "images": 15618, "cameras": 8}
    assert catalog.protocol["query"] == {"identities": 519, "images": 2210, "cameras": 8}
    assert catalog.protocol["gallery"] == {"identities": 1110, "images": 17661, "cameras": 8}
    assert catalog.protocol["mismatch"] == []


def test_veri_has_the_official_counts_and_its_own_ground_truth(data_root: Path) -> None:
    """gt_index and jk_index list matches and same-camera images of each query: our camera rule must agree."""
    root = data_root / "annotations" / "VeRi"
    catalog = read_veri(root, check_images=False)
    assert catalog.protocol["train"] == {"identities": 576, "images": 37778, "cameras": 20}
    assert catalog.protocol["query"] == {"identities": 200, "images": 1678, "cameras": 19}
    assert catalog.protocol["gallery"] == {"identities": 200, "images": 11579, "cameras": 19}
    assert (catalog.protocol["evaluation"], catalog.protocol["mismatch"]) == ("image_to_image", [])
    assert set(names(catalog, "query")) <= set(names(catalog, "gallery"))
    ids, cams = (
        torch.tensor([getattr(record, field) for record in catalog.splits["gallery"]]) for field in ("label", "camera")
    )
    lines = {file: (root / file).read_text().splitlines() for file in ("gt_index.txt", "jk_index.txt")}
    for query, matches, same_camera in zip(catalog.splits["query"], *lines.values(), strict=True):
        same_id = ids == query.label
        own = cams == query.camera
        assert (same_id & ~own).nonzero().flatten().add(1).tolist() == [int(i) for i in matches.split()]
        assert (same_id & own).nonzero().flatten().add(1).tolist() == [int(i) for i in same_camera.split()]


# --- layouts in small, with the official table out of the way


def market(root: Path) -> Path:
    touch(root / "bounding_box_train", ["0007_c2s1_000001_01.jpg", "0002_c1s1_000451_03.jpg", "Thumbs.db"])
    touch(root / "bounding_box_train", ["0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"])
    touch(root / "query", ["0005_c1s1_000451_00.jpg.jpg"])
    touch(root / "bounding_box_test", ["0005_c2s1_000001_01.jpg", "-1_c3s1_000001_01.jpg.jpg"])
    touch(root / "bounding_box_test", ["0000_c4s1_000001_01.jpg"])
    return root


def test_market1501_junk_and_distractors(tmp_path: Path) -> None:
    catalog = read_market1501(market(tmp_path))
    assert [(r.label, r.camera) for r in catalog.splits["train"]] == [(0, 1), (1, 2)]
    assert catalog.class_names == ["2", "7"]
    assert [(r.label, r.camera) for r in catalog.splits["gallery"]] == [(-1, 3), (0, 4), (5, 2)]
    assert "train identities: 2 instead of 751" in catalog.protocol["mismatch"]


def test_an_identity_of_training_in_the_test_is_a_mismatch(tmp_path: Path) -> None:
    root = market(tmp_path)
    assert read_market1501(root).protocol["identities_in_train_and_test"] == 0
    touch(root / "bounding_box_train", ["0005_c6s1_000001_00.jpg"])
    catalog = read_market1501(root)
    assert catalog.protocol["identities_in_train_and_test"] == 1
    assert "1 identities are both in train and in query or gallery" in catalog.protocol["mismatch"]


def test_mismatch_is_an_error_that_can_be_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = read_market1501(market(tmp_path))
    options: dict[str, Any] = {"image_size": [8, 4], "resize": [8, 4], "augment": {"flip": 0.5, "pad": 0, "erase": 0.0}}
    with pytest.raises(DataError, match=r"gallery images: 2 instead of 15913.*dataset.allow_mismatch=true"):
        Data(catalog, **options)
    assert Data(catalog, **options, allow_mismatch=True).num_classes == 2
    assert "not the official set" in caplog.text


def test_dukemtmc(tmp_path: Path) -> None:
    touch(tmp_path / "bounding_box_train", ["0001_c2_f0046182.jpg"])
    touch(tmp_path / "query", ["0005_c2_f0046985.jpg"])
    touch(tmp_path / "bounding_box_test", ["0002_c1_f0044158.jpg", "0005_c8_f0050000.jpg"])
    catalog = read_dukemtmc(tmp_path)
    assert [(r.label, r.camera) for r in catalog.splits["gallery"]] == [(2, 1), (5, 8)]


def msmt17(root: Path, folders: tuple[str, str]) -> Path:
    lists = {
        "train": ("0000/0000_045_12_0303morning_0006_2.jpg 0", "0003/0003_000_01_0303noon_0006_2_ex.jpg 3"),
        "val": ("0003/0003_013_04_0303morning_0020_2.jpg 3",),
        "query": ("0000/0000_000_01_0303morning_0015_0.jpg 0",),
        "gallery": ("0000/0000_008_02_0303morning_0019_2.jpg 0",),
    }
    for split, lines in lists.items():
        write(root / f"list_{split}.txt", lines)
        touch(root / folders[split in ("query", "gallery")], (line.split()[0] for line in lines))
    return root


@pytest.mark.parametrize(("version", "folders"), reid.MSMT17_FOLDERS.items())
def test_msmt17_versions(tmp_path: Path, version: str, folders: tuple[str, str]) -> None:
    msmt17(tmp_path / f"MSMT17_{version}", folders)
    catalog = read_msmt17(tmp_path, version=version, train="train+val")
    assert [(r.label, r.camera) for r in catalog.splits["train"]] == [(0, 12), (1, 1), (1, 4)]
    assert all(record.path.is_file() for split in catalog.splits.values() for record in split)
    other = {"V1": "V2", "V2": "V1"}[version]
    with pytest.raises(DataError, match=f"dataset.reader.version={other}"):
        read_msmt17(tmp_path / f"MSMT17_{version}", version=other)


def test_missing_images_are_named(tmp_path: Path) -> None:
    msmt17(tmp_path, ("train", "test"))
    (tmp_path / "test/0000/0000_008_02_0303morning_0019_2.jpg").unlink()
    with pytest.raises(DataError, match=r"test: 1 listed images are missing, first 0000/0000_008_02"):
        read_msmt17(tmp_path)


def veri(root: Path) -> Path:
    lists = {
        "train": ["0001_c001_00016450_0.jpg", "0003_c020_00016450_0.jpg"],
        "query": ["0002_c002_00030600_0.jpg"],
        "test": ["0002_c002_00030600_0.jpg", "0002_c012_00030605_1.jpg", "0002_c012_00030610_1.jpg"],
    }
    for split, listed in lists.items():
        write(root / f"name_{split}.txt", listed)
        touch(root / f"image_{split}", listed)
    items = "".join(
        f'<Item imageName="{n}" vehicleID="{n[:4]}" cameraID="{n[5:9]}" colorID="1" />\n' for n in lists["train"]
    )
    head = '<?xml version="1.0" encoding="gb2312"?>'
    xml = f"{head}\n<TrainingImages><!-- 颜色 --><Items>{items}</Items></TrainingImages>"
    (root / "train_label.xml").write_bytes(xml.encode("gb2312"))
    write(root / "test_track.txt", [lists["test"][0], " ".join(lists["test"][1:])])
    return root


def test_veri_cameras_have_three_digits_and_the_xml_agrees(tmp_path: Path) -> None:
    veri(tmp_path)
    catalog = read_veri(tmp_path)
    assert [r.camera for r in catalog.splits["gallery"]] == [2, 12, 12]
    assert [r.camera for r in catalog.splits["train"]] == [1, 20]
    label = tmp_path / "train_label.xml"
    label.write_bytes(label.read_bytes().replace(b'"c020"', b'"c019"'))
    with pytest.raises(DataError, match=r"\(3, 19\) of 0003_c020_00016450_0.jpg"):
        read_veri(tmp_path)


def test_veri_names_its_metric(tmp_path: Path) -> None:
    catalog = read_veri(veri(tmp_path), evaluation="image_to_track")
    assert catalog.protocol["tracks"] == [0, 1, 1]
    gallery = catalog.splits["gallery"]
    result = evaluate_retrieval(
        None, torch.tensor([2]), torch.tensor([2]), None,
        torch.tensor([r.label for r in gallery]), torch.tensor([r.camera for r in gallery]),
        distances=torch.rand(1, 3), gallery_tracks=torch.tensor(catalog.protocol["tracks"]),
    )  # fmt: skip
    assert result["mAP"] == 1.0
    (tmp_path / "test_track.txt").unlink()
    with pytest.raises(DataError, match=r"test_track.txt"):
        read_veri(tmp_path, evaluation="image_to_track")


def test_vehicleid_draws_one_gallery_image_per_vehicle(tmp_path: Path) -> None:
    lists = {
        "train_list": ["0000001 7", "0000002 7", "0000003 9"],
        "test_list_800": [f"{100 + i:07d} {i // 4}" for i in range(40)],
    }
    for file, lines in lists.items():
        write(tmp_path / f"train_test_split/{file}.txt", lines)
        touch(tmp_path / "image", (f"{line.split()[0]}.jpg" for line in lines))
    first, again, other = (read_vehicleid(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    assert [r.label for r in first.splits["gallery"]] == list(range(10)) and len(first.splits["query"]) == 30
    assert not set(names(first, "query")) & set(names(first, "gallery"))
    assert names(first, "gallery") == names(again, "gallery") != names(other, "gallery")
    assert {r.camera for r in first.splits["query"]} == {-1}
    assert "no cameras" in first.protocol["camera_policy"]


# --- one's own data


def people(root: Path, folder: str = "") -> Path:
    for person in ("anna", "bert", "carl", "dora", "emil", "fay"):
        touch(root / folder / person, [f"{person}_c{c}_{i}.jpg" for c in (1, 2) for i in range(2)])
    return root


def test_identity_folder_splits_by_name(tmp_path: Path) -> None:
    people(tmp_path)
    touch(tmp_path / "-1", ["x_c1_0.jpg"])
    (tmp_path / "anna/camera 2").mkdir()  # deeper folders are of the same person, hidden ones nobody's
    (tmp_path / "anna/anna_c2_1.jpg").rename(tmp_path / "anna/camera 2/anna_c2_1.JPG")
    touch(tmp_path, [".cache/x_c1_0.jpg", "bert/._bert_c1_0.jpg"])
    catalog = read_identity_folder(tmp_path, camera=r"_c(\d)", test_fraction=0.5)
    assert catalog.num_classes == 3 and len(catalog.splits["train"]) == 12
    # the first image under each camera is a query, the other one is in the gallery
    assert all(re.search(r"_c\d_0", name) for name in names(catalog, "query"))
    assert len(catalog.splits["query"]) == 6 and len(catalog.splits["gallery"]) == 6 + 1
    assert catalog.protocol["gallery_junk"] == 1
    tested = {name.split("_")[0] for name in names(catalog, "query")}
    assert tested.isdisjoint(catalog.class_names)
    touch(tmp_path / "zoe", ["zoe_c1_0.jpg", "zoe_c2_0.jpg"])  # the order is by name alone: at most zoe moves in
    more = read_identity_folder(tmp_path, camera=r"_c(\d)", test_fraction=0.5)
    assert len(tested & {name.split("_")[0] for name in names(more, "query")}) >= 2


def test_the_pattern_in_the_documentation_matches() -> None:
    (pattern,) = re.findall(r"`(_c\S+)`", read_identity_folder.__doc__ or "")
    assert reid_identity.camera_of(Path("0001_c12s1.jpg"), re.compile(pattern)) == "12"


def test_every_query_of_a_split_folder_has_a_match(tmp_path: Path) -> None:
    touch(tmp_path / "1", ["c1_a.jpg", "c2_a.jpg"])  # a single image under each camera
    touch(tmp_path / "2", ["c1_a.jpg", "c1_b.jpg"])  # one camera only: no query
    touch(tmp_path / "3", ["c1_a.jpg"])
    sightings = [
        reid_protocol.Sighting(path, int(path.parent.name), int(path.name[1]))
        for path in sorted(tmp_path.glob("*/*.jpg"))
    ]
    splits = reid_identity.split_identities(sightings, {1, 2, 3})
    assert [(s.identity, s.camera) for s in splits["query"]] == [(1, 1), (1, 2)]
    assert len(splits["gallery"]) == 5


def test_identity_folder_without_cameras(tmp_path: Path) -> None:
    catalog = read_identity_folder(people(tmp_path))
    assert {r.camera for split in catalog.splits.values() for r in split} == {-1}
    assert len(catalog.splits["query"]) == 3 and len(catalog.splits["gallery"]) == 9


def test_identity_folder_with_given_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "query", "gallery"):
        people(tmp_path, split)
    catalog = read_identity_folder(tmp_path, camera=r"_c(\d)")
    assert catalog.num_classes == 6 and len(catalog.splits["query"]) == 24
    assert catalog.class_names == ["anna", "bert", "carl", "dora", "emil", "fay"]
    assert "6 identities are both in train and in query or gallery" in caplog.text
    assert {r.label for r in catalog.splits["query"]} == {r.label for r in catalog.splits["gallery"]}


ROWS = (
    "path,id,camera,split",
    "a.jpg,7,3,train",
    "b.jpg,9,,query",
    "c.jpg,9,2,gallery",
    "d.jpg,-1,2,gallery",
)


def test_identity_csv(tmp_path: Path) -> None:
    touch(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    write(tmp_path / "images.csv", ROWS)
    catalog = read_identity_csv(tmp_path)
    assert catalog == read_identity_csv(tmp_path / "images.csv")
    assert [(r.label, r.camera) for r in catalog.splits["gallery"]] == [(9, 2), (-1, 2)]
    assert [(r.label, r.camera) for r in catalog.splits["query"] + catalog.splits["train"]] == [
        (9, -1),
        (0, 3),
    ]
    assert catalog.class_names == ["7"]


# --- faults


@pytest.mark.parametrize(
    "reader",
    [read_market1501, read_dukemtmc, read_msmt17, read_veri, read_occluded_duke, read_vehicleid,
     read_identity_folder, read_identity_csv],
)  # fmt: skip
def test_wrong_root_names_the_key(tmp_path: Path, reader: Callable[..., Catalog]) -> None:
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"dataset\.root"):
            reader(root)


def test_faults_in_known_sets_are_named(tmp_path: Path) -> None:
    market(tmp_path)
    with pytest.raises(DataError, match=r"-1_c1s1_000001_00.jpg.*expected one like 0002_c1_f0044158.jpg"):
        read_dukemtmc(tmp_path)
    touch(tmp_path / "query", ["someone.jpg"])
    with pytest.raises(DataError, match=r"someone.jpg: the name does not tell identity and camera"):
        read_market1501(tmp_path)
    (tmp_path / "query/someone.jpg").unlink()
    (tmp_path / "query/0005_c1s1_000451_00.jpg.jpg").unlink()
    with pytest.raises(DataError, match=r"query: no image in it"):
        read_market1501(tmp_path)
    (tmp_path / "query").rmdir()
    with pytest.raises(DataError, match=r"query missing"):
        read_market1501(tmp_path)
    with pytest.raises(UserError, match=r"^dataset.reader.version='V3': .*one of V1, V2"):
        read_msmt17(tmp_path, version="V3")
    with pytest.raises(UserError, match=r"^dataset.reader.train='val'"):
        read_msmt17(tmp_path, train="val")
    with pytest.raises(UserError, match=r"^dataset.reader.evaluation='track'"):
        read_veri(tmp_path, evaluation="track")
    with pytest.raises(UserError, match=r"^dataset.reader.test_size=7"):
        read_vehicleid(tmp_path, test_size=7)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,id,split", "a.jpg,1,train"), "column camera is missing"),
        ((*ROWS, "a.jpg,1,2,test"), "line 6: .*split is one of train, query, gallery"),
        ((*ROWS, "a.jpg,,2,train"), "line 6: .*none may be empty"),
        ((*ROWS, "e.jpg,1,2,train"), "1 listed images are missing, first e.jpg; the paths in images.csv count from"),
        (ROWS[:2], "the split 'query' is empty"),
    ],
)
def test_faults_in_a_table_are_named(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    touch(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    write(tmp_path / "images.csv", lines)
    with pytest.raises(DataError, match=message):
        read_identity_csv(tmp_path)


def test_faults_in_identity_folders_are_named(tmp_path: Path) -> None:
    people(tmp_path)
    with pytest.raises(DataError, match=r"dataset.reader.camera='cam\(.\)' does not match"):
        read_identity_folder(tmp_path, camera="cam(.)")
    for camera in ("_c1", "("):
        with pytest.raises(UserError, match=r"^dataset.reader.camera="):
            read_identity_folder(tmp_path, camera=camera)
    with pytest.raises(UserError, match=r"^dataset.reader.test_fraction=1.5"):
        read_identity_folder(tmp_path, test_fraction=1.5)
    touch(tmp_path / "train", ["x.jpg"])
    with pytest.raises(DataError, match=r"has train, expected all of train, query, gallery or none"):
        read_identity_folder(tmp_path)
