"""Two sides on the same seeds and items: what forbids to compare them, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcal.metric.statistics import PairedComparison, paired_comparison
from dcal.report.compare.sides import Side
from dcal.report.format import seeds_text
from dcal.report.items import Array, Items, decode_groups, encode_groups
from dcal.report.table import differing, margin_of
from dcal.utils.errors import UserError, choose

TASKS = {"fgvc": "classification", "reid": "re-identification"}
PRIMARY_METRICS = {"fgvc": "top1", "reid": "mAP"}
READER = "dataset.reader."


class Pair(NamedTuple):
    """Two sides that were compared."""

    first: Side
    second: Side
    metric: str
    seeds: list[int | None]
    """That both have."""
    values: tuple[list[float], list[float]]
    """The metric of each side by seed, a share."""
    comparison: PairedComparison
    """`first` minus `second`, shares."""
    differing: list[str]
    """Settings in which the sides differ; empty where one of them is a file."""


def compare_sides(first: Side, second: Side, metric: str | None = None, margin: float | None = None) -> Pair:
    """Compares two sides on the seeds and the items that they share.

    Args:
        first, second: from `read_side`.
        metric: None for the primary metric of the task.
        margin: points up to which a difference does not matter; None for what `MARGINS` says.

    Raises:
        UserError: they were not judged alike, the message says in what, or they share no seed or not this metric.
    """
    check_protocol(first, second)
    task = first.items.task
    shared = [key for key in first.items.outcomes if key in second.items.outcomes]
    metric = PRIMARY_METRICS[task] if metric is None else choose("metric", metric, sorted(shared))
    seeds = shared_seeds(first, second)
    ones = [first.runs[seed] for seed in (seeds if len(first.runs) > 1 else first.runs)]
    others = [second.runs[seed] for seed in (seeds if len(second.runs) > 1 else second.runs)]
    key = item_key(first, second, [*ones, *others])
    ones, others = (sorted_alike(side, runs, key) for side, runs in ((first, ones), (second, others)))
    check_same_items(first, second, ones[0], others[0], key)
    groups = ones[0].groups if ones[0].groups is not None else others[0].groups
    first_SN, second_SN = (np.stack([items.values(metric) for items in runs]) for runs in (ones, others))
    comparison = paired_comparison(
        first_SN,
        second_SN,
        margin_of(metric, margin),
        None if groups is None else decode_groups(encode_groups(groups)),
    )
    values = first_SN.mean(1).tolist(), second_SN.mean(1).tolist()
    settings = differing([first.records[0], second.records[0]]) if first.records and second.records else []
    return Pair(first, second, metric, seeds, values, comparison, [key for key in settings if key != "cfg_id"])


def check_protocol(first: Side, second: Side) -> None:
    """Refuses sides that were judged in other ways or on other data, as far as their runs say it."""

    both = (first, second)
    refuse("task", both, [TASKS[side.items.task] for side in both])
    if not (first.records and second.records):
        return
    remedy = "dcal-evaluate run=DIR split= save_items= judges one of them again"
    refuse("split", both, [side.records[0]["split"] for side in both], remedy)
    refuse("data set", both, [side.config["dataset"] for side in both])
    for key in sorted({*first.config, *second.config}):
        if key.startswith(READER) and not key.startswith(f"{READER}train"):  # which decides nothing in a test
            options = [f"{key}={side.config.get(key)}" for side in both]
            refuse("protocol", both, options, "judge one of them again under the other's")
    digests = [side.records[0]["items"].get("images") for side in both]
    if None not in digests:
        refuse("set of images", both, [f"digest {digest}" for digest in digests], "their files or labels differ")


def refuse(what: str, sides: tuple[Side, Side], found: Sequence[str], remedy: str = "") -> None:
    """Raises a UserError if the two sides differ in this."""
    if found[0] != found[1]:
        places = ", ".join(f"{value} in {side.name}" for value, side in zip(found, sides, strict=True))
        raise UserError(f"compare: another {what}: {places}{f'; {remedy}' if remedy else ''}")


def shared_seeds(first: Side, second: Side) -> list[int | None]:
    """The seeds that both sides have; two single runs are a pair whatever their seeds are.

    Raises:
        UserError: they have none in common.
    """
    seeds = [seed for seed in first.runs if seed in second.runs]
    if seeds:
        return seeds
    if len(first.runs) == len(second.runs) == 1:
        return [None]
    texts = [seeds_text(list(side.runs)) for side in (first, second)]
    raise UserError(
        f"compare: no seed in common ({first.name}: {texts[0]}; {second.name}: {texts[1]}); name single runs, or give "
        "a CSV its column seed"
    )


def item_key(first: Side, second: Side, runs: Sequence[Items]) -> Callable[[Items], Array | None]:
    """By what items are paired: their names, or where all are from runs their positions in the split."""
    if all(items.names is not None for items in runs):
        return lambda items: items.names
    if all(items.positions is not None for items in runs):
        return lambda items: items.positions
    nameless = first if any(items.names is None for items in first.runs.values()) else second
    raise UserError(
        f"compare: {nameless.name}: an older version made it, without the names of its items; "
        "dcal-evaluate run=DIR save_items=FILE.npz writes them with names"
    )


def sorted_alike(side: Side, runs: Sequence[Items], key: Callable[[Items], Any]) -> list[Items]:
    """The items of each run in the order of `key`.

    Raises:
        UserError: an item is there twice, or the runs of a side were judged on other items than each other.
    """
    ordered = [items.take(np.argsort(key(items), kind="stable")) for items in runs]
    for items in ordered:
        names = key(items)
        if twice := np.flatnonzero(names[1:] == names[:-1]).tolist():
            raise UserError(f"compare: {side.name}: item {names[twice[0]]} is there twice, in one run")
        check_same_items(side, side, ordered[0], items, key)
    return ordered


def check_same_items(first: Side, second: Side, one: Items, other: Items, key: Callable[[Items], Any]) -> None:
    """Refuses items of which one side lacks some, or of which the sides say other labels or groups.

    Labels may have other names, as numbers and names of classes, if each has one counterpart.
    """
    names, others = key(one), key(other)
    for side, missing in ((second, np.setdiff1d(names, others)), (first, np.setdiff1d(others, names))):
        if len(missing):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"compare: other items: {missing[0]}{more} not in {side.name}; give the same items on both sides "
                f"({len(names)} of {first.name} are like {names[0]}, {len(others)} of {second.name} like {others[0]})"
            )
    for what, own, theirs in (("label", one.labels, other.labels), ("group", one.groups, other.groups)):
        if own is None or theirs is None:
            continue
        pairs: dict[Any, Any] = {}
        back: dict[Any, Any] = {}
        for name, a, b in zip(names, own.tolist(), theirs.tolist(), strict=True):
            if pairs.setdefault(a, b) != b or back.setdefault(b, a) != a:
                raise UserError(
                    f"compare: another {what}: item {name} is {a} in {first.name} and {b} in {second.name}, unlike the "
                    "others of these; were they judged on the same data?"
                )
