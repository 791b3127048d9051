"""One seed for everything random, and the state of every generator for an exact resume.

Data order and augmentation do not live here: they are pure functions of (seed, epoch, position), see
`dcal.dataset.sampler`. What is left are weights, dropout, stochastic depth, mixup and the partners of PWCA.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


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


def rng_state() -> dict[str, Any]:
    """The state of every global generator, in tensors and plain Python (so that `weights_only` can read it back)."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        **torch_state(),
    }


def torch_state() -> dict[str, Any]:
    """The state of torch's generators alone: all that a model's forward pass draws from."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Puts every global generator back to a state of `rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    restore_torch_state(state)


def restore_torch_state(state: dict[str, Any]) -> None:
    """Puts torch's generators back to a state of `torch_state` or `rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
