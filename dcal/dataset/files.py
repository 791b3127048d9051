"""What the file system says of the images of a data set, asked in parallel: on a network each answer takes its time."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from dcal.dataset.record import IMAGE_SUFFIXES

_THREADS = 16
_CHUNK = 500  # paths per task: a task for each would cost more than the question
_END = 4096  # bytes: two pictures of equal size hardly ever end alike
_SHOWN_FROM = 20_000  # files, from which on a progress bar is worth its line

Answer = TypeVar("Answer")
Inode = tuple[int, int]


class FileFacts(NamedTuple):
    """What `stat` says of a file; links are followed."""

    size: int
    """In bytes."""
    regular: bool
    """False for folders, devices, pipes and sockets, which may never end when they are read."""
    inode: Inode
    """Device and number: equal for two paths of the same file."""


def file_facts(paths: Sequence[Path]) -> list[FileFacts | None]:
    """The facts of each path, in order; None where there is no such file, or none that may be seen.

    Nothing is opened. A progress bar is shown for large sets.
    """
    return _in_threads(_facts, paths, "looking for images")


def first_alike(paths: Sequence[Path], facts: Sequence[FileFacts | None]) -> list[int]:
    """For each path the position of the first one with the same content; its own where it is the first.

    The same file under two names (links, `..`) is alike, and so are the same bytes. Only files of equal size are
    opened, of these the last 4 KiB are read, and only where these are equal the rest. Missing, empty and unreadable
    files, and what is no regular file, are like nothing.

    Args:
        paths: of the images.
        facts: of each, from `file_facts`.
    """
    first: dict[object, int] = {}
    alike = [index if found is None else first.setdefault(found.inode, index) for index, found in enumerate(facts)]
    keys: dict[int, tuple[object, ...]] = {}
    for index, found in enumerate(facts):
        if found is not None and found.regular and found.size and alike[index] == index:
            keys[index] = (found.size,)
    for read in (_end_of, _digest_of):
        asked = _shared(keys)
        contents = _in_threads(read, [paths[index] for index in asked], "comparing images")
        keys = {index: (*keys[index], content) for index, content in zip(asked, contents, strict=True) if content}
    same: dict[tuple[object, ...], int] = {}
    for index in _shared(keys):
        alike[index] = same.setdefault(keys[index], index)
    return [alike[index] for index in alike]


def images_below(folder: Path, passed: Counter[str] | None = None, seen: set[Inode] | None = None) -> list[Path]:
    """The image files in a folder at any depth, sorted.

    Links to folders are followed, but no folder twice: a link to its own parent would multiply the images.

    Args:
        folder: where to look.
        passed: counts, in words, what is passed over: hidden files and folders (`._1.jpg` of a Mac), links that lead
            nowhere or to a folder that was read before, files of no image type, and folders that may not be read.
        seen: inodes of folders that were read before; those read now are added.
    """
    passed = Counter() if passed is None else passed
    found = []
    for _, entries in _walk(folder, passed, set() if seen is None else seen):
        for entry in entries:
            path = Path(entry.path)
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                passed[f"of no image type ({path.suffix or 'no suffix'})"] += 1
            elif os.path.isfile(path) if entry.is_symlink() else entry.is_file():
                found.append(path)
            else:
                passed["dangling link" if entry.is_symlink() and not os.path.exists(path) else "no regular file"] += 1
    return sorted(found)


def folders_below(folder: Path) -> list[Path]:
    """A folder and all that are below it, hidden ones left out, links followed, and none twice."""
    return [path for path, _ in _walk(folder, Counter(), set())]


def inode(folder: Path) -> Inode:
    """Device and number of a file or folder, links followed."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def in_words(passed: Mapping[str, int]) -> str:
    """For example `3 hidden, 1 dangling link`."""
    return ", ".join(f"{count} {what}" for what, count in sorted(passed.items()))


def printable(name: str) -> str:
    """A name of a file or folder as text that any file or screen takes, in one Unicode form (NFC).

    The same letters have two forms (a Mac writes another one than Linux), and are one class. Bytes that are no UTF-8
    become `\\xff`.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def _walk(folder: Path, passed: Counter[str], seen: set[Inode]) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Each folder with its files that are not hidden, from the top down."""
    seen.add(inode(folder))
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError:
            passed["unreadable folder"] += 1
            continue
        files = []
        for entry in entries:
            if entry.name.startswith("."):
                passed["hidden"] += 1
            # a link is asked for by os.path, to which one that leads to itself is no folder; an entry would raise
            elif not (os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()):
                files.append(entry)
            elif inode(Path(entry.path)) in seen:
                passed["link to a folder that was read before"] += 1
            else:
                seen.add(inode(Path(entry.path)))
                waiting.append(Path(entry.path))
        yield here, files


def common_folder(paths: Iterable[Path]) -> Path:
    """The deepest folder that holds all of these files, `..` resolved by name alone.

    It is absolute if one of them is: the table of a data set may name images below its own folder and others.

    Raises:
        ValueError: there is no path.
    """
    every = list(paths)
    named = os.path.abspath if any(path.is_absolute() for path in every) else os.path.normpath
    return Path(os.path.commonpath({os.path.dirname(named(path)) for path in every}))


def name_below(folder: Path, path: Path) -> str:
    """The path of a file in this folder as `common_folder` gives it, relative to it and with slashes."""
    named = os.path.abspath(path) if folder.is_absolute() else os.path.normpath(path)
    return named.removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")


def _in_threads(ask: Callable[[Path], Answer], paths: Sequence[Path], title: str) -> list[Answer | None]:
    """The answer for each path, in order, None where the file system refuses; with a progress bar if there are many."""

    def answer(path: Path) -> Answer | None:
        try:
            return ask(path)
        except (OSError, ValueError):  # a ValueError for a name with a null byte, which no file has
            return None

    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    answers: list[Answer | None] = []
    quiet = None if len(paths) >= _SHOWN_FROM else True  # None: where there is no terminal
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(desc=title, total=len(paths), unit="img", leave=False, disable=quiet) as bar,
    ):
        for found in pool.map(lambda chunk: [answer(path) for path in chunk], chunks):
            answers += found
            bar.update(len(found))
    return answers


def _facts(path: Path) -> FileFacts:
    found = os.stat(path)
    return FileFacts(found.st_size, stat.S_ISREG(found.st_mode), (found.st_dev, found.st_ino))


def _shared(keys: Mapping[int, Hashable]) -> list[int]:
    """Positions, ascending, whose key another one has, too."""
    count = Counter(keys.values())
    return [index for index, key in keys.items() if count[key] > 1]


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _END))
        return file.read(_END)


def _digest_of(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
