"""Readers of fine-grained sets in text layouts: CUB-200-2011, NABirds, FGVC-Aircraft, folders by class, CSV.

Readers trust the lists and do not look at the images: whether they are there is checked when they are loaded.
Labels are contiguous over the classes that occur, in the set's own order, so subsets of the official sets
read fine; `Catalog.protocol` tells how many images there are and should be. torchvision's classes for some of
these sets are of little help: they want folders of their own naming, and give no boxes.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dcal.dataset.files import printable
from dcal.dataset.readers.tables import (
    Entry,
    find_root,
    list_folders,
    look_up,
    make_catalog,
    read_lines,
    read_rows,
    read_table,
)
from dcal.dataset.record import Catalog, DataError, Part
from dcal.dataset.splits import hold_out_fraction
from dcal.utils.errors import UserError, check_number, choose

CUB, NABIRDS, AIRCRAFT = "CUB-200-2011", "NABirds", "FGVC-Aircraft"

# images of each split, as the sets' authors give them
CUB_IMAGES = {"train": 5994, "test": 5794}
NABIRDS_IMAGES = {"train": 23929, "test": 24633}
AIRCRAFT_IMAGES = {"train": 6667, "test": 3333}
AIRCRAFT_IMAGES_WITH_VAL = {"train": 3334, "val": 3333, "test": 3333}
Box = tuple[float, float, float, float]


def read_cub(root: str | Path | None) -> Catalog:
    """CUB-200-2011 (Wah et al. 2011): birds of 200 species with boxes and 15 parts.

    Reads images.txt, classes.txt, image_class_labels.txt and train_test_split.txt, and bounding_boxes.txt and
    parts/ where they exist. Rows are joined by image id: ids may start anywhere, and lists longer than
    images.txt are fine.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: a file is missing or malformed, an image has no label or split, or the lists contradict
            each other.
    """
    root = find_root(root, CUB, "images.txt", "CUB_200_2011")
    classes = read_table(root / "classes.txt", CUB)
    entries = list(_joined(root, CUB))
    _check_folders(root, entries, classes)
    catalog = make_catalog(CUB, entries, classes, CUB_IMAGES)
    _check_split(root, catalog)
    return catalog


def read_nabirds(root: str | Path | None, level: int | None = None) -> Catalog:
    """NABirds (Van Horn et al. 2015): 555 classes in a hierarchy; the files of CUB and hierarchy.txt.

    Args:
        root: the folder with images.txt.
        level: tell classes apart this many steps below the root of the hierarchy (1: orders); None for its
            leaves.

    Raises:
        DataError: as `read_cub`.
        UserError: `level` is not positive.
    """
    root = find_root(root, NABIRDS, "images.txt", "nabirds")
    classes = read_table(root / "classes.txt", NABIRDS)
    entries = list(_joined(root, NABIRDS))
    if level is not None:
        if level < 1:
            raise UserError(f"dataset.reader.level={level}: must be 1 or more")
        parents = read_table(root / "hierarchy.txt", NABIRDS)
        entries = [entry._replace(key=_ancestor(parents, entry.key, level)) for entry in entries]
    return make_catalog(NABIRDS, entries, classes, NABIRDS_IMAGES)


def read_aircraft(root: str | Path | None, level: str = "variant", official_val: bool = False) -> Catalog:
    """FGVC-Aircraft 2013b (Maji et al. 2013): 100 variants, of 70 families and 30 manufacturers.

    Args:
        root: the folder with data/, which holds images/ and the lists.
        level: `variant`, `family` or `manufacturer`.
        official_val: train on the official `train` and offer `val` as a split; else train on both, as papers
            do.

    Raises:
        DataError: a list is missing or malformed.
        UserError: there is no such level.
    """
    choose("dataset.reader.level", level, ("variant", "family", "manufacturer"))
    data = find_root(root, AIRCRAFT, f"data/images_{level}_test.txt", "fgvc-aircraft-2013b") / "data"
    lists = {"train": "train", "val": "val"} if official_val else {"train": "trainval"}
    boxes = {
        key: (x - 1, y - 1, right - x + 1, bottom - y + 1)  # corners, counted from 1
        for key, (x, y, right, bottom) in _read_boxes(data / "images_box.txt", AIRCRAFT).items()
    }
    entries = [
        Entry(split, data / "images" / f"{image}.jpg", key, boxes.get(image))
        for split, part in {**lists, "test": "test"}.items()
        for image, key in read_table(data / f"images_{level}_{part}.txt", AIRCRAFT).items()
    ]
    return make_catalog(AIRCRAFT, entries, None, AIRCRAFT_IMAGES_WITH_VAL if official_val else AIRCRAFT_IMAGES)


def read_image_folder(root: str | Path | None, test_fraction: float | None = None) -> Catalog:
    """Images in `root/<split>/<class>/`, deeper folders included; splits `train`, `test` and `val`.

    A set with `val` but no `test` is tested on `val`, as ImageNet is. Without these folders, `test_fraction` splits the
    images of `root/<class>/`: of each class that share, at least one image and never all, is the test. Which images is
    drawn with a fixed seed, so it is the same on every machine and at every run.

    Args:
        root: the folder.
        test_fraction: share of each class, in (0, 1), of a set without folders for the splits; None where it has them.

    Raises:
        DataError: `train`, or both others, are missing or empty.
        UserError: `test_fraction` is out of range, or the set has splits.
    """
    wanted = "train/<class>/ and in test/<class>/ or val/<class>/"
    if root is None:
        raise DataError(f"dataset.root is not set: give a folder with images in {wanted}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"dataset.root={root}: no such folder; give one with images in {wanted}")
    given = [split for split in ("train", "val", "test") if (folder / split).is_dir()]
    if test_fraction is not None:
        if given:
            raise UserError(
                f"dataset.test_fraction={test_fraction}: {folder} is split already, it has {', '.join(given)}"
            )
        return _split_folder(folder, test_fraction)
    entries, passed = [], []
    for split in given:
        images, sentences = list_folders(folder / split)
        passed += sentences
        entries += [Entry(split, path, name) for name, paths in images.items() for path in paths]
    found = {entry.split for entry in entries}
    if "train" not in found or len(found) < 2:
        there = sorted(printable(path.name) for path in folder.iterdir())
        shown = ", ".join(there[:5]) + (", ..." if there[5:] else "")
        flat = "" if given else "; if these are the classes, dataset.test_fraction=0.2 splits off a test"
        raise DataError(
            f"dataset.root={root}: expected images in {wanted}; found some in "
            f"{', '.join(sorted(found)) or 'none of them'} (the folder holds {shown or 'nothing'}){flat}"
        )
    if "test" not in found:
        entries = [entry._replace(split="test") if entry.split == "val" else entry for entry in entries]
    return make_catalog(printable(folder.name), entries, None, None, {"passed_over": passed})


def _split_folder(folder: Path, fraction: float) -> Catalog:
    """One folder of class folders, of which `fraction` of each class becomes the test."""
    check_number("dataset.test_fraction", fraction, gt=0, lt=1)
    images, passed = list_folders(folder)
    single = [name for name, paths in images.items() if len(paths) < 2]
    if single:
        raise DataError(f"{folder / single[0]}: one image cannot be split into training and test")
    if not images:
        raise DataError(f"dataset.root={folder}: no folder with images in it; give one with a folder per class")
    entries = [Entry("train", path, name) for name, paths in images.items() for path in paths]
    protocol = {"passed_over": passed, "test_fraction": fraction}
    catalog = hold_out_fraction(make_catalog(printable(folder.name), entries, None, None, protocol), fraction, "test")
    counts = {name: len(records) for name, records in catalog.splits.items()}
    return replace(catalog, protocol={**catalog.protocol, "images": counts})


def read_csv(root: str | Path | None) -> Catalog:
    """A table with the columns `path`, `label` and `split` (train, val or test); others are ignored.

    Args:
        root: the CSV file, or a folder that holds only one. Paths in it are relative to its folder or
        absolute.

    Raises:
        DataError: the file is missing, lacks a column or a value, names another split, or has no test images.
    """
    file = _find_csv(root)
    entries = []
    for line, row in read_rows(file, ("path", "label", "split")):
        path, label, split = row["path"], unicodedata.normalize("NFC", row["label"]), row["split"]
        if not path or not label or split not in ("train", "val", "test"):
            raise DataError(
                f"{file}: line {line}: path '{path}', label '{label}', split '{split}'; all "
                "three are needed, and split is one of train, val, test"
            )
        entries.append(Entry(split, file.parent / path, label))
    if not any(entry.split == "test" for entry in entries):
        raise DataError(f"{file}: has no row with split 'test'")
    return make_catalog(file.stem, entries, None, None)


def _find_csv(root: str | Path | None) -> Path:
    if root is None:
        raise DataError("dataset.root is not set: give a CSV file with the columns path, label and split")
    path = Path(root).expanduser()
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise DataError(f"dataset.root={root}: give a CSV file, or a folder that holds exactly one")
    return files[0]


def _joined(root: Path, name: str) -> Iterator[Entry]:
    """CUB's layout: several files that speak of the images of images.txt by id."""
    class_file, split_file = root / "image_class_labels.txt", root / "train_test_split.txt"
    class_of, split_of = read_table(class_file, name), read_table(split_file, name)
    boxes, parts = _read_boxes(root / "bounding_boxes.txt", name), _read_parts(root / "parts", name)
    for image, path in read_table(root / "images.txt", name).items():
        key = look_up(class_of, image, class_file, f"image {image}")
        flag = look_up(split_of, image, split_file, f"image {image}")
        if flag not in ("0", "1"):
            raise DataError(f"{split_file}: image {image} has '{flag}'; expected 1 for training, 0 for test")
        split = "train" if flag == "1" else "test"
        yield Entry(split, root / "images" / path, key, boxes.get(image), parts.get(image, ()))


