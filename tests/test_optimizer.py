"""What the optimizers are, against torch's own, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from timm.optim import param_groups_layer_decay
from tiny import tiny_model, tiny_vit
from torch import nn

from dcal.attention.adapters import add_adapters, is_adapter
from dcal.attention.options import LoRAOptions
from dcal.backbone import freeze_backbone
from dcal.config import register
from dcal.optimizer import Optimization, begin_momentum
from dcal.training.build import make
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir

STEPS = 6
DEIT = "deit_tiny_patch16_224"
SIGLIP = "vit_base_patch16_siglip_224"  # read by an attention pool, which GLCA copies


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["name=test", *overrides])


def create(model: nn.Module, *overrides: str, objective: nn.Module | None = None, new: Any = ()) -> Optimization:
    """The optimizer that `dcal-train` composes from these overrides, at a constant rate, for batches of 32 images."""
    constant = ["warmup_epochs=0", "warmup_lr_ratio=1", "final_lr_ratio=1"]
    config = composed(*(f"optimizer.schedule.{word}" for word in constant), *overrides)
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=0", "optimizer.lr=0"),
        ("lr=nan", "optimizer.lr=nan"),
        ("lr_batch_size=0", "optimizer.lr_batch_size=0"),
        ("weight_decay=-1", "optimizer.weight_decay=-1"),
        ("momentum=-0.5", "optimizer.momentum=-0.5"),
        ("momentum=1", "optimizer.momentum=1"),
        ("bias_lr_scale=-2", "optimizer.bias_lr_scale=-2"),
        ("new_lr_scale=-10", "optimizer.new_lr_scale=-10"),
        ("layer_decay=0", "optimizer.layer_decay=0"),
        ("layer_decay=1.1", "optimizer.layer_decay=1.1"),
        ("schedule.warmup_epochs=-1", "optimizer.schedule.warmup_epochs=-1"),
        ("schedule.warmup_lr_ratio=-1", "optimizer.schedule.warmup_lr_ratio=-1"),
        ("schedule.final_lr_ratio=-0.1", "optimizer.schedule.final_lr_ratio=-0.1"),
        ("opt=adamv", "optimizer.opt='adamv'"),
        ("opt=adahessian", "optimizer.opt='adahessian': needs second derivatives"),
    ],
)
def test_a_setting_out_of_its_range_is_named(override: str, message: str) -> None:
    model = nn.Linear(3, 2)
    model.vit = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        create(model, f"optimizer.{override}")


def rates(model: nn.Module, optimization: Optimization) -> dict[str, float]:
    """The learning rate of every parameter that the optimizer has, by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimization.optimizer.param_groups
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("member", [DEIT, "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", SIGLIP])
def test_layer_decay_is_timms_by_name(member: str) -> None:
    model = tiny_model(member, glca={"blocks": 2})
    found = rates(model, create(model, "optimizer.lr=1", "optimizer.lr_batch_size=null", "optimizer.layer_decay=0.5"))
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    classifier = tiny_vit(member, num_classes=5)  # timm counts layers from the classifier
    names = {parameter: name for name, parameter in classifier.named_parameters()}
    for group in param_groups_layer_decay(classifier, layer_decay=0.5):
        for parameter in group["params"]:
            if not names[parameter].startswith("head."):
                assert found[f"vit.{names[parameter]}"] == pytest.approx(group["lr_scale"]), names[parameter]
    for name, rate in found.items():
        if name.startswith("glca.blocks."):
            number, rest = name.removeprefix("glca.blocks.").split(".", 1)
            assert rate == found[f"vit.blocks.{int(number) + 1}.{rest}"]  # three blocks, of which two are copied
        elif name.startswith("glca.norm."):
            final = "norm" if "vit.norm.weight" in found else "fc_norm"
            assert rate == found[f"vit.{final}.{name.removeprefix('glca.norm.')}"]
        elif not name.startswith("vit."):
            assert rate == 1.0, name


def test_what_is_new_has_its_own_factor_and_no_depth() -> None:
    model = tiny_model(glca={"init": "fresh"})
    words = ["optimizer.lr=1", "optimizer.lr_batch_size=null", "optimizer.layer_decay=0.5", "optimizer.new_lr_scale=10"]
    found = rates(model, create(model, *words, new=model.new_parameters))
    assert all(found[name] == 10.0 for name in model.new_parameters if name in found)
    assert found["vit.blocks.2.mlp.fc1.weight"] == 0.5 and found["vit.norm.weight"] == 0.5


def test_adapters_learn_as_what_is_new_and_nothing_else_of_the_backbone_does() -> None:
    pytest.importorskip("peft")
    model = tiny_model(glca={"blocks": 1})
    add_adapters(model.vit, LoRAOptions(rank=2))
    words = ["optimizer.lr=1", "optimizer.lr_batch_size=null", "optimizer.layer_decay=0.5", "optimizer.new_lr_scale=10"]
    found = rates(model, create(model, *words, new=model.new_parameters))
    assert {name for name in found if name.startswith("vit.")} == {name for name in found if is_adapter(name)}
    assert {rate for name, rate in found.items() if name.startswith(("vit.", "head."))} == {10.0}
    assert {rate for name, rate in found.items() if name.startswith("glca.")} == {0.5}  # of the block that it copies


def test_frozen_parameters_are_left_out_of_the_optimizer() -> None:
    model = tiny_model()
    freeze_backbone(model.vit, "2")
    found = rates(model, create(model))
    assert not any(name.startswith(("vit.patch_embed", "vit.blocks.0", "vit.blocks.1", "vit.pos")) for name in found)
    assert {"vit.blocks.2.norm1.weight", "vit.norm.weight", "head.classifier.weight"} <= set(found)


@pytest.mark.parametrize("freeze", ["4", "-1", "some", "1.5", ""])
def test_freezing_what_is_not_there_names_the_key(freeze: str) -> None:
    with pytest.raises(UserError, match=r"^backbone\.freeze="):
        freeze_backbone(tiny_vit(DEIT), freeze)


def test_the_schedule_begins_after_the_heads_have_learned() -> None:
    model = nn.Linear(3, 2)
    model.vit = nn.Identity()  # type: ignore[assignment]
    words = ["optimizer.lr=1", "optimizer.lr_batch_size=null", "optimizer=momentum"]
    config = composed(*words, "optimizer.schedule.warmup_epochs=2", "optimizer.schedule.warmup_lr_ratio=0.5")
    optimizer, schedule = make(config.optimizer)(
        model, nn.Module(), set(), total_steps=10, steps_per_epoch=1, batch_size=32, head_steps=3
    )
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen[:6] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.75, 1.0])
    assert seen[6:] == sorted(seen[6:], reverse=True) and seen[-1] < 0.2


def test_a_fused_kernel_takes_parameters_whose_first_gradient_comes_later() -> None:
    """torch's own fails on them: as after the epochs in which only heads learn."""

    def trained(fused: bool) -> list[torch.Tensor]:
        parameters = [nn.Parameter(torch.full((3,), float(number))) for number in (1, 2)]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=fused)
        optimizer.register_step_pre_hook(begin_momentum)
        for step in range(4):
            optimizer.zero_grad()
            sum((parameter**2).sum() for parameter in parameters[: 1 if step < 2 else 2]).backward()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    for one, other in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(one, other)
