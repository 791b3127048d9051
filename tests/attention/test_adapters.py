"""A model with adapters computes what the plain model of the merged weights does, in every branch; only they learn."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import FAMILIES, SMALL, image_size, images_for, tiny_model, tiny_vit
from torch import Tensor, nn

from dcal.attention.adapters import add_adapters, is_adapter, merge_adapters, without_adapters
from dcal.attention.options import LoRAOptions
from dcal.attention.pairing import Partners
from dcal.attention.pwca import STREAMS
from dcal.backbone import create_backbone
from dcal.model import DCAL
from dcal.utils.errors import UserError

DEIT = "deit_tiny_patch16_224"
MEMBERS = {
    "one projection with its biases": DEIT,
    "biases beside the projection": "eva_giant_patch14_224",
    "three projections and a gated MLP": "eva02_tiny_patch14_224",
    "rotary embedding": "vit_small_patch16_dinov3",
    "an attention pool": "vit_base_patch16_siglip_224",
    "grouped keys": "vit_base_patch16_sapiens2",
}
OPTIONS = LoRAOptions(rank=2, alpha=3.0)
PARTNERS = Partners(torch.tensor([1, 2, 0]))


def adapted(member: str = DEIT, options: LoRAOptions = OPTIONS, drawn: bool = True, **model: Any) -> DCAL:
    """A tiny model with adapters, whose second matrices are drawn: those of a new adapter are 0."""
    pytest.importorskip("peft")
    found = tiny_model(member, **model)
    add_adapters(found.vit, options)
    for name, parameter in found.named_parameters() if drawn else ():
        if is_adapter(name):
            nn.init.normal_(parameter, std=0.3)
    return found.double()


def merged(model: DCAL, options: LoRAOptions = OPTIONS) -> DCAL:
    plain = copy.deepcopy(model)
    without_adapters(plain)
    plain.load_state_dict(merge_adapters(model.state_dict(), options))
    return plain


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
def test_every_branch_sees_the_adapters(member: str, stream: str) -> None:
    model = adapted(member, pwca={"stream": stream, "blocks": 2})
    images = images_for(member)

    def logits(of: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(5)  # of RoPE's jitter
        found: dict[str, Tensor] = of.train()(images, partners=PARTNERS).logits()
        return found

    expected, without = logits(merged(model)), logits(without_adapters(copy.deepcopy(model)))
    for branch, value in logits(model).items():
        torch.testing.assert_close(value, expected[branch], rtol=1e-9, atol=1e-9)
        assert (value - without[branch]).abs().max() > 1e-3  # the adapters matter


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
def test_every_adapter_learns_and_of_the_backbone_nothing_else(member: str) -> None:
    model = adapted(member).train()
    out = model(images_for(member), partners=PARTNERS)
    sum(value.square().sum() for value in out.logits().values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        learns = not name.startswith("vit.") or is_adapter(name)
        assert parameter.requires_grad == learns, name
        if learns:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.member)
def test_new_adapters_change_nothing_in_any_family(family: Any) -> None:
    pytest.importorskip("peft")
    vit = tiny_vit(family.member).double().eval()
    images = images_for(family.member)
    expected = vit(images)
    add_adapters(vit, OPTIONS)
    layers = {name.split(".lora_")[0] for name, _ in vit.named_parameters() if is_adapter(name)}
    assert all(any(name.startswith(f"blocks.{index}.attn.") for name in layers) for index in range(3))
    assert all(any(name.startswith(f"blocks.{index}.mlp.") for name in layers) for index in range(3))
    torch.testing.assert_close(vit.double()(images), expected)


@pytest.mark.parametrize(("layers", "parts"), [("attention", {"attn"}), ("all", {"attn", "mlp"})])
def test_adapters_are_where_they_were_asked_for(layers: str, parts: set[str]) -> None:
    model = adapted(options=LoRAOptions(rank=2, layers=layers))
    assert {name.split(".")[3] for name, _ in model.named_parameters() if is_adapter(name)} == parts
    assert {name for name, _ in model.named_parameters() if is_adapter(name)} < model.new_parameters


def test_a_copied_branch_has_the_layers_without_adapters(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    source = create_backbone(DEIT, image_size(DEIT), kwargs=SMALL)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    vit = create_backbone(
        DEIT, image_size(DEIT), checkpoint=tmp_path / "weights.safetensors", kwargs=SMALL, lora={"rank": 2}
    )
    model = DCAL(vit, 5, glca={"blocks": 1})
    assert model.glca is not None
    expected: Mapping[str, Tensor] = source.blocks[-1].state_dict()  # type: ignore[index, union-attr]
    found = model.glca.blocks[0].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in model.glca.parameters())


def test_weights_without_adapters_are_merged_into_themselves() -> None:
    state = tiny_model().state_dict()
    assert merge_adapters(state, LoRAOptions()).keys() == state.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "backbone.lora.rank=-1"),
        ({"rank": 2, "alpha": 0.0}, "backbone.lora.alpha=0.0"),
        ({"rank": 2, "layers": "mlps"}, "backbone.lora.layers"),
        ({"rank": 1.5}, "backbone.lora.rank=1.5: must be a whole number"),
        ({"ranks": 2}, "backbone.lora has no option 'ranks': did you mean rank"),
        (["rank"], "backbone.lora=.*: must be options by their names"),
    ],
)
def test_options_that_cannot_be_meant_name_their_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(DEIT, image_size(DEIT), kwargs=SMALL, lora=options)


def test_adapters_on_a_frozen_backbone_are_refused() -> None:
    with pytest.raises(UserError, match=r"backbone\.lora\.rank=2 and backbone\.freeze=1"):
        create_backbone(DEIT, image_size(DEIT), kwargs=SMALL, lora={"rank": 2}, freeze="1")


def test_without_the_library_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft: pip install 'dcal\[lora\]'"):
        add_adapters(tiny_vit(DEIT), OPTIONS)
