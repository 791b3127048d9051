"""A model that several processes train: DDP or FSDP2 in plain torch, and its state as if one process had it.

`ddp` keeps the whole model in every process and averages gradients while the backward pass still runs. `fsdp`
(`fully_shard`) cuts parameters, gradients and the optimizer's state among the processes, and gathers the parameters of
a block when it runs. Checkpoints hold the whole state in either case, so that a run can go on with another number of
processes, or with another strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from dcal.distributed.collectives import world_size
from dcal.model import DCAL

STRATEGIES = ("ddp", "fsdp")
FLAGS = ("foreach", "fused", "capturable")
"""Options of torch's optimizers that say how they compute, not what."""


def shard(model: DCAL) -> None:
    """Cuts a model's parameters among the processes, in place (FSDP2). Before the optimizer is made.

    Blocks that always run as a whole are gathered one by one, when they do; all else for the whole step.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for unit in (*model.whole_modules, model):
        sharded = fully_shard(unit, mesh=mesh)
        if mesh.device_type == "cpu":  # where torch 2.8 sums the gradients if it is asked for their mean
            sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "features")


class Trunk(nn.Module):
    """A model without its heads, which DDP averages the gradients of. Heads see the global batch in every process.

    Args:
        model: whose modules these are.
        features: its method of that name, compiled perhaps.
    """

    def __init__(self, model: DCAL, features: Callable[..., Any]) -> None:
        super().__init__()
        self.features = features
        for name, child in model.named_children():
            if child not in model.heads:
                self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.features(*args, **kwargs)


def replicate(model: DCAL, features: Callable[..., Any]) -> Callable[..., Any]:
    """`features` behind DDP: what it computes is the same, and the gradients of the trunk become means."""
    trunk = Trunk(model, features)
    if not any(parameter.requires_grad for parameter in trunk.parameters()):  # which DDP refuses
        return features
    return DistributedDataParallel(trunk, gradient_as_bucket_view=True)


@contextmanager
def gradients_averaged(model: DCAL, features: Callable[..., Any], now: bool) -> Iterator[None]:
    """Whether a backward pass inside averages gradients over the processes: only the last one of a step has to.

    Args:
        model: sharded perhaps.
        features: what computes its features, behind DDP perhaps.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    with features.no_sync() if isinstance(features, DistributedDataParallel) and not now else nullcontext():
        yield


def full_state_dict(state: Any) -> Any:
    """A state (nested dicts, lists, tensors) with sharded tensors gathered. All processes must call it."""
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, state)


def load_full_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict({name: like(value, own.get(name)) for name, value in weights.items()})


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state without how it is computed: whole tensors, rates as numbers. All processes must call it."""
    state = full_state_dict(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
        for flag in FLAGS:
            group.pop(flag, None)
    return state


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of an `optimizer_state`; the optimizer computes as it did before, sharded perhaps."""
    own = [{flag: group[flag] for flag in FLAGS if flag in group} for group in optimizer.param_groups]
    groups = [{**saved, **flags} for saved, flags in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                own[name] = like(value, parameter)


def like(value: Tensor, template: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, if the template is sharded."""
    if not isinstance(template, DTensor):
        return value
    return distribute_tensor(value.to(template.device), template.device_mesh, template.placements)
