"""A data set's splits and loaders: what `conf/dataset/*.yaml` instantiates."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.data import Sampler

from dcal.dataset.cache import CACHES, check_room
from dcal.dataset.checks import Pictures, check_catalog, describe
from dcal.dataset.decode import DECODES
from dcal.dataset.files import common_folder, name_below
from dcal.dataset.images import POLICIES, ImageDataset, Loader
from dcal.dataset.keypoints import Landmarks, locate
from dcal.dataset.record import Catalog, Record
from dcal.dataset.sampler import Draw, random_batches
from dcal.dataset.splits import hold_out_fraction, hold_out_identities, keep_fraction, relabel
from dcal.dataset.transform import eval_transform, train_transform
from dcal.distributed.env import local_rank, rank_zero_only, world_size
from dcal.utils.errors import UserError, check_number, choose
from dcal.utils.memory import available_memory

__all__ = ["Data", "ImageDataset", "Loader"]
logger = logging.getLogger(__name__)


class Data:
    """A data set, ready to be trained on: the target of `conf/dataset/*.yaml`.

    Args:
        reader: the catalog; in the YAML a reader function with its options, which Hydra calls first.
        root: folder of the data set; the reader has used it, here it is for messages.
        image_size, resize, augment: see `dcal.dataset.transform`.
        val_fraction, val_ids, train_fraction, label_noise: see `dcal.dataset.splits`; the test splits stay as they
            are.
        decode, cache, on_bad_image: see `ImageDataset`.
        test_fraction: that of the reader, which has split the set by it.
        allow_mismatch: accept a copy that is not the official one, where the figures depend on it.
        members, batches: of `dcal.dataset.joint.Joint` alone.

    Raises:
        UserError: an option has no valid value; the message starts with its key.
        DataError: what `check_catalog` refuses.
    """

    members: Mapping[str, Data] = MappingProxyType({})
    """The data sets that this one joins, by name, see `dcal.dataset.joint`; empty for a single one."""

    def __init__(
        self,
        reader: Catalog,
        root: str | Path | None = None,
        *,
        image_size: Sequence[int],
        resize: Sequence[int],
        augment: Mapping[str, Any],
        val_fraction: float = 0.0,
        val_ids: int = 0,
        train_fraction: float = 1.0,
        label_noise: float = 0.0,
        decode: str = "full",
        cache: str = "none",
        on_bad_image: str = "error",
        allow_mismatch: bool = False,
        test_fraction: float | None = None,
        members: None = None,
        batches: str = "proportional",
    ) -> None:
        if members is not None or batches != "proportional":
            raise UserError("dataset.members, dataset.batches: of several data sets, need dataset=joint")
        choose("dataset.decode", decode, DECODES)
        choose("dataset.cache", cache, CACHES)
        choose("dataset.on_bad_image", on_bad_image, POLICIES)
        check_number("dataset.val_fraction", val_fraction, ge=0, lt=1)
        check_number("dataset.train_fraction", train_fraction, gt=0, le=1)
        check_number("dataset.label_noise", label_noise, ge=0, lt=1)
        check_number("dataset.val_ids", val_ids, ge=0)
        if test_fraction != reader.protocol.get("test_fraction"):
            raise UserError(
                f"dataset.test_fraction={test_fraction}: only dataset=image_folder splits by it; {reader.name} has "
                "splits of its own"
            )
        self._transforms = {
            True: train_transform(image_size, resize, augment),
            False: eval_transform(image_size, resize),
        }
        self.image_size = (image_size[0], image_size[1])
        self.source = reader
        """The catalog as it was read, before images are held out, left out or given another label."""
        self.root = root
        self.notes, self._pictures = self._check(
            reader, root, allow_mismatch=allow_mismatch, skip_missing=on_bad_image == "skip"
        )
        for note in self.notes:
            rank_zero_only(logger.warning)("%s", note)
        if val_fraction:
            reader = hold_out_fraction(reader, val_fraction)
        if val_ids:
            reader = hold_out_identities(reader, val_ids)
        if train_fraction < 1:
            reader = keep_fraction(reader, train_fraction)
        if label_noise:
            reader = relabel(reader, label_noise)
        self.catalog = reader
        self._reading: dict[str, Any] = {"decode": decode, "cache": cache, "on_bad_image": on_bad_image}
        self._datasets: dict[tuple[str, bool], ImageDataset] = {}
        self._landmarks: dict[str, dict[int, Landmarks]] = {}
        self._eval_loaders: dict[tuple[Any, ...], Loader] = {}

    @property
    def num_classes(self) -> int:
        """Classes, or identities in training."""
        return self.catalog.num_classes

    @property
    def class_names(self) -> list[str]:
        """Name by label."""
        return self.catalog.class_names

    def describe(self) -> str:
        """One line that says what was read."""
        return describe(self.source, self.root)

    def records(self, split: str) -> list[Record]:
        """The images of a split, in the order of the batches' `index`.

        Args:
            split: `train`, `test`, `query`, ...; see `Catalog`.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.catalog.splits:
            raise UserError(f"no split {split!r}: {self.catalog.name} has {', '.join(self.catalog.splits)}")
        return self.catalog.splits[split]

    def pictures(self, split: str) -> list[int]:
        """A number for each image of a split: equal, also across splits, where files or their bytes are equal.

        Args:
            split: as for `records`.
        """
        return [self._pictures[record.path] for record in self.records(split)]

    def names(self, split: str) -> list[str]:
        """The path of each image below the folder that all images of the set share: the same on every machine.

        Args:
            split: as for `records`.
        """
        every = [record.path for records in self.source.splits.values() for record in records]
        folder = common_folder(every)
        return [name_below(folder, record.path) for record in self.records(split)]

    def train_loader(
        self,
        batch_size: int,
        instances: int,
        seed: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> Loader:
        """Random batches of `train`; `loader.batch_sampler.seek(epoch, batch)` chooses where to start.

        Args:
            batch_size: of this rank.
            instances: images per identity in a batch; 1 for plain shuffling.
            seed: of the run; with equal seeds the batches are equal, whatever the number of workers.
            workers: processes that load images; 0 loads in this one.
            rank, world_size: this process among all.
            pin_memory: see `Device.pins_memory`.
        """
        self._check_memory()
        sampler = self._random_batches(batch_size, instances, seed, rank, world_size)
        return Loader(self._dataset("train", training=True), workers, pin_memory, batch_sampler=sampler)

    def eval_loader(
        self,
        split: str,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> Loader:
        """Every image of `split` once, in order; with several ranks each gets its share, none twice.

        The share is of whole batches: what a batch gives depends, in the last bit, on how many images are in it.
        The same arguments give the same loader again, with its workers still running and `skipped` filled.

        Args:
            split: as for `records`.
            batch_size: of this rank; the last batch is short.
            workers: processes that load images; 0 loads in this one.
            rank, world_size: this process among all.
            pin_memory: see `Device.pins_memory`.
        """
        key = (split, batch_size, workers, rank, world_size, pin_memory)
        if key not in self._eval_loaders:
            dataset = self._dataset(split, training=False)
            whole = range(len(dataset))
            batches = [whole[start : start + batch_size] for start in whole[::batch_size]]
            self._eval_loaders[key] = Loader(dataset, workers, pin_memory, batch_sampler=batches[rank::world_size])
        return self._eval_loaders[key]

    def image(self, split: str, index: int) -> torch.Tensor:
        """One image of a split as evaluation sees it: uint8 (3, H, W).

        Args:
            split: as for `records`.
            index: position in the split.
        """
        image: torch.Tensor = self._dataset(split, training=False)[index]["image"]
        return image

    def landmarks(self, split: str) -> dict[int, Landmarks]:
        """Parts and boxes of a split's images as evaluation sees them, by `index`; empty where nothing is annotated.

        Args:
            split: as for `records`.
        """
        if split not in self._landmarks:
            self._landmarks[split] = locate(self.records(split), self._transforms[False])
        return self._landmarks[split]

    def _random_batches(self, *order: int) -> Sampler[list[Draw]]:
        """What draws the batches of `train`; arguments as of `dcal.dataset.sampler.random_batches`, without labels."""
        return random_batches([record.label for record in self.records("train")], *order)

    def _check(self, catalog: Catalog, root: str | Path | None, **options: bool) -> tuple[list[str], Pictures]:
        """What `check_catalog` finds in the catalog as it was read."""
        return check_catalog(catalog, root, **options)

    def _check_memory(self) -> None:
        """Are the caches of all splits, in all processes of this machine, too large? Asked before the first is filled.

        Only the first process of a machine asks: the others' memory is not free any more when they have begun.
        """
        if self._reading["cache"] == "ram" and local_rank() == 0 and not self._datasets:
            resize = self._transforms[False][0]
            images = sum(len(records) for records in self.catalog.splits.values())
            need = images * 3 * int(resize.height) * int(resize.width)
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size() > 1 else 1
            check_room("ram", need, available_memory(), "memory that is free", processes)

    def _dataset(self, split: str, training: bool) -> ImageDataset:
        """Made at first use, since it may fill a cache."""
        if (split, training) not in self._datasets:
            transform = self._transforms[training]
            self._datasets[split, training] = ImageDataset(self.records(split), transform, **self._reading)
        return self._datasets[split, training]
