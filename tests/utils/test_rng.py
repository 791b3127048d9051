"""The seed decides everything random, the number of workers nothing, and `deterministic` what it promises."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_command import run_command

from dcal.utils.rng import restore_rng_state, rng_state, seed_everything


@pytest.fixture(autouse=True)
def undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    seed_everything(0)


def draws() -> tuple[Any, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_for_every_generator() -> None:
    seed_everything(5)
    first, state = draws(), rng_state()
    second = draws()
    assert all(a != b for a, b in zip(first, second, strict=True))
    seed_everything(5)
    assert draws() == first
    restore_rng_state(state)
    assert draws() == second
    seed_everything(6)
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    seed_everything(2**32 + 5)  # NumPy takes 32 bits


def test_deterministic_is_switched_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):  # an operation without such a kernel
        torch.ones(4).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_everything(0, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user has chosen"


def trained(runs: Path, *words: str) -> tuple[bytes, list[dict[str, Any]]]:
    run_command("train", "experiment=tiny/fgvc", "train.progress=false", f"run.root={runs}", *words)
    (weights,) = runs.glob("**/last.safetensors")
    lines = [json.loads(line) for line in (weights.parent / "metrics.jsonl").read_text().splitlines()]
    return weights.read_bytes(), [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def test_a_run_depends_on_its_seed_and_not_on_workers(tmp_path: Path) -> None:
    alone = trained(tmp_path / "a", "train.workers=0")
    assert trained(tmp_path / "b", "train.workers=2") == alone
    assert trained(tmp_path / "c", "train.workers=0", "deterministic=true") == alone
    other = trained(tmp_path / "d", "train.workers=0", "seed=1")
    assert other[0] != alone[0] and other[1] != alone[1]
