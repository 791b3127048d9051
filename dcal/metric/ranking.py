"""Ranks of each query's matches without sorting the gallery, and what follows from them: AP, first rank, INP.

Average precision, CMC and INP depend on the ranks of the positives only, and the rank of a positive is one
more than the number of gallery items that come before it. So instead of sorting 20 000 distances per query,
the few positives are counted against the row: one comparison per positive and gallery item, at memory speed.

Shape suffixes: Q queries of a block, G gallery items, P pairs of a query and one of its positives, R rows to
sort, L items of a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
SORT_BYTES = 256 * 2**20  # of what sorting holds at a time
# a row is sorted after all if it has many positives, or few items per positive
MANY_POSITIVES = 128
FEW_ITEMS = 32

MARKS = ("wrong", "right", "same camera", "junk", "same image")
"""What the protocol makes of a gallery item; all but the first two it leaves out."""


class Gallery(NamedTuple):
    """Identities and cameras of the ranked items (junk left out), and the items in the order of identity."""

    ids_G: Tensor
    cams_G: Tensor
    order_G: Tensor
    sorted_ids_G: Tensor
    pictures_G: Tensor | None = None
    """Number of each item's picture, where queries may be in the gallery."""


class PerQuery(NamedTuple):
    """Results of each query, on the CPU; meaningless (0) where `valid` is False."""

    average_precision: Tensor
    first_rank: Tensor
    """1-based rank of the first match."""
    inp: Tensor
    """Inverse negative penalty: matches / rank of the last match."""
    valid: Tensor
    """Whether the query has a match at all."""


def judge(
    ids_Q: Tensor,
    cams_Q: Tensor,
    ids_QL: Tensor,
    cams_QL: Tensor,
    pictures_Q: Tensor | None = None,
    pictures_QL: Tensor | None = None,
) -> Tensor:
    """What the protocol makes of the items of a list for each query, as positions in `MARKS`: uint8 (Q, L).

    Args:
        ids_Q, cams_Q: identity and camera (-1: unknown) of each query.
        ids_QL, cams_QL: the same of the items of its list.
        pictures_Q, pictures_QL: number of each one's picture; equal where the files, or their bytes, are equal.
    """
    same = ids_QL == ids_Q[:, None]
    marks = same.to(torch.uint8)
    marks[same & (cams_QL == cams_Q[:, None]) & (cams_Q[:, None] >= 0)] = MARKS.index("same camera")
    if pictures_Q is not None and pictures_QL is not None:
        marks[same & (pictures_QL == pictures_Q[:, None])] = MARKS.index("same image")
    marks[ids_QL < 0] = MARKS.index("junk")
    return marks


