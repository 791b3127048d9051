"""The condition of a run directory, in findings: finished, running, interrupted or failed, and is it whole?"""
# torch and what needs it is imported inside: `dcal-doctor` loads without, and tells if it is missing or broken

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dcal.run.digest import damaged_files
from dcal.run.directory import CHECKED, WHOLE
from dcal.run.files import read_json
from dcal.run.lock import lock_holder
from dcal.run.provenance import read_history, versions
from dcal.run.result import read_result
from dcal.utils.errors import UserError

if TYPE_CHECKING:
    from dcal.inference.trust import Trust

OK, WARN, FAIL = "OK", "WARN", "FAIL"


class Finding(NamedTuple):
    """One line of the report."""

    level: str
    topic: str
    text: str
    remedy: str = ""


def state(directory: Path, trust: Trust) -> Iterator[Finding]:
    """Finished, running, failed, interrupted or not begun.

    Args:
        trust: whose code the run may name.
    """
    from dcal.inference.restore import read_config

    config = read_config(directory)
    yield Finding(OK, "run", f"{config.name}, seed {config.seed}: {directory}")
    yield from _foreign_code(config, trust)
    again = read_json(directory / "overrides.json")
    command = shlex.join(["dcal-train", *again])
    failure, busy = directory / "failure.txt", lock_holder(directory)
    try:
        result = read_result(directory)
    except UserError as error:
        yield Finding(FAIL, "state", str(error), f"the run is evaluated once more: {command}")
        return
    if result is not None:
        primary_metric = result["primary_metric"]
        yield Finding(OK, "state", f"finished: {primary_metric} {result['metrics'][primary_metric]:.4f}")
        for name in WHOLE:
            if not (directory / name).is_file():
                yield Finding(FAIL, "files", f"{name} is missing", f"to train anew: {command} run.fresh=true")
        others = [name for name in CHECKED if name != "last.safetensors"]  # of which `weights` says so
        for damage in damaged_files(directory, others):
            yield Finding(FAIL, "files", str(damage))
    elif busy is not None:
        yield Finding(OK, "state", f"running: {busy}")
    elif failure.is_file():
        last = failure.read_text(encoding="utf-8").strip().splitlines()[-1]
        yield Finding(FAIL, "state", f"failed: {last}", f"{failure} has the traceback; then: {command}")
    else:
        epochs = read_history(directory / "metrics.jsonl")
        position = f"after epoch {epochs[-1]['epoch']}" if epochs else "before the end of the first epoch"
        yield Finding(WARN, "state", f"interrupted, {position}", f"to go on: {command}")
    yield from _checkpoints(directory)
    yield from _versions(read_json(directory / "versions.json"))


def weights(directory: Path, trust: Trust) -> Iterator[Finding]:
    """Do the weights load into the model of the configuration?

    Args:
        trust: whose code the run may name.
    """
    from dcal.inference.restore import restore

    if (directory / "last.safetensors").is_file():
        restored = restore(directory, device="cpu", trust=trust)
        yield Finding(OK, "weights", f"{restored.weights.name} fits config_resolved.yaml")
    elif not (directory / "result.json").is_file():
        yield Finding(OK, "weights", "none yet: last.safetensors comes at the end")


def _foreign_code(config: DictConfig, trust: Trust) -> Iterator[Finding]:
    """Groups that name code which nobody vouches for: nothing of it is executed."""
    from dcal.inference.trust import RunError

    for group in ("backbone", "attention", "task", "dataset"):
        try:
            trust.check(group, OmegaConf.to_container(config[group]))
        except RunError as error:
            yield Finding(WARN, "code", str(error))


def _checkpoints(directory: Path) -> Iterator[Finding]:
    from dcal.training.checkpoint import DamagedCheckpoint, UnreadableCheckpoint, list_checkpoints, read_checkpoint

    for folder in list_checkpoints(directory / "checkpoints"):
        try:
            read_checkpoint(folder)
        except DamagedCheckpoint as error:
            yield Finding(WARN, "checkpoint", str(error), "the one before is used; without one the run begins anew")
        except UnreadableCheckpoint as error:
            yield Finding(FAIL, "checkpoint", str(error))
        else:
            yield Finding(OK, "checkpoint", f"step {int(folder.name)} is whole")


def _versions(then: dict[str, str]) -> Iterator[Finding]:
    now = versions()
    others = [
        name for name in ("python", "torch", "timm", "albumentations", "numpy") if then.get(name) != now.get(name)
    ]
    if others:
        changed = ", ".join(f"{name} {then.get(name)} (here {now.get(name)})" for name in others)
        yield Finding(WARN, "versions", f"trained with {changed}", "numbers may differ in their last digits")
