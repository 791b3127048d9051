"""What a run was computed by: the commit of the code and the versions of the libraries."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def git_state() -> dict[str, Any]:
    """Commit of the code that runs and whether it was changed since; None outside a checkout.

    Where code travels without its `.git` (a container, a copied folder), `DCAL_COMMIT` in the environment names it.
    """
    named = os.environ.get("DCAL_COMMIT")
    if named:
        return {"commit": named, "dirty": False}
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform(), "argv": " ".join(sys.argv)}
    for package in (
        "dcal",
        "torch",
        "timm",
        "albumentations",
        "numpy",
        "opencv-python-headless",
        "hydra-core",
        "wandb",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
