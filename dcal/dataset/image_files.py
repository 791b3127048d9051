"""Images that belong to no data set: what `images=` of a command names, and a loader that streams over them.

Commands that use a trained run take single files, folders, globs and lists alike, and go on when a file is damaged:
among a million photographs one always is.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from dcal.dataset.files import folders_below, images_below
from dcal.dataset.images import ImageDataset, Loader
from dcal.dataset.record import IMAGE_SUFFIXES, DataError, Record
from dcal.dataset.transform import eval_transform
from dcal.utils.errors import UserError

UNKNOWN = -1
Item = TypeVar("Item")
FORMS = "give an image, a folder, a glob in quotes, or a .txt file with one path a line"


def find_images(spec: str | Path | Sequence[str | Path], key: str = "images") -> list[Path]:
    """The image files that a user's words name, sorted, none twice.

    Args:
        spec: a file, taken whatever its suffix; a folder, searched recursively for files with an image's suffix; a
            glob (`**` for any depth), of which every file is taken; a `.txt` file with one path a line, relative to
            its own folder; or several of these. `~` is the home folder.
        key: of the command line, for messages.

    Raises:
        DataError: nothing is there. (What a list names is not looked at: the loader reports what it cannot read.)
    """
    specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    if not specs:
        raise DataError(f"{key} is empty: {FORMS}")
    return sorted({path for one in specs for path in _files(Path(str(one)).expanduser(), key)}, key=str)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items (or all, if fewer) at equal distances: data sets are sorted by class."""
    if len(items) <= count:
        return list(items)
    return [items[int((number + 0.5) * len(items) / count)] for number in range(count)]


def image_loader(
    images: Sequence[Path | Record],
    image_size: Sequence[int],
    resize: Sequence[int],
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    decode: str = "full",
) -> Loader:
    """Batches of images in their order, as evaluation sees them; memory does not grow with their number.

    Args:
        images: paths, or records where cameras or labels are known; a batch's `index` counts in them.
        image_size, resize, decode: of the run's `dataset` node.
        pin_memory: see `Device.pins_memory`.

    Returns:
        A loader that leaves damaged files out, with a warning, and keeps the reasons by path in `skipped`; if none at
        all can be read it raises a DataError.
    """
    records = [image if isinstance(image, Record) else Record(image, UNKNOWN) for image in images]
    dataset = ImageDataset(records, eval_transform(image_size, resize), decode=decode, on_bad_image="skip")
    return Loader(dataset, workers, pin_memory, batch_size=batch_size)


def numbers_in(paths: Sequence[Path], pattern: str, key: str, required: bool = True) -> list[int]:
    """The number that a regular expression finds in each path; -1 where it finds none.

    Args:
        pattern: with one group, e.g. `_c(\\d+)` for Market-1501's cameras. It is searched in the file's name, or in
            the whole path if it contains a slash.
        key: of the command line, for messages.
        required: whether it is an error that it matches no path at all.

    Raises:
        UserError: it is no such expression, matches no path although required, or its group is no number.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}={pattern!r}: no regular expression ({error})") from None
    if compiled.groups != 1:
        raise UserError(f"{key}={pattern!r}: needs one group, the number, as in '_c(\\d+)'; has {compiled.groups}")
    matches = [compiled.search(path.as_posix() if "/" in pattern else path.name) for path in paths]
    if required and not any(matches):
        raise UserError(f"{key}={pattern!r}: found in none of {len(paths)} paths, e.g. not in {paths[0]}")
    try:
        return [UNKNOWN if match is None else int(match[1]) for match in matches]
    except (TypeError, ValueError):
        raise UserError(f"{key}={pattern!r}: the group must hold a number wherever the pattern is found") from None


def _files(path: Path, key: str) -> list[Path]:
    """The files that one path, glob or list names."""
    if path.is_dir():
        found = images_below(path)
        problem = f"no image below this folder (none of {' '.join(IMAGE_SUFFIXES)})"
    elif path.is_file() and path.suffix.lower() == ".txt":
        found, problem = _listed(path, key), "lists no path"
    elif path.is_file():
        return [path]
    elif glob.has_magic(str(path)):
        found, problem = _matching(str(path)), "matches no file"
    else:
        found, problem = [], "no such file or folder"
    if not found:
        raise DataError(f"{key}={path}: {problem}; {FORMS}")
    return found


def _matching(pattern: str) -> list[Path]:
    """Files that match a glob; `**` follows links to folders, but no folder twice. Hidden files are passed over."""
    base, recursive, rest = pattern.partition("**")
    if not recursive:
        return [path for path in map(Path, glob.iglob(pattern)) if path.is_file()]
    rest = rest.lstrip("/") or "*"
    tops = [Path(top) for top in glob.iglob(base or ".") if Path(top).is_dir()]
    folders = [folder for top in tops for folder in folders_below(top)]
    return [path for folder in folders for path in _matching(str(Path(glob.escape(str(folder)), rest)))]


def _listed(file: Path, key: str) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}={file}: cannot be read as a list of paths ({error})") from None
    return [file.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]
