"""Where an image's annotated parts and box lie after resize and crop, in pixels of the network's input.

The points run through the evaluation pipeline itself, as albumentations' keypoints, so they cannot disagree with the
pixels. Images of one size share a call, and its pixels are left out: only the header of a file is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import albumentations as A
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dcal.dataset.record import Record

Points = NDArray[np.float64]
Box = tuple[float, float, float, float]


class Landmarks(NamedTuple):
    """What is known of one image. Pixels of the network's input, x to the right, y down; may lie outside it."""

    parts: Points = np.empty((0, 2))
    """(n, 2): x and y of each visible part."""
    box: Box = (math.nan, math.nan, math.nan, math.nan)
    """The object, as left, top, right, bottom; NaN where it is not annotated."""


def locate(records: Sequence[Record], transform: A.Compose) -> dict[int, Landmarks]:
    """Landmarks by position in `records`; without those that have none, or whose file cannot be read.

    Args:
        transform: a pipeline without chance, see `dcal.dataset.transform.eval_transform`.
    """
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if record.parts or record.box:
            size = _size(record)
            if size is not None:
                by_size[size].append(index)
    found: dict[int, Landmarks] = {}
    for size, indices in by_size.items():
        found |= _mapped({index: records[index] for index in indices}, size, transform)
    return dict(sorted(found.items()))


def _size(record: Record) -> tuple[int, int] | None:
    """(height, width) of the file, EXIF orientation ignored as in `read_image`; None if it cannot be read."""
    try:
        with Image.open(record.path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        return None  # reported, by name, when the image is drawn


def _mapped(records: Mapping[int, Record], size: tuple[int, int], transform: A.Compose) -> dict[int, Landmarks]:
    """The landmarks of images of `size` (height, width) after the pipeline."""
    points: list[tuple[float, float]] = []
    for record in records.values():
        points += [(part.x, part.y) for part in record.parts]
        if record.box:
            left, top, width, height = record.box
            points += [(left, top), (left + width, top + height)]
    pipeline = A.Compose(transform.transforms, keypoint_params=A.KeypointParams("xy", remove_invisible=False))
    blank = np.zeros((*size, 1), np.uint8)
    mapped = iter(np.asarray(pipeline(image=blank, keypoints=np.array(points))["keypoints"], np.float64).reshape(-1, 2))
    found = {}
    for index, record in records.items():
        parts = np.array([next(mapped) for _ in record.parts]).reshape(-1, 2)
        found[index] = Landmarks(parts, (*next(mapped), *next(mapped))) if record.box else Landmarks(parts)
    return found
