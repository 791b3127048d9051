"""Bootstrap intervals and paired differences against enumeration, scipy and known limits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dcal.metric.statistics import interval, paired_difference, resampled_means


def enumerated(values: list[float]) -> np.ndarray:
    """The means of all N^N resamples, the exact bootstrap distribution."""
    return np.array([np.mean(draw) for draw in itertools.product(values, repeat=len(values))])


def test_the_distribution_is_that_of_all_resamples() -> None:
    values = [0.0, 0.3, 1.0, 1.0, 0.7]
    means = resampled_means(np.array([values]), resamples=40_000)[:, 0]
    exact = enumerated(values)
    for quantile in (0.025, 0.25, 0.5, 0.9, 0.975):
        share = (exact <= np.quantile(exact, quantile) + 1e-9).mean()
        assert (means <= np.quantile(exact, quantile) + 1e-9).mean() == pytest.approx(share, abs=0.01)


def test_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    outcomes = (rng.random((3, 400)) < 0.8).astype(float)
    ours = interval(resampled_means(outcomes))
    theirs = stats.bootstrap((outcomes.mean(0),), np.mean, method="percentile", vectorized=True).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=3e-3)


def test_difference_of_one_seed_is_the_paired_bootstrap_of_scipy() -> None:
    rng = np.random.default_rng(1)
    second = rng.random(500)
    first = np.clip(second + rng.normal(0.01, 0.1, 500), 0, 1)
    means = resampled_means(np.stack([first, second]))
    ours = paired_difference([first.mean()], [second.mean()], means[:, :1], means[:, 1:])
    theirs = stats.bootstrap((first - second,), np.mean, method="percentile").confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    assert ours.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


def test_difference_covers_seeds_too() -> None:
    """Items that are all alike leave the seeds as the only doubt: the resamples are those of the seeds."""
    by_seed = np.array([0.02, 0.05, -0.01])
    means = np.tile(np.concatenate([0.9 + by_seed, np.full(3, 0.9)]), (40_000, 1))
    found = paired_difference(0.9 + by_seed, np.full(3, 0.9), means[:, :3], means[:, 3:])
    exact = enumerated(list(by_seed))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975], method="inverted_cdf")))
    assert found.p == pytest.approx(2 * (exact <= 1e-12).mean(), abs=0.02)
    assert (found.mean, found.seeds, found.wins) == (pytest.approx(0.02), 3, 2)


def test_items_and_seeds_are_crossed() -> None:
    """All seeds are judged on the same resampled items: every choice of items meets every choice of seeds."""
    by_seed_SN = np.array([[0.9, -0.5, 0.1], [0.6, -0.9, 0.35]])
    means = resampled_means(np.concatenate([by_seed_SN, np.zeros((2, 3))]), resamples=40_000)
    found = paired_difference(by_seed_SN.mean(1), np.zeros(2), means[:, :2], means[:, 2:])
    choices = itertools.product(itertools.product(range(2), repeat=2), itertools.product(range(3), repeat=3))
    exact = np.array([by_seed_SN[np.ix_(seeds, items)].mean() for seeds, items in choices])
    assert found.p == pytest.approx(2 * min((exact <= 0).mean(), (exact >= 0).mean()), abs=0.015)
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        assert (exact <= end + 1e-9).mean() >= share - 0.005 and (exact < end - 1e-9).mean() <= share + 0.005


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
    st.floats(-0.2, 0.2, allow_subnormal=False),
)
def test_properties(seeds: int, items: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    first = rng.random((seeds, items))
    means = resampled_means(np.concatenate([first, first + shift]), resamples=200)
    order = rng.permutation(items)
    np.testing.assert_array_equal(means, resampled_means(np.concatenate([first, first + shift]), resamples=200))
    assert first.mean(0).min() - 1e-9 <= interval(means[:, :seeds]).low <= interval(means[:, :seeds]).high
    # a constant shift is known exactly, whatever the items and however they are ordered
    found = paired_difference((first + shift)[:, order].mean(1), first.mean(1), means[:, seeds:], means[:, :seeds])
    if seeds == 1:
        assert (found.low, found.high) == pytest.approx((shift, shift), abs=1e-9)
    back = paired_difference(first.mean(1), (first + shift).mean(1), means[:, :seeds], means[:, seeds:])
    assert (back.low, back.high, back.mean) == pytest.approx((-found.high, -found.low, -found.mean), abs=1e-9)


def test_the_same_against_itself_shows_nothing() -> None:
    outcomes = np.random.default_rng(2).random((2, 50))
    means = resampled_means(outcomes, resamples=500)
    found = paired_difference(outcomes.mean(1), outcomes.mean(1), means, means)
    assert found[:4] == (0.0, 0.0, 0.0, 1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no test items"):
        resampled_means(np.empty((2, 0)))
    means = resampled_means(np.ones((3, 4)), resamples=10)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1.0], [1.0, 1.0], means[:, :1], means[:, 1:])
