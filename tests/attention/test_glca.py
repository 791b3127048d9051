"""The GLCA branch on its own: what it selects, what it reads, what it is made of."""

from __future__ import annotations

import pytest
import torch
from tiny import images_for, scramble, tiny_model, tiny_vit
from torch import nn

from dcal.attention.glca import GlobalLocalCrossAttention
from dcal.attention.rollout import AttentionRollout
from dcal.model import DCAL
from dcal.utils.errors import UserError

DEIT = "deit_tiny_patch16_224"
REGISTERS = "vit_small_patch14_reg4_dinov2"


@pytest.mark.parametrize("member", [DEIT, "deit_tiny_distilled_patch16_224", REGISTERS])
@pytest.mark.parametrize("blocks", [1, 2])
def test_selects_by_the_rollout_over_the_blocks_before_it(member: str, blocks: int) -> None:
    """Blocks 1..L−M, and patches only, whatever the number of prefix tokens (trap 5)."""
    model = tiny_model(member, glca={"blocks": blocks}).eval()
    images = images_for(member)
    with AttentionRollout(model.vit) as rollout, torch.no_grad():
        model.vit(images)
    chosen = model(images).selected
    assert chosen.shape == (3, 3) and chosen.min() >= 0 and chosen.max() < 12
    mask = torch.zeros(3, 12, dtype=torch.bool).scatter(1, chosen, True)
    top = rollout.cls_attention(model.depth - blocks).topk(3, dim=1).indices
    assert torch.equal(mask, torch.zeros(3, 12, dtype=torch.bool).scatter(1, top, True))


def test_selects_by_the_last_attention() -> None:
    model = tiny_model(glca={"selection": "last"}).eval()
    images = images_for(DEIT)
    with AttentionRollout(model.vit) as rollout, torch.no_grad():
        model.vit(images)
    trace = rollout._traces[1]  # of the last block before the branch
    attention = (trace.q_BHND[:, :, :1] @ trace.k_BHMD.mT * trace.scale).softmax(-1).mean(1)[:, 0, 1:]
    expected = attention.topk(3, dim=1).indices.sort().values
    assert torch.equal(model(images).selected.sort().values, expected)


def test_random_and_all_need_no_attention_maps() -> None:
    images = images_for(DEIT)
    model = tiny_model(glca={"selection": "random"}).eval()
    drawn = [model(images).selected for _ in range(20)]
    assert all(len(set(row.tolist())) == 3 for chosen in drawn for row in chosen)  # without repetition
    assert len({tuple(chosen.flatten().tolist()) for chosen in drawn}) > 15
    assert not model.glca.needs_traces
    everything = tiny_model(glca={"selection": "all"}).eval()(images).selected
    assert everything.tolist() == [list(range(12))] * 3


def test_readouts() -> None:
    """Trap 4: by default the selected rows are read, so that the selection can matter."""
    images = images_for(DEIT)
    features = {
        readout: tiny_model(glca={"readout": readout}).eval()(images).features.glca
        for readout in ("cls", "mean", "cls_mean")
    }
    torch.testing.assert_close(features["cls_mean"], (features["cls"] + features["mean"]) / 2)
    defaults = DCAL(tiny_vit(DEIT), 5, glca={}, pwca={})
    assert (defaults.glca_blocks, defaults.glca.readout, defaults.pwca_blocks) == (1, "cls_mean", (0, 1, 2))
    assert DCAL(tiny_vit(DEIT), 5).branches == ("sa",)


def test_options_are_checked_without_a_model_around_it() -> None:
    vit = tiny_vit(DEIT)
    with pytest.raises(UserError, match=r"attention.head_fusion='sum': choose one of mean, max, min"):
        GlobalLocalCrossAttention(vit.blocks[-1:], vit.norm, head_fusion="sum")


def test_has_blocks_norm_and_classifier_of_its_own() -> None:
    model = tiny_model(glca={"blocks": 2})
    assert len(model.glca.blocks) == 2
    own = {name for name, _ in model.glca.named_parameters()}
    assert {"blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.weight", "norm.weight"} <= own
    assert model.glca_head.classifier.weight is not model.head.classifier.weight
    # "+9 % parameters" for one block of twelve: paper, DeiT-Tiny
    big = DCAL(tiny_vit(DEIT, depth=12), 5, glca={"blocks": 1})
    count = [sum(p.numel() for p in module.parameters()) for module in (big.glca.blocks, big.vit.blocks)]
    assert count[0] * 12 == count[1]


def test_fresh_weights_are_drawn_as_timm_draws_them() -> None:
    vit = tiny_vit("deit3_small_patch16_224", embed_dim=128)
    scramble(vit)
    torch.manual_seed(0)
    block = GlobalLocalCrossAttention(vit.blocks[-1:], vit.norm, init="fresh").blocks[0]
    assert abs(block.mlp.fc1.weight.std().item() - 0.02) < 0.002 and not block.mlp.fc1.bias.any()
    assert (block.norm1.weight == 1).all() and not block.norm1.bias.any()
    assert torch.unique(block.ls1.gamma).numel() == 1  # LayerScale is back at its initial value
    assert isinstance(vit.blocks[-1].mlp, nn.Module) and vit.blocks[-1].mlp.fc1.bias.any()


def test_drop_path_is_copied_with_the_block() -> None:
    model = DCAL(tiny_vit(DEIT, drop_path_rate=0.4), 5, glca={"blocks": 1})
    assert model.glca.blocks[0].drop_path1.drop_prob == pytest.approx(0.4)
