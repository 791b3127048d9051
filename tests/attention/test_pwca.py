"""In which blocks, and in which steps, pair-wise cross-attention takes place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import images_for, tiny_model
from torch import Tensor

from dcal.attention.pairing import Partners
from dcal.attention.pwca import STREAMS, pwca_block_indices
from dcal.model import DCAL
from dcal.task.objective import Objective
from dcal.utils.errors import UserError
from dcal.utils.rng import restore_rng_state, rng_state

DEIT = "deit_tiny_patch16_224"
NEXT = Partners(torch.tensor([1, 2, 0]))
LABELS = torch.tensor([0, 3, 1])


def test_a_count_means_the_last_blocks_and_a_list_names_them_from_1() -> None:
    assert pwca_block_indices(None, 12) == pwca_block_indices(12, 12) == tuple(range(12))
    assert pwca_block_indices(3, 12) == pwca_block_indices([11, 10, 12], 12) == (9, 10, 11)
    assert pwca_block_indices([6, 7, 8, 9], 12) == (5, 6, 7, 8)
    assert pwca_block_indices(0, 12) == ()


@pytest.mark.parametrize("blocks", [-1, 13, [], [0], [13], [3, 3], [1.0], [True], True, "all", 2.5])
def test_other_blocks_are_refused_by_the_name_of_the_key(blocks: Any) -> None:
    with pytest.raises(UserError, match=r"^attention\.pwca\.blocks="):
        pwca_block_indices(blocks, 12)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_list_gives_bit_for_bit_what_the_count_of_the_same_blocks_gives(stream: str) -> None:
    outs = [
        tiny_model(pwca={"stream": stream, "blocks": blocks}).train()(images_for(DEIT), partners=NEXT)
        for blocks in (2, [2, 3])
    ]
    assert torch.equal(outs[0].pwca, outs[1].pwca) and torch.equal(outs[0].sa, outs[1].sa)


@pytest.mark.parametrize("stream", STREAMS)
def test_blocks_behind_the_last_meeting_carry_the_distraction_on(stream: str) -> None:
    """The partner changes the output through the first block alone, and only its tokens there can."""
    model, images = tiny_model(pwca={"stream": stream, "blocks": [1]}).train(), images_for(DEIT)
    out = model(images, partners=NEXT)
    assert (out.pwca - out.sa).abs().max() > 1e-3
    other = images.clone()
    other[1] += 1.0  # the partner of image 0
    assert (model(other, partners=NEXT).pwca[0] - out.pwca[0]).abs().max() > 1e-3


def learn(model: DCAL, steps: int, weighting: str = "uncertainty") -> tuple[list[Tensor], list[bool]]:
    """Weights after a few steps of SGD, and which steps had PWCA."""
    objective = Objective(model.branches, weighting, 0.0, 0.0, None).double()
    parameters = [*model.train().parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    met = []
    for _ in range(steps):
        optimizer.zero_grad()
        images = images_for(DEIT)
        output = model(images, partners=None, labels=LABELS)
        objective(output, LABELS, LABELS).total.backward()
        optimizer.step()
        met.append(output.pwca is not None)
    return [parameter.detach().clone() for parameter in parameters], met


def fresh(pwca: dict[str, Any]) -> DCAL:
    return tiny_model(vit={"drop_path_rate": 0.3}, pwca=pwca)


def test_probability_1_changes_no_bit_and_draws_no_number() -> None:
    weights = []
    for options in ({}, {"probability": 1.0}):
        model = fresh(options)
        torch.manual_seed(7)
        weights.append(learn(model, 3)[0])
        weights[-1].append(torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_probability_1_is_the_draw_of_the_pairing_alone() -> None:
    model = fresh({"probability": 1.0})
    torch.manual_seed(7)
    drawn = model.draw_partners(images_for(DEIT), LABELS)
    torch.manual_seed(7)
    assert drawn is not None and torch.equal(
        drawn.index_B, model.pairing(LABELS, 0.0, lambda: images_for(DEIT)).index_B
    )


@pytest.mark.parametrize("weighting", ["uncertainty", "equal", "fixed"])
def test_probability_0_is_the_model_without_pwca_bit_for_bit(weighting: str) -> None:
    weights = []
    for options in ({"probability": 0.0}, {"blocks": 0}):
        model = fresh(options)
        assert model.branches == ("sa", "glca")
        torch.manual_seed(7)
        weights.append(learn(model, 3, weighting)[0])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_half_of_the_steps_have_the_branch_and_a_resumed_run_has_the_same_ones() -> None:
    model = fresh({"probability": 0.5})
    images = images_for(DEIT)

    def draws(count: int) -> list[bool]:
        return [model.draw_partners(images, LABELS) is not None for _ in range(count)]

    torch.manual_seed(0)
    whole = draws(400)
    assert 160 < sum(whole) < 240
    torch.manual_seed(0)
    draws(100)
    kept = rng_state()
    torch.manual_seed(99)
    restore_rng_state(kept)
    assert draws(300) == whole[100:]


def test_a_step_without_the_branch_leaves_its_learned_weight_alone() -> None:
    model = fresh({"probability": 0.5})
    objective = Objective(model.branches, "uncertainty", 0.0, 0.0, None).double()
    images = images_for(DEIT)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        objective.zero_grad()
        output = model.train()(images, LABELS)
        losses = objective(output, LABELS, LABELS)
        losses.total.backward()
        log_variance = objective.combine.log_variance
        assert log_variance["sa"].grad is not None
        assert (log_variance["pwca"].grad is None) == (output.pwca is None) == ("pwca" not in losses.branches)
        seen.add(output.pwca is None)
    assert seen == {True, False}


def test_a_probability_moves_to_its_final_value() -> None:
    images = images_for(DEIT)
    for first, last in ((1.0, 0.0), (0.0, 1.0)):
        model = fresh({"probability": first, "final_probability": last})
        assert "pwca" in model.branches
        for progress in (0.0, 0.25, 0.75, 1.0):
            torch.manual_seed(0)
            share = sum(model.draw_partners(images, LABELS, progress) is not None for _ in range(400)) / 400
            assert share == pytest.approx(first + progress * (last - first), abs=0.06)
    assert fresh({"probability": 0.0, "final_probability": 0.0}).branches == ("sa", "glca")


@pytest.mark.parametrize("key", ["probability", "final_probability"])
@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_a_probability_out_of_range_names_the_key(key: str, probability: float) -> None:
    with pytest.raises(UserError, match=rf"^attention\.pwca\.{key}="):
        fresh({key: probability})
