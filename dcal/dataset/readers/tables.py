"""What the readers share: finding a data set's folder, reading its lists, and numbering classes."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.io import loadmat

from dcal.dataset.files import images_below, in_words, inode, printable
from dcal.dataset.record import IMAGE_SUFFIXES, Catalog, DataError, Part, Record


class Entry(NamedTuple):
    """An image as a list names it, before classes are numbered."""

    split: str
    path: Path
    key: str
    """Number or name of its class in the set's own files."""
    box: tuple[float, float, float, float] | None = None
    parts: Sequence[Part] = ()


def make_catalog(
    name: str,
    entries: Iterable[Entry],
    names: Mapping[str, str] | None,
    official: Mapping[str, int] | None,
    protocol: Mapping[str, Any] | None = None,
) -> Catalog:
    """A classification set from its entries; classes that do not occur get no label.

    Args:
        name: of the set.
        entries: all images; their order within a split is kept.
        names: class name by key; None where the keys are the names.
        official: published number of images by split; becomes part of the protocol, next to this copy's.
        protocol: what else is to be known of how the set was read.

    Raises:
        DataError: a class has no name, or images but none to train on; or there is one class only.
    """
    entries = list(entries)
    labels = numbered(entry.key for entry in entries)
    unseen = sorted(set(labels) - {entry.key for entry in entries if entry.split == "train"})
    if unseen:
        raise DataError(f"{name}: class '{unseen[0]}' has images in other splits, but none in 'train'")
    unnamed = sorted(set(labels) - set(names)) if names is not None else []
    if len(labels) == 1:
        raise DataError(f"{name}: all images are of one class, '{entries[0].key}': there is nothing to tell apart")
    if unnamed:
        raise DataError(f"{name}: images have class '{unnamed[0]}', but the list of classes does not")
    splits: dict[str, list[Record]] = {}
    for split, path, key, box, parts in entries:
        splits.setdefault(split, []).append(Record(path, labels[key], box=box, parts=tuple(parts)))
    counts = Counter(entry.split for entry in entries)
    read: dict[str, Any] = {"images": dict(counts), "classes": len(labels), **(protocol or {})}
    if official is not None:
        read["official_images"] = dict(official)
    return Catalog(name, splits, [key if names is None else names[key] for key in labels], read)


