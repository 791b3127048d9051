"""One seed for everything random, and the state of every generator for an exact resume.

Data order and augmentation do not live here: they are pure functions of (seed, epoch, position), see
`dcal.dataset.sampler`. What is left are weights, dropout, stochastic depth, mixup and the partners of PWCA.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, NumPy and torch (all devices).

    Args:
        deterministic: allow only kernels whose results repeat bit by bit; an operation that has none raises. Those of
            the CPU repeat anyway; on CUDA, cuBLAS needs a fixed workspace, which must be named before its first use.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


def part_ways(seed: int, rank: int) -> None:
    """Gives a process random numbers of its own inside the model. Those of the first one stay as they are.

    Python and NumPy go on alike everywhere: mixup blends the global batch, in every process in the same way.
    """
    if rank:
        torch.manual_seed(int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def rng_state(device: torch.device = CPU) -> dict[str, Any]:
    """The state of every global generator, in tensors and plain Python (so that `weights_only` can read it back).

    Args:
        device: on which the model draws, besides the CPU.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        **torch_state(device),
    }


def torch_state(device: torch.device = CPU) -> dict[str, Any]:
    """The state of torch's generators alone, `torch` and one by the device's type: what a forward pass draws from."""
    state = {"torch": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state(*_named(device))
    return state


def restore_rng_state(state: dict[str, Any], device: torch.device = CPU) -> None:
    """Puts every global generator back to a state of `rng_state`; that of a device of another type is left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    restore_torch_state(state, device)


def restore_torch_state(state: dict[str, Any], device: torch.device = CPU) -> None:
    """Puts torch's generators back to a state of `torch_state` or `rng_state`."""
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state.get(device.type) is not None:
        torch.get_device_module(device).set_rng_state(state[device.type], *_named(device))


@contextmanager
def preserved_torch_state(device: torch.device = CPU) -> Iterator[None]:
    """torch's generators go on after this as if nothing had been drawn inside."""
    before = torch_state(device)
    try:
        yield
    finally:
        restore_torch_state(before, device)


def _named(device: torch.device) -> tuple[torch.device, ...]:
    """The device as an argument, if it has an index: without one the current is meant, and MPS takes no argument."""
    return () if device.index is None else (device,)
