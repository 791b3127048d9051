"""What several test files need: real data and weights, where the environment says they are."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the commands, and like there before torch is loaded

import numpy as np
import pytest
import torch


def pytest_configure() -> None:
    # small tensors only: more threads than this cost time and starve whatever else runs on the machine
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(2, torch.get_num_threads()) // workers))
    # a shell ignores Ctrl-C on behalf of what it starts in the background; the tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random numbers in every run of a test: a bound that chance can break breaks a release some day."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def from_environment(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: {what}")
    path = Path(value)
    if not path.exists():
        pytest.skip(f"{variable}={value} does not exist: {what}")
    return path


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with cub100/, cub10/, Market-1501-v15.09.15/ and annotations/."""
    return from_environment("DCAL_DATA", "folder with the unpacked data sets")


@pytest.fixture(scope="session")
def deit_tiny() -> Path:
    """DeiT-Tiny's ImageNet-1k weights as a safetensors file."""
    path = from_environment("DCAL_WEIGHTS", "deit_tiny_patch16_224.safetensors, or the folder that holds it")
    path = path / "deit_tiny_patch16_224.safetensors" if path.is_dir() else path
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.fixture(scope="session")
def fgvc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished run on a handful of drawn birds."""
    return trained("fgvc", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def reid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished run on a handful of drawn people."""
    return trained("reid", tmp_path_factory.mktemp("runs"))


def trained(task: str, root: Path) -> Path:
    from run_command import run_command

    run_command("train", f"experiment=tiny/{task}", f"run.root={root}", "train.figures=true")
    (result,) = root.glob("**/result.json")
    return result.parent
