"""A block evaluated at some rows equals those rows of the block evaluated at all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import MEMBERS, images_for, scramble, tiny_vit
from torch import Tensor, nn

from dcal.attention.rows import gather_rows, project_keys_values, rope_rows, run_block, run_rows
from dcal.attention.timm_blocks import intercept
from dcal.attention.trace import attention
from dcal.backbone import embed


@pytest.fixture(params=MEMBERS, scope="module")
def entered(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, list[Tensor | None]]:
    """A backbone, the tokens that enter its blocks, and the rotary embedding of each block."""
    vit = tiny_vit(request.param).double().eval()
    scramble(vit)
    with torch.no_grad():
        tokens, ropes = embed(vit, images_for(request.param))
    return vit, tokens, ropes


@torch.no_grad()
def test_rows_equal_those_of_the_whole_block(entered: tuple[nn.Module, Tensor, list[Tensor | None]]) -> None:
    vit, x, ropes = entered
    prefix = vit.num_prefix_tokens
    patches = torch.tensor([[0, 5, 11], [3, 1, 2], [7, 4, 9]])
    every = torch.arange(3)[:, None]
    for block, rope in zip(vit.blocks, ropes, strict=True):
        whole = run_block(block, x, rope)
        keys_values = project_keys_values(block, x, rope)
        if prefix:
            few = run_rows(block, x[:, :prefix], keys_values, rope_rows(rope, None))
            torch.testing.assert_close(few, whole[:, :prefix], rtol=1e-11, atol=1e-11)
        rows = torch.cat([x[:, :prefix], gather_rows(x[:, prefix:], patches)], dim=1)
        some = run_rows(block, rows, keys_values, rope_rows(rope, patches))
        torch.testing.assert_close(some[:, prefix:], whole[every, patches + prefix], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(some[:, :prefix], whole[:, :prefix], rtol=1e-11, atol=1e-11)
        x = whole


@torch.no_grad()
def test_keys_and_values_are_those_the_block_computes(
    entered: tuple[nn.Module, Tensor, list[Tensor | None]],
) -> None:
    vit, x, ropes = entered
    for block, rope in zip(vit.blocks, ropes, strict=True):
        seen: list[tuple[Tensor, Tensor]] = []

        def attend(q: Tensor, k: Tensor, v: Tensor, seen: list[tuple[Tensor, Tensor]] = seen, **options: Any) -> Tensor:
            seen.append((k, v))
            return attention(q, k, v, **options)

        with intercept(attend):
            run_block(block, x, rope)
        for ours, theirs in zip(project_keys_values(block, x, rope), seen[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_autocast_gives_keys_in_the_blocks_precision(
    entered: tuple[nn.Module, Tensor, list[Tensor | None]],
) -> None:
    vit, x, ropes = entered
    block, rope = copy.deepcopy(vit.blocks[0]).float(), None if ropes[0] is None else ropes[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        keys_values = project_keys_values(block, x.float(), rope)
        rows, patches = vit.num_prefix_tokens + 2, torch.tensor([[0, 1]] * 3)
        few = run_rows(block, x.float()[:, :rows], keys_values, rope_rows(rope, patches))
        whole = run_block(block, x.float(), rope)
    assert keys_values[1].dtype == torch.bfloat16
    whole = whole[:, :rows]
    assert (few - whole).norm() < 0.03 * whole.norm()


def test_the_mode_sees_only_its_block_and_lets_the_rest_pass() -> None:
    calls: list[str] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append("seen")
        return attention(q, k, v, **options)

    q = torch.randn(1, 1, 3, 4)
    with intercept(attend):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        torch.nn.functional.relu(q)
    torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert calls == ["seen"]
