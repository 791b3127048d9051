"""What a run shows and sums up while it trains: progress bar, losses, time; and the guard against NaN.

Between two epochs there is a line every `train.log_every` batches, and the same values for W&B.

Losses stay on the device. The one that is looked at is the previous step's, which a copy has brought to the CPU behind
that step: asking for it does not wait for the step that a GPU is at. What else is said of a step is read then, too.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dcal.config import TrainConfig
from dcal.dataset.record import Record
from dcal.run.progress import bars_shown, say
from dcal.training.state import TrainState
from dcal.training.wandb_run import log_step
from dcal.utils.accelerator import HostCopy
from dcal.utils.errors import UserError

PLAIN = ("loss", "pairs_self", "pairs_same_class")
"""Sums that are not the loss of a branch."""


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


class Sums(NamedTuple):
    """What an epoch has summed up after some step."""

    losses: Mapping[str, Tensor]
    counts: Mapping[str, int]
    """Steps that had the value: not every step has every branch."""
    images: int
    seconds: float


NOTHING = Sums({}, {}, 0, 0.0)


class Report(NamedTuple):
    """What is to be said of the batches between two steps."""

    step: int
    batch: int
    """Of the epoch, from 1."""
    batches: int
    """Between the two steps."""
    before: Sums
    after: Sums
    waited: float
    """Seconds in which there was no batch to work on."""
    rate: float
    grad_norm: Tensor
    """Of the last of these steps, before it was clipped."""


class StepLog:
    """Reports on the last `every` batches.

    Args:
        every: batches between two reports; None for none.
        batches: per epoch. The last one of an epoch reports nothing: the line of the epoch follows at once.
        send: takes the values and the step that they belong to.
        rate: gives the learning rate.
    """

    def __init__(
        self,
        every: int | None,
        batches: int,
        send: Callable[[dict[str, Any], int], None],
        rate: Callable[[], float],
    ) -> None:
        self.every, self.batches, self.send, self.rate = every, batches, send, rate
        self.title, self.batch, self.last, self.waited = "", 0, 0, 0.0
        self.before = NOTHING
        self.due: Report | None = None

    def watch(
        self, batches: Iterable[dict[str, Tensor]], title: str, first: int, sums: Sums
    ) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch, and how long each is waited for.

        Args:
            title: of the epoch.
            first: batches of the epoch that were done in an earlier session.
            sums: of these.
        """
        self.title, self.waited, self.before = title, 0.0, sums
        self.batch = self.last = first
        asked = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - asked
            yield batch
            asked = time.monotonic()

    def add(self, step: int, sums: Sums, grad_norm: Tensor) -> None:
        """Counts a batch, and notes what a report needs if one is due."""
        self.batch += 1
        if self.every and self.batch % self.every == 0 and self.batch < self.batches:
            batches = self.batch - self.last
            self.due = Report(step, self.batch, batches, self.before, sums, self.waited, self.rate(), grad_norm)
            self.last, self.before, self.waited = self.batch, sums, 0.0

    def report(self) -> None:
        """Says what is due: on stderr where there is no bar to look at, in the log file, and to W&B."""
        if self.due is None:
            return
        due, self.due = self.due, None
        means = {
            name: ((total - due.before.losses.get(name, 0.0)) / count).item()
            for name, total in due.after.losses.items()
            if (count := due.after.counts[name] - due.before.counts.get(name, 0))
        }
        seconds = max(due.after.seconds - due.before.seconds, 1e-9)
        speed = (due.after.images - due.before.images) / seconds
        norm = float(due.grad_norm)
        values = {
            **{value_name(name): value for name, value in means.items()},
            "lr": due.rate,
            "grad_norm": norm,
            "data_seconds": due.waited / due.batches,
            "images_per_second": speed,
        }
        self.send({"step": due.step, **{f"batch/{name}": value for name, value in values.items()}}, due.step)
        branches = "  ".join(f"{name} {value:.3f}" for name, value in means.items() if name not in PLAIN)
        losses = f"loss {means['loss']:.3f} ({branches})"
        say(
            f"{self.title}  batch {due.batch}/{self.batches}  {losses}  lr {due.rate:.2e}  gradient norm {norm:.2f}  "
            f"waiting for data {due.waited / seconds:.0%}  {speed:.0f} img/s",
            terminal=not bars_shown(),
        )


def value_name(name: str) -> str:
    """The name in the log of what a step has returned: `loss_` goes before the name of a branch."""
    return name if name in PLAIN else f"loss_{name}"


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
        self.sums = NOTHING  # of the epoch, in all its sessions
        self.started = self.saved = self.epoch_started = time.monotonic()
        self.pending: tuple[HostCopy, Tensor, int] | None = None
        self.bar: tqdm[Any] | None = None

    def watch(self, batches: Iterable[dict[str, Tensor]], epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        """The batches under a progress bar that shows images per second and the loss."""
        self.epoch_started = time.monotonic() - self.sums.seconds
        title = f"epoch {epoch + 1}/{self.cfg.epochs}"
        with tqdm(
            total=self.batches * self.cfg.batch_size,
            initial=first * self.cfg.batch_size,
            desc=title,
            unit="img",
            leave=False,
            disable=not bars_shown(),
        ) as self.bar:
            yield from self.steps.watch(batches, title, first, self.sums)
        self.check_pending()
        self.sums = self.sums._replace(seconds=time.monotonic() - self.epoch_started)

    def add(self, losses: Mapping[str, Tensor], batch: Mapping[str, Tensor], step: int) -> None:
        """Counts one step in.

        Raises:
            BadLoss: the loss of the step *before* was not finite.
        """
        self.check_pending()
        self.pending = HostCopy(losses["loss"]), batch["index"], step
        images, seconds = self.sums.images + len(batch["label"]), time.monotonic() - self.epoch_started
        sums, counts = dict(self.sums.losses), dict(self.sums.counts)
        for name, value in losses.items():
            if name != "grad_norm":  # which fp16 may leave infinite: its mean would tell nothing
                sums[name] = sums.get(name, torch.zeros_like(value)).to(value.device) + value
                counts[name] = counts.get(name, 0) + 1
        self.sums = Sums(sums, counts, images, seconds)
        self.steps.add(step, self.sums, losses["grad_norm"])
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

    def close_epoch(self) -> dict[str, float]:
        """Means as `train/loss`, `train/loss_<branch>` and `train/pairs_<kind>`, and the speed of the epoch.

        A mean is that over the steps that had the value: not every step has every branch.

        Starts the next epoch.
        """
        sums, counts, images, seconds = self.sums
        values = {f"train/{value_name(name)}": (total / counts[name]).item() for name, total in sums.items()}
        values["train/images_per_second"] = images / max(seconds, 1e-9)
        self.sums = NOTHING
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
        sums, counts, images, seconds = self.sums
        on_cpu = {name: value.cpu() for name, value in sums.items()}
        return {"sums": on_cpu, "counts": dict(counts), "images": images, "seconds": seconds}

    def restore(self, state: Mapping[str, Any], seconds: float) -> None:
        """Goes on from `state`, `seconds` into the run."""
        # an older checkpoint has one count, for all values were there in every step, and neither images nor seconds
        counts = state["counts"] if "counts" in state else dict.fromkeys(state["sums"], state["steps"])
        self.sums = Sums(state["sums"], counts, state.get("images", 0), state.get("seconds", 0.0))
        self.started = time.monotonic() - seconds
