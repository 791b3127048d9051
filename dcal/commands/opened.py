"""What the commands on a trained model share: opening it, and what they say of images that they left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dcal.commands.words.keys import config_folders
from dcal.inference.plain_backbone import open_backbone
from dcal.inference.restore import Opened, Restored, drop_none, restore
from dcal.inference.trust import Trust
from dcal.run.listing import find_run
from dcal.utils.errors import UserError

INCOMPLETE = 3
"""Exit code of a command that did its work, but for images that it had to leave out."""


def open_model(config: DictConfig, **changes: Any) -> Opened:
    """The run that `run=` names, or the plain backbone of `backbone.name=`.

    Args:
        config: of the command.
        changes: nodes that replace those of `config`, e.g. `task`; `backbone`: what is not typed of a plain backbone.

    Raises:
        UserError: both are given, or neither; or a key of the one with the other.
    """
    below = changes.pop("backbone", {})  # what is typed counts before it
    backbone = {key: value for key, value in drop_none(config.backbone).items() if value != {}}
    if config.run is not None:
        if backbone:
            raise UserError(f"run={config.run} and backbone.{next(iter(backbone))} are both given: choose one")
        return open_run(config, **changes)
    if not backbone.get("name"):
        raise UserError("give run=DIR, or a plain backbone: backbone.name=NAME with backbone.checkpoint=FILE")
    for key, value in (("weights", "last"), ("trust", False)):
        if config[key] != value:
            raise UserError(f"{key}={config[key]}: goes with run=; a plain backbone has backbone.checkpoint")
    asked = {key: drop_none(config[key]) for key in ("task", "train") if key in config} | changes
    return open_backbone({**drop_none(below), **backbone}, asked.get("task"), asked.get("train"), config.device)


def open_run(config: DictConfig, **changes: Any) -> Restored:
    """The run that `run=` names, with the weights, the device and the settings that the command was given.

    Args:
        config: of the command.
        changes: nodes that replace those of `config`, e.g. `task`.
    """
    asked = {key: config[key] for key in ("task", "train") if key in config} | changes
    trust = Trust(config.trust is True, tuple(config_folders(sys.argv[1:])))
    device = config.get("device", "cpu")
    return restore(find_run(config.run, config.root), config.weights, device, asked, trust)


def check_picture(file: str) -> None:
    """Raises a UserError, before anything is computed for it, if matplotlib writes no file with this suffix."""
    from matplotlib.backend_bases import FigureCanvasBase  # half a second: only where a picture is asked for

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    suffix = Path(file).suffix.removeprefix(".").lower()
    if suffix and suffix not in kinds:
        raise UserError(f"picture={file}: its suffix must be one of .{', .'.join(kinds)}")


def with_folder(file: str) -> Path:
    """The path of a file to write, its folder made."""
    path = Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def printable(path: Path | str) -> str:
    """A path as text that can be written everywhere: bytes that are no UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def end_incomplete(left_out: Collection[object], total: int) -> None:
    """Ends the command with exit code 3 if images were left out, which is said with their number.

    Raises:
        SystemExit: 3, if there are any.
    """
    if left_out:
        print(f"{len(left_out)} of {total} images were left out", file=sys.stderr)
        raise SystemExit(INCOMPLETE)
