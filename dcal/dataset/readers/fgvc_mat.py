"""Readers of Stanford Cars, Stanford Dogs, Oxford Flowers (MATLAB lists) and Oxford Pets.

As in `dcal.dataset.readers.fgvc`, only the lists are read, and subsets are fine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dcal.dataset.readers.tables import Entry, find_root, make_catalog, read_lines, read_mat
from dcal.dataset.record import Catalog, DataError

logger = logging.getLogger(__name__)
CARS, DOGS, FLOWERS, PETS = "Stanford Cars", "Stanford Dogs", "Oxford Flowers-102", "Oxford-IIIT Pet"

# images of each split, as the sets' authors give them
CARS_IMAGES = {"train": 8144, "test": 8041}
DOGS_IMAGES = {"train": 12000, "test": 8580}
FLOWERS_IMAGES = {"train": 2040, "test": 6149}
FLOWERS_IMAGES_WITH_VAL = {"train": 1020, "val": 1020, "test": 6149}
PETS_IMAGES = {"train": 3680, "test": 3669}


def read_cars(root: str | Path | None) -> Catalog:
    """Stanford Cars (Krause et al. 2013): 196 models with boxes.

    Two layouts: devkit/ with cars_train/ and cars_test/, or the later cars_annos.mat with car_ims/. The
    devkit's own list of test images has no labels; they are in cars_test_annos_withlabels.mat, beside or in
    devkit/. Without it there is no split `test`.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: a list is missing or damaged.
    """
    if root is not None and (Path(root).expanduser() / "cars_annos.mat").is_file():
        folder = Path(root).expanduser()
        lists = read_mat(folder / "cars_annos.mat", CARS)
        entries = [
            _car(row, "test" if row["test"] else "train", folder / str(row["relative_im_path"]))
            for row in np.atleast_1d(lists["annotations"])
        ]
        return make_catalog(CARS, entries, _car_names(lists), CARS_IMAGES)
    folder = find_root(root, CARS, "devkit/cars_meta.mat", "stanford_cars")
    entries = list(_read_cars_split(folder, "train", folder / "devkit" / "cars_train_annos.mat"))
    labelled = "cars_test_annos_withlabels.mat"
    test_file = next((f for f in (folder / labelled, folder / "devkit" / labelled) if f.exists()), None)
    if test_file is None:
        logger.warning("%s: no %s, so no test split; see dataset.val_fraction", folder, labelled)
    else:
        entries += _read_cars_split(folder, "test", test_file)
    return make_catalog(CARS, entries, _car_names(read_mat(folder / "devkit" / "cars_meta.mat", CARS)), CARS_IMAGES)


def read_dogs(root: str | Path | None) -> Catalog:
    """Stanford Dogs (Khosla et al. 2011): 120 breeds. Reads train_list.mat and test_list.mat beside Images/.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: a list is missing or damaged.
    """
    folder = find_root(root, DOGS, "train_list.mat", "stanford_dogs")
    entries = []
    for split in ("train", "test"):
        files = np.atleast_1d(read_mat(folder / f"{split}_list.mat", DOGS)["file_list"])
        entries += [Entry(split, folder / "Images" / str(file), str(file).split("/")[0]) for file in files]
    return make_catalog(DOGS, entries, None, DOGS_IMAGES)


def read_flowers(root: str | Path | None, official_val: bool = False) -> Catalog:
    """Oxford Flowers-102 (Nilsback & Zisserman 2008). Reads setid.mat and imagelabels.mat beside jpg/.

    Args:
        root: the folder of those files.
        official_val: train on the official 1 020 and offer `val` as a split; else train on both, as papers
            do.

    Raises:
        DataError: a list is missing or damaged.
    """
    folder = find_root(root, FLOWERS, "setid.mat", "flowers-102")
    ids = read_mat(folder / "setid.mat", FLOWERS)
    labels = np.atleast_1d(read_mat(folder / "imagelabels.mat", FLOWERS)["labels"])
    # `tstid` is by far the largest; some repositories swap it with `trnid`
    sets = {"trnid": "train", "valid": "val" if official_val else "train", "tstid": "test"}
    entries = [
        Entry(split, folder / "jpg" / f"image_{number:05}.jpg", str(labels[number - 1]))
        for key, split in sets.items()
        for number in np.atleast_1d(ids[key]).tolist()
    ]
    return make_catalog(FLOWERS, entries, None, FLOWERS_IMAGES_WITH_VAL if official_val else FLOWERS_IMAGES)


def read_pets(root: str | Path | None) -> Catalog:
    """Oxford-IIIT Pet (Parkhi et al. 2012): 37 breeds. Reads annotations/trainval.txt and test.txt beside
    images/.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: a list is missing or malformed.
    """
    folder = find_root(root, PETS, "annotations/trainval.txt", "oxford-iiit-pet")
    entries = []
    for split, name in {"train": "trainval", "test": "test"}.items():
        for line in read_lines(folder / "annotations" / f"{name}.txt", PETS):
            image = line.split()[0]  # Abyssinian_100 1 1 1: name, breed, cat or dog, number
            if image != "#":
                entries.append(Entry(split, folder / "images" / f"{image}.jpg", image.rpartition("_")[0]))
    return make_catalog(PETS, entries, None, PETS_IMAGES)


def _read_cars_split(folder: Path, split: str, file: Path) -> Iterator[Entry]:
    for row in np.atleast_1d(read_mat(file, CARS)["annotations"]):
        if "class" not in row:
            raise DataError(f"{file}: has no labels; get cars_test_annos_withlabels.mat in its place")
        yield _car(row, split, folder / f"cars_{split}" / str(row["fname"]))


def _car(row: dict[str, Any], split: str, path: Path) -> Entry:
    x, y, right, bottom = (float(row[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2"))
    box = (x - 1, y - 1, right - x + 1, bottom - y + 1)  # corners, counted from 1
    return Entry(split, path, str(row["class"]), box)


def _car_names(lists: dict[str, Any]) -> dict[str, str]:
    return {str(number): str(name) for number, name in enumerate(np.atleast_1d(lists["class_names"]), 1)}
