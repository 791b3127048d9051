"""The result of a run: reading it, and what a person reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dcal.run.directory import RESULT_FILE, Run
from dcal.run.files import read_json
from dcal.run.legacy import renamed_keys

COUNTS = ("images", "queries", "gallery")
"""Metrics that are numbers of images; over several data sets they add up."""


def read_result(directory: Path) -> dict[str, Any] | None:
    """`result.json` of a run, None if it is not finished.

    Raises:
        UserError: the file is no JSON.
    """
    file = directory / RESULT_FILE
    return renamed_keys(read_json(file)) if file.is_file() else None


def summary(result: dict[str, Any], run: Run) -> str:
    """What a person wants to read at the end of a run: the figures, where everything is, what to type next."""
    metrics = result["metrics"]
    primary_metric = result["primary_metric"]
    branches = "  ".join(
        f"{branch} {metrics[f'{primary_metric}_{branch}']:.4f}"
        for branch in ("sa", "glca")
        if f"{primary_metric}_{branch}" in metrics
    )
    title = f"{result['name']}  {result['cfg_id']}  seed {result['seed']}"
    if "label" in result:  # not of an older run
        title += f"  {result['label']}"
    members = {key.partition("/")[0]: value for key, value in metrics.items() if key.endswith(f"/{primary_metric}")}
    lines = [
        f"{title}: {primary_metric} {metrics[primary_metric]:.4f}" + (f"  ({branches})" if branches else ""),
        *([f"  members     {'  '.join(f'{name} {value:.4f}' for name, value in members.items())}"] if members else []),
        f"  everything  {run.directory}",
        *([f"  figure      {run.directory / 'examples.png'}"] if run.config.train.figures else []),
        f"  report      dcal-results report={run.directory}",
    ]
    if run.config.wandb.mode == "offline":
        lines.append(f"  dashboard   wandb sync {run.directory / 'wandb'}/offline-run-*")
    return "\n".join(lines)
