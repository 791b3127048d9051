"""Tables from records: which runs make a row, and the numbers in it.

Letters: S seeds of a row, B bootstrap resamples, N test items, K series (one per run and metric).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from dcal.metric.statistics import (
    Difference,
    Floats,
    Interval,
    interval,
    paired_difference,
    resampled_means,
)
from dcal.report.records import Record, Results, decode
from dcal.run.identity import is_idle


@dataclass
class Spec:
    """An entry of `experiments/tables.yaml`."""

    name: str
    runs: list[str]
    """Files of records without `.json`; `*` matches."""
    title: str = ""
    by: list[str] | None = None
    """Configuration keys that make a row; None: all that differ."""
    where: dict[str, Any] = field(default_factory=dict)
    """Only runs whose configuration has these values (or one of a list of values)."""
    show: list[str] = field(default_factory=list)
    """Further configuration keys to print."""
    columns: list[str] | None = None
    """Metrics; the first gets the interval and the comparison. None: the headline."""
    against: dict[str, Any] = field(default_factory=dict)
    """A row is compared with the row that has these values instead of its own."""
    order: list[str] = field(default_factory=list)
    """Labels in the order of the rows; others follow sorted."""
    paper: dict[str, Any] = field(default_factory=dict)
    """The paper's figures by label."""
    command: str = ""
    """What makes the runs."""

    def takes(self, file: str) -> bool:
        """Whether the table is made of the runs of this file."""
        return any(fnmatch(file, pattern) for pattern in self.runs)


class Row(NamedTuple):
    """One configuration over its seeds."""

    label: str
    records: list[Record]
    """By seed."""
    values: dict[str, list[float]]
    """Metric → S values."""
    interval: Interval | None
    """Of the first metric over test items; None where outcomes of items are not recorded."""
    difference: Difference | None
    """Against its reference; None for a reference itself."""

    @property
    def headline(self) -> float:
        return mean(next(iter(self.values.values())))


class Table(NamedTuple):
    spec: Spec
    rows: list[Row]


def specs(entries: Mapping[str, Any]) -> list[Spec]:
    """The entries of `experiments/tables.yaml`.

    Raises:
        ValueError: an unknown key, or no `runs`.
    """
    known = {entry.name for entry in fields(Spec)} - {"name"}
    found = []
    for name, entry in entries.items():
        if name.startswith("_"):
            continue
        unknown = sorted(set(entry) - known)
        if unknown or "runs" not in entry:
            raise ValueError(f"tables.yaml, {name}: {f'unknown {unknown}' if unknown else 'runs is missing'}")
        runs = entry["runs"]
        where = {key: value for key, value in entry.get("where", {}).items() if key not in entry.get("by", ())}
        runs = [runs] if isinstance(runs, str) else runs
        found.append(Spec(name, **{**entry, "runs": runs, "where": where}))
    return found


def make_table(spec: Spec, results: Mapping[str, Results], resamples: int = 10_000) -> Table:
    """Fills a table from records.

    Raises:
        ValueError: runs of one row differ in more than the seed.
    """
    records = [
        with_sa(record)
        for name in results
        if spec.takes(name)
        for record in results[name]["runs"]
        if matches(record, spec.where)
    ]
    if not records:
        return Table(spec, [])
    by = differing(records) if spec.by is None else spec.by
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(label_of(record, by), []).append(record)
    rank = {label: number for number, label in enumerate(spec.order)}
    labels = sorted(groups, key=lambda label: (rank.get(label, len(rank)), label))
    for label in labels:
        groups[label].sort(key=lambda record: int(record["seed"]))
        check_row(spec, label, groups[label])
    columns = spec.columns or [records[0]["headline"]]
    values = {label: {metric: column(groups[label], metric) for metric in columns} for label in labels}
    means = resample(groups, columns[0], resamples)
    rows = []
    for label in labels:
        covered = interval(means[label]) if label in means else None
        difference = compare(spec, label, by, groups, columns[0], means)
        rows.append(Row(label, groups[label], values[label], covered, difference))
    return Table(spec, rows)


def with_sa(record: Record) -> Record:
    """The record with its headline as SA's, too, where the model has no GLCA: Re-ID's evaluation does not repeat it."""
    if record["config"]["attention"] not in ("none", "pwca"):
        return record
    headline = record["headline"]
    own = {
        key: {f"{headline}_sa": record[key][headline], **record[key]}
        for key in ("metrics", "items")
        if headline in record[key]
    }
    return {**record, **own}


