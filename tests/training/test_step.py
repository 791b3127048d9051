"""A batch in parts gives the gradients of the whole batch, whatever looks across it; and memory that runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_state import BATCH, make_setup
from torch import Tensor

from dcal.attention.pairing import Partners, derangement
from dcal.attention.pwca import STREAMS
from dcal.training.accumulation import split_batch
from dcal.training.state import TrainState
from dcal.training.step import differentiate, features_of, prepare, update
from dcal.utils.memory import OutOfMemory
from dcal.utils.rng import restore_rng_state, rng_state


def gradients(setup: TrainState) -> dict[str, Tensor]:
    """Of every parameter, with the buffers that a step changes."""
    tables = {"model": setup.model, "objective": setup.objective}
    found = {
        f"{where}.{name}": parameter.grad.clone()
        for where, module in tables.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {**found, **{name: buffer.clone() for name, buffer in setup.model.named_buffers()}}


def step(parts: int, seed: int = 3, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one batch in so many parts."""
    setup = make_setup(**options)
    setup.model.train()
    setup.accumulate = parts
    torch.manual_seed(seed)
    losses = differentiate(setup, prepare(setup, BATCH, 0.0))
    return losses, gradients(setup)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"


LOSSES = {"classification": {}, "bnneck": {"triplet": 1.0, "bnneck": True}}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("stream", STREAMS)
def test_parts_give_the_gradients_of_the_whole(stream: str, loss: str) -> None:
    for pairing, splits in (("natural", (2, 7)), ("hardest", (3,))):
        options = {**LOSSES[loss], "pwca": {"stream": stream, "pairing": pairing}}
        whole = step(1, **options)
        assert set(whole[0]) == {"loss", "sa", "glca", "pwca", "pairs_self", "pairs_same_class"}
        assert whole[0]["pairs_self"] == 0.0
        for parts in splits:
            split = step(parts, **options)
            assert_equal(split[0], whole[0])
            assert_equal(split[1], whole[1])


@pytest.mark.parametrize("stream", STREAMS)
def test_parts_agree_on_a_set_of_blocks_and_on_the_steps_that_have_pwca(stream: str) -> None:
    options = {"pwca": {"stream": stream, "blocks": [1, 2], "probability": 0.5}}
    seen = set()
    for seed in range(6):
        whole, split = step(1, seed, **options), step(3, seed, **options)
        assert_equal(split[0], whole[0])
        assert_equal(split[1], whole[1])
        seen.add("pwca" in whole[0])
    assert seen == {True, False}


