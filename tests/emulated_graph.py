"""CUDA graphs without CUDA: what a stream does is recorded operation by operation, and repeated on the same memory.

As on a GPU, nothing is computed while it is recorded (what was written to tensors that were there before is put back),
a replay reads and writes the recorded tensors, random numbers are drawn anew, and asking for a value is an error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")
"""Operations whose result, or its size, the CPU must know."""
WRITES = ("aten::native_batch_norm",)
"""Operations that change an argument without saying so: the running statistics."""


def storages(tree: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


class EmulatedGraph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`."""

    made: ClassVar[list[EmulatedGraph]] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: set[int] = set()
        self.replays = 0
        self.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        mutable = func._schema.is_mutable or func._schema.name in WRITES
        for leaf in tree_leaves((args, kwargs)) if mutable else ():
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.own:
                self.before.setdefault(id(leaf), (leaf, leaf.detach().clone()))
        out = func(*args, **kwargs)
        if mutable or not storages(out) <= storages((args, kwargs)):  # a view is there already
            self.calls.append((func, args, kwargs, out))
        self.own |= storages(out) - storages((args, kwargs))
        return out

    def end(self) -> None:
        for tensor, value in reversed(self.before.values()):
            tensor.detach().copy_(value)

    def replay(self) -> None:
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)


class EmulatedGenerator:
    """Draws nothing; counts how often its state was replaced."""

    resets = 0

    def clone_state(self) -> EmulatedGenerator:
        return self

    def graphsafe_set_state(self, state: EmulatedGenerator) -> None:
        self.resets += 1


class EmulatedStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: EmulatedStream) -> None:
        assert other is not self


@contextlib.contextmanager
def recording(graph: EmulatedGraph, capture_error_mode: str = "global") -> Iterator[None]:
    try:
        with graph:
            yield
    except RuntimeError:  # as on a GPU, whose end of a recording that broke off fails as well
        raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
    graph.end()


def emulate_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedGraph]:
    """Puts all this in the place of torch's; returns the graphs that will be made."""
    EmulatedGraph.made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "Stream", EmulatedStream)
    monkeypatch.setattr(torch.cuda, "current_stream", EmulatedStream)
    monkeypatch.setattr(torch.cuda, "default_generators", (EmulatedGenerator(),))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    # torch's Adam refuses counts of steps in tensors on a CPU, where they bring nothing
    adam = sys.modules["torch.optim.adam"]  # not an attribute of torch.optim
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    return EmulatedGraph.made
