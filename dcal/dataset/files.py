"""What the file system says of the images of a data set, asked in parallel: on a network each answer takes its time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

_THREADS = 16
_CHUNK = 500  # paths per task: a task for each would cost more than the question
_SHOWN_FROM = 20_000  # files, from which on a progress bar is worth its line


class FileFacts(NamedTuple):
    """What `stat` says of a file; links are followed."""

    size: int
    """In bytes."""
    regular: bool
    """False for folders, devices, pipes and sockets, which may never end when they are read."""
    inode: tuple[int, int]
    """Device and number: equal for two paths of the same file."""


def file_facts(paths: Sequence[Path]) -> list[FileFacts | None]:
    """The facts of each path, in order; None where there is no such file, or none that may be seen.

    Nothing is opened. A progress bar is shown for large sets.
    """
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    facts: list[FileFacts | None] = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(
            desc="looking for images",
            total=len(paths),
            unit="img",
            leave=False,
            disable=None if len(paths) >= _SHOWN_FROM else True,
        ) as bar,
    ):
        for found in pool.map(_facts_of, chunks):
            facts += found
            bar.update(len(found))
    return facts


def common_folder(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds all of these files, `..` resolved by name alone.

    Raises:
        ValueError: there is no path, or some are absolute and some relative.
    """
    return Path(os.path.commonpath({os.path.dirname(os.path.normpath(path)) for path in paths}))


def _facts_of(paths: Sequence[Path]) -> list[FileFacts | None]:
    return [_facts(path) for path in paths]


def _facts(path: Path) -> FileFacts | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a ValueError for a name with a null byte, which no file has
        return None
    return FileFacts(found.st_size, stat.S_ISREG(found.st_mode), (found.st_dev, found.st_ino))
