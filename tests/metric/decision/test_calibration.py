"""Calibration, selective accuracy and unknown classes against other libraries and plain oracles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from dcal.metric.decision.calibration import calibration, fit_temperature, selective, unknown_detection

answers = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 1.0]), st.floats(0, 1)), st.booleans()),
    min_size=1,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(answers, st.integers(1, 20))
def test_calibration_error_by_definition(pairs: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = zip(*pairs, strict=True)
    found = calibration(confidence, correct, bins)
    error, filled = 0.0, 0
    for number in range(bins):
        inside = [p for p in pairs if max(0, math.ceil(p[0] * bins) - 1) == number]
        if inside:
            row = found["bins"][filled]
            means = (sum(p[0] for p in inside) / len(inside), sum(p[1] for p in inside) / len(inside))
            assert (row["confidence"], row["accuracy"]) == pytest.approx(means)
            assert (row["low"], row["high"], row["count"]) == (number / bins, (number + 1) / bins, len(inside))
            error += len(inside) / len(pairs) * abs(means[0] - means[1])
            filled += 1
    assert len(found["bins"]) == filled
    assert found["ece"] == pytest.approx(error, abs=1e-12)


def test_calibration_error_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(500, 7, generator=generator, dtype=torch.float64)).softmax(1)
    labels = torch.randint(0, 7, (500,), generator=generator)
    best = probabilities.max(1)
    found = calibration(best.values, best.indices == labels)
    other = multiclass_calibration_error(probabilities, labels, 7, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(other), abs=1e-6)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    """Labels drawn from a softmax, whose logits are then multiplied."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature((factor * logits).log_softmax(1), labels) == pytest.approx(factor, rel=0.03)


def test_the_temperature_of_impossible_answers_is_finite() -> None:
    sure = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    assert 0.01 <= fit_temperature(sure, torch.tensor([0, 1])) <= 100


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=6))
def test_selective_risk_is_the_mean_over_orders_of_equal_confidences(pairs: list[tuple[float, bool]]) -> None:
    orders = [
        order for order in itertools.permutations(pairs) if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    ]
    risks = [[sum(not right for _, right in order[: k + 1]) / (k + 1) for k in range(len(order))] for order in orders]
    expected = np.mean(risks, axis=0)
    found = selective(*zip(*pairs, strict=True))
    assert found["aurc"] == pytest.approx(expected.mean())
    assert dict(found["curve"]) == pytest.approx({(k + 1) / len(pairs): risk for k, risk in enumerate(expected)})
    for row in found["accuracy"]:
        assert row["value"] == pytest.approx(1 - expected[max(1, round(row["coverage"] * len(pairs))) - 1])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.2, 0.5, 0.7, 1.0]), min_size=1, max_size=30),
    st.lists(st.sampled_from([0.1, 0.5, 0.7, 0.9]), min_size=1, max_size=30),
)
def test_unknown_classes(known: list[float], unknown: list[float]) -> None:
    found = unknown_detection(known, unknown)
    same = [True] * len(known) + [False] * len(unknown)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(same, known + unknown))
    assert found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"]
    keeps = [threshold for threshold in known if sum(one >= threshold for one in known) >= 0.95 * len(known)]
    assert found["fpr95"]["threshold"] == max(keeps)
    assert found["fpr95"]["value"] == sum(one >= max(keeps) for one in unknown) / len(unknown)


def test_the_interval_of_an_area_covers_it() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        found = unknown_detection(rng.normal(1, 1, 60), rng.normal(0, 1, 40))["auc"]
        inside += found["low"] <= 0.7602 <= found["high"]  # Phi(1 / sqrt 2)
    assert 0.92 <= inside / 300 <= 0.98


def test_an_answer_needs_both_numbers() -> None:
    for confidence, correct in (([], []), ([0.5], [True, False])):
        with pytest.raises(ValueError, match="one confidence and one outcome"):
            calibration(confidence, correct)