def positive_ranks(
    distance_QG: Tensor, ids_Q: Tensor, cams_Q: Tensor, gallery: Gallery, pictures_Q: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Ranks of all matches of a block's queries: row (P,), ascending, and 1-based rank (P,).

    Items of a query's identity are removed if they have its camera or its picture. Equal distances rank in gallery
    order. Overwrites the distance of removed items with infinity.
    """
    row_P, column_P = same_identity(ids_Q, gallery)
    removed_P = (gallery.cams_G[column_P] == cams_Q[row_P]) & (cams_Q[row_P] >= 0)
    if pictures_Q is not None and gallery.pictures_G is not None:
        removed_P |= gallery.pictures_G[column_P] == pictures_Q[row_P]
    distance_QG[row_P[removed_P], column_P[removed_P]] = torch.inf
    row_P, column_P = row_P[~removed_P], column_P[~removed_P]
    # on a GPU one segmented sort is faster than a kernel launch per query
    rank = counted_ranks if distance_QG.device.type == "cpu" else sorted_ranks
    return row_P, rank(distance_QG, row_P, column_P)


def same_identity(ids_Q: Tensor, gallery: Gallery) -> tuple[Tensor, Tensor]:
    """All (query, gallery item) pairs of equal identity, by query and then by gallery index."""
    low_Q = torch.searchsorted(gallery.sorted_ids_G, ids_Q)
    size_Q = torch.searchsorted(gallery.sorted_ids_G, ids_Q, right=True) - low_Q
    row_P = torch.repeat_interleave(size_Q)
    offset_Q = low_Q - (size_Q.cumsum(0) - size_Q)
    column_P = gallery.order_G[torch.arange(len(row_P), device=row_P.device) + offset_Q[row_P]]
    return row_P, column_P


def counted_ranks(distance_QG: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """1-based ranks on the CPU, by counting row by row.

    In numpy, whose comparisons and counts of a row cost little more than reading it; torch would start its
    threads for each, which costs more than the work, and much more on a busy machine.
    """
    columns_P = column_P.numpy()
    rank_P = np.empty(len(columns_P), dtype=np.int64)
    buffer_G = np.empty(distance_QG.shape[1], dtype=np.bool_)
    rows, starts = np.unique(row_P.numpy(), return_index=True)
    for row, start, stop in zip(rows, starts, np.append(starts, len(rank_P))[1:], strict=True):
        rank_P[start:stop] = ranks_in_row(distance_QG[row].numpy(), columns_P[start:stop], buffer_G)
    return torch.from_numpy(rank_P)


def ranks_in_row(distance_G: Array, columns_P: Array, buffer_G: Array) -> Array:
    """1-based stable ranks of the ascending columns in one row; the buffer takes the comparisons."""
    np.less_equal(distance_G, distance_G[columns_P].max(), out=buffer_G)
    candidates = np.count_nonzero(buffer_G)
    if 2 * candidates < len(distance_G):  # a good model: nothing behind the last match needs to be looked at again
        near = np.flatnonzero(buffer_G)
        distance_G, columns_P, buffer_G = (
            distance_G[near],
            np.searchsorted(near, columns_P),
            buffer_G[:candidates],
        )
    if len(columns_P) > MANY_POSITIVES or len(distance_G) < FEW_ITEMS * len(columns_P):
        rank_G = np.empty(len(distance_G), dtype=np.int64)
        rank_G[np.argsort(distance_G, kind="stable")] = np.arange(1, len(distance_G) + 1)
        return rank_G[columns_P]
    ranks = np.empty(len(columns_P), dtype=np.int64)
    for i, column in enumerate(columns_P.tolist()):
        value = distance_G[column]
        # of equal distances, those up to the match itself (rank is 1-based) come first
        np.less_equal(distance_G[: column + 1], value, out=buffer_G[: column + 1])
        np.less(distance_G[column + 1 :], value, out=buffer_G[column + 1 :])
        ranks[i] = np.count_nonzero(buffer_G)
    return ranks


def sorted_ranks(distance_QG: Tensor, row_P: Tensor, column_P: Tensor) -> Tensor:
    """1-based ranks by stable sorts of a few rows at a time."""
    place_G = torch.arange(1, distance_QG.shape[1] + 1, device=row_P.device)
    size = max(1, SORT_BYTES // (32 * max(1, distance_QG.shape[1])))
    ranks = [row_P.new_empty(0)]
    for start in range(0, len(distance_QG), size):
        order_QG = distance_QG[start : start + size].sort(dim=1, stable=True).indices
        rank_QG = torch.empty_like(order_QG).scatter_(1, order_QG, place_G.expand_as(order_QG))
        here_P = (row_P >= start) & (row_P < start + size)
        ranks.append(rank_QG[row_P[here_P] - start, column_P[here_P]])
    return torch.cat(ranks)


def from_ranks(row_P: Tensor, rank_P: Tensor, num_queries: int) -> PerQuery:
    """AP, first rank and INP of each query from the ranks of its matches; on the CPU in float64."""
    row_P, rank_P = row_P.cpu(), rank_P.cpu()
    order_P = torch.argsort(row_P * (int(rank_P.max()) + 1 if len(rank_P) else 1) + rank_P)
    row_P, rank_P = row_P[order_P], rank_P[order_P]
    count_Q = torch.bincount(row_P, minlength=num_queries)
    end_Q = count_Q.cumsum(0)
    valid_Q = count_Q > 0
    place_P = torch.arange(1, len(row_P) + 1) - (end_Q - count_Q)[row_P]
    precision_Q = torch.zeros(num_queries, dtype=torch.float64).index_add_(0, row_P, place_P.double() / rank_P)
    first_Q, last_Q = torch.zeros_like(count_Q), torch.ones_like(count_Q)
    first_Q[valid_Q] = rank_P[(end_Q - count_Q)[valid_Q]]
    last_Q[valid_Q] = rank_P[end_Q[valid_Q] - 1]
    return PerQuery(precision_Q / count_Q.clamp(min=1), first_Q, count_Q.double() / last_Q, valid_Q)


def mean_over_queries(results: PerQuery) -> dict[str, float]:
    """Means over the valid queries; all 0 if there is none."""
    valid = results.valid
    number = max(1, int(valid.sum()))
    first = results.first_rank[valid]
    return {
        "mAP": float(results.average_precision[valid].sum()) / number,
        **{f"rank{k}": float((first <= k).sum()) / number for k in (1, 5, 10)},
        "mINP": float(results.inp[valid].sum()) / number,
    }


def breakdown(results: PerQuery, cams_Q: Tensor) -> dict[int, dict[str, float]]:
    """The summary over the queries of each camera, and their number (valid or not)."""
    table = {}
    for camera in torch.unique(cams_Q).tolist():
        chosen = cams_Q == camera
        table[camera] = {
            **mean_over_queries(PerQuery(*(column[chosen] for column in results))),
            "queries": int(chosen.sum()),
        }
    return table
