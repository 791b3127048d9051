"""Devices that no test has: pretended ones, asked for by name, without float64, of a torch with fewer functions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dcal.distributed.collectives import init_distributed
from dcal.metric.classification import classification_metrics
from dcal.metric.faithfulness import area
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import evaluate_retrieval
from dcal.utils import accelerator
from dcal.utils.device import Device, choose_device, computes_in
from dcal.utils.errors import UserError
from dcal.utils.rng import preserved_torch_state, restore_rng_state, rng_state

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 1) -> None:
    """A machine with so many accelerators of a type; None for one without."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind or "cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)


@pytest.mark.parametrize(
    ("kind", "count", "name", "device"),
    [
        (None, 0, "auto", "cpu"),
        ("cuda", 1, "cpu", "cpu"),
        ("cuda", 1, "auto", "cuda"),
        ("cuda", 1, "cuda:0", "cuda"),  # the only one needs no index, which some devices' functions refuse
        ("cuda", 2, "auto", "cuda"),
        ("cuda", 2, "cuda", "cuda"),
        ("cuda", 2, "cuda:1", "cuda:1"),
        ("mps", 1, "auto", "mps"),
        ("mps", 1, "mps", "mps"),
        ("xpu", 4, "xpu:3", "xpu:3"),
    ],
)
def test_a_device_is_found_or_named(
    kind: str | None, count: int, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, kind, count)
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (None, "cuda", "device=cuda, but torch sees no GPU: use device=auto"),
        (None, "mps", "device=mps, but torch sees no GPU"),
        ("mps", "cuda", "device=cuda, but torch sees mps only"),
        ("cuda", "meta", "device=meta, but torch sees cuda only"),
        ("cuda", "cuda:2", r"device=cuda:2, but torch sees 2 device\(s\): the last is cuda:1"),
        ("mps", "mpss", "device='mpss': did you mean mps"),
        ("cuda", "", "device='': choose one of auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(
    kind: str | None, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, kind, 2)
    with pytest.raises(UserError, match=f"^{message}"):
        choose_device(name)


def test_a_run_makes_its_device_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    with init_distributed("cuda:1"):
        assert chosen == [1]
    with init_distributed("cuda"), init_distributed("cpu"):
        assert chosen == [1], "without an index the current one stays"


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    message = r"^device=cuda:1 is one device for 2 processes: set device=cuda"
    with pytest.raises(UserError, match=message), init_distributed("cuda:1"):
        raise AssertionError("not reached")


def test_a_device_computes_in_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [computes_in(CPU, name) for name in ("fp32", "tf32", "bf16", "fp16")] == [True, False, True, False]
    pretend(monkeypatch, "meta")  # a device with tensors but without autocast
    assert computes_in(torch.device("meta"), "fp32")
    for precision in ("tf32", "bf16", "fp16"):
        with pytest.raises(UserError, match=rf"^train\.precision={precision} needs a GPU .*: use fp32 on meta"):
            Device("auto", precision, (0.5,), (0.5,))
    device = Device("auto", "fp32", (0.5,) * 3, (0.5,) * 3)
    assert device.normalise(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).device.type == "meta"


def test_apples_memory_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("cpu", "fp32", (0.5,), (0.5,))
    pinned = {}
    for kind in ("cpu", "mps", "cuda", "xpu"):
        device.torch = torch.device(kind)
        pinned[kind] = device.pins_memory
    assert pinned == {"cpu": False, "mps": False, "cuda": True, "xpu": True}


def fake_module(**functions: Any) -> SimpleNamespace:
    return SimpleNamespace(**functions)


def test_peak_memory_is_asked_of_torch_or_of_the_device_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    names = ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "empty_cache")
    new = {"memory_allocated": lambda _: 10, "max_memory_allocated": lambda _: 30}
    new |= {"reset_peak_memory_stats": lambda _: None}
    old = {**new, "max_memory_allocated": lambda _: 25}
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    for name in names:
        monkeypatch.delattr(torch.accelerator, name, raising=False)  # as in torch 2.8
    monkeypatch.setattr(torch, "get_device_module", lambda _: fake_module())
    assert accelerator.peak_bytes(lambda: None, cuda) is None
    accelerator.empty_cache(cuda)
    monkeypatch.setattr(torch, "get_device_module", lambda _: fake_module(**old))
    assert accelerator.peak_bytes(lambda: None, cuda) == 15
    for name, function in new.items():
        monkeypatch.setattr(torch.accelerator, name, function, raising=False)
    assert accelerator.peak_bytes(lambda: None, cuda) == 20
    assert accelerator.peak_bytes(lambda: None, CPU) is None


def test_a_device_says_its_name_and_memory_if_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.accelerator, "get_memory_info", raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda _: fake_module())
    mps, cuda = torch.device("mps"), torch.device("cuda")
    assert accelerator.device_name(mps) == "mps" and accelerator.device_memory(mps) is None
    told = fake_module(get_device_name=lambda _: "H100", mem_get_info=lambda _: (3, 8))
    monkeypatch.setattr(torch, "get_device_module", lambda _: told)
    assert accelerator.device_name(cuda) == "H100" and accelerator.device_memory(cuda) == (3, 8)


@pytest.mark.parametrize(("name", "arguments"), [("mps", ()), ("cuda:1", (torch.device("cuda:1"),))])
def test_the_devices_random_numbers_are_kept_under_its_type(
    name: str, arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, states = torch.device(name), {"now": torch.tensor([1])}

    def get_rng_state(*given: Any) -> Tensor:
        assert given == arguments
        return states["now"]

    def set_rng_state(state: Tensor, *given: Any) -> None:
        assert given == arguments
        states["now"] = state

    module = fake_module(get_rng_state=get_rng_state, set_rng_state=set_rng_state)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    saved = rng_state(device)
    assert torch.equal(saved[device.type], torch.tensor([1]))
    with preserved_torch_state(device):
        states["now"], drawn = torch.tensor([2]), torch.rand(1)
    assert torch.equal(states["now"], torch.tensor([1])) and torch.equal(drawn, torch.rand(1))
    states["now"] = torch.tensor([3])
    restore_rng_state({**saved, "other": torch.tensor([9])}, device)
    assert torch.equal(states["now"], torch.tensor([1]))
    for elsewhere in ({**rng_state(), "cuda": None}, rng_state()):  # of a CPU; the first as older checkpoints have it
        restore_rng_state(elsewhere, device)
        assert torch.equal(states["now"], torch.tensor([1]))


class NoDouble(Tensor):
    """A tensor of a device without float64: what makes one raises, as on Apple's GPU. The CPU gets a plain tensor."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(Tensor).clone()
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def test_metrics_make_no_float64_on_the_device() -> None:
    torch.manual_seed(0)
    scores, labels, features = torch.randn(8, 5).log_softmax(1), torch.arange(8) % 5, torch.randn(8, 4)
    with pytest.raises(TypeError, match="float64"):
        scores.as_subclass(NoDouble).double()
    there = classification_metrics(scores.as_subclass(NoDouble), labels.as_subclass(NoDouble))
    assert there == classification_metrics(scores, labels)
    assert area(scores[0].as_subclass(NoDouble)) == area(scores[0])
    places = (labels % 2, torch.arange(8))

    def ranked(q: Tensor) -> dict[str, Any]:
        return evaluate_retrieval(q, *places, q, *(place.clone() for place in places))

    assert ranked(features.as_subclass(NoDouble)) == ranked(features)
    assert torch.equal(
        k_reciprocal_rerank(features.as_subclass(NoDouble), features), k_reciprocal_rerank(features, features)
    )
