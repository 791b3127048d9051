"""Triplet and branch weighting against plain-Python oracles, and the faults other implementations have."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcal.loss import TripletLoss, UncertaintyLoss
from dcal.utils.errors import UserError


def triplet_oracle(features: list[list[float]], labels: list[int], margin: float | None) -> float:
    terms = []
    for i, anchor in enumerate(features):
        positive = [math.dist(anchor, f) for j, f in enumerate(features) if j != i and labels[j] == labels[i]]
        negative = [math.dist(anchor, f) for j, f in enumerate(features) if labels[j] != labels[i]]
        if positive and negative:
            gap = max(positive) - min(negative)
            terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(terms) / len(terms) if terms else 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.integers(0, 10**6),
    st.sampled_from([None, 0.0, 0.3]),
)
def test_triplet_equals_oracle(labels: list[int], seed: int, margin: float | None) -> None:
    features = torch.randn(len(labels), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = TripletLoss(margin)(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(triplet_oracle(features.tolist(), labels, margin), abs=1e-12)


def test_triplet_equals_pytorch_metric_learning() -> None:
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    features, labels = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)), torch.arange(24) // 4
    euclidean = distances.LpDistance(normalize_embeddings=False)
    pairs = miners.BatchHardMiner(distance=euclidean)(features, labels)
    for margin in (None, 0.3):
        theirs = losses.TripletMarginLoss(
            margin=margin or 0.0,
            smooth_loss=margin is None,
            distance=euclidean,
            reducer=pytest.importorskip("pytorch_metric_learning.reducers").MeanReducer(),
        )
        ours = TripletLoss(margin)(features, labels)
        torch.testing.assert_close(ours, theirs(features, labels, pairs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[3, 3, 3], [0, 1, 2], [5]])
def test_triplet_without_valid_anchor_is_zero_and_has_a_graph(labels: list[int]) -> None:
    features = torch.randn(len(labels), 4, requires_grad=True)
    loss = TripletLoss()(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad is not None and not features.grad.any()


def test_triplet_of_duplicated_images_has_finite_gradient() -> None:
    features = torch.ones(4, 8, requires_grad=True)
    TripletLoss()(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad is not None and torch.isfinite(features.grad).all()


def test_triplet_gradient() -> None:
    features = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda x: TripletLoss()(x, labels), features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triplet_distances_stay_float32_under_autocast(dtype: torch.dtype) -> None:
    """Squared distances here are about 4e6, past fp16's 65 504; distances of 0.5 drown in bf16's products."""
    generator = torch.Generator().manual_seed(2)
    features = (100 * torch.randn(8, 384, generator=generator)).to(dtype)
    labels = torch.arange(8) // 2
    expected = TripletLoss(0.3)(features.double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TripletLoss(0.3)(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


VALUES = {"sa": 2.0, "glca": 1.0, "pwca": 4.0}


def branch_losses() -> dict[str, Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in VALUES.items()}


def test_weightings() -> None:
    losses, branches = branch_losses(), ("sa", "glca", "pwca")
    total = {name: UncertaintyLoss(branches, name) for name in ("uncertainty", "fixed", "equal")}
    assert total["uncertainty"](losses).item() == pytest.approx(3.5)  # w = 0: half the sum
    assert total["fixed"](losses).item() == pytest.approx(7.0)
    assert total["equal"](losses).item() == pytest.approx(7.0 / 3)
    assert [total[name].weights()["glca"] for name in total] == pytest.approx([0.5, 1.0, 1 / 3])
    assert sorted(name for name, _ in total["uncertainty"].named_parameters()) == [
        "log_variance.glca",
        "log_variance.pwca",
        "log_variance.sa",
    ]
    assert not list(total["fixed"].parameters()) and not list(total["equal"].parameters())


def test_uncertainty_formula_and_gradient() -> None:
    combine = UncertaintyLoss(("sa", "glca")).double()
    values = {"sa": torch.tensor(0.7, dtype=torch.float64), "glca": torch.tensor(0.02, dtype=torch.float64)}
    w = {"sa": -0.4, "glca": -3.0}
    with torch.no_grad():
        for name, parameter in combine.log_variance.items():
            parameter.fill_(w[name])
    total = combine(values)
    total.backward()
    expected = 0.5 * sum(math.exp(-w[name]) * values[name].item() + w[name] for name in w)
    assert total.shape == () and total.item() == pytest.approx(expected, abs=1e-12)
    assert total.item() < 0  # legitimate: must not be clamped
    for name, parameter in combine.log_variance.items():
        slope = 0.5 * (1 - math.exp(-w[name]) * values[name].item())
        assert parameter.grad.item() == pytest.approx(slope, abs=1e-12)
        assert combine.weights()[name] == pytest.approx(0.5 * math.exp(-w[name]))


@pytest.mark.parametrize("weighting", ["uncertainty", "fixed", "equal"])
def test_one_branch_is_the_plain_loss(weighting: str) -> None:
    combine = UncertaintyLoss(("sa",), weighting)
    assert combine({"sa": torch.tensor(1.7)}).item() == pytest.approx(1.7)
    assert combine.weights() == {"sa": 1.0} and not list(combine.parameters())


def test_one_branch_with_a_learned_weight_rises_as_its_loss_falls() -> None:
    combine = UncertaintyLoss(("sa",), "uncertainty_always")
    assert combine({"sa": torch.tensor(1.7)}).item() == pytest.approx(0.85)
    optimizer = torch.optim.SGD(combine.parameters(), lr=0.5)
    for value in (2.0, 0.05):
        for _ in range(200):
            optimizer.zero_grad()
            combine({"sa": torch.tensor(value)}).backward()
            optimizer.step()
        assert combine.weights()["sa"] == pytest.approx(1 / (2 * value), rel=1e-3)


def test_with_several_branches_always_means_what_it_means_otherwise() -> None:
    always, usual = UncertaintyLoss(("sa", "glca"), "uncertainty_always"), UncertaintyLoss(("sa", "glca"))
    losses = {"sa": torch.tensor(0.7), "glca": torch.tensor(2.0)}
    assert always(losses) == usual(losses) and always.weights() == usual.weights()


@pytest.mark.parametrize(("weighting", "expected"), [("uncertainty", 1.5), ("fixed", 3.0), ("equal", 1.5)])
def test_a_step_may_be_without_an_optional_branch(weighting: str, expected: float) -> None:
    combine = UncertaintyLoss(("sa", "glca", "pwca"), weighting, optional=("pwca",))
    total = combine({"sa": torch.tensor(1.0), "glca": torch.tensor(2.0)})
    assert total.item() == pytest.approx(expected)
    for wrong in ({"sa": torch.tensor(1.0), "pwca": torch.tensor(1.0)}, {"sa": torch.tensor(1.0)}, {}):
        with pytest.raises(ValueError, match="glca"):
            combine(wrong)


def test_faults_are_named() -> None:
    with pytest.raises(UserError, match=r"^task.loss_weighting='best': .*uncertainty"):
        UncertaintyLoss(("sa",), "best")
    with pytest.raises(ValueError, match="pwca"):
        UncertaintyLoss(("sa", "pwca"))({"sa": torch.tensor(1.0)})
    with pytest.raises(UserError, match=r"^task.triplet.margin=-1"):
        TripletLoss(-1.0)
    with pytest.raises(ValueError, match="labels"):
        TripletLoss()(torch.zeros(3, 2), torch.zeros(2))
