"""The digest belongs to the data, not to the place; the line says what is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dcal.dataset.checks import describe
from dcal.dataset.readers.fgvc import read_cub, read_image_folder
from dcal.dataset.record import Catalog
from dcal.dataset.synthetic.birds import read_synthetic_birds
from dcal.run.data_digest import catalog_digest


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes, three images in each split."""
    for number, path in enumerate(("train/oak/1", "train/oak/2", "train/elm/3", "test/oak/4", "test/elm/5")):
        file = tmp_path / "flowers" / f"{path}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * (100 + number))
    return tmp_path / "flowers"


def test_the_same_data_elsewhere_and_touched_has_the_same_digest(flowers: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(flowers, tmp_path / "other machine" / "data"))
    os.utime(copy / "train/oak/1.jpg", (1, 1))
    (tmp_path / "link").symlink_to(copy)
    digests = {catalog_digest(read_image_folder(root)) for root in (flowers, copy, tmp_path / "link")}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


CHANGES: dict[str, Callable[[Path], object]] = {
    "another image": lambda root: (root / "train/elm/6.jpg").write_bytes(b"6"),
    "one less": lambda root: (root / "train/oak/2.jpg").unlink(),
    "another size": lambda root: (root / "test/oak/4.jpg").write_bytes(b"longer than it was"),
    "another name": lambda root: (root / "test/oak/4.jpg").rename(root / "test/oak/7.jpg"),
    "another label": lambda root: (root / "train/oak/1.jpg").rename(root / "train/elm/1.jpg"),
    "another split": lambda root: (root / "train/oak/1.jpg").rename(root / "test/oak/1.jpg"),
    "another class name": lambda root: [(root / s / "elm").rename(root / s / "ash") for s in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_have_another_digest(flowers: Path, change: str) -> None:
    before = catalog_digest(read_image_folder(flowers))
    CHANGES[change](flowers)
    assert catalog_digest(read_image_folder(flowers)) != before


def test_labels_cameras_and_views_count_where_the_files_are_the_same(flowers: Path) -> None:
    catalog = read_image_folder(flowers)

    def with_first(**change: int) -> Catalog:
        first, *others = catalog.splits["train"]
        return replace(catalog, splits={**catalog.splits, "train": [replace(first, **change), *others]})

    variants = [catalog, with_first(label=0), with_first(label=1), with_first(camera=3), with_first(view=3)]
    digests = [catalog_digest(variant) for variant in variants]
    assert len(set(digests)) == len(digests) - 1  # one of the labels is the image's own


def test_a_synthetic_set_goes_by_its_recipe_and_not_by_the_size_of_its_files(tmp_path: Path) -> None:
    catalog = read_synthetic_birds(tmp_path, image_size=48, train_per_class=1, test_per_class=1)
    before = catalog_digest(catalog)
    with catalog.splits["train"][0].path.open("ab") as file:
        file.write(b"as another library would write it")
    assert catalog_digest(catalog) == before
    other = read_synthetic_birds(tmp_path, image_size=48, train_per_class=1, test_per_class=1, seed=1)
    assert catalog_digest(other) != before


def test_the_line_names_folder_classes_and_images(flowers: Path) -> None:
    catalog = read_image_folder(flowers)
    words = "flowers in PLACE: 2 classes; images: train 3, test 2; 5 of 5 listed images are here"
    assert describe(catalog) == words.replace("PLACE", str(flowers))
    assert describe(catalog, "/as/typed") == words.replace("PLACE", "/as/typed")
    (flowers / "test/oak/4.jpg").unlink()
    assert describe(catalog).endswith("; 4 of 5 listed images are here")


def test_the_line_of_an_official_set_compares_with_its_authors_list(tmp_path: Path) -> None:
    lists = {
        "images.txt": "1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n4 002.B/d.jpg",
        "classes.txt": "1 001.A\n2 002.B",
        "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2",
        "train_test_split.txt": "1 1\n2 0\n3 1\n4 0",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    for name in ("001.A/a.jpg", "001.A/b.jpg", "002.B/c.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    assert describe(read_cub(tmp_path), tmp_path).endswith("; 3 of 11 788 listed images are here")
