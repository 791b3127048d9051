"""What a run is: in words, for the beginning of its log, and in numbers, for its `result.json`."""

from __future__ import annotations

import logging
import os
import platform
from datetime import datetime, timezone
from typing import Any

import torch
from omegaconf import DictConfig

from dcal.distributed.env import rank_zero_only, world_size
from dcal.run.directory import Run
from dcal.run.label import choices, label
from dcal.training.log_file import LOG_FILE
from dcal.training.state import TrainState
from dcal.utils.accelerator import device_name
from dcal.utils.memory import peak_memory

log = logging.getLogger(__name__)


@rank_zero_only
def announce(state: TrainState, run: Run, tracker: Any) -> None:
    """Says what is about to be trained, on what and where it goes; warns of random weights.

    Args:
        tracker: the W&B run.
    """
    for topic, text in describe_run(state, run, tracker).items():
        log.info("%-9s  %s", topic, text)
    backbone = run.config.backbone
    if weights_origin(backbone) == "random":
        fetched = "" if backbone.kwargs else "backbone.pretrained=true takes timm's, "  # which has none of that shape
        log.warning(
            "random weights: the backbone learns from nothing. %sbackbone.checkpoint=FILE takes those of a file",
            fetched,
        )


def describe_run(state: TrainState, run: Run, tracker: Any) -> dict[str, str]:
    """One line by topic."""
    config, cfg = run.config, state.train
    catalog = state.data.catalog
    used = ", ".join(f"{split} {len(records)}" for split, records in catalog.splits.items())
    height, width = state.data.image_size
    total, learning = parameters(state)
    batches = len(state.loader)
    return {
        "run": f"{config.name}  {run.cfg_id}  seed {run.seed}: {label(config)}",
        "directory": str(run.directory),
        "device": f"{hardware(state.device.torch)}, torch uses {torch.get_num_threads()}; {cfg.precision}",
        "data": state.data.describe(),
        **({} if catalog is state.data.source and not state.data.members else {"used": f"{used} images"}),
        "model": f"{config.backbone.name} at {height}×{width}, attention {choices(config)['attention']}, "
        f"{total / 1e6:.1f} M parameters, {learning / 1e6:.1f} M learn",
        "weights": weights_origin(config.backbone),
        "epochs": f"{cfg.epochs} of {batches} batches of {cfg.batch_size} images; evaluated on {state.validation}",
        "wandb": tracker_place(config, run, tracker),
        "log": str(run.directory / LOG_FILE),
    }


def weights_origin(backbone: DictConfig) -> str:
    """Which weights the backbone starts from: a file, timm's, or `random`."""
    if backbone.checkpoint:
        return str(backbone.checkpoint)
    if backbone.pretrained:
        return "timm's pretrained weights"
    return "random"


def tracker_place(config: DictConfig, run: Run, tracker: Any) -> str:
    """Where the W&B log of a run is: its address, or a folder and how it is uploaded."""
    if tracker.url:
        return str(tracker.url)
    if config.wandb.mode == "disabled":
        return "disabled"
    return f"offline, in {run.directory / 'wandb'}; `make sync` uploads it"


def hardware(device: torch.device) -> str:
    """What the run computes on, in words."""
    if device.type == "cpu":
        return f"{os.cpu_count()} CPU cores"
    name = device_name(device)
    return name if world_size() == 1 else f"{world_size()} × {name}"


def parameters(state: TrainState) -> tuple[int, int]:
    """Numbers of the model: all, and those that learn."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in state.model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def facts(state: TrainState) -> dict[str, Any]:
    """What it took: for `result.json`."""
    total, learning = parameters(state)
    return {
        "host": platform.node(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(state.seconds, 1),
        "peak_memory_bytes": peak_memory(state.device.torch.type),
        "parameters": total,
        "learned_parameters": learning,
    }
