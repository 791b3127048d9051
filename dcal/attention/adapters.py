"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685) on a backbone's blocks, by the library peft.

A linear layer `W x` becomes `W x + (alpha / rank) B A x`, of which only A (rank rows) and B (rank columns) learn. While
a run trains, W, A and B are apart, in its checkpoints too. What is evaluated and kept at its end is the plain backbone
with `W + (alpha / rank) B A`, which needs neither peft nor the options to be opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dcal.attention.options import LoRAOptions
from dcal.utils.errors import UserError, check_number, choose

NAME = "default"
"""Of the adapters, in peft's names of parameters: `blocks.0.attn.qkv.lora_A.default.weight`."""
BASE, DOWN, UP = ".base_layer.", f".lora_A.{NAME}.", f".lora_B.{NAME}."
PARTS = {"attention": (".attn.",), "all": (".attn.", ".mlp.")}


def add_adapters(vit: nn.Module, options: LoRAOptions) -> None:
    """Puts adapters around the linear layers of a backbone's blocks; all else of the backbone stops learning.

    A new adapter changes nothing: its B is 0.

    Args:
        vit: a timm ViT; changed in place.
        options: rank 0 adds nothing.

    Raises:
        UserError: an option out of its range, or peft is not installed.
    """
    if options.rank == 0:
        return
    check_number("backbone.lora.rank", options.rank, ge=0, whole=True, note="0 is off")
    check_number("backbone.lora.alpha", options.alpha, gt=0)
    parts = PARTS[choose("backbone.lora.layers", options.layers, tuple(PARTS))]
    try:
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and is an optional dependency
    except ImportError as error:
        raise UserError(f"backbone.lora.rank={options.rank} needs {error.name}: pip install 'dcal[lora]'") from None
    layers = [
        name
        for name, module in vit.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and any(part in name for part in parts)
    ]
    blocks: Any = vit.blocks
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(config, vit, NAME)
    for block in blocks:
        if getattr(block.attn, "q_bias", None) is not None:
            # timm's Eva would read the weight of its projection, and pass the adapter by
            block.attn.qkv_bias_separate = True


def is_adapter(name: str) -> bool:
    """Whether a parameter, by its name, is one of an adapter."""
    return DOWN in name or UP in name


def without_adapters(module: nn.Module) -> nn.Module:
    """A module with every layer that has an adapter replaced by the layer alone, in place.

    Args:
        module: of a backbone, e.g. a copied block.
    """
    for name, child in module.named_children():
        base_layer = getattr(child, "get_base_layer", None)
        if base_layer is not None:
            setattr(module, name, base_layer())
        else:
            without_adapters(child)
    return module


def merge_adapters(state: Mapping[str, Tensor], options: LoRAOptions) -> dict[str, Tensor]:
    """The weights of the plain model that computes what the model with adapters does, up to rounding.

    Args:
        state: of a model with adapters; of one without it is returned as it is.
        options: with which the adapters were added.
    """
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if is_adapter(name):
            continue
        down = name.replace(BASE, DOWN)
        if BASE in name and down in state:
            value = value + (options.alpha / options.rank) * (state[name.replace(BASE, UP)] @ state[down])
        merged[name.replace(BASE, ".")] = value
    return merged
