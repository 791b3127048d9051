"""Is one method better than another? Paired comparison over the same seeds and test items, and its verdict.

Letters in names: S seeds, N test items, U units (items, or groups of items that belong together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dcal.metric.interval import ALPHA, Floats, MeanSquares, estimate, outcomes, standard_error, units
from dcal.utils.errors import UserError, check_number

FEWEST_SEEDS = 6
"""Below it the sign-flip test cannot reach ALPHA: its least p is 2 / 2^S."""
EXACT_SEEDS = 40
"""Up to here the sign-flip test counts all 2^S choices of signs."""
DRAWS = 99_999
"""Random choices of signs for more seeds than that."""
MOST_SEEDS = 10_000
"""`seeds_needed` looks no further."""


@dataclass(frozen=True, repr=False)
class PairedComparison:
    """`first` minus `second` on the same seeds and items, in the units of the arrays; larger values are better."""

    mean: float
    """Over seeds and items."""
    low: float
    """End of the 95 % interval; over items alone where there is one seed."""
    high: float
    p: float
    """Two-sided, of the t test that belongs to the interval."""
    p_sign_flip: float
    """Two-sided: the share of all choices of signs that move the mean over seeds as far from 0 (exact to 40 seeds)."""
    verdict: str
    """`better`, `worse`, `equivalent`, `undecided` or `one training only`; see `paired_comparison`."""
    seeds: int
    items: int
    groups: int | None
    """None where every item stands for itself."""
    margin: float | None
    """Up to here a difference does not matter."""
    p_equivalence: float | None
    """Of the two one-sided t tests against -margin and margin, the larger; None without a margin."""
    degrees_of_freedom: float
    squares: MeanSquares = field(compare=False)
    """Of the table of differences: between seeds, between items (or groups), and what is left."""

    def __repr__(self) -> str:
        text = f"first - second = {self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}] (95 %), p = {self.p:.2g}"
        text += f", sign-flip p = {self.p_sign_flip:.3g}"
        if self.margin is not None:
            text += f", equivalence within {self.margin:g}: p = {self.p_equivalence:.2g}"
        groups = "" if self.groups is None else f" in {self.groups} groups"
        text += f"; {self.seeds} seed{'s' * (self.seeds > 1)} x {self.items} items{groups}: {self.verdict}"
        if 1 < self.seeds < FEWEST_SEEDS:
            text += f" (with {self.seeds} seeds the sign-flip p cannot go below {2 / 2**self.seeds:g})"
        return f"PairedComparison({text})"

    def seeds_needed(self, size: float, power: float = 0.8) -> int | None:
        """How many seeds it takes to find a true difference of a given size, from the spread in this comparison.

        The spread between seeds, between items and of the rest stays as it is here, and so does the number of items.

        Args:
            size: the true difference, in the units of the arrays.
            power: in which share of repetitions of the whole experiment the t test shall find it.

        Returns:
            at least six, see `verdict`; None if 10 000 are not enough because the items limit the comparison.

        Raises:
            UserError: size is not above 0, power is not between 0 and 1, or one seed was compared.
        """
        check_number("size", size, gt=0)
        check_number("power", power, gt=0, lt=1)
        if self.seeds == 1:
            raise UserError("one seed shows no spread between seeds: run at least a second one")
        low, high = FEWEST_SEEDS - 1, MOST_SEEDS
        if self._power(size, high) < power:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._power(size, middle) >= power else (middle, high)
        return high

    def _power(self, size: float, seeds: int) -> float:
        """Probability that the t test over so many seeds finds a true difference of this size, and its sign."""
        units = self.items if self.groups is None else self.groups
        rest = self.squares.rest
        of_seeds = max(self.squares.seeds, rest)
        of_units = rest + max(self.squares.units - rest, 0.0) / self.seeds * seeds
        error, freedom = standard_error(MeanSquares(of_seeds, of_units, rest), seeds, units)
        if error == 0:
            return 1.0
        return float(stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, freedom), freedom, size / error))


def paired_comparison(
    first: ArrayLike, second: ArrayLike, margin: float | None = None, groups: ArrayLike | None = None
) -> PairedComparison:
    """Compares two methods run on the same seeds and judged on the same test items: `first` minus `second`.

    The verdict is, with tests at 5 %:

    - `one training only`: one seed; the interval covers the choice of items, not that of the seed.
    - `undecided`: fewer than six seeds, whatever they show, because the sign-flip p cannot go below 0.05 then.
    - `equivalent`: both one-sided tests say that the difference lies within -margin … margin.
    - `better`, `worse`: the t test and the sign-flip test both say that `first` is the one with larger values, or
      smaller ones.
    - `undecided`: none of these.

    The interval covers the true difference in 95 % of repetitions. Simulated: 93.7 to 98.6 % from four seeds on (above
    97.5 only where hardly any item is harder for one method than for the other under every seed), at least 92.6 % with
    three and 87.6 % with two.

    Args:
        first: outcomes, (S, N): one row a seed, one column a test item; (N,) for one seed. Larger is better.
        second: the same shape, rows and columns in the same order.
        margin: a difference up to it does not matter, in the units of the arrays. Declare it before the runs.
        groups: (N,) numbers or names. Items with the same one belong together and are no independent
            observations, as the queries of one person in re-identification.

    Raises:
        UserError, ValueError: different shapes, values that are not finite numbers, no seed, fewer than two items (or
            groups), groups of another length, or a margin that is not above 0.
    """
    difference_SN = outcomes(first, "first") - outcomes(second, "second", np.shape(first))
    if margin is not None and not 0 < margin < np.inf:
        raise UserError(f"margin={margin}: must be above 0, or None")
    units_SU = units(difference_SN, groups)
    found = estimate(units_SU)
    mean, error, freedom = float(found.mean), float(found.error), float(found.freedom)
    seeds, items = difference_SN.shape
    low, high = map(float, found.interval)
    comparison = PairedComparison(
        mean,
        low,
        high,
        p=2 * _tail(abs(mean), error, freedom),
        p_sign_flip=sign_flip_p(units_SU.mean(-1)),
        verdict="",
        seeds=seeds,
        items=items,
        groups=None if groups is None else units_SU.shape[-1],
        margin=margin,
        p_equivalence=None if margin is None else _tail(margin - abs(mean), error, freedom),
        degrees_of_freedom=freedom,
        squares=MeanSquares(*map(float, found.squares)),
    )
    return holm_verdicts([comparison])[0]


def holm_verdicts(comparisons: Sequence[PairedComparison], declared: int = 0) -> list[PairedComparison]:
    """The comparisons with their verdicts after Holm's correction over all of them.

    Both families are corrected, the tests of a difference and the tests of equivalence; the sign-flip test, which has
    to agree, is not.

    Args:
        comparisons: those that have been made.
        declared: how many were declared; those still to be made count as if they had shown nothing.
    """
    to_come = [1.0] * max(0, declared - len(comparisons))
    different = holm([comparison.p for comparison in comparisons] + to_come)
    equivalent = holm([1.0 if c.p_equivalence is None else c.p_equivalence for c in comparisons] + to_come)
    return [
        replace(comparison, verdict=_verdict(comparison, different[number], equivalent[number]))
        for number, comparison in enumerate(comparisons)
    ]


def _verdict(comparison: PairedComparison, p: float, p_equivalence: float) -> str:
    if comparison.seeds == 1:
        return "one training only"
    if comparison.seeds < FEWEST_SEEDS:
        return "undecided"
    if p_equivalence <= ALPHA:
        return "equivalent"
    if max(p, comparison.p_sign_flip) <= ALPHA:
        return "better" if comparison.mean > 0 else "worse"
    return "undecided"


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the given order (Holm 1979): at most ALPHA means significant."""
    corrected, least = list(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(corrected)), key=corrected.__getitem__)):
        least = max(least, min(1.0, (len(corrected) - rank) * corrected[number]))
        corrected[number] = least
    return corrected


