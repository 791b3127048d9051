"""What a threshold promises for new identities and images holds on average over calibrations, and costs little."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcal.metric.decision.promise import PairThresholds, _of_couples, confidence_threshold, pair_thresholds
from dcal.utils.errors import UserError

Side = tuple[Tensor, Tensor, Tensor]


def people(identities: int, generator: torch.Generator, images: int = 4) -> tuple[Side, Side]:
    """Identities in space, some images far from their centre; half of the images of each are queries."""
    center = torch.randn(identities, 1, 6, generator=generator)
    noise = torch.randn(identities, images, 6, generator=generator) * torch.rand(
        identities, images, 1, generator=generator
    )
    features = F.normalize(center + 0.8 * noise, dim=-1)
    ids = torch.arange(identities)[:, None].expand(-1, images)
    cameras = torch.arange(images).expand(identities, -1)
    half = images // 2
    query, gallery = (
        tuple(column[:, part].flatten(0, 1) for column in (features, ids, cameras))
        for part in (slice(0, half), slice(half, None))
    )
    return query, gallery  # type: ignore[return-value]


def observed(query: Side, gallery: Side, found: PairThresholds) -> tuple[float, float, float]:
    """The three rates by definition: means over couples, and over identities, of shares."""
    score = query[0].double() @ gallery[0].double().T
    count = int(query[1].max()) + 1
    couples, missed, alarms = [], [], []
    for i in range(count):
        own, items = query[1] == i, gallery[1] == i
        missed.append((score[own][:, items] < found.different.threshold).double().mean())
        alarms.append((score[own][:, ~items].amax(1) >= found.known.threshold).double().mean())
        for j in range(i):
            pairs = [score[own][:, gallery[1] == j].flatten(), score[query[1] == j][:, items].flatten()]
            couples.append((torch.cat(pairs) >= found.same.threshold).double().mean())
    return tuple(float(torch.stack(rates).mean()) for rates in (couples, missed, alarms))  # type: ignore[return-value]


def test_what_was_observed_is_what_the_thresholds_give() -> None:
    query, gallery = people(60, torch.Generator().manual_seed(0))
    found = pair_thresholds(query, gallery, 0.1, 0.1, 0.2)
    rates = [found.same.observed, found.different.observed, found.known.observed]
    assert rates == pytest.approx(observed(query, gallery, found), abs=1e-9)
    assert found.identities == 60
    assert found.same.observed < 0.1 and found.different.observed < 0.1 and found.known.observed < 0.2


def test_the_promises_hold_for_new_identities() -> None:
    """100 calibrations on 80 identities each, and what their thresholds do to 80 others: their mean is what counts."""
    generator = torch.Generator().manual_seed(1)
    rates = []
    for _ in range(100):
        found = pair_thresholds(*people(80, generator), 0.08, 0.1, 0.2)
        rates.append(observed(*people(80, generator), found))
    mean, error = np.mean(rates, axis=0), np.std(rates, axis=0) / 10
    assert (mean <= np.array([0.08, 0.1, 0.2]) + 2 * error).all()
    # and they are not kept by refusing everything: what a promise costs is about four couples' share, or one identity's
    assert (mean >= np.array([0.08 - 4.5 / 80, 0.1 - 2 / 80, 0.2 - 2 / 80]) - 2 * error).all()


def test_too_few_identities_promise_nothing() -> None:
    query, gallery = people(50, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"false_match_rate=0\.01: the identities of this split .* is 0\.07617;"):
        pair_thresholds(query, gallery, 0.01, 0.1, 0.2)
    assert _of_couples(0.0, 50) == pytest.approx(202 / (51 * 52))
    pair_thresholds(query, gallery, 0.07617, 0.1, 0.2)
    with pytest.raises(UserError, match=r"false_alarm_rate=0\.01"):
        pair_thresholds(query, gallery, 0.1, 0.1, 0.01)


def test_distractors_and_junk_are_no_identities() -> None:
    query, gallery = people(40, torch.Generator().manual_seed(0))
    found = pair_thresholds(query, gallery, 0.2, 0.1, 0.2)
    more = [torch.cat([column, column[:9]]) for column in gallery]
    more[1][-9:] = torch.tensor([-1] * 5 + [99] * 4)
    assert pair_thresholds(query, (more[0], more[1], more[2]), 0.2, 0.1, 0.2) == found


def test_a_confidence_keeps_its_promise() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        found = confidence_threshold(rng.random(99), 0.1)
        shares.append(found.threshold)  # the share of new uniform values below it
        assert found.observed == pytest.approx(9 / 99)
    assert np.mean(shares) == pytest.approx(0.1, abs=0.006)
    assert confidence_threshold([0.5] * 99, 0.1).observed == 0
    with pytest.raises(UserError, match=r"refused_rate=0\.1: 8 images .* is 0\.11112"):
        confidence_threshold(rng.random(8), 0.1)
    assert math.isclose(confidence_threshold([0.3, 0.1, 0.2], 1.0).threshold, 0.3)
