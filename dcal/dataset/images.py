"""Access to images by index, and the loader that stacks them to batches.

A batch is a dict of stacked tensors: `image` (B, 3, H, W) uint8, not normalised, and the int64 vectors
`label`, `camera`, `view` and `index` (position in the split's records).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dcal.dataset.cache import CACHES, PixelCache
from dcal.dataset.decode import DECODER, DECODES, Pixels, read_image
from dcal.dataset.record import DataError, Record
from dcal.dataset.sampler import Draw
from dcal.dataset.transform import seed_transform
from dcal.utils.errors import choose
from dcal.utils.paths import cache_home

logger = logging.getLogger(__name__)
Item = dict[str, Any]
POLICIES = ("error", "skip")
REMEDY = "replace it (if all are like that, check dataset.root), or set dataset.on_bad_image=skip to go on without it"


class BadImage(NamedTuple):
    """An image that could not be read, on its way from a data worker to the main process."""

    path: str
    reason: str


class ImageDataset(Dataset[Item]):
    """Records as network inputs.

    Args:
        records: the split.
        transform: pipeline from `dcal.dataset.transform`; its first step, the resize, is what a cache stores.
        decode: `full`, or `scaled`: large JPEGs are decoded at a fraction of their size that the resize does not
            enlarge, see `dcal.dataset.decode`.
        cache: `none`, `ram` (one copy per process, shared with its workers) or `disk` (one file per machine).
        cache_dir: folder of the `disk` cache; default `$XDG_CACHE_HOME/dcal/images`.
        on_bad_image: `error`, or `skip`: in training another image takes the place of a damaged one, in
            evaluation it is left out. The loader warns once per file, see `Loader.skipped`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transform: A.Compose,
        *,
        decode: str = "full",
        cache: str = "none",
        cache_dir: str | Path | None = None,
        on_bad_image: str = "error",
    ) -> None:
        choose("dataset.decode", decode, DECODES)
        choose("dataset.cache", cache, CACHES)
        choose("dataset.on_bad_image", on_bad_image, POLICIES)
        self.records = records
        self.transform = transform
        self.on_bad_image = on_bad_image
        resize = transform[0]
        size = (resize.height, resize.width)
        self._cover = size if decode == "scaled" else None
        self._cache: PixelCache | None = None
        if cache != "none":
            self._cache = PixelCache(
                cache,
                [record.path for record in records],
                lambda path: resize(image=read_image(path, self._cover))["image"],
                size,
                Path(cache_dir) if cache_dir else cache_home() / "images",
                f"{decode} {DECODER}",
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw | int) -> Item:
        """One image: `image` (3, H, W) uint8 with `label`, `camera`, `view` and `index`.

        A `Draw` seeds the random part of the pipeline, so the result does not depend on the process that
        computes it; an int is for pipelines without one.

        Raises:
            DataError: the file is missing or damaged, whatever `on_bad_image` says.
        """
        index = draw.index if isinstance(draw, Draw) else draw
        if isinstance(draw, Draw):
            seed_transform(self.transform, draw.seed)
        record = self.records[index]
        pixels = self._cache.get(index) if self._cache else None
        if pixels is None:
            pixels = read_image(record.path, self._cover)
        # a cached image has the right size already: the resize at the pipeline's start returns it as it is
        transformed: Pixels = self.transform(image=pixels)["image"]
        return {
            # split and stack: three times faster than a transposed copy
            "image": torch.from_numpy(np.stack(cv2.split(transformed))),
            "label": record.label,
            "camera": record.camera,
            "view": record.view,
            "index": index,
        }

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[Item | BadImage]:
        """A batch for `collate`, with damage as a value: an exception would arrive as a traceback in another.

        torch's fetcher looks for this method by its name.
        """
        batch: list[Item | BadImage] = []
        for draw in draws:
            try:
                batch.append(self[draw])
            except DataError as error:
                index = draw.index if isinstance(draw, Draw) else draw
                batch.append(BadImage(str(self.records[index].path), str(error)))
                if isinstance(draw, Draw) and self.on_bad_image == "skip":
                    batch.append(self._substitute(draw))
        return batch

    def _substitute(self, draw: Draw) -> Item | BadImage:
        """The next readable image, of the same class if there is one: identities keep their K images."""
        others = [(draw.index + step) % len(self) for step in range(1, len(self))]
        label = self.records[draw.index].label
        for index in sorted(others, key=lambda index: self.records[index].label != label):
            try:
                return self[Draw(index, draw.seed)]
            except DataError:
                continue
        return BadImage(str(self.records[draw.index].path), "no training image at all can be read")


def collate(batch: Sequence[Item | BadImage]) -> dict[str, Any]:
    """Stacks the items of a batch; what could not be read goes to the key `bad`, which `Loader` takes out."""
    items = [item for item in batch if not isinstance(item, BadImage)]
    stacked = default_collate(items) if items else {}
    return {**stacked, "bad": [item for item in batch if isinstance(item, BadImage)]}


class Loader(DataLoader[dict[str, Any]]):
    """A DataLoader that turns damaged images into a `DataError` or a warning, here in the main process.

    Args:
        dataset: the images of a split.
        workers: processes that load images; 0 loads in this one.
        pin_memory: see `Device.pins_memory`.
        options: further arguments of torch's DataLoader, such as a sampler and a batch size.
    """

    skipped: dict[str, str]
    """Reason by path of each image left out so far; an evaluation has to say so beside its scores."""

    def __init__(self, dataset: ImageDataset, workers: int, pin_memory: bool, **options: Any) -> None:
        self.skipped = {}
        self._on_bad_image = dataset.on_bad_image
        super().__init__(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            worker_init_fn=_init_worker,
            pin_memory=pin_memory,
            # without it each epoch would draw from the global generator, and a resumed run would miss that
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        bad: list[BadImage] = []
        empty = True
        try:
            for batch in super().__iter__():
                bad = batch.pop("bad")
                self._note(bad)
                if batch:
                    empty = False
                    yield batch
        except BaseException:  # an error here or a consumer that stops early
            # Ends the workers now. In a reference cycle with an exception they would be left to the garbage
            # collector, which takes their queues apart first; torch then waits 5 s for each worker.
            self._iterator = None
            raise
        if bad and empty:
            raise DataError(f"{bad[0].reason} (and so it is with all the others)")

    def _note(self, images: Sequence[BadImage]) -> None:
        for path, reason in images:
            if self._on_bad_image == "error":
                raise DataError(f"{reason}; {REMEDY}")
            if path not in self.skipped:
                logger.warning("left out: %s", reason)
                self.skipped[path] = reason


@contextmanager
def worker_deaths() -> Iterator[None]:
    """A data loading process that dies inside is reported as a `DataError`.

    torch raises a plain `RuntimeError`, from its signal handler and so wherever the main process happens to be.
    """
    try:
        yield
    except RuntimeError as error:
        # a file that was being written fails after it
        death = next((each for each in (error, error.__context__) if "DataLoader worker" in str(each)), None)
        if death is None:
            raise
        raise DataError(
            f"{str(death).rstrip('. ')}: memory may be short (try a smaller train.workers or dataset.cache=disk); the "
            "last checkpoint is kept, repeat the command to go on"
        ) from error


def _init_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # A terminal and a batch system signal the whole process group: the main process has to save a checkpoint first,
    # and ends its workers then. (Should it be killed, they notice and end by themselves.)
    os.setpgid(0, 0)
