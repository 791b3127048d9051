"""Everything that a training step needs, tiny and in float64: for tests that compare steps to the last digits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tiny import image_size, tiny_model
from torch import Tensor

from dcal.backbone import freeze_backbone
from dcal.optimizer import Optimization
from dcal.task.objective import Objective
from dcal.training.state import TrainState
from dcal.utils.device import Device

MEMBER = "deit_tiny_patch16_224"
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3])  # seven: no number of parts divides it
BATCH = {
    "image": torch.randint(0, 256, (7, 3, *image_size(MEMBER)), generator=torch.Generator().manual_seed(1)).byte(),
    "label": LABELS,
    "camera": torch.tensor([0, 1, 0, 1, 0, 1, 0]),
}


class Double(Device):
    """Images in float64, for comparisons to the last digits."""

    def normalise(self, images: Tensor) -> Tensor:
        return super().normalise(images).double()


def make_setup(
    triplet: float = 0.0,
    bnneck: bool = False,
    pwca: dict[str, Any] | None = None,
    glca: dict[str, Any] | None = None,
    drop_path: float = 0.0,
    auto: bool = False,
    mixup: Any = None,
    checkpointing: bool = False,
    freeze: str = "none",
    head_epochs: float = 0.0,
) -> TrainState:
    """Everything a step needs, in float64, on seven images."""
    torch.manual_seed(0)
    model = tiny_model(
        MEMBER, glca, pwca, {"drop_path_rate": drop_path}, bnneck=bnneck, side_information=2
    )  # fmt: skip
    torch.nn.init.normal_(model.side)
    model.activation_checkpointing = checkpointing
    freeze_backbone(model.vit, freeze)
    objective = Objective(model.branches, "uncertainty", 0.1, triplet, None).double()
    for number, weight in enumerate(objective.parameters()):
        torch.nn.init.constant_(weight, 0.3 * number - 0.2)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    return TrainState(
        task=SimpleNamespace(bnneck=bnneck),
        data=None,
        loader=None,
        model=model,
        objective=objective,
        optimization=Optimization(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        device=Double("cpu", "fp32", (0.5,) * 3, (0.5,) * 3, num_cameras=2),
        train=SimpleNamespace(auto_accumulate=auto, clip_grad=None, head_epochs=head_epochs, epochs=4),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        features=model.features,
        accumulate=1,
        mixup=mixup,
    )  # type: ignore[arg-type]