def list_folders(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The images in each of the folders in `folder`, deeper ones included; hidden folders are no classes.

    Folders whose names are the same text in two Unicode forms are one.

    Returns:
        Sorted images by the name of their folder, in the order of the names; sentences on what was not read.
    """
    passed: Counter[str] = Counter()
    folders = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            folders.append(path)
        elif path.is_symlink() and not path.exists():
            passed["dangling link"] += 1
        elif path.name.startswith(".") and path.is_dir():
            passed["hidden"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            passed["image beside the folders of the classes"] += 1
    known = {inode(path) for path in (folder, *folder.resolve().parents, *folders)}
    images: dict[str, list[Path]] = {}
    empty = []
    for path in folders:
        here: Counter[str] = Counter()
        found = images_below(path, here, set(known))
        passed += here
        if found:
            images[printable(path.name)] = sorted([*images.get(printable(path.name), ()), *found])
        else:
            empty.append(f"'{printable(path.name)}' ({in_words(here) or 'empty'})")
    sentences = [f"passed over in {printable(str(folder))}: {in_words(passed)}"] if passed else []
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if empty[5:] else "")
        sentences.append(f"{len(empty)} folders in {printable(str(folder))} hold no image that can be read: {shown}")
    return images, sentences


def find_root(root: str | Path | None, name: str, marker: str, folder: str) -> Path:
    """The folder that holds `marker`: `root` itself, or `root/folder` where users give the folder above.

    Raises:
        DataError: `root` is unset or missing, or lacks the marker.
    """
    if root is None:
        raise DataError(f"dataset.root is not set: give the folder of {name}, the one that holds {marker}")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"dataset.root={root}: no such folder; give the one of {name} that holds {marker}")
    for candidate in (root, root / folder):
        if (candidate / marker).exists():
            return candidate
    raise DataError(f"dataset.root={root}: holds no {marker}, so it is no complete copy of {name}")


def find_table(root: str | Path | None, file: str, content: str = "") -> tuple[Path, Path]:
    """The folder that a table's paths count from, and the table: `root` and `root/file`, or `root` is the table itself.

    Args:
        content: what the table has, for the message.

    Raises:
        DataError: `root` is unset, or there is no table.
    """
    if root is None:
        raise DataError(f"dataset.root is not set: give the folder that holds {file} and the images")
    folder = Path(root).expanduser()
    folder, table = (folder.parent, folder) if folder.is_file() else (folder, folder / file)
    if not table.is_file():
        raise DataError(f"{table}: no such file; dataset.root must hold the table dataset.reader.file={file}{content}")
    return folder, table


def read_lines(file: Path, name: str) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        DataError: the file is missing or no text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}; is this copy of {name} complete, and dataset.root right?"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text; is this copy of {name} intact?") from error
    return [line.strip() for line in lines if line.strip()]


def read_table(file: Path, name: str) -> dict[str, str]:
    """A file of `id value` lines, as the rest of the line by id. Commas between the two are fine.

    Raises:
        DataError: the file is missing, a line has no value, or an id comes twice.
    """
    table: dict[str, str] = {}
    lines = read_lines(file, name)
    for number, line in enumerate(lines, 1):
        parts = re.split(r"\s*,\s*|\s+", line, maxsplit=1)
        if len(parts) < 2 or parts[0] in table:
            problem = "has no value" if len(parts) < 2 else "repeats an id"
            raise DataError(f"{file}: line {number} ('{line}') {problem}; expected lines 'id value'")
        table[parts[0]] = parts[1]
    return table


def read_rows(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and these columns of each row of a CSV table, whose first line names its columns.

    Args:
        file: the table.
        columns: that it must have.
        optional: that are read where it has them.

    Raises:
        DataError: it is no UTF-8 text, no CSV, or lacks a column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 text ({error}); save the table as UTF-8") from None
    table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        table.fieldnames = [name.strip() for name in table.fieldnames or ()]
        missing = [column for column in columns if column not in table.fieldnames]
        if missing:
            raise DataError(
                f"{file}: column {', '.join(missing)} is missing; the first line must name the columns "
                f"{', '.join(columns)}, separated by commas"
            )
        read = [*columns, *(column for column in optional if column in table.fieldnames)]
        for row in table:
            yield table.line_num, {column: (row[column] or "").strip() for column in read}
    except csv.Error as error:
        raise DataError(f"{file}: line {table.line_num}: {error}; is a quote left open?") from None


def whole(number: str) -> str:
    """A whole number as it was before a spreadsheet wrote it with a decimal: `12.0` is 12; other text is kept."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", number)


def look_up(table: dict[str, str], key: str, file: Path, what: str) -> str:
    """`table[key]`, or a `DataError` that says which file lacks an entry for what."""
    try:
        return table[key]
    except KeyError:
        raise DataError(f"{file}: has no entry for {what}; the files of this copy do not belong together") from None


def numbered(keys: Iterable[str]) -> dict[str, int]:
    """Contiguous labels from 0 for the distinct `keys`, numbers in numeric order before names in alphabetical."""
    ordered = sorted(set(keys), key=lambda key: (0, int(key), key) if key.isdecimal() else (1, 0, key))
    return {key: label for label, key in enumerate(ordered)}


def read_mat(file: Path, name: str) -> dict[str, Any]:
    """The variables of a MATLAB file, structs as dicts.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return dict(loadmat(file, simplify_cells=True))
    except Exception as error:  # scipy raises whatever it meets in a damaged file
        raise DataError(
            f"{file}: cannot be read as a MATLAB file ({error}); is this copy of {name} complete?"
        ) from error
