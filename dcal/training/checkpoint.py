"""Checkpoints of a run: whole or not there, verified when read, the one before as a spare.

A checkpoint is a folder `checkpoints/<step>` that appears by a rename: weights as safetensors, the training state
beside it (tensors and plain Python only), and a manifest with a checksum of each file.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from dcal.distributed.env import rank_zero_only
from dcal.run.digest import sha256
from dcal.run.files import atomic_write, explain_write_errors, fsync
from dcal.utils.errors import UserError, first_line

log = logging.getLogger(__name__)
KEEP = 2


class DamagedCheckpoint(UserError):
    """A checkpoint is torn, or not what was written; the message says which and why."""


class UnreadableCheckpoint(UserError):
    """A checkpoint may be whole, but cannot be read now; nothing was changed. The message says which and why."""


@rank_zero_only
def save_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a weight file atomically.

    Raises:
        WriteError: the disk is full or not writable; an older file stays.
    """
    plain = {key: value.detach().contiguous().cpu() for key, value in weights.items()}
    with atomic_write(path) as temporary:
        # not `save_file`, whose files nobody but the owner may read
        temporary.write_bytes(serialize(plain, dict(metadata or {})))


@rank_zero_only
def save_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes `folder/<step>` whole and, once it was read back, drops all but the newest two.

    Raises:
        WriteError: the disk is full or not writable; older checkpoints are untouched.
    """
    target, temporary = folder / f"{step:08d}", folder / f".{step:08d}.{os.getpid()}"
    with explain_write_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        remove_remains(folder)
        try:
            temporary.mkdir()
            save_weights(temporary / "model.safetensors", weights)
            torch.save(dict(state), temporary / "training_state.pt")
            sums = {name: sha256(temporary / name) for name in ("model.safetensors", "training_state.pt")}
            (temporary / "manifest.json").write_text(json.dumps({"step": step, "sha256": sums}, indent=1))
            for file in temporary.iterdir():
                fsync(file)
            if target.exists():  # the end of an epoch, after a checkpoint of its last step
                target.replace(folder / f".{step:08d}.replaced")
            temporary.replace(target)
            fsync(folder)
            if damaged := [name for name, known in sums.items() if sha256(target / name) != known]:
                raise OSError(f"{', '.join(damaged)} is not what was written")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder / f".{step:08d}.replaced", ignore_errors=True)
    steps = list_checkpoints(folder)
    here = steps.index(target)  # what is newer was damaged, or this run would have gone on from there
    for old in steps[: max(0, here + 1 - KEEP)] + steps[here + 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def load_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Weights and training state of the newest checkpoint whose checksums hold, or None.

    A damaged one is passed over with a warning. What a killed process has left half-written is removed.

    Raises:
        UnreadableCheckpoint: one cannot be read, and may be whole.
    """
    remove_remains(folder)
    for candidate in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(candidate)
        except DamagedCheckpoint as error:
            log.warning("%s: going back to the one before", error)
    return None


@rank_zero_only
def remove_remains(folder: Path) -> None:
    """Removes what is no whole checkpoint, whoever has left it."""
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and training state of one checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing, or its checksum does not hold.
        UnreadableCheckpoint: the system does not let it be read, or its checksums hold and it cannot be loaded.
    """
    try:
        sums = json.loads((path / "manifest.json").read_text())["sha256"]
        damaged = [name for name, known in sums.items() if sha256(path / name) != known]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({error})") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if damaged:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged (checksum of {', '.join(damaged)} does not hold)")
    try:
        weights = load_file(path / "model.safetensors")
        state = torch.load(path / "training_state.pt", map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unreadable(path, error) from error
    return weights, state


def unreadable(path: Path, error: Exception) -> UnreadableCheckpoint:
    """The error for a checkpoint that may be whole, and is kept."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return UnreadableCheckpoint(
        f"checkpoint {path} cannot be read ({reason}): nothing was changed. Repeat the command once it can be; only if "
        "it never can, delete that folder, and the run goes on from the one before"
    )


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; empty if there is no such folder.

    Raises:
        UnreadableCheckpoint: the folder cannot be read.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(entry for entry in entries if entry.name[0].isdigit())


@rank_zero_only
def remove_checkpoints(folder: Path) -> None:
    """Removes all checkpoints of a run that is trained to its end: what is left to do needs its weights alone."""
    shutil.rmtree(folder, ignore_errors=True)
