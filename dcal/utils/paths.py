"""Where caches are, and the YAML files: beside the package in a checkout, inside it once installed from a wheel.

And what a command's environment lacks or has left over.

In the repository `conf/` and `experiments/` are top-level folders, because users read and edit them;
setup.cfg maps them to `dcal/conf` and `dcal/experiments` in the wheel. An editable install runs from the
checkout.
"""

from __future__ import annotations

import os
import sys
import tempfile
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


def ensure_home() -> None:
    """Gives a process without a home directory a temporary one, with a line on stderr that says so.

    A container that runs under a user id of its own has neither HOME nor an entry in the list of users, and libraries
    (W&B among them) end in a stack trace where they look for their settings.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="dcal-home-")
        print(f"HOME is not set: caches are kept in {os.environ['HOME']}; set HOME to keep them", file=sys.stderr)


def tidy_wandb_environment() -> None:
    """Makes of W&B's variables what the configuration takes: an empty one is none, and W&B has two names for a mode.

    `WANDB_DISABLED=true` (also 1, yes, on) is `WANDB_MODE=disabled`, as for the integrations that know that variable.
    """
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        if os.environ.get(name) == "":
            del os.environ[name]
    mode = os.environ.get("WANDB_MODE")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        os.environ["WANDB_MODE"] = "disabled"
    elif mode in ("dryrun", "run"):
        os.environ["WANDB_MODE"] = {"dryrun": "offline", "run": "online"}[mode]


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
