"""Readers of the known vehicle re-identification sets, each in the layout of its official download.

As `reid`: protocol with the fingerprint, cameras as annotated, lists readable without the images.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dcal.dataset.readers.reid_protocol import Counts, Sighting, build_catalog, complete_root, parse_all, require_images
from dcal.dataset.readers.tables import read_lines
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import choose

# identities, images and cameras of each split, as the set's authors give them
VERI = {"train": Counts(576, 37778, 20), "query": Counts(200, 1678, 19), "gallery": Counts(200, 11579, 19)}
VERI_EVALUATIONS = ("image_to_image", "image_to_track")
VEHICLEID_TEST_SIZES = (800, 1600, 2400, 3200, 6000, 13164)


def read_veri(root: str | Path | None, evaluation: str = "image_to_image", check_images: bool = True) -> Catalog:
    """VeRi-776 (Liu et al., ECCV 2016): name_ and image_{train,query,test}, train_label.xml.

    Names are like 0002_c002_00030600_0.jpg, the camera has three digits. Every query is in image_test too,
    where the camera rule removes it. `evaluation` names the metric: "image_to_image" is the one of nearly all
    recent papers (DCAL too); "image_to_track" ranks the tracks of test_track.txt by their nearest image, as
    the set's authors do, and adds `tracks` to the protocol: the track number of each gallery image, for
    `evaluate_retrieval`.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.
        evaluation: `image_to_image` or `image_to_track`.
        check_images: whether every listed image must be there.

    Raises:
        UserError: unknown evaluation.
        DataError: wrong root, a listed image missing, or names that contradict the XML.
    """
    choose("dataset.reader.evaluation", evaluation, VERI_EVALUATIONS)
    lists = ("name_train.txt", "name_query.txt", "name_test.txt")
    parts = ("image_train", "image_query", "image_test")
    folder = complete_root(root, "VeRi-776", (*lists, *(parts if check_images else ())), "VeRi")
    names = [read_lines(folder / file, "VeRi-776") for file in lists]
    train, query, gallery = (
        parse_all(folder / part, listed, r"(\d+)_c(\d{3})_", "0002_c002_00030600_0.jpg")
        for part, listed in zip(parts, names, strict=True)
    )
    if check_images:
        for part, listed in zip(parts, names, strict=True):
            require_images(folder / part, listed)
    for file, sightings in (("train_label.xml", train), ("test_label.xml", gallery)):
        if (folder / file).exists():
            check_labels(folder / file, sightings)
    protocol: dict[str, object] = {"evaluation": evaluation}
    if evaluation == "image_to_track":
        protocol["tracks"] = veri_tracks(folder / "test_track.txt", names[2])
    return build_catalog("veri", train, query, gallery, protocol=protocol, official=VERI)


def check_labels(file: Path, sightings: list[Sighting]) -> None:
    """Compares identity and camera of the names with the XML's.

    The XML declares gb2312, which Python's parser refuses; so it is decoded first and the declaration cut
    off.
    """
    text = file.read_bytes().decode("gb2312", errors="replace")
    try:
        items = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text)).iter("Item")
        labels = {i.get("imageName"): (int(i.get("vehicleID", -1)), int(i.get("cameraID", "c-1")[1:])) for i in items}
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: no list of VeRi-776 ({error}); is this copy complete?") from None
    for path, *label, _ in sightings:
        if labels.get(path.name) != tuple(label):
            raise DataError(
                f"{file}: says (vehicle, camera) {labels.get(path.name)} of {path.name}, the name says "
                f"{tuple(label)}; the files of this dataset.root do not belong together"
            )


def veri_tracks(file: Path, gallery: list[str]) -> list[int]:
    """Number of the track of each gallery image; a line of the file holds the names of one track's images."""
    tracks = {name: number for number, line in enumerate(read_lines(file, "VeRi-776")) for name in line.split()}
    missing = [name for name in gallery if name not in tracks]
    if missing:
        raise DataError(
            f"{file}: no track for {len(missing)} gallery images, first {missing[0]}; "
            "use dataset.reader.evaluation=image_to_image or a complete copy"
        )
    return [tracks[name] for name in gallery]


def read_vehicleid(
    root: str | Path | None,
    test_size: int = 800,
    split_seed: int = 0,
    check_images: bool = True,
) -> Catalog:
    """PKU VehicleID (Liu et al., CVPR 2016): image/ and train_test_split/{train_list,test_list_<size>}.txt.

    The set has no cameras. Its protocol puts one random image of each test vehicle into the gallery, queries
    with all others, and averages over ten draws; `split_seed` is the draw (report the mean over 0..9). With
    one match per query, mAP is the mean reciprocal rank.

    Args:
        root: the data set's folder, as `dataset.root` takes it; `~` is the home directory.
        test_size: vehicles in the test: 800, 1600 or 2400; also 3200, 6000 and 13164.
        split_seed: number of the draw, from 0.
        check_images: whether every listed image must be there.

    Raises:
        UserError: unknown test_size.
        DataError: wrong root, or a listed image missing.
    """
    choose("dataset.reader.test_size", test_size, VEHICLEID_TEST_SIZES)
    lists = ("train_test_split/train_list.txt", f"train_test_split/test_list_{test_size}.txt")
    folder = complete_root(root, "VehicleID", (*lists, *(("image",) if check_images else ())), "VehicleID_V1.0")
    train, test = (vehicleid_list(folder / file, folder / "image", check_images) for file in lists)
    by_vehicle: dict[int, list[Sighting]] = {}
    for sighting in test:
        by_vehicle.setdefault(sighting.identity, []).append(sighting)
    draw = np.random.default_rng(split_seed)
    chosen = {v: seen[int(draw.integers(len(seen)))] for v, seen in sorted(by_vehicle.items())}
    return build_catalog(
        "vehicleid",
        train,
        [s for s in test if chosen[s.identity] != s],
        list(chosen.values()),
        protocol={"test_size": test_size, "split_seed": split_seed},
        # the numbers of images in the lists are not published
        official={
            "train": Counts(13164, None, None),
            "gallery": Counts(test_size, test_size, None),
        },
    )


def vehicleid_list(file: Path, folder: Path, check_images: bool) -> list[Sighting]:
    """Lines of image name (without .jpg) and vehicle."""
    sightings = []
    for number, line in enumerate(read_lines(file, "VehicleID"), 1):
        name, _, vehicle = line.partition(" ")
        if not vehicle.strip().isdecimal():
            raise DataError(f"{file}: line {number} ('{line}') is not like '0000001 42'")
        sightings.append(Sighting(folder / f"{name}.jpg", int(vehicle)))
    if check_images:
        require_images(folder, [s.path.name for s in sightings])
    return sightings
