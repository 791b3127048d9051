"""How well a score tells two kinds of things apart: ROC curve, area, equal error rate, hit rate at a false-alarm rate.

A curve is exact: it has the corners of the empirical ROC (as scikit-learn's `roc_curve(drop_intermediate=False)`), and
it is built from counts, so that the negatives need not be in memory at once. Intervals are over independent units,
identities for example, by the infinitesimal jackknife: a rate changes in proportion to the share of a unit, and the
proportions of all units are spread like independent values (Efron, 1982; for areas Obuchowski, Biometrics 53, 1997).

Letters in names: P positives, N negatives, T distinct scores of positives, U units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dcal.metric.interval import Floats, estimate

Ints = NDArray[np.int64]


class Curve(NamedTuple):
    """The ROC curve of "positive if the score is at least a threshold", by threshold from the highest down."""

    threshold_T: Floats
    """The distinct scores of the positives: between two of them the hit rate does not change."""
    hits_T: Ints
    """Positives with at least this score."""
    above_T: Ints
    """Negatives with a higher score."""
    alarms_T: Ints
    """Negatives with at least this score."""
    positives: int
    negatives: int

    def corners(self) -> tuple[Floats, Floats]:
        """False-alarm rate and hit rate at the corners of the curve, from (0, 0) to (1, 1): (2 T + 2,) each."""
        before_T = np.concatenate([[0], self.hits_T])[:-1]
        x = np.stack([self.above_T, self.alarms_T], axis=1).ravel() / self.negatives
        y = np.stack([before_T, self.hits_T], axis=1).ravel() / self.positives
        return np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])


class Point(NamedTuple):
    """A point of a curve that a threshold reaches."""

    threshold: float
    """Infinity where no threshold keeps the false-alarm rate: nothing is accepted."""
    hit_rate: float
    alarm_rate: float


class Rate(NamedTuple):
    """A rate with its 95 % interval over units; the ends are NaN where there are fewer than two units."""

    value: float
    low: float
    high: float


def curve_of(positives: ArrayLike, negatives: ArrayLike) -> Curve:
    """The curve of scores in memory.

    Args:
        positives: (P,) scores; -inf for a positive that no threshold may accept.
        negatives: (N,) scores.

    Raises:
        ValueError: none of one kind, or NaN.
    """
    positive_P, negative_N = np.asarray(positives, np.float64), np.sort(np.asarray(negatives, np.float64))
    if not len(positive_P) or not len(negative_N) or np.isnan(positive_P).any() or np.isnan(negative_N).any():
        raise ValueError(f"{len(positive_P)} positives, {len(negative_N)} negatives: a curve needs both, and no NaN")
    score_T, count_T = np.unique(positive_P[positive_P > -np.inf], return_counts=True)
    score_T = score_T[::-1]
    at_least_T, above_T = (len(negative_N) - np.searchsorted(negative_N, score_T, side) for side in ("left", "right"))
    return Curve(score_T, np.cumsum(count_T[::-1]), above_T, at_least_T, len(positive_P), len(negative_N))


def area(curve: Curve) -> float:
    """Area under the curve: how often a positive scores above a negative; equal scores count half."""
    hits_T = np.diff(curve.hits_T, prepend=0)
    lower_T = curve.negatives - (curve.above_T + curve.alarms_T) / 2
    return float((hits_T * lower_T).sum() / curve.positives / curve.negatives)


def equal_error_rate(curve: Curve) -> Point:
    """Where as large a share of the negatives is accepted as of the positives is refused.

    That is where the curve crosses the diagonal from (0, 1) to (1, 0); between two corners it is a straight line. The
    equal error rate is `alarm_rate`; the threshold is that of the corner behind the crossing.
    """
    x, y = curve.corners()
    after = int(np.argmax(x + y >= 1))
    step_x, step_y = x[after] - x[after - 1], y[after] - y[after - 1]
    rate = float(x[after - 1] + step_x * (1 - x[after - 1] - y[after - 1]) / (step_x + step_y))
    scores = curve.threshold_T
    return Point(float(scores[min((after - 1) // 2, len(scores) - 1)]) if len(scores) else np.inf, 1 - rate, rate)


def hit_rate_at(curve: Curve, alarm_rate: float) -> Point:
    """The largest hit rate of the thresholds whose false-alarm rate is at most `alarm_rate`."""
    allowed = int(np.searchsorted(curve.alarms_T, np.floor(alarm_rate * curve.negatives * (1 + 1e-12)), "right"))
    if not allowed:
        return Point(np.inf, 0.0, 0.0)
    at = allowed - 1
    return Point(float(curve.threshold_T[at]), curve.hits_T[at] / curve.positives, curve.alarms_T[at] / curve.negatives)


def slope(curve: Curve, alarm_rate: float) -> float:
    """How fast the hit rate grows with the false-alarm rate there: between half of it and twice."""
    x, y = curve.corners()
    low, high = alarm_rate / 2, min(2 * alarm_rate, 1.0)
    ends = np.interp([low, high], x, y)
    return float((ends[1] - ends[0]) / (high - low)) if high > low else 0.0


class Sums(NamedTuple):
    """A sum over positives or negatives, by unit: (U,)."""

    positive_U: Floats
    negative_U: Floats


def rate_of(curve: Curve, value: float, change: Sums, count: Sums, weights: tuple[float, float]) -> Rate:
    """A rate with its interval.

    Args:
        value: the rate.
        change: what each unit's positives and negatives add up to of the quantity whose means the rate depends on.
        count: how many positives and negatives each unit has. A pair of two units belongs to both.
        weights: by how much the rate grows with the mean over the positives, and with that over the negatives.
    """
    units_U = np.zeros_like(change.positive_U)
    for kind, weight, total in zip((0, 1), weights, (curve.positives, curve.negatives), strict=True):
        mean = change[kind].sum() / count[kind].sum()  # not over total: a pair counts for both of its units
        units_U += weight * (change[kind] - count[kind] * mean) / total
    units_U = units_U[(count.positive_U + count.negative_U) > 0]
    if len(units_U) < 2:
        return Rate(value, np.nan, np.nan)
    low, high = estimate((value + len(units_U) * units_U)[None]).interval
    return Rate(value, max(0.0, float(low)), min(1.0, float(high)))


def hit_rate_interval(curve: Curve, point: Point, accepted: Sums, count: Sums) -> Rate:
    """The hit rate at a false-alarm rate; that the threshold is chosen on these negatives is part of the interval.

    Args:
        accepted: how many of each unit's positives and negatives score at least the threshold of `point`.
        count: how many it has.
    """
    return rate_of(curve, point.hit_rate, accepted, count, (1.0, -slope(curve, point.alarm_rate)))


def equal_error_interval(curve: Curve, point: Point, accepted: Sums, count: Sums) -> Rate:
    """The equal error rate; arguments as for `hit_rate_interval`."""
    steep = slope(curve, point.alarm_rate)
    return rate_of(curve, point.alarm_rate, accepted, count, (-1 / (1 + steep), steep / (1 + steep)))


def area_interval(curve: Curve, placement: Sums, count: Sums) -> Rate:
    """The area.

    Args:
        placement: for each unit the sum over its positives of the share of negatives that score lower (an equal one
            counts half), and over its negatives of the share of positives that score higher.
        count: how many it has.
    """
    return rate_of(curve, area(curve), placement, count, (1.0, 1.0))


def rate_entry(rate: Rate, point: Point | None = None) -> dict[str, float]:
    """A rate as JSON can hold it: `value`, `low`, `high`, `threshold`, without what is not a finite number."""
    entry = {**rate._asdict(), **({} if point is None else {"threshold": point.threshold})}
    return {name: float(value) for name, value in entry.items() if np.isfinite(value)}


def sums_of(unit_P: Ints, value_P: ArrayLike, unit_N: Ints, value_N: ArrayLike, units: int) -> Sums:
    """Sums by unit of values of positives and negatives in memory."""

    def by_unit(unit: Ints, value: ArrayLike) -> Floats:
        return np.bincount(unit, np.asarray(value, np.float64), units).astype(np.float64)

    return Sums(by_unit(unit_P, value_P), by_unit(unit_N, value_N))
