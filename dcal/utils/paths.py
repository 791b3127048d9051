"""Where caches are, and the YAML files: beside the package in a checkout, inside it once installed from a wheel.

In the repository `conf/` and `experiments/` are top-level folders, because users read and edit them;
setup.cfg maps them to `dcal/conf` and `dcal/experiments` in the wheel. An editable install runs from the
checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """Absolute path of the folder that holds `train.yaml` and the config groups.

    Raises:
        FileNotFoundError: the installation lacks the folder.
    """
    return _find("conf")


def experiments_dir() -> Path:
    """Absolute path of the folder that holds the `experiment/` and `ablation/` overlays.

    Raises:
        FileNotFoundError: the installation lacks the folder.
    """
    return _find("experiments")


def cache_home() -> Path:
    """Where what can be made again is kept (drawn data sets, digests): `$XDG_CACHE_HOME/dcal`, or `~/.cache/dcal`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcal"


def _find(name: str) -> Path:
    candidates = (_PACKAGE / name, _PACKAGE.parent / name)
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = " nor ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(f"the folder {name!r} of dcal is missing (neither {looked}): reinstall the package")
