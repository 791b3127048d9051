"""Writing files of a run: whole or as they were before, and on disk when a function returns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dcal.distributed.env import rank_zero_only
from dcal.utils.errors import UserError, first_line

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


class WriteError(UserError, OSError):
    """A file of the run cannot be written; the message names it and says what to do."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Failing to write `path` inside is a `WriteError`; torch and safetensors have errors of their own for it."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch raises a worker's death wherever the main process happens to be; what is written there fails after it
        if any("DataLoader worker" in str(each) for each in (error, error.__context__)):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WriteError(
            f"{path} cannot be written ({reason}): free some space there or write elsewhere (run.root=, out=). "
            "What was complete before is kept: repeat the command to go on"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to be written inside; then it is flushed to disk and renamed.

    So `path` is whole or as it was before, whatever happens, and nothing half-written stays.

    Raises:
        WriteError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with explain_write_errors(path):
        try:
            yield temporary
            fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path, name: str = "*") -> None:
    """Deletes what `atomic_write` left half-written in a folder because its process was killed, and nothing else.

    Args:
        name: of the file that was being written, escaped for a glob.
    """
    for left in folder.glob(f".{name}.[0-9]*{PARTIAL}"):
        left.unlink(missing_ok=True)


def first_missing(folder: Path) -> Path | None:
    """The topmost part of a path that is not there yet; None if the folder is there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


def remove_made(folder: Path, top: Path) -> None:
    """Deletes a folder, and then those above it up to `top` that are empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # somebody else has put something there
        for path in folder.parents if folder != top else ():
            path.rmdir()
            if path == top:
                break


def fsync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@rank_zero_only
def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves the old one."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a whole JSON file or leaves the old one."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_if_whole(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty if the file is missing, torn or holds something else."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is no JSON, as after it was cut short or edited.
        OSError: it cannot be read; the error names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
