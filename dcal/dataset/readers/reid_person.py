"""Readers of the known person re-identification sets, each in the layout of its official download.

Every reader returns a Catalog with `train`, `query` and `gallery`, whose protocol carries the fingerprint
described in `reid_protocol`. Cameras keep their annotated number. Parsing is separate from looking for the
images, so that lists can be read without them (`check_images=False`).
"""

from __future__ import annotations

import re
from pathlib import Path

from dcal.dataset.readers.reid_protocol import (
    Counts,
    Sighting,
    build_catalog,
    complete_root,
    list_images,
    parse_all,
    require_images,
)
from dcal.dataset.readers.tables import read_lines
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import choose

PERSON_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MARKET_NAME, DUKE_NAME = r"(-1|\d+)_c(\d+)s\d+_", r"(\d+)_c(\d+)_f\d+"
"""Identity and camera in the name of a file."""

# identities, images and cameras of each split without junk, as the sets' authors give them
MARKET1501 = {"train": Counts(751, 12936, 6), "query": Counts(750, 3368, 6), "gallery": Counts(751, 15913, 6)}
DUKEMTMC = {"train": Counts(702, 16522, 8), "query": Counts(702, 2228, 8), "gallery": Counts(1110, 17661, 8)}
OCCLUDED_DUKE = {**DUKEMTMC, "train": Counts(702, 15618, 8), "query": Counts(519, 2210, 8)}
MSMT17_TRAIN = {"train": Counts(1041, 30248, 15), "train+val": Counts(1041, 32621, 15)}
MSMT17_TEST = {"query": Counts(3060, 11659, 15), "gallery": Counts(3060, 82161, 15)}

MSMT17_FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}


def read_market1501(root: str | Path | None) -> Catalog:
    """Market-1501 (Zheng et al., ICCV 2015): folders bounding_box_train, query, bounding_box_test.

    Names are like 0002_c1s1_000451_03.jpg. Identity -1 is junk; identity 0 is a distractor: it stays in the
    gallery and is never trained on. 3 368 queries and 15 913 gallery images (plus 3 819 junk) are the
    single-query protocol.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: wrong root, or a name of another pattern.
    """
    folder = complete_root(root, "Market-1501", PERSON_FOLDERS, "Market-1501-v15.09.15")
    train, query, gallery = (
        parse_all(folder / part, list_images(folder / part), MARKET_NAME, "0002_c1s1_000451_03.jpg")
        for part in PERSON_FOLDERS
    )
    return build_catalog(
        "market1501",
        [s for s in train if s.identity != 0],
        query,
        gallery,
        protocol={"distractors": sum(s.identity == 0 for s in gallery)},
        official=MARKET1501,
    )


def read_dukemtmc(root: str | Path | None) -> Catalog:
    """DukeMTMC-reID (Zheng et al., ICCV 2017): Market's folders, names like 0002_c1_f0044158.jpg.

    408 of the 1 110 gallery identities are distractors without a query. The set was withdrawn by its authors.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.

    Raises:
        DataError: wrong root, or a name of another pattern.
    """
    folder = complete_root(root, "DukeMTMC-reID", PERSON_FOLDERS, "DukeMTMC-reID")
    splits = (
        parse_all(folder / part, list_images(folder / part), DUKE_NAME, "0002_c1_f0044158.jpg")
        for part in PERSON_FOLDERS
    )
    return build_catalog("dukemtmc", *splits, official=DUKEMTMC)


def read_occluded_duke(root: str | Path | None, check_images: bool = True) -> Catalog:
    """Occluded-Duke (Miao et al., ICCV 2019): DukeMTMC-reID's images under new lists, every query occluded.

    Reads train.list, query.list and gallery.list beside Market's folders.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.
        check_images: whether every listed image must be there.

    Raises:
        DataError: wrong root, a listed image missing, or another pattern.
    """
    lists = ("train.list", "query.list", "gallery.list")
    folder = complete_root(root, "Occluded-Duke", (*lists, *(PERSON_FOLDERS if check_images else ())), "Occluded_Duke")
    splits = []
    for file, part in zip(lists, PERSON_FOLDERS, strict=True):
        names = read_lines(folder / file, "Occluded-Duke")
        splits.append(parse_all(folder / part, names, DUKE_NAME, "0002_c1_f0044158.jpg"))
        if check_images:
            require_images(folder / part, names)
    return build_catalog("occluded_duke", *splits, official=OCCLUDED_DUKE)


def read_msmt17(
    root: str | Path | None,
    version: str = "V1",
    train: str = "train+val",
    check_images: bool = True,
) -> Catalog:
    """MSMT17 (Wei et al., CVPR 2018): list_{train,val,query,gallery}.txt and two image folders.

    Both versions have the same lists; V2 has the faces blurred, so figures compare within a
    version only. `train`: list_train alone, or with list_val, as TransReID and the papers that follow it
    (DCAL among them) train. Test identities are numbered from 0 again: they are not the training identities
    of the same number.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.
        version: `V1` or `V2`.
        train: `train+val`, 32 621 images, or `train`, 30 248.
        check_images: whether every listed image must be there.

    Raises:
        UserError: unknown version or train.
        DataError: wrong root or version, or a listed image missing.
    """
    choose("dataset.reader.version", version, MSMT17_FOLDERS)
    choose("dataset.reader.train", train, MSMT17_TRAIN)
    lists = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")
    folder = complete_root(root, "MSMT17", lists, f"MSMT17_{version}")
    train_folder, test_folder = (folder / part for part in MSMT17_FOLDERS[version])
    if check_images and not (train_folder.is_dir() and test_folder.is_dir()):
        raise DataError(
            f"dataset.root={folder}: no {train_folder.name}/ and {test_folder.name}/, "
            f"the images of MSMT17 {version}; is dataset.reader.version={version} right?"
        )
    parts = [
        msmt17_list(folder / file, test_folder if file in lists[2:] else train_folder, check_images) for file in lists
    ]
    return build_catalog(
        "msmt17",
        parts[0] + parts[1] if train == "train+val" else parts[0],
        parts[2],
        parts[3],
        protocol={"version": version, "train_lists": train},
        official={"train": MSMT17_TRAIN[train], **MSMT17_TEST},
        numbered_apart=True,
    )


def msmt17_list(file: Path, folder: Path, check_images: bool) -> list[Sighting]:
    """Lines like `0000/0000_045_12_0303morning_0006_2.jpg 0`: the camera is the third field of the name."""
    sightings, names = [], []
    for number, line in enumerate(read_lines(file, "MSMT17"), 1):
        match = re.fullmatch(r"(\S*?([^/\s_]+)_\d+_(\d+)_\S+)\s+(\d+)", line)
        if match is None:
            raise DataError(f"{file}: line {number} ('{line}') is not like '0000/0000_045_12_0303morning_0006_2.jpg 0'")
        names.append(match[1])
        sightings.append(Sighting(folder / match[1], int(match[4]), int(match[3])))
    if check_images:
        require_images(folder, names)
    return sightings
