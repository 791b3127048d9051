"""Blocked k-reciprocal re-ranking against a dense one, written from the paper with matrices and sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcal.metric import rerank
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import evaluate_retrieval
from dcal.utils.errors import UserError


def dense_rerank(query: Tensor, gallery: Tensor, k1: int, k2: int, lambda_value: float) -> np.ndarray:
    """Every matrix whole, every set a Python set, in float64."""
    features = torch.cat([query, gallery]).double().numpy()
    number, num_queries = len(features), len(query)
    distance = np.stack([((features - row) ** 2).sum(axis=1) for row in features])
    distance /= distance.max(axis=1, keepdims=True)
    rank = np.argsort(distance, axis=1, kind="stable")

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in rank[i, : k + 1].tolist() if i in rank[j, : k + 1]}

    own = [reciprocal(i, k1) for i in range(number)]
    half = [reciprocal(i, round(k1 / 2)) for i in range(number)]
    encoding = np.zeros((number, number))
    for i in range(number):
        joined = [half[c] for c in own[i] if len(half[c] & own[i]) > 2 / 3 * len(half[c])]
        members = sorted(own[i].union(*joined))
        weights = np.exp(-distance[i, members])
        encoding[i, members] = weights / weights.sum()
    encoding = np.stack([encoding[rank[i, :k2]].mean(axis=0) for i in range(number)])
    result = np.empty((num_queries, number - num_queries))
    for i in range(num_queries):
        minima = np.minimum(encoding[i], encoding[num_queries:]).sum(axis=1)
        maxima = np.maximum(encoding[i], encoding[num_queries:]).sum(axis=1)
        jaccard = 1 - minima / maxima
        result[i] = (1 - lambda_value) * jaccard + lambda_value * distance[i, num_queries:]
    return result


def clusters(number: int, identities: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(identities, 12, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, identities, (number,), generator=generator)
    return centre[ids] + noise * torch.randn(number, 12, generator=generator, dtype=torch.float64), ids


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 40), st.integers(1, 25), st.integers(1, 8),
    st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 2**31), st.sampled_from([2000, 2**26]),
)  # fmt: skip
def test_equals_dense_reference(
    num_queries: int, num_gallery: int, k1: int, k2: int, lambda_value: float, seed: int, block_bytes: int
) -> None:
    features, _ = clusters(num_queries + num_gallery, 4, 0.7, seed)
    query, gallery = features[:num_queries], features[num_queries:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rerank, "BLOCK_BYTES", block_bytes)
        ours = k_reciprocal_rerank(query, gallery, k1, k2, lambda_value).numpy()
    np.testing.assert_allclose(ours, dense_rerank(query, gallery, k1, k2, lambda_value), rtol=0, atol=1e-12)


def test_equals_dense_reference_on_2000_images() -> None:
    features, _ = clusters(2000, 120, 0.6)
    expected = dense_rerank(features[:150], features[150:], 20, 6, 0.3)
    ours = k_reciprocal_rerank(features[:150], features[150:])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-10)
    single = k_reciprocal_rerank(features[:150].float(), features[150:].float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=1e-4)


def test_improves_clustered_retrieval() -> None:
    features, ids = clusters(400, 20, 1.1, seed=5)
    unknown = torch.full((400,), -1)
    sides = (features[:60], ids[:60], unknown[:60], features[60:], ids[60:], unknown[60:])
    plain = evaluate_retrieval(*sides, metric="euclidean")
    reranked = evaluate_retrieval(*sides, distances=k_reciprocal_rerank(features[:60], features[60:]))
    assert reranked["mAP"] > plain["mAP"] + 0.02


def test_lambda_one_is_the_original_ranking() -> None:
    features, _ = clusters(50, 5, 1.0)
    ours = k_reciprocal_rerank(features[:10], features[10:], lambda_value=1.0)
    squared = torch.cdist(features[:10], features).square()
    torch.testing.assert_close(ours, (squared / squared.amax(dim=1, keepdim=True))[:, 10:])


def test_identical_images_give_finite_distances() -> None:
    same = torch.ones(30, 4)
    assert torch.isfinite(k_reciprocal_rerank(same[:5], same[5:])).all()


def test_faults_are_named() -> None:
    features = torch.randn(6, 3)
    with pytest.raises(ValueError, match=r"got \(6, 3\) and \(6, 2\)"):
        k_reciprocal_rerank(features, features[:, :2])
    for options in ({"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}):
        with pytest.raises(UserError, match=next(iter(options))):
            k_reciprocal_rerank(features, features, **options)
    with pytest.raises(ValueError, match="NaN"):
        k_reciprocal_rerank(features * torch.nan, features)
    with pytest.raises(UserError, match="0 gallery items"):
        k_reciprocal_rerank(features, features[:0])
