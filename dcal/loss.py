"""The loss terms that torch does not have: batch-hard triplet, and the weighting of the branches' losses.

Both are pure functions of a batch that happen to carry options or parameters. `UncertaintyLoss` owns
parameters, so it must be given to the optimizer (without weight decay); the task, not this module, decides
which loss goes to which branch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcal.utils.errors import check_number, choose

WEIGHTINGS = ("uncertainty", "uncertainty_always", "fixed", "equal")


class TripletLoss(nn.Module):
    """Batch-hard triplet loss on Euclidean distances (Hermans, Beyer, Leibe 2017, arXiv 1703.07737).

    For each anchor a: its farthest positive p and its nearest negative n in the batch, whatever the number of
    images per identity. With `margin` m the term is max(0, m + d(a, p) - d(a, n)); with None, the soft margin
    log(1 + exp(d(a, p) - d(a, n))). The loss is the mean over the anchors that have both a positive (another
    image of the same label) and a negative; without any such anchor it is 0 and still attached to the graph.

    Features are taken as they come (not normalised). Half-precision features are widened to float32, also
    inside autocast: squared distances of 384-d features pass the 65 504 that fp16 can hold.

    Args:
        margin: in units of the distance; None selects the soft margin.

    Raises:
        UserError: for a negative margin.
    """

    def __init__(self, margin: float | None = None) -> None:
        super().__init__()
        check_number("task.triplet.margin", margin, ge=0, note="null is the soft margin")
        self.margin = margin

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar, float32 or wider.

        Args:
            features: (B, D), of any scale.
            labels: (B,) integers.

        Raises:
            ValueError: shapes that do not fit.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                "TripletLoss wants features (B, D) and labels (B,), "
                f"got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        with torch.autocast(features.device.type, enabled=False):
            wide = features if features.dtype == torch.float64 else features.float()
            positive, negative, valid = hardest_pairs(wide.detach(), labels)
            # vector_norm has gradient 0 at distance 0 (a duplicated image); a square root's is infinite
            d_positive = torch.linalg.vector_norm(wide - wide[positive], dim=1)
            d_negative = torch.linalg.vector_norm(wide - wide[negative], dim=1)
            gap = d_positive - d_negative
            term = F.softplus(gap) if self.margin is None else F.relu(gap + self.margin)
            return torch.where(valid, term, 0.0).sum() / valid.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


@torch.no_grad()
def hardest_pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (B,) of each row's farthest positive and nearest negative, and whether the row has both.

    Where `valid` is False the index is arbitrary but in range.
    """
    # not by matmul: cancellation between large, close features would pick the wrong pairs (and TF32 more so)
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    positives = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distance.masked_fill(~positives, -torch.inf).argmax(dim=1)
    negative = distance.masked_fill(same, torch.inf).argmin(dim=1)
    return positive, negative, positives.any(dim=1) & ~same.all(dim=1)


class UncertaintyLoss(nn.Module):
    """Combines the branches' losses into one (Kendall, Gal, Cipolla 2018, arXiv 1705.07115; as in FairMOT).

    - `uncertainty`: 0.5 * sum_b (exp(-w_b) * L_b + w_b), w_b a learnable log variance, initially 0. At the
      optimum w_b = log L_b, so a branch counts inversely to its loss. The total falls below zero once losses
      are small: that is legitimate, so never select or stop on it. FairMOT divides by two, which with w = 0
      halves the plain sum.
    - `uncertainty_always`: the same also where there is only one branch.
    - `fixed`: sum_b L_b.
    - `equal`: mean of L_b.

    With exactly one branch every weighting but `uncertainty_always` is the loss itself, without a parameter: a
    weight would only rescale the plain baseline's loss (and its learning rate with it), so the baseline would not
    be the plain model any more. `uncertainty_always` is that rescaled baseline, as a control: w follows log L, so
    the loss has the factor 1 / (2 L), which rises as the loss falls.

    In a step without an optional branch, the sum or mean is that over the branches which are there. The learned
    weight of a branch that is not there has no gradient in that step, so an optimizer leaves it as it is.

    The parameters (`log_variance.sa`, ...) have shape (1,), because FSDP2 refuses scalar ones. They belong in
    the optimizer without weight decay.

    Args:
        branches: names of the branches, e.g. ("sa", "glca", "pwca").
        weighting: one of `WEIGHTINGS`.
        optional: those of the branches that a step may be without.

    Raises:
        UserError: for an unknown weighting.
        ValueError: for no branch, or a branch named twice.
    """

    def __init__(self, branches: Sequence[str], weighting: str = "uncertainty", optional: Collection[str] = ()) -> None:
        super().__init__()
        choose("task.loss_weighting", weighting, WEIGHTINGS)
        if not branches or len(set(branches)) != len(branches):
            raise ValueError(f"UncertaintyLoss needs branches, each named once; got {list(branches)}")
        self.branches = tuple(branches)
        self.weighting = weighting
        self.optional = frozenset(optional)
        is_learned = weighting == "uncertainty_always" or (weighting == "uncertainty" and len(self.branches) > 1)
        learned = self.branches if is_learned else ()
        self.log_variance = nn.ParameterDict({branch: nn.Parameter(torch.zeros(1)) for branch in learned})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The total, a scalar.

        Args:
            losses: one scalar per branch, by its name; optional branches may be missing.

        Raises:
            ValueError: if `losses` are not those of the branches: a branch left out would train unnoticed
                without its loss.
        """
        present = [branch for branch in self.branches if branch in losses]
        if len(present) < len(losses) or not present or not {*self.branches} - {*present} <= self.optional:
            raise ValueError(f"losses of the branches {list(self.branches)} expected, got {list(losses)}")
        if self.log_variance:
            terms = []
            for branch in present:
                w = self.log_variance[branch].squeeze()
                terms.append(0.5 * (torch.exp(-w) * losses[branch] + w))
            return torch.stack(terms).sum()
        total = torch.stack([losses[branch] for branch in present]).sum()
        return total / len(present) if self.weighting == "equal" else total

    @torch.no_grad()
    def weights(self) -> dict[str, float]:
        """The factor that each branch's loss has in the total of a step with all branches now, for logging."""
        if self.log_variance:
            return {branch: 0.5 * float(torch.exp(-self.log_variance[branch])) for branch in self.branches}
        weight = 1.0 / len(self.branches) if self.weighting == "equal" else 1.0
        return dict.fromkeys(self.branches, weight)

    def extra_repr(self) -> str:
        return f"branches={list(self.branches)}, weighting={self.weighting!r}"
