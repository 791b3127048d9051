"""What a reader hands over: image records by split, whatever the data set or the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcal.utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Of the files that are images to a reader that looks into folders: those of torchvision's ImageFolder."""


class DataError(UserError):
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
