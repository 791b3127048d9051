"""k-reciprocal re-ranking (Zhong, Zheng, Cao, Li, CVPR 2017, arXiv 1701.08398) without any N x N matrix.

The authors' code holds several dense matrices over queries and gallery together: 4 GiB each for Market-1501.
But only the nearest neighbours of each image enter, some dozens, so distances are taken in blocks, their
nearest kept, and the rest is sparse algebra.

Shape suffixes: N images (queries first, then gallery), Q queries, G gallery images, B images of a block, K
neighbours, H neighbours of the half-size sets, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from dcal.metric.retrieval import full_precision
from dcal.utils.errors import UserError

Array = NDArray[Any]
BLOCK_BYTES = 64 * 2**20


@torch.no_grad()
def k_reciprocal_rerank(
    query_features: Tensor,
    gallery_features: Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> Tensor:
    """Distances (1 - lambda) * Jaccard + lambda * original: `distances` for `evaluate_retrieval`.

    Original is the squared Euclidean distance over its maximum per query (among all images), as in the
    authors' code; Jaccard compares the sets of k-reciprocal neighbours. Features are taken as they come: for
    a model that is evaluated with the cosine, normalise them first. Drop junk from the gallery first where it
    should not act as neighbours; the published protocol keeps it.

    Neighbours are found on the features' device, the sparse part runs on the CPU.

    Args:
        query_features: (Q, D).
        gallery_features: (G, D).
        k1: neighbours that are checked for reciprocity; the set is cut to the number of images.
        k2: neighbours over which the encoding is averaged (local query expansion); 1 switches it off.
        lambda_value: weight of the original distance, in [0, 1].

    Returns:
        (Q, G) distances on the CPU, float32, or float64 if the features are.

    Raises:
        UserError, ValueError: shapes that do not fit, k1 or k2 below 1, lambda outside [0, 1], features that are not
            finite.
    """
    query_features, gallery_features = torch.as_tensor(query_features), torch.as_tensor(gallery_features)
    if query_features.ndim != 2 or query_features.shape[1:] != gallery_features.shape[1:]:
        raise ValueError(
            "features (Q, D) and (G, D) expected, "
            f"got {tuple(query_features.shape)} and {tuple(gallery_features.shape)}"
        )
    if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
        raise UserError(f"k1={k1}, k2={k2}, lambda_value={lambda_value}: k1 and k2 from 1, lambda from 0 to 1")
    if not len(query_features) or not len(gallery_features):
        raise UserError(f"nothing to rank: {len(query_features)} queries, {len(gallery_features)} gallery items")
    num_queries = len(query_features)
    features_ND = torch.cat([query_features, gallery_features.to(query_features.device)])
    features_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    if not torch.isfinite(features_ND).all():
        raise ValueError("features are NaN or infinite")
    near_NK, far_N = neighbours(features_ND, max(k1 + 1, k2))
    encoding = reciprocal_vectors(features_ND, near_NK, far_N, k1)
    if k2 > 1:
        encoding = average(encoding, near_NK[:, :k2])
    result_QG = original_distances(features_ND, far_N, num_queries).mul_(lambda_value)
    add_jaccard(result_QG.numpy(), encoding, num_queries, 1 - lambda_value)
    return result_QG


def block_rows(columns: int) -> int:
    return max(1, BLOCK_BYTES // (8 * columns))


def squared_distances(block_BD: Tensor, features_ND: Tensor) -> Tensor:
    with full_precision(features_ND.device):
        products_BN = block_BD @ features_ND.T
    squares_N, squares_B = features_ND.square().sum(dim=1), block_BD.square().sum(dim=1)
    return products_BN.mul_(-2).add_(squares_N).add_(squares_B[:, None]).clamp_(min=0)


def neighbours(features_ND: Tensor, count: int) -> tuple[Array, Array]:
    """Each image's nearest images, itself first (N, K), and its largest squared distance (N,)."""
    count = min(count, len(features_ND))
    near, far = [], []
    for start in range(0, len(features_ND), rows := block_rows(len(features_ND))):
        distance_BN = squared_distances(features_ND[start : start + rows], features_ND)
        far.append(distance_BN.amax(dim=1).cpu())
        # rounding must not put a duplicate before the image itself
        torch.diagonal(distance_BN, offset=start).fill_(-1)
        near.append(distance_BN.topk(count, dim=1, largest=False, sorted=True).indices.cpu())
    return torch.cat(near).numpy(), torch.cat(far).numpy()


