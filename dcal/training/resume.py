"""Where a run stands, and how it is written to a checkpoint and put back, bit by bit."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from dcal.distributed.collectives import objects, place
from dcal.run.directory import Run
from dcal.training.checkpoint import load_latest, save_checkpoint
from dcal.training.meter import BadLoss, Meter
from dcal.training.parallel import load_optimizer, load_weights, whole
from dcal.training.state import Setup
from dcal.utils.rng import restore_rng_state, rng_state, torch_state

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a run stands; part of a checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    """Spent training and evaluating, over all sessions."""


def save(setup: Setup, run: Run, at: Position, meter: Meter) -> None:
    """Writes a checkpoint from which the run goes on exactly here.

    Raises:
        BadLoss: there is nothing worth keeping; the checkpoint before stays.
        WriteError: it cannot be written; the checkpoint before stays.
    """
    meter.check_pending()  # never keep weights that a bad loss has already spoiled
    weights = whole(setup.model.state_dict())
    if not all(bool(value.isfinite().all()) for value in weights.values()):  # nor a bad gradient of a good loss
        raise BadLoss(f"the weights are not finite after step {at.step}: {BadLoss.remedies}")
    at.seconds = meter.seconds()
    state = {
        "position": vars(at),
        "optimizer": whole(setup.optimization.optimizer.state_dict()),
        "schedule": setup.optimization.schedule.last_epoch,
        "objective": setup.objective.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "parts": setup.parts,
        "ema": whole(setup.ema.module.state_dict()) if setup.ema is not None else None,
        "meter": meter.state(),
        "rng": objects(rng_state()),
        "metrics_size": run.metrics_size(),
    }
    save_checkpoint(run.directory / "checkpoints", at.step, weights, state)
    meter.checkpoint_saved()


def resume(setup: Setup, run: Run, at: Position, meter: Meter) -> None:
    """Puts everything back to the newest checkpoint, if there is one."""
    found = load_latest(run.directory / "checkpoints")
    if found is None:
        run.forget_metrics_after(0)
        return
    state = found.state
    load_weights(setup.model, found.weights)
    load_optimizer(setup.optimization.optimizer, state["optimizer"])
    setup.optimization.schedule.last_epoch = state["schedule"]
    setup.objective.load_state_dict(state["objective"])
    setup.scaler.load_state_dict(state["scaler"])
    if setup.train.auto_accumulate:
        setup.parts = max(setup.parts, state["parts"])
    if setup.ema is not None:
        load_weights(setup.ema.module, state["ema"])
    vars(at).update(state["position"])
    meter.restore(state["meter"], at.seconds)
    run.forget_metrics_after(state["metrics_size"])
    (rank, _), states = place(), state["rng"]
    # a process that there was not before shares what all share; torch's random numbers are its own
    restore_rng_state(states[rank] if rank < len(states) else {**states[0], **torch_state()})
    log.info("continuing at epoch %d, step %d", at.epoch + 1, at.step)
