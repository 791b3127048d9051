"""Who distracts whom: never oneself, and each policy's promise."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcal.attention.pairing import POLICIES, Pairing, Partners, derangement
from dcal.utils.errors import UserError

ORDINARY = [policy for policy in POLICIES if policy not in ("none", "gaussian", "curriculum")]
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=24).map(torch.tensor)


def draw(policy: str, labels: Tensor, ratio: float = 0.5) -> Partners:
    return Pairing(policy, ratio)(labels, embed=lambda: torch.randn(len(labels), 8))


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, policy=st.sampled_from(ORDINARY), seed=st.integers(0, 9))
def test_never_oneself(labels: Tensor, policy: str, seed: int) -> None:
    """Trap 24."""
    torch.manual_seed(seed)
    partners = draw(policy, labels)
    assert not partners.noise and partners.index_B.dtype == torch.int64
    assert not (partners.index_B == torch.arange(len(labels))).any()
    assert partners.shares(labels)["self"] == 0.0


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, seed=st.integers(0, 9))
def test_classes_are_as_wanted_wherever_the_batch_allows_it(labels: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    same = labels[:, None] == labels[None, :]
    others = same.clone().fill_diagonal_(False)
    for policy, wanted in (("same_class", others), ("different_class", ~same)):
        partner = draw(policy, labels).index_B
        got = wanted[torch.arange(len(labels)), partner]
        assert torch.equal(got, wanted.any(1))


def test_derangements_are_uniform() -> None:
    torch.manual_seed(0)
    wanted = [p for p in itertools.permutations(range(4)) if all(i != j for i, j in enumerate(p))]
    draws = 4500
    counts = Counter(tuple(derangement(4).tolist()) for _ in range(draws))
    assert set(counts) == set(wanted) and len(wanted) == 9
    expected = draws / 9
    chi_squared = sum((counts[p] - expected) ** 2 / expected for p in wanted)
    assert chi_squared < 26.1  # 0.1 % of uniform draws exceed it, 8 degrees of freedom


@given(size=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_natural_is_a_permutation_without_fixed_points(size: int) -> None:
    partner = draw("natural", torch.zeros(size)).index_B
    assert sorted(partner.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [0, 1])
def test_too_small_a_batch_is_an_error_that_names_the_key(size: int) -> None:
    for policy in ORDINARY:
        with pytest.raises(UserError, match=r"at least 2 images in a training batch, got .*train\.batch_size"):
            draw(policy, torch.zeros(size))


def test_mixed_takes_its_share_of_the_same_class() -> None:
    torch.manual_seed(0)
    labels = torch.arange(8).repeat_interleave(4)
    for ratio in (0.0, 0.25, 1.0):
        shares = [draw("mixed", labels, ratio).shares(labels)["same_class"] for _ in range(200)]
        assert abs(sum(shares) / len(shares) - ratio) < 0.03


def test_identity_ordered_batches_are_not_paired_with_their_neighbours() -> None:
    """Trap 24: `roll(1)` on a batch of P × K pairs 75 % within the identity; chance is 3 in 63."""
    torch.manual_seed(0)
    labels = torch.arange(16).repeat_interleave(4)
    shares = [draw("natural", labels).shares(labels)["same_class"] for _ in range(100)]
    assert abs(sum(shares) / len(shares) - 3 / 63) < 0.01


@pytest.mark.parametrize("hardest", [True, False])
def test_hardest_and_easiest_are_by_cosine_among_other_classes(hardest: bool) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(12, 6) * torch.rand(12, 1) * 10, torch.arange(12) % 4
    pairing = Pairing("hardest" if hardest else "easiest")
    partner = pairing(labels, embed=lambda: features).index_B.tolist()
    for i in range(12):
        others = [j for j in range(12) if labels[j] != labels[i]]
        by_cosine = {j: torch.cosine_similarity(features[i], features[j], dim=0).item() for j in others}
        assert partner[i] == (max if hardest else min)(by_cosine, key=by_cosine.__getitem__)


def test_a_batch_of_one_class_falls_back_to_any_other_image() -> None:
    labels = torch.zeros(6)
    for policy in ("hardest", "easiest", "different_class"):
        partner = draw(policy, labels).index_B
        assert sorted(partner.tolist()) == list(range(6))  # the derangement
    assert draw("same_class", torch.arange(6)).shares(torch.arange(6)) == {"self": 0.0, "same_class": 0.0}


def test_controls() -> None:
    assert draw("none", torch.zeros(3)).index_B.tolist() == [0, 1, 2]
    assert draw("none", torch.zeros(3)).shares(torch.zeros(3)) == {"self": 1.0, "same_class": 1.0}
    noise = draw("gaussian", torch.zeros(3))
    assert noise.noise and noise.index_B.tolist() == [3, 4, 5]  # behind the batch, where the model appends them
    assert noise.shares(torch.zeros(3)) == {"self": 0.0, "same_class": 0.0}


def test_the_curriculum_goes_through_its_stages() -> None:
    pairing = Pairing("curriculum", curriculum=["easiest", "natural", "hardest"])
    stages = [pairing.at(progress) for progress in (0.0, 0.33, 0.34, 0.66, 0.67, 0.99, 1.0)]
    assert stages == ["easiest", "easiest", "natural", "natural", "hardest", "hardest", "hardest"]
    embedded: list[int] = []

    def embed() -> Tensor:
        embedded.append(1)
        return torch.randn(4, 3)

    pairing(torch.arange(4), 0.5, embed)
    assert not embedded  # features are computed only when the stage looks at them
    pairing(torch.arange(4), 0.9, embed)
    assert embedded == [1]


def test_the_draw_is_a_function_of_the_global_generator() -> None:
    labels = torch.arange(10) % 3
    for policy in ("natural", "mixed", "same_class"):
        torch.manual_seed(3)
        first = draw(policy, labels).index_B
        torch.manual_seed(3)
        assert torch.equal(draw(policy, labels).index_B, first)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"attention.pwca.pairing='nearest': .*one of natural, "):
        Pairing("nearest")
    with pytest.raises(UserError, match=r"attention.pwca.pairing_ratio=1.5"):
        Pairing("mixed", 1.5)
    for stages in ([], ["curriculum"], ["natural", "nearest"]):
        with pytest.raises(UserError, match=r"attention.pwca.curriculum="):
            Pairing("curriculum", curriculum=stages)
    with pytest.raises(ValueError, match="pass `embed`"):
        Pairing("hardest")(torch.arange(3))