def test_so_they_do_without_pwca_with_mixup_and_with_activations_recomputed() -> None:
    def blend(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # across the batch, as timm's Mixup
        target = torch.nn.functional.one_hot(labels, 5).double()
        return 0.7 * images + 0.3 * images.flip(0), 0.7 * target + 0.3 * target.flip(0)

    for options in ({"pwca": {"blocks": 0}, "bnneck": True}, {"mixup": blend}, {"checkpointing": True, "triplet": 1.0}):
        assert_equal(step(3, **options)[1], step(1, **options)[1])


@pytest.mark.parametrize("loss", ["classification", "bnneck"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_random_choices_are_the_same_both_times(loss: str, checkpointing: bool) -> None:
    """Against one graph over all parts, from the same random numbers: stochastic depth, random selection, noise."""
    for pairing in ("natural", "gaussian"):
        options = {
            **LOSSES[loss],
            "drop_path": 0.4,
            "glca": {"selection": "random"},
            "pwca": {"pairing": pairing},
            "checkpointing": checkpointing,
        }
        split = step(3, **options)
        setup = make_setup(**options)
        setup.model.train()
        torch.manual_seed(3)
        setup.accumulate = 3
        whole = prepare(setup, BATCH, 0.0)
        whole = whole._replace(images=setup.device.normalise(whole.images))
        parts = split_batch(7, 3, whole.partners, "clean")
        pieces = [features_of(setup, whole, part) for part in parts]
        places = torch.cat([part.rows for part in parts]).argsort()
        features = type(pieces[0])(*(torch.cat(branch)[places] for branch in zip(*pieces, strict=True)))
        loss_ = setup.objective(setup.model.classify(features), whole.targets, whole.labels)
        loss_.total.backward()
        assert_equal(split[1], gradients(setup))


@pytest.mark.parametrize("loss", LOSSES)
def test_in_the_head_epochs_heads_learn_as_ever_and_nothing_else_does(loss: str) -> None:
    options = {**LOSSES[loss], "drop_path": 0.4}
    for parts in (1, 3):
        everything = step(parts, **options)
        heads = step(parts, **options, head_epochs=1.0)
        assert_equal(heads[0], everything[0], 0.0)
        learned = {name for name in heads[1] if name in dict(named_gradients(options))}
        assert learned and all(name.startswith(("model.head", "model.glca_head", "objective")) for name in learned)
        assert_equal(heads[1], {name: everything[1][name] for name in heads[1]}, 0.0)
    setup = make_setup(**options, head_epochs=1.0)
    setup.model.train()
    differentiate(setup, prepare(setup, BATCH, 0.25))  # the second of four epochs
    assert setup.model.vit.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("loss", LOSSES)
def test_in_its_warm_up_glca_learns_as_ever_and_moves_nothing_else(loss: str) -> None:
    options = LOSSES[loss]
    warm: dict[str, Any] = {**options, "glca": {"warmup_epochs": 1.0}}
    for parts in (1, 3):
        everything, alone = step(parts, **options), step(parts, **warm)
        assert_equal(alone[0], everything[0], 0.0)
        branch = {name: value for name, value in everything[1].items() if "glca" in name}
        assert branch and all(torch.equal(alone[1][name], value) for name, value in branch.items())
        setup, without = make_setup(**warm), make_setup(**options, glca={"blocks": 0})
        without.model.load_state_dict(setup.model.state_dict(), strict=False)
        without.objective.load_state_dict(setup.objective.state_dict(), strict=False)
        without.model.train()
        without.accumulate = parts
        torch.manual_seed(3)
        differentiate(without, prepare(without, BATCH, 0.0))
        trunk = {name: value for name, value in alone[1].items() if "glca" not in name}
        assert_equal(trunk, gradients(without))
    assert prepare(setup, BATCH, 0.24).glca_alone and not prepare(setup, BATCH, 0.25).glca_alone  # of four epochs


def named_gradients(options: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Every parameter that a step may give a gradient."""
    setup = make_setup(**options)
    tables = {"model": setup.model, "objective": setup.objective}
    return [(f"{where}.{name}", p) for where, module in tables.items() for name, p in module.named_parameters()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("freeze", ["patch_embed", "2", "all"])
def test_a_frozen_part_gets_no_gradient_and_the_rest_the_same_one(loss: str, freeze: str) -> None:
    before = ("patch_embed.", "cls_token", "pos_embed", "blocks.0.", "blocks.1.")
    frozen = {"patch_embed": ("patch_embed.",), "2": before, "all": ("",)}[freeze]
    for options in (LOSSES[loss], {**LOSSES[loss], "glca": {"blocks": 0}, "pwca": {"blocks": 0}}):
        whole, split = (step(parts, **options, freeze=freeze)[1] for parts in (1, 3))
        expected = step(1, **options)[1]
        for name in expected:
            if name.startswith("model.vit."):
                assert (name in whole) == (not name.removeprefix("model.vit.").startswith(frozen)), name
            else:
                assert name in whole  # GLCA's copies of frozen blocks among them
        assert_equal(whole, {name: expected[name] for name in whole})
        assert_equal(split, whole)


@settings(max_examples=50, deadline=None)
@given(
    share=st.integers(2, 20),
    processes=st.integers(1, 3),
    parts=st.integers(1, 20),
    seed=st.integers(0, 1000),
    stream=st.sampled_from(STREAMS),
)
def test_every_image_once_and_beside_its_partner(
    share: int, processes: int, parts: int, seed: int, stream: str
) -> None:
    size = share * processes
    torch.manual_seed(seed)
    permutation = bool(seed % 2)
    index = derangement(size) if permutation else (torch.arange(size) + torch.randint(1, size, (size,))) % size
    everything = torch.arange(size)
    places = [(rank, processes) for rank in range(processes)]
    splits = [split_batch(size, min(parts, share), Partners(index), stream, place) for place in places]
    for together in zip(*splits, strict=True):  # the same part in every process
        owns = torch.cat([everything[part.images][: part.size] for part in together])
        assert all(everything[part.rows].tolist() == owns.tolist() for part in together)
    assert torch.cat([everything[part.rows] for part in splits[0]]).sort().values.tolist() == everything.tolist()
    for part in (part for split in splits for part in split):
        images, partners = everything[part.images], part.partners
        assert partners is not None and len(set(images.tolist())) == len(images)
        paired = images if stream == "symmetric" else images[: part.size]
        assert images[partners.index_B].tolist() == index[paired].tolist()
        if permutation and stream != "symmetric":
            assert len(images) <= part.size + 2


@pytest.mark.parametrize("loss", ["classification", "bnneck"])
def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_parts(loss: str) -> None:
    options = {**LOSSES[loss], "drop_path": 0.4, "glca": {"selection": "random"}}
    torch.manual_seed(3)
    expected, start = make_setup(**options), rng_state()
    expected.accumulate = 4
    expected.model.train()
    restore_rng_state(start)
    differentiate(expected, prepare(expected, BATCH, 0.0))
    after = torch.rand(1)

    setup = make_setup(**options, auto=True)
    setup.model.train()
    features, calls = setup.features, iter(range(1000))

    def small(*args: Any) -> Any:
        result = features(*args)  # random numbers are drawn before memory runs out
        if next(calls) in (0, 2):  # the whole batch, and the second half of it
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result

    setup.features = small
    restore_rng_state(start)
    update(setup, BATCH, 0.0)
    assert setup.accumulate == 4 and torch.equal(after, torch.rand(1))
    assert_equal(gradients(setup), gradients(expected), 0.0)


@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_for_good_names_the_keys(error: Exception, auto: bool) -> None:
    setup = make_setup(auto=auto)

    def never(*_: Any) -> Any:
        raise error

    setup.features = never
    with pytest.raises(OutOfMemory, match=r"train\.accumulate=.*train\.batch_size"):
        update(setup, BATCH, 0.0)


def test_other_errors_stay_what_they_are() -> None:
    setup = make_setup(auto=True)

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    setup.features = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        update(setup, BATCH, 0.0)