def _check_folders(root: Path, entries: list[Entry], classes: dict[str, str]) -> None:
    """Numbers that are off by one between the files (0-based copies) still join; the images' folders tell."""
    known = set(classes.values())
    for entry in entries:
        folder, listed = entry.path.parent.name, classes.get(entry.key)
        if listed is not None and folder in known and folder != listed:
            raise DataError(
                f"{root / 'image_class_labels.txt'}: puts {folder}/{entry.path.name} into class '{listed}'; "
                "do images or classes count from 0 in one file and from 1 in another?"
            )


def _check_split(root: Path, catalog: Catalog) -> None:
    """The official split has 29 or 30 training images of every class and 11 to 30 test images."""
    train, test = (Counter(record.label for record in catalog.splits.get(s, ())) for s in ("train", "test"))
    if test and set(test.values()) <= {29, 30} and not set(train.values()) <= {29, 30}:
        raise DataError(
            f"{root / 'train_test_split.txt'}: every class has 30 test images, as many as the official split "
            "has training images: the flags of this copy are swapped; 1 must mean training"
        )


def _ancestor(parents: dict[str, str], key: str, level: int) -> str:
    """The class `level` steps below the root on the way to `key`; `key` itself if it is not that deep."""
    path = [key]
    while path[-1] in parents and parents[path[-1]] not in path:
        path.append(parents[path[-1]])
    return path[max(0, len(path) - 1 - level)]


def _read_boxes(file: Path, name: str) -> dict[str, Box]:
    """Four numbers by image id, as they stand; nothing if there is no such file."""
    boxes: dict[str, Box] = {}
    if not file.exists():
        return boxes
    for image, text in read_table(file, name).items():
        try:
            a, b, c, d = (float(value) for value in text.replace(",", " ").split())
        except ValueError:
            raise DataError(f"{file}: image {image} has '{text}'; expected four numbers") from None
        boxes[image] = (a, b, c, d)
    return boxes


def _read_parts(folder: Path, name: str) -> dict[str, list[Part]]:
    """Visible parts by image id."""
    parts: dict[str, list[Part]] = {}
    file = folder / "part_locs.txt"
    if not file.exists():
        return parts
    names = read_table(folder / "parts.txt", name)
    for number, line in enumerate(read_lines(file, name), 1):
        try:
            image, part, x, y, visible = line.replace(",", " ").split()
            if visible == "1":
                parts.setdefault(image, []).append(Part(names[part], float(x), float(y)))
        except (ValueError, KeyError):
            raise DataError(
                f"{file}: line {number} ('{line}'); expected image, part, x, y and 0 or 1 for visible"
            ) from None
    return parts
