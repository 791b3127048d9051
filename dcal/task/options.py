"""The keys of `conf/task`, which all tasks share; a task refuses what it has no use for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcal.task.inference import BRANCHES
from dcal.task.objective import Objective
from dcal.utils.errors import UserError, check_number


@dataclass(kw_only=True)
class TaskOptions:
    """What `conf/task/*.yaml` explains key by key.

    Raises:
        UserError: an option out of its range; the message names its key.
    """

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

    def objective(self, branches: Sequence[str]) -> Objective:
        """The loss of a training batch for a model with these branches."""
        weight, margin = self.triplet["weight"], self.triplet["margin"]
        return Objective(branches, self.loss_weighting, self.label_smoothing, weight, margin)
