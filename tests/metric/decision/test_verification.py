"""Verification and open sets against scikit-learn and a plain oracle, their intervals, and what memory they take."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.nn import functional as F

from dcal.metric.decision.pairs import Ladder
from dcal.metric.decision.roc import area, curve_of, equal_error_rate, hit_rate_at
from dcal.metric.decision.verification import FALSE_ALARM_RATES, FALSE_MATCH_RATES, verification

Columns = tuple[Tensor, Tensor, Tensor]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Columns, Columns, Tensor | None, Tensor | None]:
    """Few points of a lattice, identities and cameras: ties, junk, unknown cameras, pictures on both sides."""

    def side(size: int, junk: int) -> Columns:
        def ints(low: int, high: int, count: int) -> Tensor:
            return torch.tensor(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

        return ints(-2, 2, 2 * size).view(size, 2).float(), ints(junk, 3, size), ints(-1, 2, size)

    query, gallery = side(draw(st.integers(1, 6)), 0), side(draw(st.integers(1, 12)), -1)
    if draw(st.booleans()):
        return query, gallery, None, None
    pictures = torch.arange(len(gallery[0]))
    return query, gallery, torch.arange(len(query[0])) % 3, pictures


def pairs(
    query: Columns, gallery: Columns, pictures: Tensor | None = None, others: Tensor | None = None
) -> list[tuple[int, int, bool, float]]:
    """Query, gallery item, whether genuine, and score (negative squared distance) of each pair of the protocol."""
    found = []
    for (q, asked), (g, item) in itertools.product(
        enumerate(zip(*query, strict=True)), enumerate(zip(*gallery, strict=True))
    ):
        same = bool(asked[1] == item[1])
        left_out = same and bool(asked[2] == item[2] and asked[2] >= 0)
        if pictures is not None and others is not None:
            left_out |= same and bool(pictures[q] == others[g])
        if item[1] != -1 and not left_out:
            found.append((q, g, same, -float((asked[0] - item[0]).square().sum())))
    return found


def equal_error_of(fpr: Any, tpr: Any) -> float:
    """Where the polygon of scikit-learn's corners crosses fpr + tpr = 1, by bisection along it."""
    low, high = 0.0, float(len(fpr) - 1)
    place = np.arange(len(fpr))
    for _ in range(100):
        middle = (low + high) / 2
        total = np.interp(middle, place, fpr) + np.interp(middle, place, tpr)
        low, high = (middle, high) if total < 1 else (low, middle)
    return float(np.interp(high, place, fpr))


def check_rates(found: dict[str, Any], same: list[bool], score: list[float]) -> None:
    fpr, tpr, _ = roc_curve(same, score, drop_intermediate=False)
    assert found["genuine"] == sum(same)
    assert found["impostor"] == len(same) - sum(same)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(same, score), abs=1e-12)
    assert found["eer"]["value"] == pytest.approx(equal_error_of(fpr, tpr), abs=1e-9)
    for rate, entry in zip(FALSE_MATCH_RATES, found["tpr"], strict=True):
        assert entry["value"] == pytest.approx(max(tpr[fpr <= rate]), abs=1e-12)
        if "threshold" in entry:
            accepted = [one for one, value in zip(same, score, strict=True) if value >= entry["threshold"]]
            assert sum(accepted) / sum(same) == pytest.approx(entry["value"], abs=1e-12)
            assert accepted.count(False) <= rate * same.count(False)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([1, 3, 1000]))
def test_equals_scikit_learn(problem: tuple[Columns, Columns, Tensor | None, Tensor | None], tile: int) -> None:
    query, gallery, pictures, others = problem
    found = verification(*query, *gallery, "euclidean", query_pictures=pictures, gallery_pictures=others, tile=tile)
    listed = pairs(*problem)
    same, score = [pair[2] for pair in listed], [pair[3] for pair in listed]
    if all(same) or not any(same):
        assert found == {}
        return
    check_rates(found, same, score)
    by_camera: dict[tuple[int, int], list[tuple[bool, float]]] = {}
    for q, g, one, value in listed:
        by_camera.setdefault((int(query[2][q]), int(gallery[2][g])), []).append((one, value))
    kept = {pair: group for pair, group in by_camera.items() if len({one for one, _ in group}) == 2}
    cameras = len(set(query[2].tolist())) * len({int(c) for i, c in zip(*gallery[1:], strict=True) if i != -1})
    assert {(entry["query"], entry["gallery"]) for entry in found["cameras"]} == (set(kept) if cameras > 1 else set())
    for entry in found["cameras"]:
        check_rates(entry, *map(list, zip(*kept[entry["query"], entry["gallery"]], strict=True)))
    check_open_set(found["open_set"], query, gallery, listed)


def check_open_set(
    found: dict[str, Any], query: Columns, gallery: Columns, listed: list[tuple[int, int, bool, float]]
) -> None:
    """By definition: each threshold that is a score, each query with its identity in the gallery and without."""
    best = {
        kind: [
            max((v for q, _, same, v in listed if q == row and same == kind), default=None)
            for row in range(len(query[0]))
        ]
        for kind in (True, False)
    }
    others = [-math.inf if value is None else value for value in best[False]]
    mated = [(own, other) for own, other in zip(best[True], others, strict=True) if own is not None]
    assert (found["mated"], found["non_mated"]) == (len(mated), len(others))
    for rate, entry in zip(FALSE_ALARM_RATES, found["dir"], strict=True):
        values = [
            sum(own > other and own >= threshold for own, other in mated) / len(mated)
            for threshold in {own for own, _ in mated}
            if sum(other >= threshold for other in others) <= rate * len(others)
        ]
        assert entry["value"] == pytest.approx(max(values, default=0.0), abs=1e-12)


