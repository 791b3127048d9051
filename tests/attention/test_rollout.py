"""Rollout as a chain of vectors against the product of matrices in float64, and the context manager around any ViT."""

from __future__ import annotations

import pytest
import timm
import torch
from attention_maps import full_map, heads
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rollout_matrix
from tiny import MEMBERS, SMALL, images_for, scramble, tiny_vit
from torch import Tensor, nn

import dcal
from dcal.attention import trace as kernel
from dcal.attention.rollout import AttentionRollout, num_selected, rollout_row
from dcal.attention.support import UnsupportedBackbone
from dcal.attention.trace import Trace, attention_with_trace
from dcal.utils.errors import UserError

DEIT = "deit_tiny_patch16_224"


def traces_of(batch: int, head: int, tokens: int, blocks: int, dtype: torch.dtype = torch.float64) -> list[Trace]:
    def draw(seed: int) -> Tensor:
        return 2 * heads(batch, head, tokens, 4, dtype=dtype, seed=seed)

    return [attention_with_trace(draw(3 * i), draw(3 * i + 1), draw(3 * i + 2))[1] for i in range(blocks)]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    head=st.integers(1, 4),
    tokens=st.integers(2, 50),
    blocks=st.integers(1, 5),
    prefix=st.integers(1, 5),
    ratio=st.floats(0.01, 1.0),
    fusion=st.sampled_from(["mean", "max", "min"]),
    private=st.booleans(),
)
def test_equals_the_product_of_matrices(
    batch: int, head: int, tokens: int, blocks: int, prefix: int, ratio: float, fusion: str, private: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CPU_FLASH", private and kernel.CPU_FLASH)
        traces = traces_of(batch, head, tokens + prefix, blocks)
        row = rollout_row(traces, fusion)
    expected = rollout_matrix([full_map(trace) for trace in traces], fusion)[:, 0]
    torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(row.sum(1), torch.ones(batch).double())
    count = num_selected(ratio, tokens)
    chosen, wanted = (value[:, prefix:].topk(count, dim=1).indices.sort().values for value in (row, expected))
    assert torch.equal(chosen, wanted)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_any_mean_of_the_rows_can_be_asked_for(fusion: str) -> None:
    traces = traces_of(2, 3, 9, 4)
    expected = rollout_matrix([full_map(trace) for trace in traces], fusion)
    for weights in (*torch.eye(9).double(), torch.full((9,), 1 / 9).double(), torch.rand(9).double().softmax(0)):
        row = rollout_row(traces, fusion, weights.expand(2, -1))
        torch.testing.assert_close(row, weights @ expected, rtol=1e-12, atol=1e-12)


def test_direction_and_normalisation() -> None:
    """Traps 6 and 8: the chain runs from the last block to the first, and rows, not columns, sum to 1."""
    traces = traces_of(1, 2, 8, 3)
    assert (rollout_row(traces) - rollout_row(traces[::-1])).abs().max() > 1e-3
    torch.testing.assert_close(rollout_row(traces).sum(), torch.tensor(1.0).double())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_low_precision_stays_near_and_is_kept_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    traces = traces_of(2, 3, 120, 6, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        row = rollout_row(traces)
    expected = rollout_matrix([full_map(trace) for trace in traces])[:, 0]
    assert row.dtype == torch.float32
    assert ((row.double() - expected).abs() / expected).max() < tolerance


@pytest.mark.parametrize("member", MEMBERS)
def test_the_context_records_any_family(member: str) -> None:
    vit = tiny_vit(member).double().eval()
    scramble(vit)
    images = images_for(member)
    plain = vit.forward_features(images)
    pooled: list[Tensor] = []  # what timm's own pool attends with
    if vit.attn_pool is not None:
        vit.attn_pool.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    with AttentionRollout(vit) as rollout, torch.no_grad():
        inside = vit(images)
    torch.testing.assert_close(inside, vit(images))
    assert len(rollout._recorded()) == 3  # one map per block
    matrix, patches = rollout.matrix(), plain.shape[1] - vit.num_prefix_tokens
    assert matrix.shape == (3, plain.shape[1], plain.shape[1]) and patches == 12
    torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:2]).double())
    attention = rollout.cls_attention()
    assert attention.dtype == torch.float32
    weights = weights_of_tokens(vit, pooled)
    expected = (weights @ matrix)[:, 0] if weights is not None else matrix[:, 0]
    torch.testing.assert_close(attention, expected[:, vit.num_prefix_tokens :].float())


