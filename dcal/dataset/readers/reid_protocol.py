"""What all re-identification readers share: finding files, and the fingerprint of the protocol that was read.

Numbers of two papers compare only if both read the same images: a copy with other junk, another version, or
another training list gives other figures without any error. So every reader counts what it read, logs it, and
compares it with the official table where one exists; `dcal.dataset.data.Data` refuses what differs, unless
`dataset.allow_mismatch` lets it pass.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcal.dataset.readers.tables import find_root
from dcal.dataset.record import IMAGE_SUFFIXES, Catalog, DataError, Record

LOG = logging.getLogger(__name__)
JUNK_POLICY = "id -1 is junk: kept in the gallery records, ignored by the evaluation, never trained on"
CAMERA_POLICY = "gallery images of the query's identity and camera are ignored"


class Sighting(NamedTuple):
    """One annotated image: identity as annotated (-1 is junk), camera and view as annotated (-1 is unknown)."""

    path: Path
    identity: int
    camera: int = -1
    view: int = -1


class Counts(NamedTuple):
    """Junk excluded. None in an official table: not published, hence not compared."""

    identities: int | None
    images: int | None
    cameras: int | None


def complete_root(root: str | Path | None, name: str, expected: Sequence[str], folder: str) -> Path:
    """The folder that holds all of `expected`: `root` itself, or `root/folder`.

    Raises:
        DataError: `root` is unset or missing, or lacks one of them.
    """
    found = find_root(root, name, expected[0], folder)
    missing = [entry for entry in expected if not (found / entry).exists()]
    if missing:
        raise DataError(
            f"dataset.root={found}: {', '.join(missing)} missing; the folder of {name} holds {', '.join(expected)}"
        )
    return found


def list_images(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; anything else there (`Thumbs.db`, ...) is passed over.

    Raises:
        DataError: if there is no image.
    """
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.name[0] != ".")
    if not names:
        raise DataError(f"{folder}: no image in it; check dataset.root")
    return names


def require_images(
    folder: Path, names: Iterable[str], remedy: str = "dataset.root must be the complete official download"
) -> None:
    """Raises DataError if a listed file is missing; lists each folder once instead of asking per file."""
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        head, tail = os.path.split(name)
        if head not in present:
            directory = folder / head
            present[head] = set(os.listdir(directory)) if directory.is_dir() else set()
        if tail not in present[head]:
            missing.append(name)
    if missing:
        raise DataError(f"{folder}: {len(missing)} listed images are missing, first {missing[0]}; {remedy}")


def parse_all(folder: Path, names: Iterable[str], pattern: str, example: str) -> list[Sighting]:
    """Identity and camera of every name: the two groups of a regular expression for its beginning.

    Raises:
        DataError: for the first name that does not fit.
    """
    sightings = []
    for name in names:
        match = re.match(pattern, name)
        if match is None:
            raise DataError(
                f"{folder / name}: the name does not tell identity and camera, expected one like {example}; "
                "is dataset the right one for this dataset.root?"
            )
        sightings.append(Sighting(folder / name, int(match[1]), int(match[2])))
    return sightings


def count(sightings: Iterable[Sighting]) -> Counts:
    """Identities, images and cameras, without junk."""
    kept = [s for s in sightings if s.identity != -1]
    cameras = {s.camera for s in kept} - {-1}
    return Counts(len({s.identity for s in kept}), len(kept), len(cameras))


def build_catalog(
    name: str,
    train: Sequence[Sighting],
    query: Sequence[Sighting],
    gallery: Sequence[Sighting],
    *,
    protocol: Mapping[str, Any] | None = None,
    identity_names: Mapping[int, str] | None = None,
    official: Mapping[str, Counts] | None = None,
    numbered_apart: bool = False,
) -> Catalog:
    """The catalog with its fingerprint: counts per split, `mismatch`, junk and camera policy, `protocol`.

    Training identities are numbered from 0 in ascending order of the annotated number (a set's order differs
    between machines, trap of `enumerate(set(...))`). Junk is dropped from train and query, and stays in the
    gallery.

    Args:
        name: of the set, for the catalog and for messages.
        train: images to train on; the identities of distractors are left out by the reader.
        query: images to search with.
        gallery: images to search in, junk and distractors included.
        protocol: what else decides the figures (version, lists), added to the fingerprint.
        identity_names: name by annotated number, where identities are called otherwise than by it.
        official: published counts by split; None where there are none.
        numbered_apart: the identities of the test are numbered from 0 again, so that equal numbers mean nothing.

    Raises:
        DataError: a split is empty.
    """
    train = [s for s in train if s.identity != -1]
    query = [s for s in query if s.identity != -1]
    splits = {"train": train, "query": query, "gallery": gallery}
    for split, sightings in splits.items():
        if not sightings:
            raise DataError(f"{name}: the split {split!r} is empty; check dataset.root and the reader's options")
    counts = {split: count(sightings) for split, sightings in splits.items()}
    junk = sum(s.identity == -1 for s in gallery)
    fingerprint: dict[str, Any] = {
        **(protocol or {}),
        **{split: c._asdict() for split, c in counts.items()},
        "gallery_junk": junk,
        "junk_policy": JUNK_POLICY,
        "camera_policy": CAMERA_POLICY if counts["query"].cameras else "no cameras: no gallery image is ignored",
    }
    described = (f"{split} {c.identities} ids, {c.images} images, {c.cameras} cameras" for split, c in counts.items())
    LOG.info("%s: %s + %d junk", name, "; ".join(described), junk)
    both = 0 if numbered_apart else len({s.identity for s in train} & {s.identity for s in (*query, *gallery)})
    fingerprint["identities_in_train_and_test"] = both
    if both and not official:
        LOG.warning("%s: %d identities are both in train and in query or gallery: scores will flatter", name, both)
    if official:
        fingerprint["mismatch"] = differences(counts, official)
        if both:
            fingerprint["mismatch"].append(f"{both} identities are both in train and in query or gallery")
        images = {split: table.images for split, table in official.items() if table.images is not None}
        if set(images) == set(splits):  # junk is no part of the published counts, and listed all the same
            fingerprint["official_images"] = {**images, "gallery": images["gallery"] + junk}
    identities = sorted({s.identity for s in train})
    label = {identity: i for i, identity in enumerate(identities)}
    return Catalog(
        name=name,
        splits={
            "train": [Record(s.path, label[s.identity], s.camera, s.view) for s in train],
            "query": [Record(*s) for s in query],
            "gallery": [Record(*s) for s in gallery],
        },
        class_names=[(identity_names or {}).get(identity, str(identity)) for identity in identities],
        protocol=fingerprint,
    )


def differences(counts: Mapping[str, Counts], official: Mapping[str, Counts]) -> list[str]:
    """What differs from the official table, in words."""
    return [
        f"{split} {what}: {found} instead of {wanted}"
        for split, table in official.items()
        for what, found, wanted in zip(Counts._fields, counts[split], table, strict=True)
        if wanted is not None and found != wanted
    ]
