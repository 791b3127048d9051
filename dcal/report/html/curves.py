"""Learning curves of an experiment: which charts there are, and which lines they hold."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from dcal.report.format import BRANCHES, metric_title
from dcal.report.html.charts import Point, Series, chart, over_seeds
from dcal.report.html.experiment import Experiment, Variant
from dcal.report.html.run_files import RunFiles

LINES = 8
"""Colours that can be told apart."""


def charts(experiment: Experiment) -> list[SimpleNamespace]:
    """Validation, losses, weights and learning rate: by branch for one configuration, else by configuration."""
    shown, metric = experiment.variants[:LINES], experiment.primary_metric
    split = experiment.table.rows[0].records[0]["split"]  # evaluated after each epoch: `test` if nothing is held out
    key, title = f"{split}/{metric}", f"{metric_title(metric)} on {split}, %"
    found = by_branch(shown[0], key, title) if len(shown) == 1 else by_variant(shown, key, title)
    return [entry for entry in found if entry is not None]


def by_branch(variant: Variant, metric: str, title: str) -> list[SimpleNamespace | None]:
    """A line per branch.

    Args:
        metric: what was evaluated after each epoch, as `test/top1`, and the title of its chart.
    """

    def lines(prefix: str, branches: Sequence[str], factor: float = 1.0) -> list[Series]:
        found = [
            Series(BRANCHES[branch], of(variant.runs, f"{prefix}_{branch}" if branch else prefix, factor), number)
            for number, branch in enumerate(BRANCHES)
            if branch in branches
        ]
        return [line for line in found if line.points]

    judged = lines(metric, ("sa", "glca"), 100)
    if len(judged) > 1:
        judged = lines(metric, ("", "sa", "glca"), 100)
    weights = lines("train/weight", ("sa", "glca", "pwca"))
    return [
        chart(title, judged or lines(metric, ("",), 100)),
        chart("Training loss of each branch", lines("train/loss", ("sa", "glca", "pwca")), linear=False),
        chart("Weight of each loss", weights if len(weights) > 1 else []),
        chart("Learning rate", [Series("learning rate", of(variant.runs, "train/lr"), 0)]),
    ]


def by_variant(variants: Sequence[Variant], metric: str, title: str) -> list[SimpleNamespace | None]:
    """A chart per quantity, a line per configuration; the arguments are as in `by_branch`."""

    def one(title: str, key: str, factor: float = 1.0, linear: bool = True) -> SimpleNamespace | None:
        shown = [(n, v) for n, v in enumerate(variants) if weighed(v) or not key.startswith("train/weight")]
        return chart(title, [Series(v.label, of(v.runs, key, factor), n) for n, v in shown], linear)

    def weighed(variant: Variant) -> bool:
        """A single loss has nothing to be weighed against."""
        return any(of(variant.runs, f"train/loss_{key}") for key in ("glca", "pwca"))

    branches = {key: name for key, name in BRANCHES.items() if key}
    return [
        one(title, metric, 100),
        *(one(f"Training loss, {name}", f"train/loss_{key}", linear=False) for key, name in branches.items()),
        *(one(f"Weight of the loss, {name}", f"train/weight_{key}") for key, name in branches.items()),
        one("Learning rate", "train/lr"),
    ]


def of(runs: Sequence[RunFiles], key: str, factor: float = 1.0) -> list[Point]:
    """A logged value by epoch, over seeds."""
    return over_seeds([{line["epoch"]: factor * line[key] for line in run.lines if key in line} for run in runs])
