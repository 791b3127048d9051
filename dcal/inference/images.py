"""The images that a command is to work on: named by `images=`, or taken from a split of the run's data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcal.dataset.image_files import find_images, spread
from dcal.dataset.record import Record
from dcal.inference.restore import Restored, open_data


def chosen(
    restored: Restored,
    images: str | Sequence[str] | None,
    split: str | None,
    dataset: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> list[Record]:
    """The images, at most `limit` of them, at equal distances: a split is sorted by class.

    Args:
        images: file, folder or glob, see `dcal.dataset.image_files.find_images`; their label is -1.
        split: of the run's data set.
        dataset: keys that replace the run's, as `open_data` takes them.

    Raises:
        ValueError: both or neither are given, there is no such split, or no image is asked for.
        DataError: nothing is where it should be.
    """
    if (images is None) == (split is None):
        raise ValueError("images, split: give one of the two, images=PATH or split=NAME of the run's data set")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: must be at least 1 image")
    if split is not None:
        records = open_data(restored, dataset).records(split)
    else:
        records = [Record(Path(path), -1) for path in find_images(images)]  # type: ignore[arg-type]  # not None here
    return records if limit is None else spread(records, limit)
