"""The loss of a training batch: per branch cross-entropy (+ triplet), combined by weights.

Shapes: B images, C classes, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcal.loss import TripletLoss, UncertaintyLoss
from dcal.output import Output
from dcal.utils.errors import check_number


class Losses(NamedTuple):
    """The total that is differentiated, and the branches' own losses for the log."""

    total: Tensor
    branches: dict[str, Tensor]


class Objective(nn.Module):
    """Cross-entropy and triplet per branch, combined by learned or fixed weights.

    The triplet loss sees the features before BNNeck, the cross-entropy the logits after it.

    Args:
        branches: the model's branches, e.g. ("sa", "glca", "pwca").
        weighting: one of `dcal.loss.WEIGHTINGS`.
        label_smoothing: in [0, 1).
        triplet_weight: 0 switches the triplet loss off.
        triplet_margin: None for the soft margin.

    Raises:
        UserError: an option out of its range; the message names its key.
    """

    def __init__(
        self,
        branches: Sequence[str],
        weighting: str,
        label_smoothing: float,
        triplet_weight: float,
        triplet_margin: float | None,
    ) -> None:
        super().__init__()
        check_number("task.label_smoothing", label_smoothing, ge=0, lt=1)
        check_number("task.triplet.weight", triplet_weight, ge=0)
        # attention.pwca.probability leaves PWCA out of some steps
        self.combine = UncertaintyLoss(branches, weighting, optional=("pwca",))
        self.label_smoothing = label_smoothing
        self.triplet_weight = triplet_weight
        self.triplet = TripletLoss(triplet_margin)

    def forward(self, output: Output, targets: Tensor, labels: Tensor) -> Losses:
        """The loss of one batch.

        Args:
            output: of the model in training mode.
            targets: what the classifiers learn: labels (B,), or class probabilities (B, C) under mixup.
            labels: classes or identities (B,), for the triplets.
        """
        losses = {
            branch: self.of_branch(logits, getattr(output.features, branch), targets, labels)
            for branch, logits in output.logits().items()
        }
        return Losses(self.combine(losses), losses)

    def of_branch(self, logits_BC: Tensor, feature_BD: Tensor, targets: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of one branch, a scalar: what a task with another loss overrides.

        Args:
            logits_BC: the branch's logits.
            feature_BD: its feature, before BNNeck.
            targets: as in `forward`.
            labels_B: as in `forward`.
        """
        wide_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
        loss = F.cross_entropy(wide_BC, targets, label_smoothing=self.label_smoothing)
        if self.triplet_weight:
            loss = loss + self.triplet_weight * self.triplet(feature_BD, labels_B)
        return loss
