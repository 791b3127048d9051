"""How sure a difference is: bootstrap intervals over test items, and two configurations compared in pairs.

Letters in names: K series (one per run), S seeds of one configuration, N test items, B bootstrap resamples.

The bootstrap (Efron 1979) draws N of the N test items with replacement, B times; the interval holds the
middle share of the B means. All series share the draws, so the seeds of a configuration are resampled jointly
and two configurations are compared on the same items. A difference is resampled over the seeds as well,
crossed with the items ("pigeonhole bootstrap", Owen 2007), since another training would have given other
numbers; with one seed it covers the items only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The middle share of a bootstrap distribution."""

    low: float
    high: float


class Difference(NamedTuple):
    """First configuration minus second, over the seeds that both have."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided: twice the share of resamples on the other side of zero."""
    seeds: int
    wins: int
    """Seeds under which the first is better."""


def resampled_means(values_KN: NDArray[Any], resamples: int = 10_000, seed: int = 0) -> Floats:
    """Means of every series over the same bootstrap draws of the items, (B, K).

    The generator is numpy's legacy one, the only one whose stream numpy promises never to change.

    Raises:
        ValueError: no items.
    """
    values_NK = np.asarray(values_KN, dtype=np.float64).T
    items = len(values_NK)
    if not items:
        raise ValueError("nothing to resample: no test items")
    generator = np.random.RandomState(seed)
    means_BK = np.empty((resamples, values_NK.shape[1]))
    rows = max(1, 2_000_000 // items)  # a block of draws at a time: memory
    for first in range(0, resamples, rows):
        block = min(rows, resamples - first)
        drawn = generator.randint(0, items, size=(block, items))
        drawn += items * np.arange(block)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=block * items).reshape(block, items)
        means_BK[first : first + block] = counts @ values_NK / items
    return means_BK


def interval(means_BS: Floats, confidence: float = 0.95) -> Interval:
    """Percentile interval of the mean over seeds, from the resampled means of each seed's run."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means_BS.mean(1), (tail, 1.0 - tail))
    return Interval(float(low), float(high))


def paired_difference(
    first_S: NDArray[Any],
    second_S: NDArray[Any],
    means_first_BS: Floats,
    means_second_BS: Floats,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The first configuration against the second on the same seeds and the same items.

    Args:
        first_S: the metric under each seed.
        second_S: likewise, seeds in the same order.
        means_first_BS: the columns of `resampled_means` that belong to the first configuration.
        means_second_BS: likewise, from the same call.

    Raises:
        ValueError: no seed, or not the same number of them.
    """
    seeds = len(first_S)
    if not seeds or len(second_S) != seeds:
        raise ValueError(f"a paired comparison needs the same seeds on both sides; got {seeds} and {len(second_S)}")
    by_seed_S = np.asarray(first_S, dtype=np.float64) - np.asarray(second_S, dtype=np.float64)
    by_seed_BS = means_first_BS - means_second_BS
    drawn_BS = np.random.RandomState(seed + 1).randint(0, seeds, size=by_seed_BS.shape)
    difference_B = np.take_along_axis(by_seed_BS, drawn_BS, axis=1).mean(1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(difference_B, (tail, 1.0 - tail))
    # one is added as if the sample itself were a resample, so that p is never zero
    rarer = min(int((difference_B <= 0).sum()), int((difference_B >= 0).sum())) + 1
    p = min(1.0, 2.0 * rarer / (len(difference_B) + 1))
    return Difference(float(by_seed_S.mean()), float(low), float(high), p, seeds, int((by_seed_S > 0).sum()))
