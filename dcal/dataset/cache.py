"""Decoded and resized images, kept in memory or in one file, so that decoding is paid once and not every
epoch.

What is kept is the deterministic beginning of the pipeline, decode and resize; the random rest runs on every
draw. The store is filled before the first batch and only read afterwards, so forked workers share its memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from dcal.dataset.decode import Pixels
from dcal.dataset.record import DataError

CACHES = ("none", "ram", "disk")
Load = Callable[[Path], Pixels]


class PixelCache:
    """Pixels of `paths`, decoded and resized, each (height, width, 3) uint8.

    Args:
        kind: `ram` or `disk`.
        paths: the image files, in the order of their indices.
        load: gives the pixels of a file at `size`; must be deterministic.
        size: (height, width) in pixels.
        folder: where the file of `disk` lies. It is found again by `size`, `version` and the images' paths,
            file sizes and times, and shared by all processes that ask for the same.
        version: names what else the pixels depend on.

    Raises:
        ValueError: memory or disk are too small.
    """

    def __init__(
        self,
        kind: str,
        paths: Sequence[Path],
        load: Load,
        size: tuple[int, int],
        folder: Path,
        version: str,
    ) -> None:
        self._shape = (*size, 3)
        # the last byte of a row says whether its pixels are there: damaged files leave a gap
        shape = (len(paths), int(np.prod(self._shape)) + 1)
        if kind == "ram":
            _check_room(kind, shape, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine")
            self._rows: NDArray[np.uint8] = np.zeros(shape, np.uint8)
            _fill(self._rows, paths, load)
        else:
            self._rows = _load_or_build(folder / f"{_key(paths, size, version)}.npy", shape, paths, load)

    def get(self, index: int) -> Pixels | None:
        """The image, not to be written to, or None if its file could not be decoded."""
        row = self._rows[index]
        return np.asarray(row[:-1]).reshape(self._shape) if row[-1] else None


def _load_or_build(file: Path, shape: tuple[int, int], paths: Sequence[Path], load: Load) -> NDArray[np.uint8]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # the ranks and jobs of one machine wait for the first
        if not file.exists():
            _check_room("disk", shape, shutil.disk_usage(file.parent).free, file.parent)
            part = file.with_suffix(".part")  # a builder that was killed leaves this, and nothing else, behind
            rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            _fill(rows, paths, load)
            rows.flush()
            part.replace(file)
    stored: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    return stored


def _fill(rows: NDArray[np.uint8], paths: Sequence[Path], load: Load) -> None:
    def fill(index: int) -> None:
        try:
            pixels = load(paths[index])
        except DataError:
            return  # reported, by name, when the image is drawn
        rows[index, :-1] = pixels.reshape(-1)
        rows[index, -1] = 1

    jobs = _threads(os.getpid()).map(fill, range(len(paths)))
    for _ in tqdm(jobs, "decoding images", len(paths), unit="img", leave=False, disable=None):
        pass


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads for decoding and resizing, which release the interpreter lock; they stay, for OpenCV's sake.

    A thread that ends holds a lock of OpenCV for a moment after Python has joined it, and a data worker that is forked
    in this moment waits for that lock for ever.
    """
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1))


def _key(paths: Sequence[Path], size: tuple[int, int], version: str) -> str:
    digest = hashlib.sha256(repr((size, version)).encode())
    for path in paths:
        try:
            stat = path.stat()
            digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()[:16]


def _check_room(kind: str, shape: tuple[int, int], room: int, where: object) -> None:
    need = shape[0] * shape[1]
    if need > 0.9 * room:
        raise ValueError(
            f"dataset.cache='{kind}': the resized images take {need / 2**30:.1f} GiB, {where} has "
            f"{room / 2**30:.1f}; choose another of {', '.join(CACHES)}, or a smaller dataset.resize"
        )
