"""How metrics and branches are called in a report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from dcal.report.format import spread

BRANCHES = {"": "combined", "sa": "SA", "glca": "GLCA", "pwca": "PWCA"}
"""By suffix of a metric's name. PWCA has losses only."""

METRICS = {
    "top1": "top-1",
    "top1_macro": "top-1, mean of classes",
    "top5": "top-5",
    "nll": "NLL",
    "mAP": "mAP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "mINP": "mINP",
}
VARIANTS = {**BRANCHES, "rerank": "re-ranked"}
ONE_BRANCH = {"": "SA", "rerank": "re-ranked"}
"""Where SA is all there is at test time."""


def metric_title(key: str) -> str:
    """The title of a metric without a branch."""
    return METRICS.get(key, key)


def split_metric(key: str) -> tuple[str, str]:
    """A metric's name and its branch: `top1_macro_sa` is (`top1_macro`, `sa`)."""
    name, _, last = key.rpartition("_")
    return (name, last) if name and last in VARIANTS else (key, "")


def metric_values(name: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds as a table shows it: shares in percent, others as they are."""
    if name != "nll":
        return spread(values)
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
