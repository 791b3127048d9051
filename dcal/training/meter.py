"""What a run shows and sums up while it trains: progress bar, losses, time; and the guard against NaN.

Losses stay on the device. The one that is looked at is the previous step's, which a copy has brought to the CPU behind
that step: asking for it does not wait for the step that a GPU is at.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dcal.config import TrainConfig
from dcal.dataset.record import Record
from dcal.run.progress import bars_shown, say
from dcal.training.state import TrainState
from dcal.training.step_log import StepLog, Sums, value_name
from dcal.training.wandb_run import log_step
from dcal.utils.accelerator import HostCopy
from dcal.utils.errors import UserError


class BadLoss(UserError):
    """The loss of a batch is not finite; the message names the step, the images and the remedies."""

    remedies = "lower optimizer.lr, set train.clip_grad, or use train.precision=fp32; the last checkpoint is kept"


def create_meter(state: TrainState, tracker: Any) -> Meter:
    """The meter of a run.

    Args:
        tracker: the W&B run.
    """
    schedule, batches = state.optimization.schedule, len(state.loader)

    def rate() -> float:
        """By the schedule: after a resume the optimizer's groups are others, and their rates may be on the device."""
        return float(schedule.base_lrs[0] * schedule.lr_lambdas[0](schedule.last_epoch))

    steps = StepLog(state.train.log_every, batches, functools.partial(log_step, tracker), rate)
    return Meter(state.train, batches, state.data.records("train"), steps)


class Meter:
    """Running sums of one epoch, and the clock of the whole run.

    Args:
        cfg: for the progress bar, the batch size and the time between checkpoints.
        batches: per epoch.
        records: the training images, to name those of a bad batch.
        steps: reports between two epochs.
    """

    def __init__(self, cfg: TrainConfig, batches: int, records: Sequence[Record], steps: StepLog) -> None:
        self.cfg, self.batches, self.records, self.steps = cfg, batches, records, steps
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # steps that had the value: not every step has every branch
        self.images, self.epoch_seconds = 0, 0.0  # of the epoch, in all its sessions
        self.started = self.saved = self.epoch_started = time.monotonic()
        self.pending: tuple[HostCopy, Tensor, int] | None = None
        self.bar: tqdm[Any] | None = None

    def watch(self, batches: Iterable[dict[str, Tensor]], epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        """The batches under a progress bar that shows images per second and the loss."""
        self.epoch_started = time.monotonic() - self.epoch_seconds
        title = f"epoch {epoch + 1}/{self.cfg.epochs}"
        with tqdm(
            total=self.batches * self.cfg.batch_size,
            initial=first * self.cfg.batch_size,
            desc=title,
            unit="img",
            leave=False,
            disable=not bars_shown(),
        ) as self.bar:
            yield from self.steps.watch(batches, title, first, self.summed())
        self.check_pending()
        self.epoch_seconds = time.monotonic() - self.epoch_started

    def add(self, losses: Mapping[str, Tensor], batch: Mapping[str, Tensor], step: int) -> None:
        """Counts one step in.

        Raises:
            BadLoss: the loss of the step *before* was not finite.
        """
        self.check_pending()
        self.pending = HostCopy(losses["loss"]), batch["index"], step
        self.images += len(batch["label"])
        self.epoch_seconds = time.monotonic() - self.epoch_started
        for name, value in losses.items():
            if name == "grad_norm":  # which fp16 may leave infinite: its mean would tell nothing
                continue
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)).to(value.device) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps.add(step, self.summed(), losses["grad_norm"])
        if self.bar is not None:
            self.bar.update(len(batch["label"]))

    def check_pending(self) -> None:
        """Looks at the last loss that was not looked at yet.

        Raises:
            BadLoss: it is not finite.
        """
        if self.pending is None:
            return
        loss, index, step = self.pending
        self.pending = None
        value = loss.item()
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if value != value or abs(value) == float("inf"):
            names = ", ".join("/".join(self.records[i].path.parts[-2:]) for i in index.tolist())
            raise BadLoss(f"the loss of step {step} is {value}: {BadLoss.remedies}. The images of that step: {names}")
        self.steps.report()

    def summed(self) -> Sums:
        """The sums of the epoch so far."""
        return Sums(dict(self.sums), dict(self.counts), self.images, self.epoch_seconds)

    def close_epoch(self) -> dict[str, float]:
        """Means as `train/loss`, `train/loss_<branch>` and `train/pairs_<kind>`, and the speed of the epoch.

        A mean is that over the steps that had the value: not every step has every branch.

        Starts the next epoch.
        """
        values = {f"train/{value_name(name)}": (total / self.counts[name]).item() for name, total in self.sums.items()}
        values["train/images_per_second"] = self.images / max(self.epoch_seconds, 1e-9)
        self.sums, self.counts, self.images, self.epoch_seconds = {}, {}, 0, 0.0
        return values

    def report(self, values: Mapping[str, float], primary_metric: str) -> None:
        """One line per epoch.

        Args:
            primary_metric: of `values`, the one that tells how good the model is: `test/top1`.
        """
        judged = f"  {primary_metric} {values[primary_metric]:.4f}" if primary_metric in values else ""
        left = (self.cfg.epochs - values["epoch"]) * (time.monotonic() - self.epoch_started)
        say(
            f"epoch {int(values['epoch'])}/{self.cfg.epochs}  loss {values['train/loss']:.3f}{judged}  "
            f"{values['train/images_per_second']:.0f} img/s  {left / 60:.1f} min left"
        )

    def checkpoint_due(self) -> bool:
        """Whether more than `checkpoint_minutes` of work would be lost."""
        return time.monotonic() - self.saved > self.cfg.checkpoint_minutes * 60

    def checkpoint_saved(self) -> None:
        self.saved = time.monotonic()

    def seconds(self) -> float:
        """Seconds spent so far, over all sessions of the run."""
        return time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        """The sums of an epoch that is cut short, for a checkpoint."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {"sums": sums, "counts": dict(self.counts), "images": self.images, "seconds": self.epoch_seconds}

    def restore(self, state: Mapping[str, Any], seconds: float) -> None:
        """Goes on from `state`, `seconds` into the run."""
        self.sums = dict(state["sums"])
        # an older checkpoint has one count, for all values were there in every step
        self.counts = state["counts"] if "counts" in state else dict.fromkeys(self.sums, state["steps"])
        self.images, self.epoch_seconds = state.get("images", 0), state.get("seconds", 0.0)  # 0: an older checkpoint
        self.started = time.monotonic() - seconds
