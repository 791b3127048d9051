"""What a reader hands over: image records by split, whatever the data set or the task."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are images to a reader that looks into folders: those of torchvision's ImageFolder."""
SHARE = 512
"""Files that a thread looks up at once."""
SAMPLED = 256
"""Images of a data set whose content counts for its digest."""


class DataError(Exception):
    """Data on disk is not what the configuration says; the message names the path, the key and the remedy."""


@dataclass(frozen=True, slots=True)
class Part:
    """A named, visible part of the object; x and y in pixels of the original image, from its top-left corner."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Record:
    """One image. Units: pixels of the original image."""

    path: Path
    label: int
    """Class index, or in Re-ID the identity: contiguous from 0 in `train`, as annotated elsewhere (-1 is junk)."""
    camera: int = -1
    """Camera of a Re-ID image; -1 where the set has none."""
    view: int = -1
    """Viewpoint or vehicle orientation where the set annotates it; -1 otherwise."""
    box: tuple[float, float, float, float] | None = None
    """The object's box as (x, y, width, height)."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """All records of a data set by split: `train` and `test` (fgvc), or `train`, `query` and `gallery` (reid)."""

    name: str
    splits: dict[str, list[Record]]
    class_names: list[str]
    """Name of each training class or identity, by label."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """How the set was read (version, junk policy, train lists): logged with the run so that figures can be compared."""

    @property
    def num_classes(self) -> int:
        """Classes, or identities in training."""
        return len(self.class_names)


@dataclass(frozen=True)
class CatalogDigest:
    """What tells two data sets apart, and what a sentence can say about one."""

    sha256: str
    """Over class names; of every image split, path below the common folder, size in bytes and labels; some contents."""
    folder: str
    """The folder that holds all images."""
    class_names: list[str]
    images: dict[str, int]
    """Number of images by split."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in self.images.items())
        return f"{self.folder} ({len(self.class_names)} classes; images: {counts})"


def catalog_digest(catalog: Catalog) -> CatalogDigest:
    """The digest of a data set; equal for the same data in another place.

    Sizes are looked up by many threads, for a network's file system answers slowly but to many at once. A missing image
    has size -1: a data set that lacks images is another one. Of `SAMPLED` images, at equal distances, every byte
    counts: without compression all images have one size.
    """
    records = [(split, record) for split, found in catalog.splits.items() for record in found]
    paths = [os.fspath(record.path) for _, record in records]
    folder = os.path.commonpath([os.path.dirname(path) for path in (min(paths), max(paths))]) if paths else ""
    shares = [paths[start : start + SHARE] for start in range(0, len(paths), SHARE)]
    with ThreadPoolExecutor(16) as pool:
        sizes = [size for found in pool.map(_sizes, shares) for size in found]
    digest = hashlib.sha256("\0".join(catalog.class_names).encode())
    for (split, record), path, size in zip(records, paths, sizes, strict=True):
        told = (split, path[len(folder) :], size, record.label, record.camera, record.view, record.box, record.parts)
        digest.update(repr(told).encode(errors="surrogateescape"))
    for path in paths[:: 1 + len(paths) // SAMPLED]:
        digest.update(_content(path))
    images = {split: len(found) for split, found in catalog.splits.items()}
    return CatalogDigest(digest.hexdigest(), folder, catalog.class_names, images)


def _content(path: str) -> bytes:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:
        return b""


def _sizes(paths: list[str]) -> list[int]:
    return [_size(path) for path in paths]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
