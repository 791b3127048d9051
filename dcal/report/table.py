"""Tables from records: which runs make a row, and the numbers in it.

Letters: S seeds of a row, N test items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from statistics import mean
from typing import Any, NamedTuple

from dcal.metric.interval import Interval, mean_interval
from dcal.metric.statistics import PairedComparison, holm_verdicts, paired_comparison
from dcal.report.items import Outcomes, decode_outcomes, outcomes
from dcal.report.records import Results, RunRecord
from dcal.run.identity import is_idle
from dcal.utils.errors import UserError

MARGINS = {"top1": 0.5, "mAP": 1.0}
"""Metric, of any branch → points up to which a difference does not matter."""


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
    """Metrics; the first gets the interval and the comparison. None: the primary metric."""
    against: dict[str, Any] = field(default_factory=dict)
    """A row is compared with the row that has these values instead of its own."""
    primary: list[str] = field(default_factory=list)
    """Labels whose comparison was declared before the runs; the others are exploratory."""
    margin: float | None = None
    """Points up to which a difference does not matter; None: that of the metric in `MARGINS`."""
    order: list[str] = field(default_factory=list)
    """Labels in the order of the rows; others follow sorted."""
    paper: dict[str, Any] = field(default_factory=dict)
    """The paper's figures by label."""
    command: str = ""
    """What makes the runs."""

    def takes(self, file: str) -> bool:
        """Whether the table is made of the runs of this file."""
        return any(fnmatch(file, pattern) for pattern in self.runs)


LISTS = ("runs", "by", "show", "columns", "primary", "order")
"""Keys of an entry that hold lists of words."""


class Row(NamedTuple):
    """One configuration over its seeds."""

    label: str
    records: list[RunRecord]
    """By seed."""
    values: dict[str, list[float]]
    """Metric → S values."""
    interval: Interval | None
    """Of the first metric, a share, over seeds and test items; None where outcomes of items are not recorded."""
    difference: PairedComparison | None
    """Against its reference; None for a reference itself."""

    @property
    def primary(self) -> float:
        return mean(next(iter(self.values.values())))


class Table(NamedTuple):
    spec: Spec
    rows: list[Row]


def margin_of(metric: str, points: float | None = None) -> float | None:
    """Share up to which a difference does not matter, by `points` or else by `MARGINS`; None where neither says so."""
    points = MARGINS.get(metric.split("_")[0]) if points is None else points
    return None if points is None else points / 100


def axis_range(rows: Sequence[Row]) -> tuple[float, float]:
    """Where an axis for the first metric of all rows begins and ends: it has room for every seed, and for intervals.

    An interval may reach beyond: one from two seeds that differ is so long that nothing else could be told apart.
    """
    values = [value for row in rows for value in next(iter(row.values.values()))]
    low, high = min(values), max(values)
    room = (high - low) or 0.05
    ends = [end for row in rows if row.interval for end in row.interval]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    margin = 0.04 * (high - low) or 0.01
    return low - margin, high + margin


def specs(entries: Any) -> list[Spec]:
    """The entries of `experiments/tables.yaml`.

    Raises:
        UserError: no entries by name, an entry without keys, an unknown key, no `runs`, or `primary` without `against`.
    """
    known = {entry.name for entry in fields(Spec)} - {"name"}
    found = []
    if not isinstance(entries, Mapping):
        raise UserError("tables.yaml: give each table a name, and its keys below it")
    for name, given in entries.items():
        if str(name).startswith("_"):
            continue
        if not isinstance(given, Mapping):
            raise UserError(f"tables.yaml, {name}: give the keys of a table, such as runs")
        entry: dict[str, Any] = {  # one word stands for a list of it, null for what is not given
            key: [value] if key in LISTS and isinstance(value, str) else value
            for key, value in given.items()
            if value is not None
        }
        unknown = sorted(set(entry) - known)
        if unknown or "runs" not in entry:
            raise UserError(f"tables.yaml, {name}: {f'unknown {unknown}' if unknown else 'runs is missing'}")
        if entry.get("primary") and not entry.get("against"):
            raise UserError(f"tables.yaml, {name}: primary names comparisons, and against is missing")
        where = {key: value for key, value in entry.get("where", {}).items() if key not in entry.get("by", ())}
        found.append(Spec(name, **{**entry, "where": where}))
    return found


