"""What the commands on a trained run share: opening the run, and what they say of images that they left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dcal.commands.words.keys import config_folders
from dcal.inference.restore import Restored, restore
from dcal.inference.trust import Trust
from dcal.run.find import find_run

INCOMPLETE = 3
"""Exit code of a command that did its work, but for images that it had to leave out."""


def open_run(config: DictConfig, **changes: Any) -> Restored:
    """The run that `run=` names, with the weights, the device and the settings that the command was given.

    Args:
        config: of the command.
        changes: nodes that replace those of `config`, e.g. `task`.
    """
    asked = {key: config[key] for key in ("task", "train") if key in config} | changes
    trust = Trust(config.trust, tuple(config_folders(sys.argv[1:])))
    device = config.get("device", "cpu")
    return restore(find_run(config.run, config.root), config.weights, device, asked, trust)


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
