"""What a person reads at the end of a run."""

from __future__ import annotations

from typing import Any

from dcal.run.directory import Run


def summary(result: dict[str, Any], run: Run) -> str:
    """What a person wants to read at the end of a run: the figures, where everything is, what to type next."""
    metrics = result["metrics"]
    headline = result["headline"]
    branches = "  ".join(
        f"{branch} {metrics[f'{headline}_{branch}']:.4f}"
        for branch in ("sa", "glca")
        if f"{headline}_{branch}" in metrics
    )
    title = f"{result['name']}  {result['cfg_id']}  seed {result['seed']}"
    if "label" in result:  # not of an older run
        title += f"  {result['label']}"
    members = {key.partition("/")[0]: value for key, value in metrics.items() if key.endswith(f"/{headline}")}
    lines = [
        f"{title}: {headline} {metrics[headline]:.4f}" + (f"  ({branches})" if branches else ""),
        *([f"  members     {'  '.join(f'{name} {value:.4f}' for name, value in members.items())}"] if members else []),
        f"  everything  {run.directory}",
        *([f"  figure      {run.directory / 'examples.png'}"] if run.config.train.figures else []),
        f"  report      dcal-results report={run.directory}",
    ]
    if run.config.wandb.mode == "offline":
        lines.append(f"  dashboard   wandb sync {run.directory / 'wandb'}/offline-run-*")
    return "\n".join(lines)
