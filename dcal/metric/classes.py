"""Which classes a classifier knows and which it confuses, from true and predicted labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


class Confused(NamedTuple):
    """A class that is taken for another."""

    truth: int
    taken_for: int
    times: int


def confusion_matrix(label: Labels, prediction: Labels, num_classes: int) -> NDArray[np.int64]:
    """How often items of a class (row) were taken for a class (column): (C, C)."""
    cells = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def class_accuracies(label: Labels, prediction: Labels, num_classes: int) -> NDArray[np.float64]:
    """Share of each class's items that were recognised: (C,), NaN for a class without items."""
    right = np.bincount(label[label == prediction], minlength=num_classes)
    count = np.bincount(label, minlength=num_classes)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


def most_confused(label: Labels, prediction: Labels, count: int) -> list[Confused]:
    """The `count` ordered pairs of classes that are confused most often; of equally many the lower labels first."""
    wrong = label != prediction
    pairs, times = np.unique(np.stack([label[wrong], prediction[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [Confused(int(pairs[n, 0]), int(pairs[n, 1]), int(times[n])) for n in order]


def examples_of(pair: Confused, label: Labels, prediction: Labels) -> tuple[int, int | None]:
    """Positions of an item of the first class taken for the second, and of a recognised item of the second.

    The second is None where none of that class was recognised.
    """
    mistaken = np.flatnonzero((label == pair.truth) & (prediction == pair.taken_for))
    recognised = np.flatnonzero((label == pair.taken_for) & (prediction == pair.taken_for))
    return int(mistaken[0]), int(recognised[0]) if len(recognised) else None


def class_title(name: str) -> str:
    """A class name without number and underscores: `001.Black_footed_Albatross` is Black footed Albatross."""
    head, _, rest = name.partition(".")
    return (rest if rest and head.isdigit() else name).replace("_", " ")
