"""Files of embeddings: what `dcal-extract` leaves and `dcal-query` searches.

Two forms with the same content, chosen by suffix: `.npz` (numpy, no pickle) and `.parquet` (needs pyarrow). The bytes
are a function of the content and of the image files' stamps: no time of writing, no name of a machine. Features are
written part by part, so that a file may be larger than memory.

Shapes: N images, D channels.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcal.run.files import atomic_write
from dcal.utils.errors import UserError, first_line

Array = NDArray[Any]
ROWS = 8192  # of a parquet row group
SUFFIXES = (".npz", ".parquet")


class Columns(NamedTuple):
    """What is known of N embedded images, in their order."""

    path: Sequence[str]
    camera: Sequence[int] | None
    """-1 where unknown; None if no camera is known."""
    label: Sequence[int] | None
    """Identities or classes, -1 where unknown (in Re-ID also for junk); None if none is known."""
    stamp: Sequence[str] | None
    """Of each image file when it was embedded, see `file_stamp`; None in files of earlier versions."""


def file_stamp(path: Path) -> str:
    """Size in bytes and time of the last change in ns, `size:time`, by which a changed file is known; or `missing`."""
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return f"{facts.st_size}:{facts.st_mtime_ns}"


class Index(NamedTuple):
    """A file of embeddings, read."""

    features: Array
    """(N, D), float32 or float16, L2-normalised."""
    columns: Columns
    settings: dict[str, Any]
    """How it was made: run, checksum of the weights, branches, ...; see `dcal-extract`."""
    skipped: list[str]
    """Paths that could not be read."""


def check_suffix(file: Path, key: str) -> None:
    """Raises a `UserError` that names `key` unless the suffix is one of `SUFFIXES` and can be written and read."""
    if file.suffix not in SUFFIXES:
        raise UserError(f"{key}={file}: its suffix must be {' or '.join(SUFFIXES)}")
    if file.suffix == ".parquet":
        _pyarrow()


def write_index(
    file: Path,
    parts: Iterable[Array],
    dtype: str,
    columns: Columns,
    skipped: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Writes a whole file or none.

    Args:
        parts: features (n, D) whose rows, one part after the other, are those of `columns`; at least one part.
        dtype: `float32` or `float16`.
        skipped: paths that could not be read.
        settings: whatever JSON can hold.
    """
    write = _write_npz if file.suffix == ".npz" else _write_parquet
    with atomic_write(file) as temporary:
        write(temporary, parts, dtype, columns, {"settings": json.dumps(settings), "skipped": list(skipped)})


def read_index(file: Path, key: str) -> Index:
    """Reads a file of embeddings.

    Raises:
        UserError: it is none; the message starts with `key`.
        OSError: it cannot be read.
    """
    check_suffix(file, key)
    if not file.is_file():
        raise UserError(f"{key}={file}: no such file; make it with dcal-extract")
    try:
        index = _read_npz(file) if file.suffix == ".npz" else _read_parquet(file)
        if index.features.ndim != 2 or len(index.features) != len(index.columns.path):
            raise ValueError(f"features {index.features.shape} of {len(index.columns.path)} paths")
        return index
    except Exception as error:  # the readers raise a dozen types for one thing: the bytes are no index
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{key}={file}: no index of dcal-extract ({first_line(error)})") from error


def _write_npz(
    file: Path, parts: Iterable[Array], dtype: str, columns: Columns, more: Mapping[str, str | list[str]]
) -> None:
    known = {key: np.asarray(values) for key, values in columns._asdict().items() if values is not None}
    rest = {**known, **{key: np.asarray(value, dtype=np.str_) for key, value in more.items()}}
    parts = iter(parts)
    first = next(parts)
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (len(columns.path), first.shape[1]),
    }
    # not np.savez: it wants the features in memory. ZipInfo's date is that of 1980, so the bytes do not change.
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(zipfile.ZipInfo("features.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for part in chain([first], parts):
                member.write(np.ascontiguousarray(part, dtype).data)
        for key, array in rest.items():
            info = zipfile.ZipInfo(f"{key}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED  # of paths as wide as the longest little remains
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(file: Path) -> Index:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("a single array")
    with archive:
        known: dict[str, Any] = {key: archive[key].tolist() if key in archive else None for key in Columns._fields}
        return Index(
            archive["features"], Columns(**known), json.loads(str(archive["settings"])), archive["skipped"].tolist()
        )


def _write_parquet(
    file: Path, parts: Iterable[Array], dtype: str, columns: Columns, more: Mapping[str, str | list[str]]
) -> None:
    arrow, parquet = _pyarrow()
    groups = _regrouped(parts, ROWS)
    first = next(groups)
    known = {key: arrow.array(values) for key, values in columns._asdict().items() if values is not None}
    kind = arrow.list_(arrow.from_numpy_dtype(np.dtype(dtype)), first.shape[1])
    fields = [*((key, column.type) for key, column in known.items()), ("feature", kind)]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()}
    schema = arrow.schema(fields, {f"dcal.{key}": text for key, text in texts.items()})
    start = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for group in chain([first], groups):
            flat = arrow.array(np.ascontiguousarray(group, dtype).reshape(-1))
            rows = [column.slice(start, len(group)) for column in known.values()]
            features = arrow.FixedSizeListArray.from_arrays(flat, first.shape[1])
            writer.write_table(arrow.Table.from_arrays([*rows, features], schema=schema))
            start += len(group)


def _read_parquet(file: Path) -> Index:
    _, parquet = _pyarrow()
    table = parquet.read_table(file)
    metadata = table.schema.metadata or {}
    column = table.column("feature").combine_chunks()
    features = column.flatten().to_numpy().reshape(len(column), -1)
    known: dict[str, Any] = {
        key: table[key].to_pylist() if key in table.column_names else None for key in Columns._fields
    }
    skipped = json.loads(metadata[b"dcal.skipped"])
    return Index(features, Columns(**known), json.loads(metadata[b"dcal.settings"]), skipped)


def _regrouped(parts: Iterable[Array], rows: int) -> Iterator[Array]:
    """The same rows, `rows` at a time: where a killed extraction had come to must not show in the file."""
    held: list[Array] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= rows:
            whole = np.concatenate(held)
            yield whole[:rows]
            held = [whole[rows:]]
    if any(map(len, held)):
        yield np.concatenate(held)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("a .parquet file needs pyarrow: pip install 'dcal[parquet]', or choose .npz") from None
    return pyarrow, pyarrow.parquet
