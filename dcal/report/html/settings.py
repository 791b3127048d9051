"""Configurations side by side: what all runs share, and what differs."""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from dcal.report.format import commit_of, distinct
from dcal.report.html.experiment import Experiment, Variant
from dcal.report.records import common
from dcal.report.table import show

NOT_SETTINGS = ("seed", "name", "wandb.", "run.")
"""What names a run or says where it goes."""
WHERE = ("commit", "device", "torch", "timm", "python")
"""What is no key of the configuration; last in the tables."""


class Settings(NamedTuple):
    """Two tables of keys and values."""

    labels: list[str]
    differing: list[tuple[str, list[str]]]
    """Key, and its value in each configuration."""
    shared: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    """Configuration and what was typed for its first seed."""


def settings(experiment: Experiment) -> Settings:
    """The resolved configurations, and code and hardware, by configuration."""
    nodes = [all_of(variant) for variant in experiment.variants]
    same = common(nodes)
    keys = sorted({key for node in nodes for key in node} - set(same), key=lambda key: (key in WHERE, key))
    return Settings(
        [variant.label for variant in experiment.variants],
        [(key, [shown(node.get(key)) for node in nodes]) for key in keys],
        [(key, shown(value)) for key, value in same.items()],
        [(variant.label, command(variant)) for variant in experiment.variants if variant.runs[0].overrides],
    )


def all_of(variant: Variant) -> dict[str, Any]:
    """Everything that is set, of the first seed; code and hardware over all seeds."""
    found = {key: value for key, value in variant.runs[0].config.items() if not key.startswith(NOT_SETTINGS)}
    records = variant.row.records
    found["commit"] = " + ".join(distinct(map(commit_of, records)))
    found["device"] = " + ".join(distinct(record["device"] or "not recorded" for record in records))
    for package in ("torch", "timm", "python"):
        found[package] = " + ".join(distinct(record["versions"].get(package, "?") for record in records))
    return found


def shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else show(value)


def command(variant: Variant) -> str:
    """What was typed, with the seeds of all runs in one command."""
    words = [word for word in variant.runs[0].overrides if not word.startswith("seed=")]
    seeds = ",".join(str(record["seed"]) for record in variant.row.records)
    return " ".join(["dcal-train", *(["-m"] if "," in seeds else []), *map(shlex.quote, words), f"seed={seeds}"])
