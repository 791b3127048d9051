"""Digests of files by their content, computed once per file and kept between commands."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dcal.run.files import read_if_whole, write_json
from dcal.utils.errors import UserError
from dcal.utils.paths import cache_home

SETTLED_SECONDS = 2.0
"""A younger file may still change without its time of change saying so: its digest is not kept."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_digest(content: Any) -> str:
    """SHA-256 of plain data as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """`sha256` of a large file that rarely changes, remembered by its path, size and time of change.

    Raises:
        OSError: the file cannot be read.
    """
    path = path.resolve()
    found = path.stat()
    version = [found.st_size, found.st_mtime_ns]
    memory = cache_home() / "digests.json"
    known = read_if_whole(memory)
    entry = known.get(str(path))
    if entry is not None and entry[:2] == version:
        return str(entry[2])
    digest = sha256(path)
    if time.time() - found.st_mtime > SETTLED_SECONDS:
        with suppress(OSError):  # no home, or a full one: computed again next time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {**known, str(path): [*version, digest]})
    return digest


def check_digest(file: Path) -> None:
    """Compares a file with the checksum that its run kept, in `result.json` or in a checkpoint's manifest.

    A file of which none was kept (of an older run, or of one that is not finished) passes.

    Raises:
        UserError: a byte of it has changed; the message says what to do.
        OSError: the file cannot be read.
    """
    known = None
    for keeper in (file.with_name("result.json"), file.with_name("manifest.json")):
        with suppress(AttributeError):  # another program's file of that name
            known = known or read_if_whole(keeper).get("sha256", {}).get(file.name)
    if known is not None and sha256(file) != known:
        raise UserError(
            f"{file} is damaged: its checksum is not the one that the run kept. Take a copy from elsewhere, or repeat "
            "the run's command with run.fresh=true"
        )


def damaged_files(directory: Path, names: Sequence[str]) -> Iterator[UserError]:
    """What `check_digest` says of those of a run's files that are there and not what the run wrote."""
    for name in names:
        try:
            check_digest(directory / name)
        except OSError:  # missing, or not to be read: others say so
            continue
        except UserError as error:
            yield error
