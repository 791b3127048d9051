"""The data of a run, in a digest and in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dcal.dataset.files import common_folder
from dcal.dataset.fingerprint import catalog_digest
from dcal.dataset.record import Catalog

SAMPLED = 256
"""Images of a data set whose content counts for its digest."""


@dataclass(frozen=True)
class DataDigest:
    """What tells two data sets apart, and what a sentence can say about one."""

    sha256: str
    """Over `catalog_digest` and the content of some images."""
    folder: str
    """The folder that holds all images."""
    class_names: list[str]
    images: dict[str, int]
    """Number of images by split."""


def data_digest(catalog: Catalog) -> DataDigest:
    """The digest of a data set; equal for the same data in another place.

    Of `SAMPLED` images, at equal distances, every byte counts: without compression all images have one size.
    """
    paths = [record.path for records in catalog.splits.values() for record in records]
    digest = hashlib.sha256(catalog_digest(catalog).encode())
    for path in paths[:: 1 + len(paths) // SAMPLED]:
        digest.update(_content(path))
    images = {split: len(records) for split, records in catalog.splits.items()}
    folder = str(common_folder(paths)) if paths else ""
    return DataDigest(digest.hexdigest(), folder, catalog.class_names, images)


def judged_digest(catalog: Catalog, splits: Iterable[str]) -> str:
    """Sixteen digits that tell which images, with which labels, runs were judged on, whatever they were trained on.

    Args:
        catalog: of the run, with the validation split if there is one.
        splits: that the evaluation reads.
    """
    # the classes of a re-identification set are the identities of its training split
    names = [] if "query" in catalog.splits else catalog.class_names
    judged = {split: catalog.splits[split] for split in splits}
    return data_digest(replace(catalog, splits=judged, class_names=names)).sha256[:16]


def _content(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""
