"""A long computation in numbered parts: each is on disk whole or not at all, so that a killed one continues.

The folder holds `settings.json`, what the parts are of, and `000000.npz`, `000001.npz`, ... without a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dcal.run.files import atomic_write, read_json, write_json
from dcal.utils.errors import UserError

Array = NDArray[Any]


def open_parts(folder: Path, settings: Mapping[str, Any]) -> int:
    """Makes the folder, or finds one with the same settings; returns the number of parts that it holds.

    Raises:
        UserError: it holds parts with other settings; the message says which.
    """
    file = folder / "settings.json"
    if file.is_file():
        other = setting_differences(read_json(file), settings)
        if other:
            raise UserError(f"{folder}: begun with other settings ({other}); go on with those, or delete the folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    number = 0
    while _file(folder, number).is_file():
        number += 1
    return number


def write_part(folder: Path, number: int, arrays: Mapping[str, Array]) -> None:
    """Writes one part, whole or not at all."""
    with atomic_write(_file(folder, number)) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the keywords for allow_pickle


def read_part(folder: Path, number: int) -> dict[str, Array]:
    """The arrays of a part.

    Raises:
        UserError: the file is damaged.
    """
    file = _file(folder, number)
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{file}: damaged ({error}); delete the folder to begin anew") from None


def drop_parts(folder: Path, first: int, count: int) -> None:
    """Deletes the parts from number `first` on, the last one first: what is left has no gap."""
    for number in reversed(range(first, count)):
        _file(folder, number).unlink()


def setting_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Where two settings differ, in words; empty if they are equal."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {before.get(key)}, now {now.get(key)}" for key in keys)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"
