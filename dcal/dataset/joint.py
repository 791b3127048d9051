"""Several data sets trained on as one: the target of `dataset=joint`.

What belongs to one member is never taken for another's: training labels, identities to be found and cameras are
numbered through, one member after the other in the order of their names, and classes are called `MEMBER/CLASS`. Each
member is read, checked and evaluated by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Sampler

from dcal.config import OF_MEMBERS
from dcal.dataset.checks import Pictures
from dcal.dataset.data import Data
from dcal.dataset.files import file_facts, first_alike
from dcal.dataset.record import Catalog, DataError, Record
from dcal.dataset.sampler import BalancedBatches, Draw
from dcal.utils.errors import UserError, choose

BATCHES = ("proportional", "balanced")


class Joint(Data):
    """Data sets of one task, ready to be trained on together.

    Args:
        members: by name: `reader`, a function without arguments that returns the catalog, and `OF_MEMBERS` as `Data`
            takes them.
        batches: `proportional`: an image is as probable as any other, whatever its member; `balanced`: each batch has
            as many images (or identities) of one member as of another.
        shared: `image_size`, `resize`, `augment`, `decode`, `cache` and `on_bad_image` of all members, see `Data`.

    Raises:
        UserError: the members do not go together, or one of them has an option without a valid value; the message names
            the key.
        DataError: a member cannot be read.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]], batches: str = "proportional", **shared: Any) -> None:
        self.batches = choose("dataset.batches", batches, BATCHES)
        # what belongs to a member has been refused where it was typed
        options = {key: value for key, value in shared.items() if key not in OF_MEMBERS}
        self.members = {name: _member(name, own, options) for name, own in sorted(members.items())}
        check_alike({name: member.catalog for name, member in self.members.items()})
        catalogs = merged_apart({name: member.catalog for name, member in self.members.items()})
        for name, member in self.members.items():
            member.catalog = catalogs[name]
        super().__init__(joined(catalogs), **options)
        self.notes = [note for member in self.members.values() for note in member.notes] + self.notes

    def _check(self, *_: Any, **__: Any) -> tuple[list[str], Pictures]:
        """What no member can see by itself: images that one is judged on and another one trains on."""
        splits = [records for member in self.members.values() for records in member.source.splits.values()]
        paths = list(dict.fromkeys(record.path for records in splits for record in records))
        pictures = dict(zip(paths, first_alike(paths, file_facts(paths)), strict=True))
        return list(_leaks({name: member.catalog for name, member in self.members.items()}, pictures)), pictures

    def describe(self) -> str:
        """A line for each member."""
        return " | ".join(member.describe() for member in self.members.values())

    def names(self, split: str) -> list[str]:
        """`MEMBER/PATH` of each image, with the path below the folder of the member."""
        members = ((name, member) for name, member in self.members.items() if split in member.catalog.splits)
        return [f"{name}/{path}" for name, member in members for path in member.names(split)]

    def image(self, split: str, index: int) -> torch.Tensor:
        """One image of a split as evaluation sees it: uint8 (3, H, W); of its member, whose cache has it already."""
        self.records(split)
        for name, start in reversed(self.starts(split).items()):
            if index >= start:
                return self.members[name].image(split, index - start)
        raise IndexError(f"split {split} has no image {index}")

    def starts(self, split: str) -> dict[str, int]:
        """Position in the joint split of each member's first image."""
        found, start = {}, 0
        for name, member in self.members.items():
            found[name] = start
            start += len(member.catalog.splits.get(split, ()))
        return found

    def _random_batches(self, *order: int) -> Sampler[list[Draw]]:
        if self.batches == "proportional":
            return super()._random_batches(*order)
        labels = [[record.label for record in member.records("train")] for member in self.members.values()]
        return BalancedBatches(labels, *order)


