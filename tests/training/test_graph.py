"""A recorded step is the eager step: its inputs are copied in, its losses out, and what it cannot be falls back.

Without a GPU, CUDA graphs are emulated (`emulated_graph.py`); the last tests run where there is one.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from emulated_graph import EmulatedGraph, emulate_cuda_graphs
from timm.optim import create_optimizer_v2
from tiny_state import BATCH, make_setup
from torch import Tensor

from dcal.optimizer import Optimization
from dcal.training.execution import mode
from dcal.training.execution.graph import WARM_UP, GraphStep, can_be_recorded
from dcal.training.execution.mode import (
    compiles,
    execution_mode,
    obstacle_to_recording,
    record_steps,
    why_nothing_compiles,
)
from dcal.training.parallel import load_optimizer, optimizer_state
from dcal.training.state import TrainState
from dcal.training.step import take_step, update
from dcal.utils.errors import UserError
from dcal.utils.rng import restore_rng_state, rng_state

CPU = torch.device("cpu")
STEPS = 8


def batches() -> list[dict[str, Tensor]]:
    """As many batches as steps, each its own."""
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "image": torch.randint(0, 256, BATCH["image"].shape, generator=generator, dtype=torch.uint8),
            "label": BATCH["label"].roll(number),
            "camera": BATCH["camera"].roll(number),
        }
        for number in range(STEPS)
    ]


def adam(setup: TrainState) -> TrainState:
    """The state with an optimizer that counts its steps, and a rate that changes in every step: exact in float32."""
    parameters = [*setup.model.parameters(), *setup.objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2**-10, weight_decay=2**-3, capturable=True)
    setup.optimization = Optimization(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))
    setup.train.clip_grad = 1.0
    return setup


def captured(setup: TrainState) -> TrainState:
    setup.graph = GraphStep(partial(take_step, setup), setup.optimization.optimizer, CPU, len(BATCH["label"]))
    return setup


def train(
    setup: TrainState, some: list[dict[str, Tensor]], first: int = 0, seed: int | None = 7
) -> list[dict[str, float]]:
    if seed is not None:
        torch.manual_seed(seed)
    losses = [update(setup, batch, (first + number) / STEPS) for number, batch in enumerate(some)]
    return [{name: float(value) for name, value in one.items()} for one in losses]


def weights(setup: TrainState) -> dict[str, Tensor]:
    return {**setup.model.state_dict(), **setup.objective.state_dict()}


def assert_same(one: TrainState, other: TrainState) -> None:
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name
    ours, theirs = (optimizer_state(setup.optimization.optimizer) for setup in (one, other))
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][key]) for key, value in state.items())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"glca": {"blocks": 0}, "pwca": {"blocks": 0}},
    "dcal": {},
    "triplet and bnneck": {"triplet": 1.0, "bnneck": True},
    "hardest partners": {"pwca": {"pairing": "hardest"}},
    "heads first": {"head_epochs": 2.0},
    "GLCA alone first": {"glca": {"warmup_epochs": 2.0}},
    "steps without PWCA": {"pwca": {"probability": 0.6}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_recorded_step_is_the_eager_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = emulate_cuda_graphs(monkeypatch)
    eager, recorded = adam(make_setup(**OPTIONS[name])), captured(adam(make_setup(**OPTIONS[name])))
    losses = train(eager, batches())
    assert losses == train(recorded, batches())
    assert_same(eager, recorded)
    two_stages = name.endswith("first")
    kinds = Counter((two_stages and number < STEPS / 2, "pwca" in loss) for number, loss in enumerate(losses))
    expected = [count - WARM_UP for count in kinds.values() if count > WARM_UP]
    assert sorted(graph.replays for graph in graphs) == sorted(expected)
    assert recorded.graph is not None and not recorded.graph.failed  # type: ignore[attr-defined]


def test_random_numbers_go_on_in_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_cuda_graphs(monkeypatch)
    options = {"drop_path": 0.4, "glca": {"selection": "random"}, "pwca": {"pairing": "gaussian"}}
    setup = captured(adam(make_setup(**options)))
    one = train(setup, [BATCH] * STEPS)
    assert len({loss["loss"] for loss in one}) == STEPS
    again = captured(adam(make_setup(**options)))
    assert train(again, [BATCH] * STEPS) == one, "the same seed gives the same steps"


def test_a_smaller_batch_runs_eagerly_between_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = emulate_cuda_graphs(monkeypatch)
    some = batches()
    some[5] = {key: value[:5] for key, value in some[5].items()}
    eager, recorded = adam(make_setup()), captured(adam(make_setup()))
    assert train(eager, some) == train(recorded, some)
    assert_same(eager, recorded)
    assert [graph.replays for graph in graphs] == [STEPS - WARM_UP - 1]


@pytest.mark.parametrize("modes", ["eager captured", "captured eager", "captured captured"])
def test_a_run_goes_on_in_another_mode(modes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint, which holds the same whatever wrote it."""
    emulate_cuda_graphs(monkeypatch)
    whole = adam(make_setup())
    expected = train(whole, batches())
    first, second = (
        captured(adam(make_setup())) if mode == "captured" else adam(make_setup()) for mode in modes.split()
    )
    half = 5
    losses = train(first, batches()[:half])
    saved = copy.deepcopy((weights(first), optimizer_state(first.optimization.optimizer), rng_state()))
    second.model.load_state_dict({k: v for k, v in saved[0].items() if k in second.model.state_dict()})
    second.objective.load_state_dict({k: v for k, v in saved[0].items() if k in second.objective.state_dict()})
    load_optimizer(second.optimization.optimizer, saved[1])
    second.optimization.schedule.last_epoch = half
    restore_rng_state(saved[2])
    assert losses + train(second, batches()[half:], half, seed=None) == expected
    assert_same(whole, second)


