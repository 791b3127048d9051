"""Between two epochs: every `train.log_every` batches a line, and the same values for W&B.

Nothing waits for the device. What belongs to a step is read after the loss of that step has been read, which happens
one step later (`Meter.check_pending`): by then it is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dcal.run.progress import bars_shown, say

PLAIN = ("loss", "pairs_self", "pairs_same_class")
"""Sums that are not the loss of a branch."""


class Sums(NamedTuple):
    """What an epoch has summed up after some step."""

    losses: Mapping[str, Tensor]
    counts: Mapping[str, int]
    """Steps that had the value: not every step has every branch."""
    images: int
    seconds: float


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
        self.before = Sums({}, {}, 0, 0.0)
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