def merged_apart(catalogs: Mapping[str, Catalog]) -> dict[str, Catalog]:
    """The catalogs with numbers of labels, identities and cameras that no two of them share, and all class names.

    Junk (-1) and unknown cameras (-1) remain what they are.
    """
    names = [f"{name}/{one}" for name, catalog in catalogs.items() for one in catalog.class_names]
    found = {}
    label = identity = camera = 0  # what is added: to training labels, to labels of queries and galleries, to cameras
    for name, catalog in catalogs.items():
        retrieval = "query" in catalog.splits
        splits = {
            split: [moved(record, identity if retrieval and split != "train" else label, camera) for record in records]
            for split, records in catalog.splits.items()
        }
        found[name] = replace(catalog, splits=splits, class_names=names)
        every = [record for records in catalog.splits.values() for record in records]
        sought = [record.label for split, records in catalog.splits.items() if split != "train" for record in records]
        label += catalog.num_classes
        identity += 1 + max(sought, default=-1)
        camera += 1 + max(record.camera for record in every)
    return found


def moved(record: Record, label: int, camera: int) -> Record:
    """The record with these added to its label and its camera, where it has them."""
    return replace(
        record,
        label=record.label + label if record.label >= 0 else record.label,
        camera=record.camera + camera if record.camera >= 0 else record.camera,
    )


def joined(catalogs: Mapping[str, Catalog]) -> Catalog:
    """One catalog of catalogs that are kept apart already: each split has the members one after the other."""
    first = next(iter(catalogs.values()))
    splits = {
        split: [record for catalog in catalogs.values() for record in catalog.splits[split]] for split in first.splits
    }
    return Catalog(" + ".join(catalogs), splits, first.class_names)


def check_alike(catalogs: Mapping[str, Catalog]) -> None:
    """Refuses members of two tasks, and members of which only some have a split.

    Raises:
        UserError: naming the member and what to do.
    """
    (first, one), *others = catalogs.items()
    kinds = {name: "re-identification" if "query" in c.splits else "classification" for name, c in catalogs.items()}
    for name, catalog in others:
        if kinds[name] != kinds[first]:
            raise UserError(
                f"dataset.members.{name}: is a set for {kinds[name]}, and {first} one for {kinds[first]}; train on "
                "sets of one task"
            )
        differing = sorted({*catalog.splits} ^ {*one.splits})
        if differing:
            having, lacking = (name, first) if differing[0] in catalog.splits else (first, name)
            key = "val_ids" if kinds[name] == "re-identification" else "val_fraction"
            raise UserError(
                f"dataset.members.{lacking}: has no split {differing[0]}, but {having} has one; hold out training data "
                f"of every member (dataset.members.NAME.{key}) or of none"
            )


def _leaks(catalogs: Mapping[str, Catalog], pictures: Pictures) -> Iterator[str]:
    """A sentence for each member that is judged on training images of another one."""
    for name, catalog in catalogs.items():
        for other, trained in catalogs.items():
            known = {pictures[record.path] for record in trained.splits["train"]} if other != name else set()
            for split, records in catalog.splits.items():
                both = [record.path for record in records if split != "train" and pictures[record.path] in known]
                if both:
                    yield (
                        f"{name}: {len(both)} of the {len(records)} images of split '{split}' are training images of "
                        f"{other} (the same file or the same bytes), first {both[0]}: scores will flatter"
                    )


def _member(name: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Data:
    """One member, read and checked; what is wrong with it names its own keys."""
    try:
        return Data(own["reader"](), **{key: value for key, value in own.items() if key != "reader"}, **shared)
    except UserError as error:
        kind = DataError if isinstance(error, DataError) else UserError
        raise kind(in_member(str(error), name)) from None


def in_member(message: str, name: str) -> str:
    """A message about one data set with the keys as the member has them."""
    keys = rf"\bdataset\.(?=(?:{'|'.join(OF_MEMBERS)})\b)"
    return re.sub(keys, f"dataset.members.{name}.", message)
