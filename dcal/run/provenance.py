"""What a run was computed by: code, libraries, machine; and a history of its starts, `history.jsonl`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcal.distributed.env import world_size
from dcal.run.digest import sha256

PACKAGE = Path(__file__).resolve().parents[1]
CONDITIONS = (
    "device",
    "launch.strategy",
    "train.accumulate",
    "train.compile",
    "train.activation_checkpointing",
    "train.eval_batch_size",
    "dataset.on_bad_image",
)
"""Keys that are no part of a run's identity, but may change its last digits, or more."""


def git_state() -> dict[str, Any]:
    """Commit of the code that runs and whether it was changed since; None outside a checkout.

    Where code travels without its `.git` (a container, a copied folder), `DCAL_COMMIT` in the environment names it.
    """
    named = os.environ.get("DCAL_COMMIT")
    if named:
        return {"commit": named, "dirty": False}
    tracked = _git("ls-files", "__init__.py")  # not by the repository of a project whose .venv dcal is in
    commit = _git("rev-parse", "HEAD") if tracked else None
    return {
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def git_diff() -> str | None:
    """What was changed in the code since its commit, as a patch; None outside a checkout."""
    return _git("diff", "HEAD")


def _git(*args: str) -> str | None:
    """What git says in the checkout that the code runs from, if it does."""
    try:
        done = subprocess.run(["git", *args], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):  # a ValueError for a patch that is no UTF-8
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
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
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def code_digest() -> str:
    """SHA-256 over the sources of this package: equal for equal code, committed or not."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def own_sources(config: DictConfig) -> dict[str, str]:
    """SHA-256 of the source file of each `_target_` that is the user's own: no part of dcal or of a library."""
    found = {}
    for target in targets(OmegaConf.to_container(config, resolve=False)):
        file = None if target.startswith("dcal.") else _source(target)
        if file is not None:
            found[target] = sha256(file)
    return dict(sorted(found.items()))


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a configuration."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def _source(target: str) -> Path | None:
    """The file of the module that a dotted name begins with; None for one of an installed library."""
    name = target
    while "." in name:
        name = name.rpartition(".")[0]
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
                return None if "site-packages" in Path(spec.origin).parts else Path(spec.origin)
    return None


def start_record(config: DictConfig, device: str, git: Mapping[str, Any]) -> dict[str, Any]:
    """What one start of a run is computed by, for its history.

    Args:
        device: in words.
        git: of the code, as `git_state` gave it when the process began.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": platform.node(),
        "hardware": device,
        "processes": world_size(),
        **git,
        "code": code_digest(),
        "own": own_sources(config),
        "settings": {key: OmegaConf.select(config, key) for key in CONDITIONS},
        "versions": {name: value for name, value in versions().items() if name not in ("argv", "platform")},
    }


def read_history(file: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; empty for a run that kept none. A line that was cut short is left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def trained_by(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Commits of all starts: the last one, all of them where there were several, and whether any was changed."""
    commits = list(dict.fromkeys(entry["commit"] for entry in history))
    states = [entry["dirty"] for entry in history]
    several = {"commits": commits} if len(commits) > 1 else {}
    return {"commit": history[-1]["commit"], "dirty": None if None in states else any(states), **several}


def code_change(history: Sequence[Mapping[str, Any]], git: Mapping[str, Any] | None, config: DictConfig) -> str | None:
    """A sentence if the code is not what a finished run was made with, else None.

    Args:
        history: of the run.
        git: what its `result.json` says, for a run without a history.
    """
    now = git_state()
    if history:
        last = history[-1]
        own = own_sources(config)
        changed = [target for target, digest in own.items() if last["own"].get(target, digest) != digest]
        if changed:
            return f"the source of {', '.join(changed)} has changed since: run.fresh=true trains anew"
        if last["code"] == code_digest():
            return None
        git = last
    elif not git or None in (git.get("commit"), now["commit"]) or (git == now and not now["dirty"]):
        return None
    assert git is not None
    return (
        f"finished before at commit {_named(git)}, the code is at {_named(now)} (changed): run.fresh=true trains anew"
    )


def _named(git: Mapping[str, Any]) -> str:
    return f"{str(git['commit'])[:8]}{' with changes' if git['dirty'] else ''}"


def changed_conditions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two starts, each as `what: before, now after`; nothing that leaves every bit as it is."""
    told = []
    if before["code"] != now["code"]:
        told.append(f"code: commit {_named(before)}, now {_named(now)}")
    told += [f"{key}: {before[key]}, now {now[key]}" for key in ("hardware", "processes") if before[key] != now[key]]
    own = {**before["own"], **now["own"]}
    told += [f"{target}: changed" for target in own if before["own"].get(target) != now["own"].get(target)]
    for node in ("settings", "versions"):
        keys = sorted({*before[node], *now[node]})
        pairs = [(key, before[node].get(key), now[node].get(key)) for key in keys]
        told += [f"{key}: {old}, now {new}" for key, old, new in pairs if old != new]
    return told
