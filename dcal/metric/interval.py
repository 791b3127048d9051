"""How sure a mean is: its 95 % interval over seeds and test items.

Another run would have another seed, another benchmark other test items: both are drawn at random here. A table of
S seeds × U units has three mean squares (between seeds, between units, and what is left; Searle, Casella and
McCulloch, "Variance Components", 1992). They estimate the variance of the mean, its degrees of freedom follow
Satterthwaite (1946), and the interval is Student's t.

Letters in names: S seeds, N test items, U units. A unit is what was drawn independently: an item, or a group of items
that belong together, such as the queries of one person.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dcal.utils.errors import UserError

Floats = NDArray[np.float64]

ALPHA = 0.05


class Interval(NamedTuple):
    """A confidence interval of 95 %."""

    low: float
    high: float


class MeanSquares(NamedTuple):
    """The mean squares of a table of seeds × units; each a number, or an array over tables."""

    seeds: Any
    units: Any
    rest: Any


class Estimate(NamedTuple):
    """A mean over seeds and units and how sure it is; each a number, or an array over tables."""

    mean: Any
    error: Any
    """Standard error."""
    freedom: Any
    """Degrees of freedom of the standard error."""
    squares: MeanSquares

    @property
    def interval(self) -> Interval:
        half = stats.t.ppf(1 - ALPHA / 2, self.freedom) * self.error
        return Interval(self.mean - half, self.mean + half)


def mean_interval(values: ArrayLike, groups: ArrayLike | None = None) -> Interval:
    """The 95 % interval of a mean over seeds and test items; over items alone where there is one seed.

    Args:
        values: outcomes, (S, N), or (N,) for one seed.
        groups: (N,), see `paired_comparison`.

    Raises:
        ValueError: as `paired_comparison`.
    """
    return Interval(*map(float, estimate(units(outcomes(values, "values"), groups)).interval))


def units(values_SN: Floats, groups: ArrayLike | None) -> Floats:
    """The values of independent units, (..., S, U), with the same mean under every seed: the items or their groups.

    Groups differ in size, so a mean over items is a ratio: the sum of all groups' sums over the sum of their sizes.
    A group's value is the linear part of that ratio about its seed's mean: mean + (sum - size · mean) / mean size.

    Raises:
        ValueError: no seed, fewer than two units, or groups that do not fit.
    """
    *_, seeds, items = values_SN.shape
    if groups is None:
        if not seeds or items < 2:
            raise UserError(f"{seeds} seeds x {items} items: an interval needs a seed and at least two items")
        return values_SN
    names = np.asarray(groups)
    if names.shape != (items,) or names.dtype.kind not in "biufUS" or (names != names).any():
        raise ValueError(f"groups: needs one number or name for each of {items} items, got {names.dtype} {names.shape}")
    _, group_N, size_U = np.unique(names, return_inverse=True, return_counts=True)
    if not seeds or len(size_U) < 2:
        raise UserError(f"{seeds} seeds, {len(size_U)} groups: an interval needs a seed and at least two groups")
    first_U = np.cumsum(size_U) - size_U
    sum_SU = np.add.reduceat(values_SN[..., np.argsort(group_N, kind="stable")], first_U, axis=-1)
    mean_S1 = values_SN.mean(-1, keepdims=True)
    return mean_S1 + (sum_SU - size_U * mean_S1) / size_U.mean()


def estimate(units_SU: Floats) -> Estimate:
    """The mean of a table, or of many, (..., S, U), with its standard error and degrees of freedom."""
    seeds, count = units_SU.shape[-2:]
    seed_S1, unit_1U = units_SU.mean(-1, keepdims=True), units_SU.mean(-2, keepdims=True)
    mean_11 = seed_S1.mean(-2, keepdims=True)
    free = max(seeds - 1, 1)  # one seed has no spread between seeds, and nothing is left: both squares are 0
    squares = MeanSquares(
        count * np.square(seed_S1 - mean_11).sum((-2, -1)) / free,
        seeds * np.square(unit_1U - mean_11).sum((-2, -1)) / (count - 1),
        np.square(units_SU - seed_S1 - unit_1U + mean_11).sum((-2, -1)) / (free * (count - 1)),
    )
    return Estimate(mean_11[..., 0, 0], *standard_error(squares, seeds, count), squares)


def standard_error(squares: MeanSquares, seeds: int, count: int) -> tuple[Any, Any]:
    """Standard error of the mean and its degrees of freedom, from the mean squares of seeds × units.

    Mean squares of seeds and of units both contain the rest, which therefore comes off once; what remains is never
    below the larger of the two, as the rest is an estimate, too. The degrees of freedom are Satterthwaite's, rounded
    down, and not below those of the smaller side. Not rounded, the interval covers up to 0.9 % less with two seeds.
    """
    of_seeds, of_units = max(seeds - 1, 1), count - 1
    larger = np.maximum(squares.seeds, squares.units)
    total = np.maximum(squares.seeds + squares.units - squares.rest, larger)
    spread = squares.seeds**2 / of_seeds + squares.units**2 / of_units + squares.rest**2 / (of_seeds * of_units)
    freedom = np.divide(total**2, spread, out=np.zeros_like(spread), where=spread > 0)
    whole = np.floor(freedom * (1 + 1e-9))  # 3 may come out as 2.9999999
    return np.sqrt(total / (seeds * count)), np.maximum(whole, min(of_seeds, of_units))


def outcomes(values: ArrayLike, name: str, shape: tuple[int, ...] | None = None) -> Floats:
    """The values as float64 (S, N).

    Raises:
        ValueError: they are not finite numbers, or of another shape.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: needs numbers, one row a seed and one column an item") from None
    if array.ndim not in (1, 2) or (shape is not None and array.shape != shape):
        wanted = "(seeds, items) or (items,)" if shape is None else f"that of first, {shape}"
        raise ValueError(f"{name} has the shape {array.shape}: needs {wanted}")
    if not np.isfinite(array).all():
        raise UserError(f"{name} has values that are not finite numbers: leave those items out on both sides")
    return np.atleast_2d(array)