def weights_of_tokens(vit: nn.Module, pooled: list[Tensor]) -> Tensor | None:
    """The weight of every token in timm's own feature, (B, 1, N), by its definition; None for a class token."""
    if pooled:
        pool, x_BMD = vit.attn_pool, pooled[0]
        q = pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        k = pool.kv(x_BMD).unflatten(-1, (2, pool.num_heads, -1))[:, :, 0].transpose(1, 2)
        weights = (q @ k.mT * pool.scale).softmax(-1).mean(1)
    elif vit.cls_token is None:
        weights = torch.full((3, 1, 12), 1 / 12).double()
    else:
        return None
    return torch.cat([weights.new_zeros(3, 1, 12 + vit.num_prefix_tokens - weights.shape[2]), weights], 2)


def test_a_pool_that_did_not_run_is_an_error() -> None:
    vit = tiny_vit("test_vit3").double().eval()
    with AttentionRollout(vit) as rollout, torch.no_grad():
        vit.forward_features(images_for("test_vit3"))
    with pytest.raises(RuntimeError, match="the attention pool was not recorded: run the whole model"):
        rollout.cls_attention()


def test_maps_are_those_of_unfused_attention() -> None:
    """Trap 10: fused attention gives no maps, so compare with timm's own unfused arithmetic."""
    vit = tiny_vit(DEIT).double().eval()
    scramble(vit)
    maps: list[Tensor] = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: maps.append(args[0]))
    images = images_for(DEIT)
    vit(images)
    with AttentionRollout(vit) as rollout:
        vit(images)
    assert len(maps) == 3  # none inside the context, where attention is fused
    torch.testing.assert_close(rollout.matrix(), rollout_matrix(maps), rtol=1e-12, atol=1e-12)
    assert not any(block.attn.fused_attn for block in vit.blocks)  # as it was


def test_a_second_forward_replaces_the_first_and_nothing_stays_behind() -> None:
    """Trap 1."""
    vit = tiny_vit(DEIT).eval()
    scramble(vit)
    first, second = images_for(DEIT, dtype=torch.float32), images_for(DEIT, dtype=torch.float32) + 1
    rollout = dcal.AttentionRollout(vit)
    with rollout, torch.no_grad():
        vit(first)
        vit(second)
        both = rollout.cls_attention()
    with rollout, torch.no_grad():
        vit(second)
    torch.testing.assert_close(rollout.cls_attention(), both)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    with torch.no_grad():
        vit(first)  # outside: not recorded
    torch.testing.assert_close(rollout.cls_attention(), both)


def test_hooks_and_settings_are_taken_back_after_an_error() -> None:
    vit = tiny_vit(DEIT).eval()
    rollout = AttentionRollout(vit)
    with pytest.raises(RuntimeError), rollout:
        vit(torch.randn(1, 5, 64, 48))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())
    with pytest.raises(RuntimeError, match="0 of 3 blocks were recorded"):
        rollout.cls_attention()

    def fail(module: nn.Module, args: object) -> None:
        raise ValueError("broken")

    handle = vit.blocks[1].attn.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="broken"), rollout:
        vit(images_for(DEIT, dtype=torch.float32))
    handle.remove()
    with torch.no_grad():  # the interception of the broken block is gone: this runs as ever
        vit(images_for(DEIT, dtype=torch.float32))
    assert not torch.overrides._get_current_function_mode_stack()