def reciprocal_vectors(features_ND: Tensor, near_NK: Array, far_N: Array, k1: int) -> sparse.csr_array:
    """Row i: exp(-d(i, j)) over the expanded k-reciprocal set of i, scaled to sum 1 (equations 3 to 7)."""
    near_NK = near_NK[:, : k1 + 1]
    half_NH = near_NK[:, : round(k1 / 2) + 1]  # round half to even, as the authors' np.around
    mutual_NK, mutual_half_NH = mutual(near_NK), mutual(half_NH)
    number = len(near_NK)
    indices, values, sizes = [], [], []
    for start in range(0, number, rows := block_rows(near_NK.shape[1] ** 2 * half_NH.shape[1])):
        block = slice(start, start + rows)
        member = expand(near_NK[block], mutual_NK[block], half_NH, mutual_half_NH)
        row_P, column_P = member // number, member % number
        weight_P = np.exp(-pair_distances(features_ND, row_P + start, column_P) / positive(far_N)[row_P + start])
        size_B = np.bincount(row_P, minlength=len(near_NK[block]))
        total_B = np.bincount(row_P, weights=weight_P, minlength=len(size_B))
        indices.append(column_P)
        values.append(weight_P / total_B[row_P])
        sizes.append(size_B)
    pointers = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return sparse.csr_array((np.concatenate(values), np.concatenate(indices), pointers), shape=(number, number))


def mutual(near_NK: Array) -> Array:
    """(N, K): whether an image is in turn among the neighbours of its neighbour (equation 2)."""
    found_NK = np.empty(near_NK.shape, dtype=np.bool_)
    for column in range(near_NK.shape[1]):
        found_NK[:, column] = (near_NK[near_NK[:, column]] == np.arange(len(near_NK))[:, None]).any(axis=1)
    return found_NK


def expand(near_BK: Array, mutual_BK: Array, half_NH: Array, mutual_half_NH: Array) -> Array:
    """Sorted members of the expanded sets of a block, as row * N + image.

    The set of a mutual neighbour c (with k1/2) joins if more than two thirds of it lie in the image's own
    (equation 5).
    """
    number = len(half_NH)
    row_M, _ = mutual_BK.nonzero()
    member_M = near_BK[mutual_BK]  # one entry per image of the block and mutual neighbour
    own = row_M * number + member_M
    candidate_MH, inside_MH = half_NH[member_M], mutual_half_NH[member_M]
    key_MH = row_M[:, None] * number + candidate_MH
    shared_MH = np.isin(key_MH, own) & inside_MH
    joins_M = shared_MH.sum(axis=1) > 2 / 3 * inside_MH.sum(axis=1)
    return np.unique(np.concatenate([own, key_MH[joins_M][inside_MH[joins_M]]]))


def pair_distances(features_ND: Tensor, i_P: Array, j_P: Array) -> Array:
    """Squared distances of listed pairs, in float64."""
    parts = []
    step = block_rows(features_ND.shape[1])
    for start in range(0, len(i_P), step):
        i, j = (torch.from_numpy(x[start : start + step]).to(features_ND.device) for x in (i_P, j_P))
        parts.append((features_ND[i] - features_ND[j]).square_().sum(dim=1).cpu().double())
    return torch.cat(parts).numpy()


def positive(far_N: Array) -> Array:
    """Divisors: 1 where all images coincide, so that 0 / 0 is 0."""
    return np.where(far_N > 0, far_N, 1)


def average(encoding: sparse.csr_array, near_NK: Array) -> sparse.csr_array:
    """Local query expansion: the mean encoding of an image's nearest (equation 11)."""
    number, count = near_NK.shape
    pointers = np.arange(0, number * count + 1, count)
    ones = np.full(number * count, 1 / count)
    return sparse.csr_array((ones, near_NK.ravel(), pointers), shape=(number, number)) @ encoding


def original_distances(features_ND: Tensor, far_N: Array, num_queries: int) -> Tensor:
    """Squared distances (Q, G), each row over its maximum among all images; on the CPU."""
    gallery_GD = features_ND[num_queries:]
    result_QG = torch.empty(num_queries, len(gallery_GD), dtype=features_ND.dtype)
    far_Q = torch.from_numpy(positive(far_N)[:num_queries])
    for start in range(0, num_queries, rows := block_rows(len(gallery_GD))):
        block = slice(start, min(start + rows, num_queries))
        result_QG[block] = squared_distances(features_ND[block], gallery_GD).cpu() / far_Q[block, None]
    return result_QG


def add_jaccard(result_QG: Array, encoding: sparse.csr_array, num_queries: int, factor: float) -> None:
    """Adds factor * Jaccard distance (equation 10): for rows of sum 1, 1 - m / (2 - m), m summed minima."""
    by_image = encoding[num_queries:].tocsc()
    for query in range(num_queries):
        here = slice(encoding.indptr[query], encoding.indptr[query + 1])
        minima_G = np.zeros(result_QG.shape[1])
        for image, value in zip(encoding.indices[here], encoding.data[here], strict=True):
            there = slice(by_image.indptr[image], by_image.indptr[image + 1])
            minima_G[by_image.indices[there]] += np.minimum(by_image.data[there], value)
        result_QG[query] += factor * (1 - minima_G / (2 - minima_G))
