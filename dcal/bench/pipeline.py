"""From image files to batches on one core: ours beside timm's and torchvision's, on the same files, to the same end.

All of them decode to RGB, resize with an antialiased bilinear filter to a size that does not depend on the image's,
crop at random, flip every other image, and stack uint8 batches of (B, 3, H, W); normalisation follows on the device.

- `timm`: `timm.data.ImageDataset` (Pillow decodes), the torchvision transforms on Pillow images that timm composes its
  own pipelines of, `ToNumpy` and `fast_collate`, as with timm's prefetcher.
- `torchvision`: `torchvision.io.decode_image`, `transforms.v2` on uint8 tensors, torch's `default_collate`.
- ours: `ImageDataset` and `Loader` as training uses them, with each cache, and with `dataset.decode=scaled`. In
  addition to what the others do, each image is seeded on its own and damaged files are found.

Neither timm's nor torchvision's default augmentation (random resized crop) does the same work: the sizes here are those
of the fine-grained recipes.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from timm.data import ImageDataset as TimmDataset
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from dcal.bench import measure
from dcal.dataset.image_files import find_images, spread
from dcal.dataset.images import ImageDataset, Loader
from dcal.dataset.record import Record
from dcal.dataset.sampler import ShuffleBatches
from dcal.dataset.synthetic.birds import SPECIES, draw_image
from dcal.dataset.transform import train_transform
from dcal.utils.errors import check_number

Config = dict[str, Any]
CPU = torch.device("cpu")
OTHERS = ("timm", "torchvision")
OURS = {
    "dcal": {"cache": "none"},
    "dcal decode=scaled": {"cache": "none", "decode": "scaled"},
    "dcal cache=ram": {"cache": "ram"},
    "dcal cache=disk": {"cache": "disk"},
}
"""Name → options of our data set."""
DRAWN = (375, 500)
"""Height and width of the photographs in CUB, by and large."""
COLUMNS = "pipeline ms/image images/s over_the_faster_other"


def measure_pipeline(options: Config, repeats: int, clock: Callable[[], float]) -> Config:
    """Images per second of one core for each pipeline; they take turns, medians are reported.

    Args:
        options: the node `pipeline` of `conf/bench/bench.yaml`.
        repeats: passes over all images.
        clock: of `dcal.bench.measure`.

    Raises:
        UserError: an option has no valid value; the message names its key.
        DataError: no images below `root`.
    """
    with tempfile.TemporaryDirectory(prefix="dcal-bench-") as folder, one_core():
        root, count = options["root"], options["images"]
        check_number("pipeline.images", count, ge=1)
        files = draw_birds(Path(folder)) if root is None else spread(find_images(root, "pipeline.root"), count)
        loaders = make_loaders(files, options, Path(folder))
        calls = {name: lambda loader=loader: exhaust(loader) for name, loader in loaders.items()}
        seconds = measure.interleaved_medians(calls, repeats, 0.0, CPU, clock)
        described = describe(files)
    best = min(seconds[name] for name in OTHERS)
    seen = len(files) // options["batch_size"] * options["batch_size"]
    rows = [
        dict(zip(COLUMNS.split(), (name, 1e3 * spent / seen, seen / spent, best / spent), strict=True))
        for name, spent in seconds.items()
    ]
    return {"files": described, "rows": rows}


@contextmanager
def one_core() -> Iterator[None]:
    """What runs inside uses one thread in torch and OpenCV, as in a data worker."""
    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)


def draw_birds(folder: Path, count: int = 64) -> list[Path]:
    """Photograph-sized JPEGs of drawn birds."""
    height, width = DRAWN
    top = (width - height) // 2
    paths = []
    for number in range(count):
        pixels = draw_image(number % len(SPECIES), np.random.default_rng(number), width)[0][top : top + height]
        paths.append(folder / f"{number:03d}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return paths


def make_loaders(files: Sequence[Path], options: Config, folder: Path) -> dict[str, Iterable[Any]]:
    """Every pipeline over the same files, without worker processes.

    Raises:
        UserError: fewer files than a batch, or sizes that do not fit.
    """
    size, resize, batch = options["image_size"], options["resize"], options["batch_size"]
    others = {"batch_size": batch, "shuffle": True, "drop_last": True}
    loaders: dict[str, Iterable[Any]] = {
        "timm": DataLoader(timm_dataset(files, size, resize), collate_fn=fast_collate, **others),
        "torchvision": DataLoader(TorchvisionDataset(files, size, resize), **others),
    }
    records = [Record(path, 0) for path in files]
    transform = train_transform(size, resize, {"flip": 0.5, "pad": 0, "erase": 0.0})
    for name, own in OURS.items():
        dataset = ImageDataset(records, transform, cache_dir=folder / "cache", **own)
        loaders[name] = Loader(dataset, 0, False, batch_sampler=ShuffleBatches(len(files), batch, 0))
    return loaders


def timm_dataset(files: Sequence[Path], size: Sequence[int], resize: Sequence[int]) -> Dataset[Any]:
    """timm's data set over the files."""
    steps = [v1.Resize(resize), v1.RandomCrop(size), v1.RandomHorizontalFlip(), ToNumpy()]
    return TimmDataset(None, reader=[(path, 0) for path in files], transform=v1.Compose(steps))


class TorchvisionDataset(Dataset[tuple[Tensor, int]]):
    """The tensor pipeline that torchvision's documentation recommends for speed."""

    def __init__(self, files: Sequence[Path], size: Sequence[int], resize: Sequence[int]) -> None:
        self.files = files
        steps = [v2.Resize(resize, antialias=True), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(steps)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(decode_image(str(self.files[index]), ImageReadMode.RGB)), 0

    def __len__(self) -> int:
        return len(self.files)


def exhaust(loader: Iterable[Any]) -> None:
    for _ in loader:
        pass


def describe(files: Sequence[Path]) -> Config:
    """What was read: number of files, their mean size in kB, and the median of their longer sides in pixels."""
    sides = [max(decode_image(str(path)).shape[1:]) for path in files[:64]]
    kilobytes = statistics.mean(path.stat().st_size for path in files) / 1e3
    return {"count": len(files), "mean kB": round(kilobytes, 1), "median longer side": statistics.median(sides)}


def table_rows(report: Config) -> list[list[str]]:
    """The rows of COLUMNS."""
    return [
        [row["pipeline"], f"{row['ms/image']:.3f}", f"{row['images/s']:.0f}", f"{row['over_the_faster_other']:.2f}"]
        for row in report["rows"]
    ]
