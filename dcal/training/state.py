"""What the training loop works on, put together by `dcal.training.build`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor

from dcal.attention.adapters import merge_adapters
from dcal.attention.options import LoRAOptions
from dcal.config import TrainConfig
from dcal.dataset.data import Data, Loader
from dcal.model import DCAL
from dcal.optimizer import Optimization
from dcal.output import Branches
from dcal.task.objective import Objective
from dcal.task.options import Task
from dcal.training.parallel import full_state_dict
from dcal.utils.device import Device


@dataclass
class TrainState:
    """Everything that the training loop works on."""

    task: Task
    data: Data
    loader: Loader
    model: DCAL
    objective: Objective
    optimization: Optimization
    device: Device
    train: TrainConfig
    scaler: torch.amp.GradScaler
    """Scales the loss under fp16; switched off otherwise."""
    features: Callable[..., tuple[Branches, Tensor | None]]
    """The model's `features`, compiled if that is asked for, behind DDP if several processes train."""
    accumulate: int
    """Micro-batches into which every batch is split: `train.accumulate`, or more once memory has run out."""
    ema: ModelEmaV3 | None = None
    mixup: Mixup | None = None
    eval_model: DCAL | None = None
    """A model of the same build that is not sharded and has no adapters, where the one that learns is or has."""
    graph: Callable[[Any], dict[str, Tensor]] | None = None
    """`take_step` of a `Batch` as a CUDA graph, where `train.compile` says so."""
    seconds: float = 0.0
    """Spent training and evaluating, over all sessions; known when the run is finished."""
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    """Of the adapters of the model, if it has any."""

    def assemble_eval_model(self) -> DCAL:
        """The model that is evaluated and kept: the moving average if there is one.

        Under FSDP it is put together here, from all processes, which must all ask for it. Adapters are merged: a run is
        judged by the very weights that it keeps.
        """
        model: DCAL = self.model if self.ema is None else self.ema.module
        if self.eval_model is None:
            return model
        self.eval_model.load_state_dict(merge_adapters(full_state_dict(model.state_dict()), self.lora))
        return self.eval_model

    @property
    def validation(self) -> str:
        """The split that is looked at during training: held-out training images if there are, else the test split."""
        return "val" if set(self.task.splits("val")) <= set(self.data.catalog.splits) else "test"
