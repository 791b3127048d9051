"""Which of a run's processes this one is, from what torchrun leaves in the environment; without importing torch.

A run is written by its first process alone. That is decided where something is written, and nowhere else: every
function that writes a run's files is `rank_zero_only`, and its callers need not know that there are other processes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
RUN_MODULE = """
import sys
sys.path = [folder for folder in sys.path if folder]
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
"""What `python -m MODULE` does, without the current folder on the path (`python -P`, which Python 3.10 lacks)."""


def rank() -> int:
    """This process among all of the run, from 0."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def local_rank() -> int:
    """This process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """All processes of the run, over all machines; 1 for a run that was started without torchrun.

    A `WORLD_SIZE` without an address to meet at is left over from something else: no process waits for this one.
    """
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        return 1
    return int(os.environ.get("WORLD_SIZE") or 1)


def work_alone() -> None:
    """Makes this the only process, whatever the environment says: for commands that never run as several."""
    os.environ.pop("WORLD_SIZE", None)


def adopt_batch_system() -> None:
    """Makes the tasks of one submitit job (SLURM, or its local executor) the processes of one run."""
    if "SUBMITIT_EXECUTOR" not in os.environ or world_size() > 1:
        return
    import submitit  # an extra

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def module_command(module: str, *words: str) -> list[str]:
    """What follows `python` to run an installed module, whatever files of the same names the current folder has.

    Args:
        module: its full name.
        words: its command line.
    """
    return ["-c", RUN_MODULE, module, *words]


def rank_zero_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """The function in the first process, and nothing in the others."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return function(*args, **kwargs) if rank() == 0 else None

    return call