def matches(record: Record, where: Mapping[str, Any]) -> bool:
    config = {**record["config"], "split": record["split"]}
    return all(
        is_idle(key, config) or (config.get(key) in wanted if isinstance(wanted, list) else config.get(key) == wanted)
        for key, wanted in where.items()
    )


def differing(records: Sequence[Record]) -> list[str]:
    """Keys in which configurations differ; numbers of blocks only where `attention` does not say as much."""
    configs = [record["config"] for record in records]
    keys = sorted({key for config in configs for key in config})
    found = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]

    def implied(key: str) -> bool:
        pairs = {(config["attention"], config[key]) for config in configs}
        by_attention = len(pairs) == len({attention for attention, _ in pairs})
        return key in ("attention.glca.blocks", "attention.pwca.blocks") and by_attention

    kept = [key for key in found if not implied(key)]
    told = {(record["cfg_id"], label_of(record, kept)) for record in records}
    return kept if len(told) == len({label for _, label in told}) else [*kept, "cfg_id"]


def label_of(record: Record, by: Sequence[str]) -> str:
    """The values of the keys, e.g. `dcal, 0.0004`; not those that decide nothing without a branch that is off."""
    config = {**record["config"], "cfg_id": record["cfg_id"]}
    return ", ".join(show(config.get(key)) for key in by if not is_idle(key, config)) or "all"


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ("×" if all(isinstance(entry, int) for entry in value) else " + ").join(map(show, value))
    return "all" if value is None else str(value)


def check_row(spec: Spec, label: str, records: Sequence[Record]) -> None:
    if len({record["cfg_id"] for record in records}) > 1:
        keys = ", ".join(differing(records))
        raise ValueError(
            f"tables.yaml, {spec.name}: the row '{label}' mixes runs that differ in {keys}: "
            "name them in `by` or `where`"
        )


def column(records: Sequence[Record], metric: str) -> list[float]:
    """A metric by seed: the mean over recorded items where there are some, so that it fits the interval."""
    return [
        float(decode(record["items"][metric]).mean()) if metric in record["items"] else record["metrics"][metric]
        for record in records
        if metric in record["items"] or metric in record["metrics"]
    ]


def resample(groups: Mapping[str, Sequence[Record]], metric: str, resamples: int) -> dict[str, Floats]:
    """Bootstrap means (B, S) of the rows with recorded items; rows with the same items share the draws."""
    means: dict[str, Floats] = {}
    judged: dict[str, list[str]] = {}
    for label, records in groups.items():
        digests = {record["items"]["digest"] for record in records if metric in record["items"]}
        if len(digests) == 1 and all(metric in record["items"] for record in records):
            judged.setdefault(digests.pop(), []).append(label)
    for labels in judged.values():
        series_KN = np.stack([decode(r["items"][metric]) for label in labels for r in groups[label]])
        means_BK = resampled_means(series_KN, resamples)
        first = 0
        for label in labels:
            means[label] = means_BK[:, first : first + len(groups[label])]
            first += len(groups[label])
    return means


def compare(
    spec: Spec,
    label: str,
    by: Sequence[str],
    groups: Mapping[str, Sequence[Record]],
    metric: str,
    means: Mapping[str, Floats],
) -> Difference | None:
    """A row against its reference, on the seeds and items both have; None if they share none."""
    record = groups[label][0]
    reference = label_of({**record, "config": {**record["config"], **spec.against}}, by)
    if label == reference or label not in means or reference not in means:
        return None
    own, other = ({r["seed"]: n for n, r in enumerate(groups[name])} for name in (label, reference))
    seeds = sorted(own.keys() & other.keys())
    same_items = record["items"]["digest"] == groups[reference][0]["items"]["digest"]
    if not seeds or not same_items:
        return None
    mine, theirs = [own[seed] for seed in seeds], [other[seed] for seed in seeds]
    values, reference_values = (
        np.array(column(groups[label], metric)),
        np.array(column(groups[reference], metric)),
    )
    return paired_difference(values[mine], reference_values[theirs], means[label][:, mine], means[reference][:, theirs])