def test_a_checkpoint_says_nothing_of_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_cuda_graphs(monkeypatch)
    setup = adam(make_setup())
    update(setup, BATCH, 0.0)
    before = optimizer_state(setup.optimization.optimizer)
    for group in setup.optimization.optimizer.param_groups:
        group["lr"], group["fused"] = torch.tensor(group["lr"], dtype=torch.float64), True
    after = optimizer_state(setup.optimization.optimizer)
    assert after["param_groups"] == before["param_groups"]
    assert not {"fused", "capturable", "foreach"} & after["param_groups"][0].keys()
    load_optimizer(setup.optimization.optimizer, after)
    assert setup.optimization.optimizer.param_groups[0]["fused"], "the optimizer computes as before"


def test_a_step_that_asks_for_a_value_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    emulate_cuda_graphs(monkeypatch)
    eager, recorded = adam(make_setup()), captured(adam(make_setup()))
    for setup in (eager, recorded):
        forward = setup.objective.forward

        def asking(*args: Any, forward: Any = forward) -> Any:
            losses = forward(*args)
            assert losses.total.item() == losses.total.item()
            return losses

        monkeypatch.setattr(setup.objective, "forward", asking)
    with caplog.at_level(logging.WARNING):
        assert train(eager, batches()) == train(recorded, batches())
    assert_same(eager, recorded)
    assert warned(caplog) == [
        "train.compile: no graph (operation not permitted when stream is capturing), steps run kernel by kernel"
    ]
    (generator,) = torch.cuda.default_generators
    assert generator.resets == 1  # type: ignore[attr-defined]  # else the next drop path would fail


def test_running_out_of_memory_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    emulate_cuda_graphs(monkeypatch)
    setup = captured(adam(make_setup()))
    train(setup, batches()[:WARM_UP])

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(setup, "features", full)
    with pytest.raises(UserError, match="out of memory"):
        train(setup, batches()[:1])


