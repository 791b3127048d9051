"""What the optimizers are, against torch's own, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny import tiny_model
from torch import nn

from dcal.optimizer import Optimization, create_optimization
from dcal.utils.paths import config_dir

STEPS = 6


def create(model: nn.Module, option: str, objective: nn.Module | None = None, **changes: Any) -> Optimization:
    """The optimizer of `conf/optimizer/<option>.yaml`, `changes` applied, at a constant rate."""
    options = OmegaConf.to_container(OmegaConf.load(config_dir() / "optimizer" / f"{option}.yaml"))
    assert isinstance(options, dict)
    options = {key: value for key, value in options.items() if key not in ("_target_", "_partial_", "defaults")}
    options["schedule"] = {"warmup_epochs": 0, "warmup_lr_ratio": 1.0, "final_lr_ratio": 1.0}
    return create_optimization(model, objective or nn.Module(), set(), STEPS, STEPS, 32, **{**options, **changes})


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
    found = weights_after(create(ours, option).optimizer, ours.weight)
    assert torch.equal(found, weights_after(reference, theirs.weight))
    other = torch.optim.SGD(theirs.parameters(), lr=0.008, momentum=0.9, weight_decay=1e-4, nesterov=not nesterov)
    assert not torch.allclose(found, weights_after(other, theirs.weight))
