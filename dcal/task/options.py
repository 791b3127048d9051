"""What a task is to the training loop, with the keys of `conf/task`; a task refuses those that it has no use for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dcal.dataset.data import Data
from dcal.model import DCAL
from dcal.task.evaluation import Evaluation, pool
from dcal.task.inference import BRANCHES
from dcal.task.objective import Objective
from dcal.utils.device import Device
from dcal.utils.errors import UserError, check_number


@dataclass(kw_only=True)
class Task(ABC):
    """What `conf/task/*.yaml` explains key by key.

    Raises:
        UserError: an option out of its range; the message names its key.
    """

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    loss_weighting: str
    label_smoothing: float
    triplet: Mapping[str, Any]
    """`weight` and `margin`."""
    bnneck: bool
    instances: int
    mixup: float
    cutmix: float
    inference: Sequence[str]
    flip_test: bool
    metric: str
    rerank: bool
    side_information: str

    def __post_init__(self) -> None:
        if not self.inference or any(branch not in BRANCHES for branch in self.inference):
            raise UserError(f"task.inference={list(self.inference)}: choose from {', '.join(BRANCHES)}")
        if len(set(self.inference)) < len(self.inference):
            raise UserError(f"task.inference={list(self.inference)}: names a branch twice")
        for key in ("mixup", "cutmix"):
            check_number(f"task.{key}", getattr(self, key), ge=0, note="0 is off")
        check_number("task.instances", self.instances, ge=1)
        if self.triplet["weight"] and self.instances < 2:
            raise UserError("task.triplet.weight needs pairs of one label in a batch: set task.instances=2 or more")

    @abstractmethod
    def splits(self, split: str) -> tuple[str, ...]:
        """The splits of the data set that an evaluation of `split` reads."""

    @abstractmethod
    def evaluate_one(
        self,
        model: DCAL,
        data: Data,
        split: str,
        batch_size: int,
        workers: int,
        device: Device,
        reliability: bool = False,
    ) -> Evaluation:
        """The evaluation of a single data set; arguments as of `evaluate`."""

    def evaluate(
        self,
        model: DCAL,
        data: Data,
        split: str,
        batch_size: int,
        workers: int,
        device: Device,
        reliability: bool = False,
    ) -> Evaluation:
        """Metrics and items of a split; of joint data those of each member, and of all, see `pool`.

        Args:
            split: `test` or `val`.
            batch_size, workers: see `Data.eval_loader`.
            reliability: find out how far the answers can be relied on, too.

        Raises:
            UserError: reliability was asked of joint data.
        """
        if not data.members:
            return self.evaluate_one(model, data, split, batch_size, workers, device, reliability)
        if reliability:
            raise UserError("reliability: is found on one data set; choose one with member=NAME")
        found = {
            name: self.evaluate_one(model, member, split, batch_size, workers, device)
            for name, member in data.members.items()
        }
        return pool(data, found, self.splits(split))

    @abstractmethod
    def show(
        self,
        model: DCAL,
        data: Data,
        split: str,
        evaluation: Evaluation,
        device: Device,
        folder: Path,
        tracker: Any,
    ) -> Path:
        """Draws examples of an evaluated split into `folder` and logs them; returns the picture."""

    def objective(self, branches: Sequence[str]) -> Objective:
        """The loss of a training batch for a model with these branches."""
        weight, margin = self.triplet["weight"], self.triplet["margin"]
        return Objective(branches, self.loss_weighting, self.label_smoothing, weight, margin)
