"""The classifier of a branch.

Shapes: B images, D channels, C classes.
"""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import Tensor, nn

from dcal.attention.trace import without_autocast


class Head(nn.Module):
    """Classifier of one branch, with BNNeck (Luo et al. 2019) if wanted: BN without shift, classifier without bias."""

    def __init__(self, channels: int, num_classes: int, bnneck: bool) -> None:
        super().__init__()
        self.neck: nn.Module = nn.BatchNorm1d(channels) if bnneck else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes, bias=not bnneck)
        trunc_normal_(self.classifier.weight, std=0.001 if bnneck else 0.02)
        if isinstance(self.neck, nn.BatchNorm1d):
            self.neck.bias.requires_grad_(False)
        else:
            nn.init.zeros_(self.classifier.bias)

    def forward(self, feature_BD: Tensor) -> Tensor:
        """Logits (B, C), in the weights' precision also under autocast: in bf16 classes would tie."""
        with without_autocast(feature_BD.device):
            logits: Tensor = self.classifier(self.neck(feature_BD.to(self.classifier.weight.dtype)))
        return logits
