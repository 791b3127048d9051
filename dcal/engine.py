"""The training loop.

Everything it needs comes in a `Setup`, which `dcal.build` puts together; it knows nothing of Hydra.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor

from dcal.checkpoint import load_latest, save_checkpoint, save_weights
from dcal.config import TrainConfig
from dcal.dataset.loader import Data, Loader
from dcal.device import Device
from dcal.meter import Meter
from dcal.model import DCAL
from dcal.optimizer import Optimization
from dcal.rng import restore_rng_state, rng_state
from dcal.run import Run
from dcal.task.evaluation import Evaluation
from dcal.task.objective import Objective

log = logging.getLogger(__name__)


class Task(Protocol):
    """What the loop and the build need of a task."""

    name: str
    headline: str
    test_split: str
    bnneck: bool
    instances: int
    mixup: float
    cutmix: float
    side_information: str

    def objective(self, branches: tuple[str, ...]) -> Objective: ...

    def evaluate(
        self, model: DCAL, data: Data, split: str, batch_size: int, workers: int, device: Device
    ) -> Evaluation: ...

    def show(
        self,
        model: DCAL,
        data: Data,
        split: str,
        evaluation: Evaluation,
        device: Device,
        folder: Path,
        tracker: Any,
    ) -> Path: ...


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved a checkpoint."""


@dataclass
class Setup:
    """Everything a training needs."""

    task: Task
    data: Data
    loader: Loader
    model: DCAL
    objective: Objective
    optimization: Optimization
    device: Device
    train: TrainConfig
    scaler: torch.amp.GradScaler
    """Scales the loss under fp16; switched off otherwise."""
    ema: ModelEmaV3 | None = None
    mixup: Mixup | None = None

    @property
    def evaluated(self) -> DCAL:
        """The model that is evaluated and kept: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def validation(self) -> str:
        """The split that is looked at during training: held-out training images if there are, else the test split."""
        return "val" if any(split.startswith("val") for split in self.data.catalog.splits) else "test"


@dataclass
class Position:
    """Where a run stands; part of a checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    """Spent training and evaluating, over all sessions."""


def fit(setup: Setup, run: Run, tracker: Any) -> Evaluation:
    """Trains to the last epoch, from the newest checkpoint if there is one; returns the last evaluation.

    Raises:
        Interrupted: on SIGTERM or Ctrl-C, after a checkpoint.
        BadLoss: on a loss that is not finite; the last checkpoint is kept.
    """
    cfg, at, meter = setup.train, Position(), Meter(setup.train, len(setup.loader))
    resume(setup, run, at, meter)
    evaluation: Evaluation | None = None
    with stop_requests() as stop:
        while at.epoch < cfg.epochs:
            setup.loader.batch_sampler.seek(at.epoch, at.batch)  # type: ignore[union-attr]
            for batch in meter.watch(setup.loader, at.epoch, at.batch):
                losses = update(setup, batch, (at.epoch + at.batch / len(setup.loader)) / cfg.epochs)
                at.batch, at.step = at.batch + 1, at.step + 1
                meter.add(losses, batch, at.step)
                if stop or meter.checkpoint_due():
                    save(setup, run, at, meter)
                if stop:
                    raise Interrupted(f"stopped in epoch {at.epoch + 1}, step {at.step}: repeat the command to go on")
            at.epoch, at.batch = at.epoch + 1, 0
            values = {"epoch": at.epoch, "step": at.step, **meter.close_epoch(), **weights_and_rates(setup)}
            if at.epoch % max(1, cfg.eval_every) == 0 or at.epoch == cfg.epochs:
                evaluation = evaluate(setup, setup.validation)
                values |= {f"val/{key}": value for key, value in evaluation.metrics.items()}
                keep_best(setup, run, at, evaluation)
            run.log(values)
            tracker.log(values, step=at.step)
            meter.report(values, setup.task.headline)
            save(setup, run, at, meter)
    save_weights(run.directory / "last.safetensors", setup.evaluated.state_dict())
    return evaluation or evaluate(setup, setup.validation)  # None: killed between the last checkpoint and the result