scores = st.lists(st.one_of(st.integers(-2, 2).map(float), st.floats(-1, 1)), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(scores, scores)
def test_a_curve_in_memory_is_that_of_scikit_learn(positives: list[float], negatives: list[float]) -> None:
    curve = curve_of(positives, negatives)
    same, score = [True] * len(positives) + [False] * len(negatives), positives + negatives
    fpr, tpr, _ = roc_curve(same, score, drop_intermediate=False)
    x, y = curve.corners()
    assert {*zip(x.tolist(), y.tolist(), strict=True)} <= {*zip(fpr.tolist(), tpr.tolist(), strict=True)}
    assert area(curve) == pytest.approx(roc_auc_score(same, score), abs=1e-12)
    assert equal_error_rate(curve).alarm_rate == pytest.approx(equal_error_of(fpr, tpr), abs=1e-9)
    for rate in (0.0, 0.1, 0.5, 1.0):
        assert hit_rate_at(curve, rate).hit_rate == pytest.approx(max(tpr[fpr <= rate]), abs=1e-12)


def test_a_curve_needs_both_kinds() -> None:
    for positives, negatives in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="a curve needs both"):
            curve_of(positives, negatives)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.lists(st.floats(-2e6, 2e6, width=32), max_size=20),
)
def test_cells_of_the_ladder(known: list[float], asked: list[float]) -> None:
    steps = sorted(set(known))
    asked = [*asked, *known, -math.inf]
    expected = [2 * sum(step < value for step in steps) + (value in steps) for value in asked]
    assert Ladder(torch.tensor(known)).cells(torch.tensor(asked)).tolist() == expected


def people(
    seed: int, identities: int, images: int = 4, spread: float = 0.8, dimensions: int = 8
) -> tuple[Columns, Columns]:
    """Identities in space, some harder than others; half of the images of each are queries."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(identities, 1, dimensions, generator=generator)
    harder = spread * (0.5 + torch.rand(identities, 1, 1, generator=generator))
    features = center + harder * torch.randn(identities, images, dimensions, generator=generator)
    ids = torch.arange(identities)[:, None].expand(-1, images)
    cameras = torch.arange(images).expand(identities, -1)
    columns = (features, ids, cameras)
    half = images // 2
    query, gallery = (tuple(c[:, part].flatten(0, 1) for c in columns) for part in (slice(0, half), slice(half, None)))
    return query, gallery  # type: ignore[return-value]


def test_collapsed_features_tell_nobody_apart() -> None:
    query, gallery = people(0, 30)
    alike = [F.normalize(torch.ones_like(side[0])) for side in (query, gallery)]
    with pytest.warns(UserWarning, match="collapsed"):
        found = verification(alike[0], *query[1:], alike[1], *gallery[1:])
    assert found["auc"]["value"] == pytest.approx(0.5, abs=0.02)
    assert found["eer"]["value"] == pytest.approx(0.5, abs=0.02)
    assert found["open_set"]["dir"][0]["value"] == 0


def test_perfect_features_have_no_spread() -> None:
    ids = torch.arange(20).repeat_interleave(2)
    features = F.one_hot(ids).float()
    cameras = torch.tensor([0, 1]).repeat(20)
    found = verification(features, ids, cameras, features, ids, cameras)
    for entry in (found["auc"], *found["tpr"], *found["open_set"]["dir"]):
        assert [entry[key] for key in ("value", "low", "high")] == [1, 1, 1]
    assert [found["eer"][key] for key in ("value", "low", "high")] == [0, 0, 0]


def test_intervals_cover_the_truth() -> None:
    """Over draws of identities; counting pairs as independent would cover about a third."""
    names = ("auc", "eer", "tpr", "dir")

    def rates(seed: int, identities: int) -> list[dict[str, float]]:
        found = verification(*people(seed, identities)[0], *people(seed, identities)[1])
        return [found["auc"], found["eer"], found["tpr"][0], found["open_set"]["dir"][0]]

    truth = [rate["value"] for rate in rates(10_000, 3000)]
    # the gallery's size decides how often somebody in it is nearest, so open sets are compared at one size
    draws = [rates(seed, 100) for seed in range(150)]
    truth[3] = float(np.mean([draw[3]["value"] for draw in draws]))
    for number, name in enumerate(names):
        inside = [draw[number]["low"] <= truth[number] <= draw[number]["high"] for draw in draws]
        assert 0.88 <= np.mean(inside) <= 0.995, name


def test_scores_are_in_memory_tile_by_tile() -> None:
    query, gallery = people(1, 300)
    whole = verification(*query, *gallery)
    parts = verification(*query, *gallery, tile=777)
    assert parts["genuine"] == whole["genuine"]
    assert parts["auc"]["value"] == pytest.approx(whole["auc"]["value"], abs=1e-6)
    assert parts["auc"]["low"] == pytest.approx(whole["auc"]["low"], abs=1e-6)