def test_the_emulation_sees_what_a_graph_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above can fail: numbers of Python are frozen, and recording alone computes nothing."""
    emulate_cuda_graphs(monkeypatch)
    x, factor, graph = torch.ones(3), 2.0, torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.mul_(factor)
        y = x + 1
    assert x.tolist() == [1, 1, 1]
    factor = 5.0
    graph.replay()
    graph.replay()
    assert x.tolist() == [4, 4, 4] and y.tolist() == [5, 5, 5]
    assert isinstance(graph, EmulatedGraph) and graph.replays == 2


@pytest.mark.parametrize(
    ("asked", "cuda", "cpu"),
    [
        ("auto", "graph", "none"),
        ("none", "none", "none"),
        ("compile", "compile", "compile"),
        ("graph", "graph", "graph"),
        ("true", "compile", "compile"),
        ("True", "compile", "compile"),  # as the schema reads `true`
        ("False", "none", "none"),
    ],
)
def test_the_mode_is_chosen_by_name_or_by_the_device(asked: str, cuda: str, cpu: str) -> None:
    assert execution_mode(asked, torch.device("cuda")) == cuda and execution_mode(asked, CPU) == cpu
    with pytest.raises(UserError, match=r"^train\.compile='grap': did you mean graph"):
        execution_mode("grap", CPU)


class Words:
    """A configuration of what decides the mode."""

    def __init__(self, **changes: Any) -> None:
        values = {"compile": "graph", "precision": "bf16", "auto_accumulate": False, "accumulate": 1, "batch_size": 7}
        values |= {"activation_checkpointing": False, "mixup": 0.0, "cutmix": 0.0, "opt": "adamw", **changes}
        self.__dict__ = values
        self.train = self.task = self.optimizer = self


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said as a warning; a command that ran before may have switched notes on."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("changes", "device", "processes", "named"),
    [
        ({}, "cuda", 1, None),
        ({}, "cpu", 1, "device=cpu"),
        ({}, "cuda", 2, "launch.processes=2"),
        ({"mixup": 0.2}, "cuda", 1, "task.mixup or task.cutmix"),
        ({"cutmix": 0.2}, "cuda", 1, "task.mixup or task.cutmix"),
        ({"precision": "fp16"}, "cuda", 1, "train.precision=fp16"),
        ({"auto_accumulate": True}, "cuda", 1, "train.auto_accumulate=true"),
        ({"accumulate": 4}, "cuda", 1, "train.accumulate=4"),
        ({"activation_checkpointing": True}, "cuda", 1, "train.activation_checkpointing=true"),
        ({"opt": "lamb"}, "cuda", 1, "optimizer.opt=lamb"),
    ],
)
def test_what_cannot_be_recorded_is_named(
    changes: dict[str, Any],
    device: str,
    processes: int,
    named: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg: Any = Words(**changes)
    setup = adam(make_setup())
    optimizer = setup.optimization.optimizer
    if cfg.opt == "lamb":
        for group in optimizer.param_groups:
            del group["capturable"]
    setup.device.torch = torch.device(device)
    monkeypatch.setattr(mode, "why_nothing_compiles", lambda device: None)
    obstacle = obstacle_to_recording(cfg, setup.device.torch, processes, optimizer)
    assert obstacle == named and compiles(cfg, setup.device.torch, obstacle) == (named is None)
    with caplog.at_level(logging.WARNING):
        record_steps(setup, cfg, obstacle)
    assert (setup.graph is None) == (named is not None)
    told = [] if named is None else [f"train.compile=graph: no graph with {named}, steps run kernel by kernel"]
    assert warned(caplog) == told


def test_without_a_compiler_the_default_goes_on_and_a_wish_is_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode, "why_nothing_compiles", lambda device: "no working C++ compiler")
    cuda = torch.device("cuda")
    with caplog.at_level(logging.WARNING):
        assert not compiles(Words(compile="auto"), cuda, None)  # type: ignore[arg-type]
    (said,) = warned(caplog)
    assert "nothing compiles here (no working C++ compiler)" in said
    for asked in ("compile", "graph"):
        with pytest.raises(UserError, match=rf"^train\.compile={asked}: .*no working C\+\+ compiler.*compile=none"):
            compiles(Words(compile=asked), cuda, None)  # type: ignore[arg-type]
    assert not compiles(Words(compile="none"), cuda, None)  # type: ignore[arg-type]


def test_whether_anything_compiles_is_found_out_by_compiling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # of nothing that was compiled before
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "/no/such/compiler"), "fx_graph_cache": False}):
        assert "compiler" in (why_nothing_compiles(CPU) or "")


def test_sgd_is_recorded_only_where_its_rate_may_be_a_tensor() -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    assert not can_be_recorded(optimizer)
    optimizer.param_groups[0]["fused"] = True
    assert can_be_recorded(optimizer)


def test_an_optimizer_that_counts_its_steps_in_python_is_not_recorded() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    assert can_be_recorded(create_optimizer_v2(parameters, opt="adamw", lr=0.1))
    assert not can_be_recorded(create_optimizer_v2(parameters, opt="lookahead_adamw", lr=0.1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["plain", "dcal", "triplet and bnneck", "steps without PWCA"])
def test_on_a_gpu_too(name: str) -> None:
    device = torch.device("cuda")
    setups = [make_setup(**OPTIONS[name]) for _ in range(2)]
    for setup in setups:
        setup.model.to(device)
        setup.objective.to(device)
        setup.device.torch, setup.device.mean, setup.device.std = (
            device,
            setup.device.mean.cuda(),
            setup.device.std.cuda(),
        )
        adam(setup)
    eager, recorded = setups
    recorded.graph = GraphStep(
        partial(take_step, recorded), recorded.optimization.optimizer, device, len(BATCH["label"])
    )
    for ours, theirs in zip(train(eager, batches()), train(recorded, batches()), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3)
    assert not recorded.graph.failed and recorded.graph.recorded