def update(setup: Setup, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
    """One optimizer step on one batch; returns the detached losses: `loss` and one per branch.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    model, device, parts = setup.model, setup.device, setup.train.accumulate
    model.train()
    setup.optimization.optimizer.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    for part in split(batch, parts):
        images, labels = device.normalise(part["image"]), part["label"]
        targets = labels.to(device.torch, non_blocking=True)
        if setup.mixup is not None:
            images, targets = setup.mixup(images, targets)
        side = device.side_index(part)
        with device.autocast():
            partners = model.draw_partners(images, labels, progress, side)
            output = model(images, partners=partners, side=side)
            loss = setup.objective(output, targets, labels.to(device.torch, non_blocking=True))
        setup.scaler.scale(loss.total / parts).backward()
        for name, value in {"loss": loss.total, **loss.branches}.items():
            losses[name] = losses.get(name, 0.0) + value.detach() / parts
    apply_gradients(setup)
    return losses


def split(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """The batch in `parts` equal pieces along its first dimension."""
    if parts == 1:
        return [dict(batch)]
    pieces = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: value[number] for key, value in pieces.items()} for number in range(parts)]


def apply_gradients(setup: Setup) -> None:
    """Clips, steps the optimizer, the schedule and the moving average."""
    optimizer, schedule = setup.optimization
    if setup.train.clip_grad is not None:
        setup.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(setup.model.parameters(), setup.train.clip_grad)
    setup.scaler.step(optimizer)
    setup.scaler.update()
    schedule.step()
    if setup.ema is not None:
        setup.ema.update(setup.model)


def evaluate(setup: Setup, split: str) -> Evaluation:
    """The task's evaluation of the evaluated model on a split; not compiled, for its batches come in two sizes."""
    cfg = setup.train
    with torch.compiler.set_stance("force_eager"):
        return setup.task.evaluate(setup.evaluated, setup.data, split, cfg.eval_batch_size, cfg.workers, setup.device)


def weights_and_rates(setup: Setup) -> dict[str, float]:
    """What the optimizer stands at, for the log: learning rate, and the weight of each branch's loss."""
    weights = {f"train/weight_{branch}": weight for branch, weight in setup.objective.combine.weights().items()}
    return {"train/lr": setup.optimization.optimizer.param_groups[0]["lr"], **weights}


def keep_best(setup: Setup, run: Run, at: Position, evaluation: Evaluation) -> None:
    """Keeps the best weights by the validation split. Without one there is none to keep: never by the test split."""
    headline = evaluation.metrics[setup.task.headline]
    if setup.validation == "val" and headline > at.best:
        at.best = headline
        save_weights(run.directory / "best.safetensors", setup.evaluated.state_dict(), {"epoch": str(at.epoch)})


def save(setup: Setup, run: Run, at: Position, meter: Meter) -> None:
    """Writes a checkpoint from which the run goes on exactly here."""
    meter.check_pending()  # never keep weights that a bad loss has already spoiled
    at.seconds = meter.seconds()
    state = {
        "position": vars(at),
        "optimizer": setup.optimization.optimizer.state_dict(),
        "schedule": setup.optimization.schedule.last_epoch,
        "objective": setup.objective.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "ema": setup.ema.module.state_dict() if setup.ema is not None else None,
        "meter": meter.state(),
        "rng": rng_state(),
        "metrics_size": run.metrics_size(),
    }
    save_checkpoint(run.directory / "checkpoints", at.step, setup.model.state_dict(), state)
    meter.checkpoint_saved()


def resume(setup: Setup, run: Run, at: Position, meter: Meter) -> None:
    """Puts everything back to the newest checkpoint, if there is one."""
    found = load_latest(run.directory / "checkpoints")
    if found is None:
        run.forget_metrics_after(0)
        return
    state = found.state
    setup.model.load_state_dict(found.weights)
    setup.optimization.optimizer.load_state_dict(state["optimizer"])
    setup.optimization.schedule.last_epoch = state["schedule"]
    setup.objective.load_state_dict(state["objective"])
    setup.scaler.load_state_dict(state["scaler"])
    if setup.ema is not None:
        setup.ema.module.load_state_dict(state["ema"])
    vars(at).update(state["position"])
    meter.restore(state["meter"], at.seconds)
    run.forget_metrics_after(state["metrics_size"])
    restore_rng_state(state["rng"])
    log.info("continuing at epoch %d, step %d", at.epoch + 1, at.step)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is non-empty once SIGTERM or Ctrl-C has asked to stop. A second Ctrl-C stops at once."""
    requests: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
