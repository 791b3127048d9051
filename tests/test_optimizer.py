"""What the optimizers are, against torch's own, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from dcal.config import register
from dcal.optimizer import Optimization
from dcal.training.build import make
from dcal.utils.paths import config_dir

STEPS = 6


def create(model: nn.Module, *overrides: str, objective: nn.Module | None = None, new: Any = ()) -> Optimization:
    """The optimizer that `dcal-train` composes from these overrides, at a constant rate, for batches of 32 images."""
    register()
    constant = ["warmup_epochs=0", "warmup_lr_ratio=1", "final_lr_ratio=1"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [*(f"optimizer.schedule.{word}" for word in constant), "name=test", *overrides])
    return make(config.optimizer)(
        model, objective or nn.Module(), set(new), total_steps=STEPS, steps_per_epoch=STEPS, batch_size=32
    )


def weights_after(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.Tensor:
    for step in range(STEPS):
        parameter.grad = torch.full_like(parameter, (-1.0) ** step + 0.3)
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize(("option", "nesterov"), [("momentum", False), ("sgd", True)])
def test_sgd_is_what_torch_calls_so(option: str, nesterov: bool) -> None:
    ours, theirs = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    theirs.load_state_dict(ours.state_dict())
    ours.vit = nn.Identity()  # type: ignore[assignment]
    reference = torch.optim.SGD(theirs.parameters(), lr=0.008, momentum=0.9, weight_decay=1e-4, nesterov=nesterov)
    found = weights_after(create(ours, f"optimizer={option}").optimizer, ours.weight)
    assert torch.equal(found, weights_after(reference, theirs.weight))
    other = torch.optim.SGD(theirs.parameters(), lr=0.008, momentum=0.9, weight_decay=1e-4, nesterov=not nesterov)
    assert not torch.allclose(found, weights_after(other, theirs.weight))
