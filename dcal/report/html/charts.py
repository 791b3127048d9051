"""Small line charts and interval strips as SVG geometry; the template draws them.

A report is opened without a server and on any screen, so charts are inline SVG whose colours are the page's. What they
show is computed here: ticks, paths, and the numbers that a pointer reads off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from types import SimpleNamespace
from typing import NamedTuple

from dcal.report.table import Row, axis_range

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
LOG_FROM = 100.0
"""A logarithmic axis where the largest value is that many times the smallest."""


class Point(NamedTuple):
    """A value over seeds."""

    x: float
    y: float
    low: float
    high: float


class Series(NamedTuple):
    """One line of a chart."""

    name: str
    points: list[Point]
    colour: int
    """Number of the page's colour."""


def over_seeds(curves: Sequence[Mapping[float, float]]) -> list[Point]:
    """Mean, least and greatest where all seeds have a value."""
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    values = {x: [curve[x] for curve in curves] for x in sorted(shared)}
    return [Point(x, mean(ys), min(ys), max(ys)) for x, ys in values.items()]


def chart(title: str, series: Sequence[Series], linear: bool = True) -> SimpleNamespace | None:
    """A chart over epochs in the coordinates of the SVG, by the names of the template; None without values.

    Unless `linear`, the axis is logarithmic where values differ much.
    """
    series = [line for line in series if line.points]
    if not series:
        return None
    points = [point for line in series for point in line.points]
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    logarithmic = not linear and lowest > 0 and highest / lowest > LOG_FROM
    y_values = log_ticks(lowest, highest) if logarithmic else ticks(lowest, highest, 5)
    y_scale = Scale(y_values[0], y_values[-1], HEIGHT - BOTTOM, TOP, logarithmic)
    last = max(point.x for point in points)
    x_values = [x for x in ticks(0.0, last, 6) if x <= last and x == round(x)] if last > 1 else [0.0, 1.0]
    x_scale = Scale(0.0, max(last, 1.0), LEFT, WIDTH - RIGHT)
    lines = []
    for entry in series:
        mid = [(x_scale(p.x), y_scale(p.y)) for p in entry.points]
        band = [(x_scale(p.x), y_scale(p.high)) for p in entry.points]
        band += [(x_scale(p.x), y_scale(p.low)) for p in reversed(entry.points)]
        spread = any(p.high > p.low for p in entry.points)
        lines.append(
            SimpleNamespace(
                name=entry.name,
                colour=entry.colour,
                path=path(mid),
                band=path(band) + "Z" if spread else "",  # least to greatest over seeds; empty for one seed
                dots=mid if len(mid) <= 12 else [],  # where few values were measured
            )
        )
    ends = "; ".join(
        f"{line.name} from {axis_text(line.points[0].y)} to {axis_text(line.points[-1].y)}" for line in series
    )
    return SimpleNamespace(
        title=title,
        lines=lines,
        x_ticks=[(x_scale(x), f"{x:g}") for x in x_values],
        y_ticks=[(y_scale(y), axis_text(y)) for y in y_values],
        numbers=numbers(series, x_scale),
        summary=f"{title} by epoch: {ends}",  # for those who cannot see it
    )


def numbers(series: Sequence[Series], x_scale: Scale) -> str:
    """What the pointer shows, as JSON: position and epoch of each x, and the values of each line."""
    xs = sorted({point.x for line in series for point in line.points})
    values = {}
    for line in series:
        at = {point.x: point for point in line.points}
        values[line.name] = [axis_text(at[x].y) if x in at else None for x in xs]
    return json.dumps({"at": [round(x_scale(x), 1) for x in xs], "epoch": xs, "values": values})


class Scale(NamedTuple):
    """From values to pixels."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.first + share * (self.last - self.first)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, the first at most `low` and the last at least `high`."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around the values, every one or every few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    return [10.0**power for power in range(first, last + step, step)]


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def axis_text(value: float) -> str:
    """A number short enough for the margin of an axis: at most seven characters."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.4g}"


def strips(rows: Sequence[Row], reference: Row | None) -> list[SimpleNamespace]:
    """The first metric of each row as a mark on a scale that all rows share, in percent of the width."""
    scale = Scale(*axis_range(rows), 0.0, 100.0)
    return [
        SimpleNamespace(
            low=max(0.0, scale(row.interval.low if row.interval else row.primary)),
            high=min(100.0, scale(row.interval.high if row.interval else row.primary)),
            middle=scale(row.primary),
            seeds=[scale(value) for value in next(iter(row.values.values()))],
            reference=None if reference is None else scale(reference.primary),
        )
        for row in rows
    ]