def sign_flip_p(difference_S: Floats) -> float:
    """Two-sided p of the sign-flip test: the share of the 2^S choices of signs whose sum is as far from zero.

    If neither method is better under any seed, a seed's difference is as likely to have the other sign. Exact up to
    `EXACT_SEEDS` seeds: the sums of the first half of the seeds are compared with the sorted sums of the second half,
    so that 2^(S/2) sums are formed and 2^S counted. For more seeds `DRAWS` random choices, always the same.
    """
    seeds = len(difference_S)
    # sums that are equal but for rounding count as equal
    seen = abs(difference_S.sum()) - 1e-9 * np.abs(difference_S).sum()
    if seen <= 0:
        return 1.0
    if seeds > EXACT_SEEDS:
        signs = np.random.RandomState(0).choice([-1.0, 1.0], (DRAWS, seeds))
        return float((1 + (np.abs(signs @ difference_S) >= seen).sum()) / (DRAWS + 1))
    one, other = (_all_sums(half) for half in np.array_split(difference_S, 2))
    other.sort()
    as_large = (len(other) - np.searchsorted(other, seen - one)).sum()
    return float(2 * as_large / 2.0**seeds)


def _all_sums(values: Floats) -> Floats:
    """The sums of the values under every choice of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _tail(distance: float, error: float, freedom: float) -> float:
    """Probability of a t value of at least distance / error; without any spread, a step at 0."""
    return float(stats.t.sf(distance / error, freedom)) if error else float(np.heaviside(-distance, 0.5))
