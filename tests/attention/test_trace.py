"""Attention with its trace, and `r S` without S, against float64 products of matrices."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from attention_maps import full_map, heads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcal.attention import cpu_kernels as blocks
from dcal.attention import trace as kernel
from dcal.attention.cpu_kernels import AttentionByRows
from dcal.attention.trace import Trace, attention, attention_with_trace, row_times_attention

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))


def expected_product(r_BN: Tensor, trace: Trace, fusion: str = "mean") -> Tensor:
    fused = {"mean": torch.mean, "max": torch.amax, "min": torch.amin}[fusion](full_map(trace), 1)
    return (r_BN.double().unsqueeze(1) @ (fused / fused.sum(-1, keepdim=True))).squeeze(1)


@pytest.fixture(params=[True, False], ids=["private kernel", "portable"])
def cpu_flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways: with torch's private kernel that gives the normaliser, and without."""
    if request.param and not kernel.CPU_FLASH:
        pytest.skip("this torch has no such kernel")
    monkeypatch.setattr(kernel, "CPU_FLASH", request.param)
    return bool(request.param)


def test_this_torch_has_the_private_kernel() -> None:
    """If this fails, a new torch lost or changed the kernel: everything works, but the rollout got slower."""
    assert kernel._cpu_flash_works()


