"""What a run asks of its device, whichever it is: CUDA, Apple's MPS, Intel's XPU or another that torch finds.

Memory is asked of `torch.accelerator`, which has these functions since torch 2.9; before, of the device's own module
(`torch.cuda`, ...), where they have the same names. A device that has neither is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    free: int
    total: int


def find_accelerator() -> torch.device | None:
    """The accelerator of this machine, without an index; None if there is none or torch was not built for it."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def make_current(device: torch.device) -> None:
    """Makes an accelerator with an index the one that torch uses where none is named, in the whole process."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was asked for; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """The accelerator's model, or its type where it does not say."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device)) if named else device.type


def device_memory(device: torch.device) -> Memory | None:
    """Free and total memory of an accelerator; None where it does not say."""
    module = torch.get_device_module(device)
    found = getattr(torch.accelerator, "get_memory_info", None) or getattr(module, "mem_get_info", None)
    return Memory(*found(device)) if found else None


def empty_cache(device: torch.device) -> None:
    """Gives the memory back that torch keeps of an accelerator but does not use."""
    found = _memory_function(device, "empty_cache")
    if found:
        found()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes of an accelerator that `call` holds at once beyond what is there before.

    None, and no call, where the device does not say.
    """
    reset, now, most = (
        _memory_function(device, name)
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated")
    )
    if not (reset and now and most):
        return None
    synchronize(device)
    reset(device)
    before = now(device)
    call()
    synchronize(device)
    return int(most(device) - before)


class HostCopy:
    """A scalar on its way to the CPU, as it is after the work that the device was given before.

    `tensor.item()` would wait for all work, that which was given afterwards, too.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._value = tensor.detach().to("cpu", non_blocking=True)
        self._event: Any = None
        if tensor.device.type != "cpu":
            self._event = torch.get_device_module(tensor.device).Event()
            self._event.record()

    def item(self) -> float:
        """The value, once it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)


def _memory_function(device: torch.device, name: str) -> Callable[..., Any] | None:
    if device.type == "cpu":
        return None
    return getattr(torch.accelerator, name, None) or getattr(torch.get_device_module(device), name, None)
