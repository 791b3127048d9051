"""What a run tells W&B: how it is called, what it was made of, which values are curves and which are constants."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dcal.run.directory import DIFF_FILE, Run
from dcal.run.label import GROUPS, choices, label, typed_words
from dcal.run.provenance import git_state, versions

CONSTANT = ("/images", "/queries", "/gallery", "_chance")
"""Ends of the names of values that are the same after every epoch: the summary has them."""
TAG_LENGTH = 64
"""Most characters of a tag of W&B."""
LEARNED = ("uncertainty", "uncertainty_always")
"""Values of `task.loss_weighting` under which the weights of the losses change."""


def display_name(run: Run) -> str:
    """What tells a run from others: its experiment, what was chosen and typed, its seed and its id."""
    return f"{run.config.name}: {label(run.config)} seed={run.seed} {run.cfg_id}"


def notes(run: Run) -> str:
    """What somebody has written about the run, or the command that began it."""
    if run.config.wandb.notes:
        return str(run.config.wandb.notes)
    return shlex.join(["dcal-train", *typed_words()])


def tags(run: Run) -> list[str]:
    """The user's own tags; before them data set, backbone and attention."""
    chosen = choices(run.config)
    own = [chosen[group][:TAG_LENGTH] for group in ("dataset", "backbone", "attention")]
    return list(dict.fromkeys([*own, *map(str, run.config.wandb.tags)]))


def logged_config(run: Run) -> dict[str, Any]:
    """The configuration as W&B gets it: `attention: dcal`, `backbone: deit_tiny`, ..., all their keys below `options`.

    A W&B sweep writes a bare `attention: dcal` over whatever is there, so a group is a bare name in every run.
    """
    config: Any = OmegaConf.to_container(run.config, resolve=True, throw_on_missing=True)
    options = {group: config.pop(group) for group in GROUPS}
    return {
        **config,
        **choices(run.config),
        "options": options,
        "cfg_id": run.cfg_id,
        "label": label(run.config),
        "versions": {name: value for name, value in versions().items() if name != "argv"},
        "git": git_state(),
    }


def begin(run: Run, tracked: Any) -> None:
    """Curves over epochs instead of steps, those within an epoch over steps; what has changed in the code as a file."""
    for axis, names in {"epoch": ("train/*", "val/*", "test/*"), "step": ("batch/*",)}.items():
        tracked.define_metric(axis, hidden=True)
        for name in names:
            tracked.define_metric(name, step_metric=axis)
    if (run.directory / DIFF_FILE).is_file():
        file = shutil.copy(run.directory / DIFF_FILE, tracked.dir)
        tracked.save(file, base_path=tracked.dir, policy="now")


def curves(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values of an epoch that may change from one to the next."""
    fixed = () if run.config.task.loss_weighting in LEARNED else ("train/weight_",)
    return {
        key: value
        for key, value in values.items()
        if not (key.endswith(CONSTANT) or key.startswith(fixed) or key == "seconds")
    }


def summarize(run: Run, tracked: Any, result: Mapping[str, Any]) -> None:
    """The final metrics under their own names, what the run took, what did not change, and the best epoch.

    The best is by held-out training images; by the test split there is none: that would be to choose by it. (A summary
    by `define_metric` would make a table of `val/top1`, and a sweep could not read its metric any more.)

    Args:
        result: what `result.json` will hold.
    """
    took = {key: value for key, value in result.items() if isinstance(value, int | float) and key != "seed"}
    lines = run.metrics()
    last = lines[-1] if lines else {}  # metrics.jsonl of a run that was finished long ago may be lost
    constant = {key: value for key, value in last.items() if key not in curves(run, last)}
    tracked.summary.update({**constant, **took, **result["metrics"]})
    primary_metric = f"val/{result['primary_metric']}"
    judged = [line for line in lines if primary_metric in line]
    if judged:
        best = max(judged, key=lambda line: float(line[primary_metric]))
        tracked.summary.update({f"best/{result['primary_metric']}": best[primary_metric], "best/epoch": best["epoch"]})
