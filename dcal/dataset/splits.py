"""Validation splits, smaller training sets and wrong labels, all made out of `train`.

None depends on the seed of a run: all seeds are validated on the same images, so their scores can be
compared. The order in which a class gives up its images is fixed, so a smaller fraction is a subset of a
larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dcal.dataset.record import Catalog, Record
from dcal.utils.errors import UserError

_SEED = 2205


def hold_out_fraction(catalog: Catalog, fraction: float, split: str = "val") -> Catalog:
    """Moves `fraction` of each class, at least one image but never the last, from `train` to a new split.

    Args:
        catalog: of a classification set.
        fraction: share of each class's training images.
        split: name of the new split.

    Raises:
        UserError: the set has such a split already, is one for retrieval, or has no image to spare.
    """
    if "query" in catalog.splits:
        raise UserError(f"dataset.val_fraction={fraction}: would cut through identities; use dataset.val_ids for Re-ID")
    if split in catalog.splits:
        raise UserError(f"dataset.val_fraction={fraction}: {catalog.name} brings a split '{split}'; set it to 0")
    train = catalog.splits["train"]
    held = set()
    for order in _orders(train):
        held.update(order[: min(len(order) - 1, max(1, round(fraction * len(order))))])
    if not held:
        raise UserError(f"dataset.val_fraction={fraction}: every class of {catalog.name} has one training image only")
    splits = {
        **catalog.splits,
        "train": [record for index, record in enumerate(train) if index not in held],
        split: [record for index, record in enumerate(train) if index in held],
    }
    return replace(catalog, splits=splits)


def keep_fraction(catalog: Catalog, fraction: float) -> Catalog:
    """Keeps `fraction` of each class of `train`, at least one image."""
    train = catalog.splits["train"]
    kept = {index for order in _orders(train) for index in order[: max(1, round(fraction * len(order)))]}
    splits = {**catalog.splits, "train": [record for index, record in enumerate(train) if index in kept]}
    return replace(catalog, splits=splits)


def hold_out_identities(catalog: Catalog, count: int) -> Catalog:
    """Moves `count` whole identities from `train` to the new splits `val_query` and `val_gallery`.

    The first image of an identity under each camera is a query, the others are the gallery. Only identities
    qualify for which every query has a match under another camera, or whose cameras are unknown. They keep their
    labels; what stays is numbered afresh.

    Raises:
        UserError: too few identities qualify, none would be left for training, or the set is not one for
        retrieval.
    """
    if "query" not in catalog.splits:
        raise UserError(f"dataset.val_ids={count}: {catalog.name} is no Re-ID set; use dataset.val_fraction")
    train = catalog.splits["train"]
    by_camera: dict[int, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in train:
        by_camera[record.label][record.camera].append(record)
    # two cameras must have an image left for the gallery, or the query of one of them finds none; unknown ones (-1)
    # differ from each other
    fit = [
        label
        for label, views in sorted(by_camera.items())
        if sum(len(v) > 1 for v in views.values()) > 1 or len(views.get(-1, ())) > 1
    ]
    if count > len(fit) or count >= len(by_camera):
        raise UserError(
            f"dataset.val_ids={count}: only {len(fit)} of the {len(by_camera)} training identities of "
            f"{catalog.name} have two images under each of two cameras (or two of unknown cameras), and some must stay "
            "for training"
        )
    held = set(np.random.default_rng(_SEED).permutation(fit)[:count].tolist())
    left = [label for label in sorted(by_camera) if label not in held]
    new_label = {label: index for index, label in enumerate(left)}
    cameras = [views for label, views in sorted(by_camera.items()) if label in held]
    splits = {
        **catalog.splits,
        "train": [replace(record, label=new_label[record.label]) for record in train if record.label in new_label],
        "val_query": [images[0] for views in cameras for images in views.values()],
        "val_gallery": [image for views in cameras for images in views.values() for image in images[1:]],
    }
    return replace(catalog, splits=splits, class_names=[catalog.class_names[label] for label in left])


def relabel(catalog: Catalog, share: float) -> Catalog:
    """Label noise, which the paper compares PWCA with: `share` of `train` gets another label.

    Which images, in round(share * images) of them, and which of the other classes, all alike likely, is fixed:
    a smaller share is wrong on a subset of the images, in the same way. Validation images have been held out before.

    Raises:
        UserError: there is one class only.
    """
    train, classes = catalog.splits["train"], catalog.num_classes
    if classes < 2:
        raise UserError(f"dataset.label_noise={share}: {catalog.name} has one class only, so no label can be wrong")
    rng = np.random.default_rng((_SEED, classes))
    steps = rng.integers(1, classes, len(train))
    wrong = set(rng.permutation(len(train))[: round(share * len(train))].tolist())
    noisy = [
        replace(record, label=(record.label + int(steps[index])) % classes) if index in wrong else record
        for index, record in enumerate(train)
    ]
    return replace(catalog, splits={**catalog.splits, "train": noisy})


def _orders(records: Sequence[Record]) -> list[list[int]]:
    """Indices of each class, in the order in which the class gives up images."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_class[record.label].append(index)
    return [
        np.random.default_rng((_SEED, label)).permutation(indices).tolist()
        for label, indices in sorted(by_class.items())
    ]
