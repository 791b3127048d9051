"""A comparison in words and numbers."""

from __future__ import annotations

from statistics import mean
from typing import Any

from dcal.report.compare.pair import Pair
from dcal.report.format import DIFFERENCE, difference_cells, differences_note, metric_values, seeds_text, title_of
from dcal.report.grid import Grid, render
from dcal.report.table import show
from dcal.utils.errors import UserError

SENTENCES = {
    "better": "A is better than B",
    "worse": "A is worse than B",
    "equivalent": "A and B are equivalent",
    "undecided": "Whether A or B is better is undecided",
    "one training only": "One training each does not tell which method is better",
}
"""By verdict."""
POWER = 0.8
"""Share of repetitions of the whole experiment in which a true difference is to be found."""


def grid_of(pair: Pair, power: float | None = None) -> Grid:
    """The comparison as a table of one row; for programs without rounding, in points.

    Args:
        power: points of a true difference; adds how many seeds would find it.
    """
    found, title = pair.comparison, title_of(pair.metric)
    groups = [] if found.groups is None else [("groups", str(found.groups))]
    cells = [
        *((f"{side}, {title}", metric_values(pair.metric, own)) for side, own in zip("AB", pair.values, strict=True)),
        *zip(DIFFERENCE, difference_cells(found), strict=True),
        *(("seeds", str(found.seeds)), ("items", str(found.items)), *groups),
    ]
    numbers: dict[str, Any] = {
        "first": pair.first.name,
        "second": pair.second.name,
        "metric": pair.metric,
        "first_mean": 100 * mean(pair.values[0]),
        "second_mean": 100 * mean(pair.values[1]),
        "difference": 100 * found.mean,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "p": found.p,
        "p_sign_flip": found.p_sign_flip,
        "p_equivalence": found.p_equivalence,
        "margin": None if found.margin is None else 100 * found.margin,
        "verdict": found.verdict,
        "seeds": found.seeds,
        "items": found.items,
        "groups": found.groups,
        **({} if power is None else {"true_difference": power, "seeds_needed": seeds_for(pair, power)}),
    }
    header, row = ([cell[side] for cell in cells] for side in (0, 1))
    names = f"A = {pair.first.name}, B = {pair.second.name}"
    return Grid("comparison", names, header, [row], note_of(pair), list(numbers), [list(numbers.values())])


def text_of(pair: Pair, power: float | None = None) -> str:
    """The comparison for a reader: who is who, the finding in one sentence, and what it rests on.

    Args:
        power: points of a true difference; says how many seeds would find it.
    """
    points, *_ = difference_cells(pair.comparison)
    grid = grid_of(pair, power)
    lines = [
        grid.title,
        "",
        f"{SENTENCES[pair.comparison.verdict]}: A minus B is {points} points of {title_of(pair.metric)}.",
        "",
        render(grid, "markdown"),
    ]
    if pair.differing:
        values = [f"{key}: {' / '.join(show(side.config.get(key)) for side in pair[:2])}" for key in pair.differing]
        lines += ["", f"Settings that differ, A / B: {'; '.join(values)}."]
    return "\n".join([*lines, *(["", power_text(pair, power)] if power is not None else [])])


def note_of(pair: Pair) -> str:
    """How the verdict came about, and which runs were not used."""
    notes = [differences_note([pair.comparison]), f"Seeds: {seeds_text(pair.seeds)}."]
    for letter, side in (("A", pair.first), ("B", pair.second)):
        left_out = [seed for seed in side.runs if seed not in pair.seeds]
        if left_out and len(side.runs) > 1:
            notes.append(f"Seeds of {letter} alone, left out: {seeds_text(left_out)}.")
    if pair.comparison.seeds == 1:
        notes.append("The interval is over the items alone: how much other seeds would differ is not in it.")
    return " ".join(notes)


def seeds_for(pair: Pair, points: float) -> int | None:
    """Seeds that find a true difference of so many points in `POWER` of all repetitions; None if the items limit it.

    Raises:
        UserError: one seed was compared, which shows no spread.
    """
    if pair.comparison.seeds == 1:
        raise UserError(f"power={points:g}: one seed shows no spread between seeds; compare two sides of two or more")
    return pair.comparison.seeds_needed(points / 100, POWER)


def power_text(pair: Pair, points: float) -> str:
    """How many seeds would find a true difference, in a sentence."""
    seeds = seeds_for(pair, points)
    size = f"{points:g} point{'s' * (points != 1)}"
    if seeds is None:
        return (
            f"No number of seeds finds a true difference of {size} in {POWER:.0%} of repetitions: it takes "
            f"more items than {pair.comparison.items}."
        )
    return (
        f"{seeds} seeds find a true difference of {size} in {POWER:.0%} of repetitions, if seeds and items "
        f"spread as in these {pair.comparison.seeds}."
    )
