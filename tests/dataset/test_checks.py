"""What training and the doctor look at before a data set is used."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcal.dataset.checks import check_catalog, claims_official
from dcal.dataset.data import Data
from dcal.dataset.files import file_facts, first_alike
from dcal.dataset.readers.fgvc import read_csv
from dcal.dataset.record import Catalog, DataError, Record
from dcal.run.data_digest import data_digest

OPTIONS: dict[str, Any] = {"image_size": [16, 16], "resize": [16, 16], "augment": {"flip": 0.5, "pad": 0, "erase": 0.0}}


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Four training and four test images of two classes, all different."""
    records = [Record(draw(tmp_path / f"{number}.png", number), number % 2) for number in range(8)]
    return Catalog("shells", {"train": records[:4], "test": records[4:]}, ["cone", "cowrie"])


def notes(catalog: Catalog, **options: bool) -> list[str]:
    return check_catalog(catalog, "ROOT", **options)[0]


def with_test(catalog: Catalog, *more: Record) -> Catalog:
    return replace(catalog, splits={**catalog.splits, "test": [*catalog.splits["test"], *more]})


def test_nothing_is_said_of_a_set_in_order(catalog: Catalog) -> None:
    said, pictures = check_catalog(catalog, None)
    assert said == [] and sorted(pictures.values()) == list(range(8))


@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_listed_file_must_be_there(catalog: Catalog, split: str, position: int) -> None:
    gone = catalog.splits[split][position].path
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name}: no such file, .*1 of 8 images are missing.*root=ROOT"):
        notes(catalog)
    (note,) = notes(catalog, skip_missing=True)
    assert "1 of 8 images are missing" in note and str(gone) in note


def test_all_images_missing_is_no_set_with_gaps(catalog: Catalog) -> None:
    for records in catalog.splits.values():
        for record in records:
            record.path.unlink()
    with pytest.raises(DataError, match="8 of 8 images are missing"):
        notes(catalog, skip_missing=True)


def test_a_pipe_a_device_or_a_folder_is_refused_and_not_opened(catalog: Catalog, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in (tmp_path / "pipe.png", tmp_path / "folder.png", Path("/dev/zero")):
        with pytest.raises(DataError, match=rf"{name}: is a folder, a device or a pipe"):
            notes(with_test(catalog, Record(name, 0)), skip_missing=True)
        assert len(data_digest(with_test(catalog, Record(name, 0))).sha256) == 64, "of the run, before the checks"


def test_training_images_in_the_test_are_counted_however_they_got_there(catalog: Catalog, tmp_path: Path) -> None:
    trained = catalog.splits["train"][0].path
    copy, link, hard = (tmp_path / f"{name}.png" for name in ("copy", "link", "hard"))
    copy.write_bytes(trained.read_bytes())
    link.symlink_to(trained)
    hard.hardlink_to(trained)
    for same in (trained, copy, link, hard, tmp_path / "x" / ".." / trained.name):
        (tmp_path / "x").mkdir(exist_ok=True)
        (note,) = notes(with_test(catalog, Record(same, 0)))
        assert "1 of the 5 images of split 'test' are also training images" in note and str(same) in note


def test_equal_size_or_an_equal_end_is_no_equal_image(tmp_path: Path) -> None:
    end = bytes(5000)
    contents = [b"a" + end, b"b" + end, b"a" + end, b"c" * 5001, b"", b"", b"abc", b"abd", b"abc"]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(content)
    assert first_alike(paths, file_facts(paths)) == [0, 1, 0, 3, 4, 5, 6, 7, 6]


def test_a_link_to_a_copy_of_an_earlier_image_is_that_image(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first", "copy", "link")]
    paths[0].write_bytes(b"same")
    paths[1].write_bytes(b"same")
    paths[2].symlink_to(paths[1])
    assert first_alike(paths, file_facts(paths)) == [0, 0, 0]
    assert first_alike(paths[::-1], file_facts(paths[::-1])) == [0, 0, 0]


def test_an_image_with_two_labels_and_one_that_counts_twice(catalog: Catalog, tmp_path: Path) -> None:
    record = catalog.splits["test"][0]
    again = with_test(catalog, record, record)
    assert [note for note in notes(again) if "split 'test' has 2 duplicates" in note] == notes(again)
    torn = with_test(catalog, replace(record, label=1 - record.label))
    assert any("1 images have two labels" in note and "'cone' and 'cowrie'" in note for note in notes(torn))


def test_identities_of_training_and_test_are_numbered_apart(catalog: Catalog, tmp_path: Path) -> None:
    train, test = catalog.splits["train"], catalog.splits["test"]
    splits = {"train": train, "query": test[:2], "gallery": [*test[2:], replace(test[0], label=7)]}
    found = notes(replace(catalog, splits=splits))
    assert len(found) == 1 and "identity 0 and identity 7" in found[0]
    junk = {**splits, "gallery": [*test[2:], replace(test[0], label=-1)]}
    assert notes(replace(catalog, splits=junk)) == []


@pytest.mark.parametrize(("camera", "told"), [(-1, True), (2, True), (5, False)])
def test_queries_in_the_gallery_are_told_unless_the_camera_rule_removes_them(
    catalog: Catalog, camera: int, told: bool
) -> None:
    query = replace(catalog.splits["test"][0], camera=camera if camera < 0 else 5)
    gallery = [*catalog.splits["test"][1:], replace(query, camera=camera)]
    found = notes(replace(catalog, splits={"train": catalog.splits["train"], "query": [query], "gallery": gallery}))
    assert [("1 of the 1 queries are also in the gallery" in note) for note in found] == [True] * told


def official(catalog: Catalog, train: int) -> Catalog:
    counts = {split: len(records) for split, records in catalog.splits.items()}
    return replace(catalog, protocol={"images": counts, "official_images": {**counts, "train": train}})


def test_part_of_an_official_set_is_noted_and_gaps_in_a_whole_one_are_refused(catalog: Catalog) -> None:
    part, whole = official(catalog, 5), official(catalog, 4)
    assert [claims_official(one) for one in (part, whole, catalog)] == [False, True, False]
    assert notes(part) == ["shells has other numbers of images than the official set: train 4 instead of 5"]
    assert notes(whole) == []
    catalog.splits["test"][1].path.unlink()
    with pytest.raises(DataError, match=r"1 of 8 images are missing.*dataset\.allow_mismatch=true"):
        notes(whole, skip_missing=True)
    assert len(notes(whole, skip_missing=True, allow_mismatch=True)) == 1


def test_training_logs_each_note_once(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    record = catalog.splits["train"][0]
    with caplog.at_level(logging.WARNING):
        data = Data(with_test(catalog, record), **OPTIONS)
    assert [message.getMessage() for message in caplog.records] == data.notes
    assert data.pictures("test")[-1] == data.pictures("train")[0]
    assert len(data.notes) == 1


def test_a_table_with_paths_through_other_folders(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "pictures" / f"{number}.png", number)
    (tmp_path / "lists").mkdir()
    table = tmp_path / "lists" / "t.csv"
    names = ["../pictures/0.png,a,train", "../pictures/1.png,b,train", "../lists/../pictures/0.png,a,test"]
    table.write_text("\n".join(["path,label,split", *names]))
    (note,) = notes(read_csv(table))
    assert "1 of the 1 images of split 'test' are also training images" in note
