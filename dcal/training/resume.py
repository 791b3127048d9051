"""How far a run is, and how it is written to a checkpoint and restored, bit for bit."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from safetensors.torch import load_file

from dcal.attention.adapters import BASE, is_adapter
from dcal.distributed.collectives import all_gather_object, rank_and_world_size
from dcal.run.directory import LAST_WEIGHTS, Run
from dcal.training.checkpoint import load_latest, save_checkpoint
from dcal.training.meter import BadLoss, Meter
from dcal.training.parallel import full_state_dict, load_full_weights, load_optimizer, optimizer_state
from dcal.training.state import TrainState
from dcal.utils.rng import restore_rng_state, rng_state, torch_state

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is; part of a checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    """Spent training and evaluating, over all sessions."""


def save(state: TrainState, run: Run, at: Progress, meter: Meter) -> None:
    """Writes a checkpoint from which the run goes on exactly here.

    Raises:
        BadLoss: there is nothing worth keeping; the checkpoint before stays.
        WriteError: it cannot be written; the checkpoint before stays.
    """
    meter.check_pending()  # never keep weights that a bad loss has already spoiled
    weights = full_state_dict(state.model.state_dict())
    if not all(bool(value.isfinite().all()) for value in weights.values()):  # nor a bad gradient of a good loss
        raise BadLoss(f"the weights are not finite after step {at.step}: {BadLoss.remedies}")
    at.seconds = meter.seconds()
    saved = {
        "position": vars(at),
        "optimizer": optimizer_state(state.optimization.optimizer),
        "schedule": state.optimization.schedule.last_epoch,
        "objective": state.objective.state_dict(),
        "scaler": state.scaler.state_dict(),
        "parts": state.accumulate,
        "ema": full_state_dict(state.ema.module.state_dict()) if state.ema is not None else None,
        "meter": meter.state(),
        "rng": all_gather_object(rng_state(state.device.torch)),
        "metrics_size": run.metrics_size(),
    }
    save_checkpoint(run.directory / "checkpoints", at.step, weights, saved)
    meter.checkpoint_saved()


def resume(state: TrainState, run: Run, at: Progress, meter: Meter) -> None:
    """Puts everything back to the newest checkpoint, if there is one."""
    found = load_latest(run.directory / "checkpoints")
    if found is None:
        if not restore_end(state, run, at, meter):
            run.forget_metrics_after(0)
        return
    weights, saved = found
    load_full_weights(state.model, weights)
    load_optimizer(state.optimization.optimizer, saved["optimizer"])
    state.optimization.schedule.last_epoch = saved["schedule"]
    state.objective.load_state_dict(saved["objective"])
    state.scaler.load_state_dict(saved["scaler"])
    if state.train.auto_accumulate:
        state.accumulate = max(state.accumulate, saved["parts"])
    if state.ema is not None:
        load_full_weights(state.ema.module, saved["ema"])
    vars(at).update(saved["position"])
    meter.restore(saved["meter"], at.seconds)
    run.forget_metrics_after(saved["metrics_size"])
    (rank, _), states = rank_and_world_size(), saved["rng"]
    # a process that there was not before shares what all share; torch's random numbers are its own
    device = state.device.torch
    restore_rng_state(states[rank] if rank < len(states) else {**states[0], **torch_state(device)}, device)
    log.info("continuing at epoch %d, step %d", at.epoch + 1, at.step)


def restore_end(state: TrainState, run: Run, at: Progress, meter: Meter) -> bool:
    """Puts everything to the end of a run that has lost its result: its weights are there, and no checkpoint any more.

    Returns:
        whether it was trained to its end.
    """
    weights, lines = run.directory / LAST_WEIGHTS, run.metrics()
    if not weights.is_file() or not lines or lines[-1]["epoch"] != state.train.epochs:
        return False
    model, plain = state.model if state.ema is None else state.ema.module, load_file(weights)
    # adapters were merged into these weights: those of a new model, which add nothing, stay
    layers = {name: plain[name.replace(BASE, ".")] for name in model.state_dict() if not is_adapter(name)}
    load_full_weights(model, {**model.state_dict(), **layers})
    at.epoch, at.step = lines[-1]["epoch"], lines[-1]["step"]
    meter.restore(meter.state(), lines[-1].get("seconds", 0.0))  # 0: an older run
    log.info("trained to the end: only evaluated once more")
    return True
