"""What the model returns for a batch, and how the branches are combined for inference.

Shapes: B images, C classes, D channels, K selected patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Branches(NamedTuple):
    """One tensor per branch; None where the branch is off. PWCA exists in training only."""

    sa: Tensor
    glca: Tensor | None = None
    pwca: Tensor | None = None

    def __repr__(self) -> str:
        return f"Branches({', '.join(f'{name}={_shape(value)}' for name, value in self._asdict().items())})"


class Output(NamedTuple):
    """What the model returns for a batch. It prints as the shapes of its tensors."""

    sa: Tensor
    """Logits of the self-attention branch, (B, C)."""
    glca: Tensor | None
    """Logits of the global-local branch, (B, C)."""
    pwca: Tensor | None
    """Logits of the pair-wise branch for image 1's label, (B, C); None in evaluation."""
    features: Branches
    """Features before the heads (and before BNNeck), each (B, D)."""
    selected: Tensor | None
    """Patches that GLCA selected, (B, K), 0 being the first patch; None without GLCA."""

    def __repr__(self) -> str:
        return f"Output({', '.join(f'{name}={_shape(value)}' for name, value in self._asdict().items())})"

    def logits(self) -> dict[str, Tensor]:
        """The logits of the branches that are there, by name."""
        return {name: value for name in ("sa", "glca", "pwca") if (value := getattr(self, name)) is not None}

    @property
    def probabilities(self) -> Tensor:
        """Class probabilities of combined inference, (B, C): mean of the branches' softmax, PWCA left out."""
        return combined_probabilities([branch for branch in (self.sa, self.glca) if branch is not None])

    @property
    def embedding(self) -> Tensor:
        """Re-ID feature, (B, D) or (B, 2D): each branch's feature L2-normalised, concatenated, normalised again."""
        return join_features([branch for branch in self.features[:2] if branch is not None])


def _shape(value: Tensor | Branches | None) -> str:
    """A tensor as its shape and type, for a line that can be read; anything else as it prints."""
    return (
        f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else repr(value)
    )


def combined_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Mean of the branches' probabilities, (B, C)."""
    return torch.stack([branch.float().softmax(-1) for branch in logits]).mean(0)


def join_features(features: Sequence[Tensor]) -> Tensor:
    """Concatenates the L2-normalised features of the branches with equal weight, and normalises the result."""
    return F.normalize(torch.cat([F.normalize(feature.float(), dim=-1) for feature in features], dim=-1), dim=-1)
