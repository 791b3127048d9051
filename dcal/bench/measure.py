"""Measuring a call: seconds, FLOPs, bytes kept for the backward pass, peak memory.

Seconds are medians of calls that take turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dcal.utils import accelerator
from dcal.utils.accelerator import synchronize

Call = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` on one thread measures truly on a machine that is busy with other things."""


def interleaved_medians(
    calls: Mapping[str, Call],
    repeats: int,
    min_seconds: float,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call. They take turns `repeats` times, after two rounds to warm up and compile.

    Args:
        min_seconds: a call that is shorter is repeated within one measurement until it has lasted that long.
        clock: one of CLOCKS.
    """
    for call in calls.values():
        seconds(call, 1, device, clock)
    count = {name: max(1, math.ceil(min_seconds / seconds(call, 1, device, clock))) for name, call in calls.items()}
    rounds = [{name: seconds(call, count[name], device, clock) for name, call in calls.items()} for _ in range(repeats)]
    return {name: statistics.median(times[name] for times in rounds) for name in calls}


def seconds(call: Call, count: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Mean seconds of `count` calls; waits for the device before and after."""
    synchronize(device)
    start = clock()
    for _ in range(count):
        call()
    synchronize(device)
    return (clock() - start) / count


def flops(call_on_meta: Call) -> int:
    """FLOPs of a call, two per multiply-add, matrix products and convolutions only.

    Its tensors must be on the meta device: elsewhere fused attention hides from the counter.
    """
    with FlopCounterMode(display=False) as counter:
        call_on_meta()
    return int(counter.get_total_flops())


def saved_bytes(call: Call, parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass: each storage once, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values())


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most bytes that `call` holds at once beyond what is there before it."""
    call()
    told = accelerator.peak_bytes(call, device)
    if told is not None:
        return told
    tracker = _LiveStorages()
    with tracker:
        call()
    return tracker.peak


def number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """A measured value for a table, `scale` times as large; `n/a` where there is none."""
    return "n/a" if value is None else f"{value * scale:.{digits}f}"


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations create, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in self._seen and storage.data_ptr() not in known:
                self._seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return out

    def _change(self, by: int) -> None:
        self.live += by
        self.peak = max(self.peak, self.live)
