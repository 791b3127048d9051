"""How the steps of a run are executed, `train.compile`: kernel by kernel, compiled, or recorded as a CUDA graph.

It decides how fast a run is and the rounding of its kernels, nothing else: neither the run's id nor its checkpoints.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch.optim import Optimizer

from dcal.config import Config
from dcal.training.execution.graph import GraphStep, can_be_recorded
from dcal.training.state import TrainState
from dcal.training.step import take_step
from dcal.utils.errors import UserError, choose, first_error, first_line

log = logging.getLogger(__name__)
MODES = ("none", "compile", "graph", "auto")
FORMER = {"true": "compile", "false": "none"}
"""What the key could be before it had these names, in old runs and scripts."""


def execution_mode(asked: str, device: torch.device) -> str:
    """`none`, `compile` or `graph`, of which `auto` is the last on CUDA and the first elsewhere.

    Raises:
        UserError: none of these.
    """
    mode = choose("train.compile", FORMER.get(asked.lower(), asked), MODES)
    if mode == "auto":
        return "graph" if device.type == "cuda" else "none"
    return mode


def compiles(cfg: Config, device: torch.device, obstacle: str | None) -> bool:
    """Whether the features are compiled: also those that are recorded.

    Raises:
        UserError: it is asked for by name, and this machine cannot.
    """
    asked, mode = cfg.train.compile, execution_mode(cfg.train.compile, device)
    if mode == "none" or (mode == "graph" and obstacle is not None):
        return False
    reason = why_nothing_compiles(device)
    if reason is None:
        log.info("train.compile=%s: the first steps are compiled, which takes a minute or so", asked)
        return True
    if asked != "auto":
        raise UserError(f"train.compile={asked}: nothing compiles here ({reason}); set train.compile=none")
    log.warning("train.compile=auto: nothing compiles here (%s), the model runs as it is, only slower", reason)
    return False


def why_nothing_compiles(device: torch.device) -> str | None:
    """What `torch.compile` lacks on this machine, such as a C compiler or Triton; None if it works. Found out by using
    it, for there is no other way to know."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # of dynamo, inductor, Triton or the compiler, which share no class
        return first_line(first_error(error))
    return None


def obstacle_to_recording(cfg: Config, device: torch.device, processes: int, optimizer: Optimizer) -> str | None:
    """What keeps the steps of a run from being recorded, as the setting that says so; None if nothing does."""
    settings = {
        f"device={device.type}": device.type != "cuda",
        f"launch.processes={processes}": processes > 1,
        "task.mixup or task.cutmix": cfg.task.mixup > 0 or cfg.task.cutmix > 0,
        "train.precision=fp16": cfg.train.precision == "fp16",
        "train.auto_accumulate=true": cfg.train.auto_accumulate,
        f"train.accumulate={cfg.train.accumulate}": cfg.train.accumulate > 1,
        "train.activation_checkpointing=true": cfg.train.activation_checkpointing,
        f"optimizer.opt={cfg.optimizer.opt}": not can_be_recorded(optimizer),
    }
    return next((setting for setting, is_one in settings.items() if is_one), None)


def record_steps(state: TrainState, cfg: Config, obstacle: str | None) -> None:
    """Has the steps of a run recorded, if that is wanted and possible; says in one sentence if it is not."""
    device = state.device.torch
    if execution_mode(cfg.train.compile, device) != "graph":
        return
    if obstacle is not None:
        log.warning("train.compile=%s: no graph with %s, steps run kernel by kernel", cfg.train.compile, obstacle)
        return
    state.graph = GraphStep(partial(take_step, state), state.optimization.optimizer, device, cfg.train.batch_size)