def test_the_probe_survives_a_torch_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object, **kwargs: object) -> None:
        raise AttributeError("no such op")

    def changed(q: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        return q, torch.zeros(q.shape[:3])

    for replacement in (gone, changed):
        monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", replacement)
        assert not kernel._cpu_flash_works()


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, room=st.sampled_from([16, 100, 1 << 20]), known=st.booleans())
def test_the_product_is_that_of_the_matrix(shape: tuple[int, ...], room: int, known: bool) -> None:
    batch, head, queries, keys, channels = shape
    q, k = heads(batch, head, queries, channels), heads(batch, head, keys, channels, seed=1)
    scale = channels**-0.5
    lse = torch.logsumexp(q @ k.mT * scale, -1) if known else None
    r = torch.rand(batch, queries, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CACHE_BLOCK", room)
        patch.setattr(kernel, "CACHE_BLOCK", room)
        trace = Trace(q, k, scale, lse)
        for fusion in ("mean", "max", "min"):
            product = row_times_attention(r, trace, fusion)
            assert product.shape == (batch, keys) and product.dtype == torch.float64
            torch.testing.assert_close(product, expected_product(r, trace, fusion), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_the_product_in_low_precision(dtype: torch.dtype, tolerance: float, cpu_flash: bool) -> None:
    q, k, v = (heads(2, 3, 301, 16, dtype=dtype, seed=seed) * 2 for seed in range(3))
    trace = attention_with_trace(q, k, v)[1]
    assert (trace.lse_BHN is not None) == (cpu_flash and dtype == torch.float32)
    r = torch.rand(2, 301).softmax(-1)
    expected = expected_product(r, trace)
    assert ((row_times_attention(r, trace).double() - expected).abs() / expected).max() < tolerance


def test_rows_of_extreme_scores_and_zeros_in_r_are_no_trouble(cpu_flash: bool) -> None:
    q, k = heads(1, 2, 30, 8, dtype=torch.float32) * 60, heads(1, 2, 30, 8, dtype=torch.float32, seed=1) * 60
    trace = attention_with_trace(q, k, k)[1]
    assert (q @ k.mT * trace.scale).abs().max() > 1000  # far beyond what exp can hold
    r = torch.rand(1, 30)
    r[:, ::3] = 0
    product, expected = row_times_attention(r, trace), expected_product(r, trace)
    # scores of 10^4 are known to 10^-3 in float32, and the exponential makes that a relative error
    assert (product.double() - expected).abs().max() < 2e-3 * expected.max() and product.isfinite().all()


def test_memory_is_linear_in_the_tokens() -> None:
    from dcal.bench.measure import peak_bytes

    peaks = []
    for tokens in (512, 2048):
        q, k = heads(1, 2, tokens, 16, dtype=torch.float32), heads(1, 2, tokens, 16, dtype=torch.float32, seed=1)
        trace = attention_with_trace(q, k, k)[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "CACHE_BLOCK", 1 << 14)
            peaks.append(
                peak_bytes(
                    lambda trace=trace: row_times_attention(torch.rand(1, len(trace.q_BHND[0, 0])), trace), q.device
                )
            )
    assert peaks[1] < 5 * peaks[0] < 2048**2 * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_equals_torchs(dtype: torch.dtype, cpu_flash: bool) -> None:
    q, k, v = (heads(2, 3, 21, 8, dtype=dtype, seed=seed).requires_grad_() for seed in range(3))
    out, trace = attention_with_trace(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(value.square().sum(), (q, k, v)) for value in (out, expected)]
    torch.testing.assert_close(grads[0], grads[1])
    assert not trace.q_BHND.requires_grad and not trace.k_BHMD.requires_grad and trace.scale == 1 / math.sqrt(8)
    if trace.lse_BHN is not None:
        torch.testing.assert_close(trace.lse_BHN, torch.logsumexp(q @ k.mT * trace.scale, -1).detach())


def test_options_of_fused_attention_are_honoured() -> None:
    q, k, v = (heads(1, 2, 6, 4, seed=seed) for seed in range(3))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    for options in ({"attn_mask": mask}, {"is_causal": True}, {"scale": 0.3}):
        torch.testing.assert_close(attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))
    torch.manual_seed(0)
    dropped, trace = attention_with_trace(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    # trap 9: the trace is the map before dropout
    torch.testing.assert_close(row_times_attention(torch.ones(1, 6).double(), trace), full_map(trace).mean(1).sum(1))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, room=st.sampled_from([16, 100, 1 << 20]))
def test_attention_by_rows_and_its_gradients(shape: tuple[int, ...], room: int) -> None:
    """In float64, where nothing is rounded: outside tests the function is used in bfloat16."""
    batch, head, queries, keys, channels = shape
    q = heads(batch, head, queries, channels).requires_grad_()
    k, v = (heads(batch, head, keys, channels, seed=seed).requires_grad_() for seed in (1, 2))
    weight = heads(batch, head, queries, channels, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CACHE_BLOCK", room)
        results = []
        for function in (
            AttentionByRows.apply,
            lambda q, k, v, scale: F.scaled_dot_product_attention(q, k, v, scale=scale),
        ):
            out = function(q, k, v, 0.7)
            results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for ours, theirs in zip(*results, strict=True):
        # keys' and values' gradients are summed in float32
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_bfloat16_attention_on_the_cpu_is_as_good_as_unfused_attention() -> None:
    q, k, v = (heads(2, 3, 130, 16, seed=seed) for seed in range(3))
    exact = F.scaled_dot_product_attention(q, k, v)
    low = [t.bfloat16().requires_grad_() for t in (q, k, v)]
    unfused = (low[0] * 0.25 @ low[1].mT).softmax(-1) @ low[2]
    ours = attention(*low)
    assert ours.dtype == torch.bfloat16 and type(ours.grad_fn).__name__ == "AttentionByRowsBackward"
    errors = [(value.double() - exact).norm() / exact.norm() for value in (ours, unfused)]
    assert errors[0] < 1.2 * errors[1] < 0.01
    saved = ours.grad_fn.saved_tensors
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in low]  # nothing but q, k, v is kept


@pytest.mark.parametrize("autocast", [True, False])
def test_autocast_is_what_it_is_for_torchs_function(autocast: bool) -> None:
    """q and k may be float32 inside autocast, after a norm."""
    q, k, v = (heads(1, 2, 9, 8, dtype=torch.float32, seed=seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, trace = attention_with_trace(q, k, v.bfloat16() if autocast else v)
        expected = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype == expected.dtype == trace.q_BHND.dtype == (torch.bfloat16 if autocast else torch.float32)


def test_meta_tensors_pass_for_counting_flops() -> None:
    q = torch.empty(2, 3, 9, 8, device="meta")
    out, trace = attention_with_trace(q, q, q)
    assert out.is_meta and row_times_attention(torch.empty(2, 9, device="meta"), trace).shape == (2, 9)
    with kernel.without_autocast(q.device):
        pass