def make_table(spec: Spec, results: Mapping[str, Results]) -> Table:
    """Fills a table from records.

    Raises:
        UserError: runs of one row differ in more than the seed, or have no value in the first column.
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
    records = with_shared_ids(records)
    by = differing(records) if spec.by is None else spec.by
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(label_of(record, by), []).append(record)
    rank = {label: number for number, label in enumerate(spec.order)}
    labels = sorted(groups, key=lambda label: (rank.get(label, len(rank)), label))
    for label in labels:
        groups[label].sort(key=lambda record: int(record["seed"]))
        if len({record["cfg_id"] for record in groups[label]}) > 1:
            raise UserError(
                f"tables.yaml, {spec.name}: the row '{label}' mixes runs that differ in "
                f"{', '.join(differing(groups[label]))}: name them in `by` or `where`"
            )
    columns = spec.columns or [records[0]["primary_metric"]]
    values = {label: {metric: column(groups[label], metric) for metric in columns} for label in labels}
    if lacking := [label for label in labels if not values[label][columns[0]]]:
        raise UserError(f"tables.yaml, {spec.name}: {lacking[0]} has no {columns[0]}, the first of the columns")
    judged = {label: outcomes(groups[label], columns[0]) for label in labels}
    differences = compare(spec, by, groups, judged, columns[0])
    rows = [
        Row(label, groups[label], values[label], share_interval(judged[label]), differences.get(label))
        for label in labels
    ]
    return Table(spec, rows)


def with_sa(record: RunRecord) -> RunRecord:
    """The record with its primary metric as that of SA, too, if there is no GLCA: Re-ID does not repeat it then."""
    if record["config"]["attention"] not in ("none", "pwca"):
        return record
    primary_metric = record["primary_metric"]
    own = {
        key: {f"{primary_metric}_sa": record[key][primary_metric], **record[key]}
        for key in ("metrics", "items")
        if primary_metric in record[key]
    }
    return {**record, **own}


def with_shared_ids(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The records, those of one configuration that was judged on the same items under one id.

    Older versions gave a run another id for an option that decides nothing in it. Where two ids have a run of the same
    seed, both stay.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        config = record["config"]
        settings = {key: value for key, value in sorted(config.items()) if not is_idle(key, config)}
        items = record["items"]
        groups.setdefault(repr((settings, record["split"], items["digest"], items.get("images"))), []).append(record)
    ids: dict[int, str] = {}
    for group in groups.values():
        if len({record["seed"] for record in group}) == len(group):
            ids |= {id(record): min(other["cfg_id"] for other in group) for record in group}
    return [{**record, "cfg_id": ids.get(id(record), record["cfg_id"])} for record in records]


def matches(record: RunRecord, where: Mapping[str, Any]) -> bool:
    config = {**record["config"], "split": record["split"]}
    return all(
        is_idle(key, config) or (config.get(key) in wanted if isinstance(wanted, list) else config.get(key) == wanted)
        for key, wanted in where.items()
    )


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Keys in which configurations differ; numbers of blocks only where `attention` does not say as much."""
    configs = [record["config"] for record in records]
    keys = sorted({key for config in configs for key in config})
    values = {key: [config.get(key) for config in configs if not is_idle(key, config)] for key in keys}
    found = [key for key in keys if any(value != values[key][0] for value in values[key])]

    def implied(key: str) -> bool:
        pairs = {(config["attention"], show(config.get(key))) for config in configs}
        by_attention = len(pairs) == len({attention for attention, _ in pairs})
        return key in ("attention.glca.blocks", "attention.pwca.blocks") and by_attention

    kept = [key for key in found if not implied(key)]
    told = {(record["cfg_id"], label_of(record, kept)) for record in records}
    return kept if len(told) == len({label for _, label in told}) else [*kept, "cfg_id"]


def label_of(record: RunRecord, by: Sequence[str]) -> str:
    """The values of the keys, e.g. `dcal, 0.0004`; not those that decide nothing without a branch that is off."""
    config = {"cfg_id": record["cfg_id"], **record["config"]}
    return ", ".join(show(config.get(key)) for key in by if not is_idle(key, config)) or "all"


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ("×" if all(isinstance(entry, int) for entry in value) else " + ").join(map(show, value))
    return "all" if value is None else str(value)


def column(records: Sequence[RunRecord], metric: str) -> list[float]:
    """A metric by seed: the mean over recorded items where there are some, so that it fits the interval."""
    return [
        float(decode_outcomes(record["items"][metric]).mean())
        if metric in record["items"]
        else record["metrics"][metric]
        for record in records
        if metric in record["items"] or metric in record["metrics"]
    ]


def share_interval(judged: Outcomes | None) -> Interval | None:
    """The interval of a share, which is never below 0 nor above 1."""
    if judged is None:
        return None
    low, high = mean_interval(judged.values_SN, judged.groups)
    return Interval(max(low, 0.0), min(high, 1.0))


def compare(
    spec: Spec,
    by: Sequence[str],
    groups: Mapping[str, Sequence[RunRecord]],
    judged: Mapping[str, Outcomes | None],
    metric: str,
) -> dict[str, PairedComparison]:
    """Each row against its reference, on the seeds that both have; not where they share none, or judged other items."""
    found = {}
    for label, records in groups.items():
        reference = label_of({**records[0], "config": {**records[0]["config"], **spec.against}}, by)
        own, other = judged[label], judged.get(reference)
        if label == reference or own is None or other is None or not own.same_items(other):
            continue
        if difference := minus(own, other, margin_of(metric, spec.margin)):
            found[label] = difference
    primary = [label for label in spec.primary if label in found]
    corrected = holm_verdicts([found[label] for label in primary], declared=len(spec.primary))
    return found | dict(zip(primary, corrected, strict=True))


def minus(one: Outcomes, other: Outcomes, margin: float | None) -> PairedComparison | None:
    """The comparison of outcomes of the same items on the seeds that both have; None where they share none.

    Args:
        margin: share up to which a difference does not matter; None where nobody has said so.
    """
    if not (seeds := sorted(set(one.seeds) & set(other.seeds))):
        return None
    first, second = (side.values_SN[[side.seeds.index(seed) for seed in seeds]] for side in (one, other))
    return paired_comparison(first, second, margin, one.groups)