def test_opening_twice_is_refused() -> None:
    rollout = AttentionRollout(tiny_vit(DEIT))
    with rollout, pytest.raises(RuntimeError, match="already open"), rollout:
        pass


def test_no_gradient_flows_through_it() -> None:
    vit = tiny_vit(DEIT)
    with AttentionRollout(vit) as rollout:
        vit(images_for(DEIT, dtype=torch.float32))
    assert not rollout.cls_attention().requires_grad and not rollout.matrix().requires_grad


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_a_foreign_model_with_its_own_head_works(name: str) -> None:
    vit = timm.create_model(name, img_size=(80, 48), num_classes=7, **SMALL).eval()
    with AttentionRollout(vit, head_fusion="max") as rollout, torch.no_grad():
        assert vit(torch.randn(2, 3, 80, 48)).shape == (2, 7)
    assert rollout.cls_attention().shape == (2, 15)


def test_works_under_autocast() -> None:
    vit = tiny_vit(DEIT).eval()
    scramble(vit)
    images = images_for(DEIT, dtype=torch.float32)
    with AttentionRollout(vit) as rollout, torch.no_grad():
        vit(images)
    expected = rollout.cls_attention()
    with rollout, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        vit(images)
    torch.testing.assert_close(rollout.cls_attention(), expected, rtol=0.1, atol=2e-2)


@pytest.mark.parametrize("before", [False, True])
def test_works_with_a_compiled_model(before: bool) -> None:
    """Whether it was compiled before or not: dynamo does not notice hooks, and would leave an old record standing."""
    vit = tiny_vit(DEIT).eval()
    scramble(vit)
    first, second = images_for(DEIT, dtype=torch.float32), images_for(DEIT, dtype=torch.float32) + 1
    rollout, expected = AttentionRollout(vit), []
    for images in (first, second):
        with rollout, torch.no_grad():
            vit(images)
        expected.append(rollout.cls_attention())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = torch.compile(vit, backend="aot_eager")
    with torch.no_grad():
        if before:
            run(first)
        for images, attention in zip((first, second), expected, strict=True):
            with rollout:
                run(images)
            run(first)  # outside: not recorded
            torch.testing.assert_close(rollout.cls_attention(), attention, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # outside it runs compiled


@pytest.mark.parametrize(("ratio", "count"), [(0.1, 1), (0.3, 3), (1.0, 12), (0.01, 1), (0.5, 6)])
def test_select_top_tokens_marks_the_highest(ratio: float, count: int) -> None:
    vit = tiny_vit("vit_small_patch14_reg4_dinov2").eval()
    scramble(vit)
    with AttentionRollout(vit) as rollout, torch.no_grad():
        vit(images_for("vit_small_patch14_reg4_dinov2", dtype=torch.float32))
    mask, attention = rollout.select_top_tokens(ratio), rollout.cls_attention()
    assert mask.dtype == torch.bool and mask.shape == (3, 12)  # trap 5: patches only, whatever the prefix
    assert mask.sum(1).tolist() == [count] * 3
    for chosen, values in zip(mask, attention, strict=True):  # trap 6: for every image, not the first alone
        assert count == 12 or values[chosen].min() >= values[~chosen].max()


def test_number_of_selected_patches() -> None:
    assert [num_selected(0.1, n) for n in (1, 9, 10, 784)] == [1, 1, 1, 78]
    assert num_selected(0.29, 100) == 29  # not 28, which 0.29 * 100 = 28.999… would give
    assert num_selected(1.0, 196) == 196
    for ratio in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(UserError, match=r"attention.glca.top_ratio"):
            num_selected(ratio, 10)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="head_fusion='sum'"):
        AttentionRollout(tiny_vit(DEIT), head_fusion="sum")
    with pytest.raises(UnsupportedBackbone, match="Beit"):
        AttentionRollout(timm.create_model("beit_base_patch16_224", depth=1, embed_dim=24, num_heads=2))
