"""Decoded and resized images, kept in memory or in one file, so that decoding is paid once and not every
epoch.

What is kept is the deterministic beginning of the pipeline, decode and resize; the random rest runs on every
draw. The store is filled before the first batch and only read afterwards, so data workers share it, however they are
started. What a disk gives back is compared with a checksum at every use: an image whose bytes have changed is decoded
from its file.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from dcal.dataset.decode import Pixels
from dcal.dataset.record import DataError
from dcal.utils.errors import UserError
from dcal.utils.memory import available_memory

logger = logging.getLogger(__name__)
CACHES = ("none", "ram", "disk")
TRAILER = 5
"""Bytes after the pixels of an image: 1 if they are there (a damaged file leaves a gap), and their CRC-32."""
BLOCK = 4096
Load = Callable[[Path], Pixels]


class PixelCache:
    """Pixels of `paths`, decoded and resized, each (height, width, 3) uint8.

    Args:
        kind: `ram` or `disk`.
        paths: the image files, in the order of their indices.
        load: gives the pixels of a file at `size`; must be deterministic.
        size: (height, width) in pixels.
        folder: where the file of `disk` is. It is found again by `size`, `version` and the images' paths,
            file sizes and times, and shared by all processes that ask for the same.
        version: names what else the pixels depend on.

    Raises:
        UserError: memory or disk are too small, or the disk cannot be written.
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
        shape = (len(paths), int(np.prod(self._shape)) + TRAILER)
        self._file: Path | None = None
        self._memory: Any = None
        if kind == "ram":
            check_room(kind, shape[0] * shape[1], available_memory(), "memory that is free")
            self._memory = _shared_memory(shape[0] * shape[1])
            self._rows = _rows_of(self._memory, shape)
            _fill(self._rows, paths, load)
        else:
            self._file = folder / f"{_key(paths, size, version)}.npy"
            self._rows = _load_or_build(self._file, shape, paths, load)

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: a data worker that is not forked maps the file or the memory, and copies neither."""
        return {**self.__dict__, "_rows": self._rows.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is None:
            self._rows = _rows_of(self._memory, state["_rows"])
        else:
            self._rows = np.load(self._file, mmap_mode="r")

    def get(self, index: int) -> Pixels | None:
        """The image, not to be written to, or None if its file could not be decoded, or the cache is damaged here."""
        row = self._rows[index]
        pixels, state = np.asarray(row[:-TRAILER]), int(row[-TRAILER])
        if self._file is not None and (state > 1 or (state == 1 and _checksum(pixels) != row[1 - TRAILER :].tobytes())):
            _warn_once(self._file)
            return None
        return pixels.reshape(self._shape) if state else None


def _shared_memory(size: int) -> Any:
    """A buffer of `size` zeros that data workers share.

    A forked worker shares all memory. Another one needs the operating system's shared memory, which can be scarce (in a
    container often 64 MB, beyond which Python takes a file among the temporary ones), hence only where it is needed.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return np.zeros(size, np.uint8) if method == "fork" else multiprocessing.RawArray(ctypes.c_uint8, size)


def _rows_of(memory: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.frombuffer(memory, np.uint8).reshape(shape)


def check_room(kind: str, need: int, room: int, where: str, processes: int = 1) -> None:
    """Refuses a cache that would fill up memory or disk.

    Args:
        kind: `ram` or `disk`.
        need: bytes of each process.
        room: bytes that are free.
        where: that room, in words.
        processes: that want as much each.

    Raises:
        UserError: less than a tenth of the room would be left.
    """
    if need * processes > 0.9 * room:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"dataset.cache='{kind}': the resized images take {need / 2**30:.3g} GiB{each}, {where} has "
            f"{room / 2**30:.3g}; choose another of {', '.join(CACHES)}, or a smaller dataset.resize"
        )


def _load_or_build(file: Path, shape: tuple[int, int], paths: Sequence[Path], load: Load) -> NDArray[np.uint8]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # the ranks and jobs of one machine wait for the first
            rows = _load(file, shape) if file.exists() else None
            if rows is None:
                check_room("disk", shape[0] * shape[1], shutil.disk_usage(file.parent).free, str(file.parent))
                _build(file, shape, paths, load)
                rows = _load(file, shape)
    except OSError as error:
        raise UserError(
            f"dataset.cache='disk': {file} cannot be written ({error.strerror or error}); make room, set "
            "XDG_CACHE_HOME to a folder on another disk, or set dataset.cache=none"
        ) from error
    if rows is None:
        raise UserError(f"dataset.cache='disk': {file} was damaged while it was written; is the disk sound?")
    return rows


def _load(file: Path, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
    """The rows of a whole file, not yet read; None, with a warning, where it was cut short or overwritten."""
    try:
        rows: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s: is damaged (%s), building it again", file, error)
        return None
    if rows.shape != shape or rows.dtype != np.uint8:
        logger.warning("%s: is damaged (holds %s %s), building it again", file, rows.shape, rows.dtype)
        return None
    return rows


def _build(file: Path, shape: tuple[int, int], paths: Sequence[Path], load: Load) -> None:
    """Writes the file under another name first: a builder that is killed leaves that, and nothing else, behind."""
    part = file.with_suffix(".part")
    try:
        rows = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        _reserve(part)
        _fill(rows, paths, load)
        rows.flush()
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _reserve(file: Path) -> None:
    """Gives a file the disk space of its size: writing to a mapped file for which there is none kills the process."""
    with file.open("r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        for block in range(BLOCK, size, BLOCK):  # elsewhere by a zero in each block; the header has the first one
            stream.seek(block)
            stream.write(b"\0")


def _fill(rows: NDArray[np.uint8], paths: Sequence[Path], load: Load) -> None:
    def fill(index: int) -> None:
        try:
            pixels = load(paths[index])
        except DataError:
            return  # reported, by name, when the image is drawn
        rows[index, :-TRAILER] = pixels.reshape(-1)
        rows[index, 1 - TRAILER :] = np.frombuffer(_checksum(rows[index, :-TRAILER]), np.uint8)
        rows[index, -TRAILER] = 1

    jobs = _threads(os.getpid()).map(fill, range(len(paths)))
    for _ in tqdm(jobs, "decoding images", len(paths), unit="img", leave=False, disable=None):
        pass


def _checksum(pixels: NDArray[np.uint8]) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).data).to_bytes(4, "little")


@cache
def _warn_once(file: Path) -> None:
    logger.warning(
        "%s: some images in it are damaged and are decoded from their files, which takes longer; delete it to have it "
        "built again, and check the disk",
        file,
    )


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads for decoding and resizing, which release the interpreter lock; they stay, for OpenCV's sake.

    A thread that ends holds a lock of OpenCV for a moment after Python has joined it, and a data worker that is forked
    in this moment waits for that lock for ever.
    """
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1))


def _key(paths: Sequence[Path], size: tuple[int, int], version: str) -> str:
    digest = hashlib.sha256(repr((size, version, TRAILER)).encode())
    for path in paths:
        try:
            stat = path.stat()
            digest.update(os.fsencode(path.resolve()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(os.fsencode(path) + b"\0missing\n")
    return digest.hexdigest()[:16]
