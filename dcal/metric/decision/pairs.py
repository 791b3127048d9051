"""All pairs of queries and gallery items, scored tile by tile: what is kept of them are counts.

Their number grows with the product of both sides (MSMT17: 958 million). But all that the exact ROC curve depends on is
how many impostors lie between each two neighbouring scores of genuine pairs.

Shape suffixes: Q queries, G gallery items, P genuine pairs, T distinct genuine scores, U identities, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcal.metric.decision.roc import Curve, Sums
from dcal.metric.ranking import Gallery, same_identity
from dcal.metric.retrieval import JUNK, full_precision

TILE = 2**22
"""Pairs whose scores are in memory at a time."""


class Side(NamedTuple):
    """Queries or gallery items, in the order of their cameras."""

    features: Tensor
    ids: Tensor
    cameras: Tensor
    pictures: Tensor | None
    units: Tensor
    """Number of each one's identity among those of both sides."""


class Genuine(NamedTuple):
    """The genuine pairs."""

    row_P: Tensor
    column_P: Tensor
    score_P: Tensor


class Ladder:
    """Sorts scores in between known ones: cell 2 i lies below the i-th of them (and above the one before), cell
    2 i + 1 is equal to it.

    Most scores are placed by one look into a table of narrow bins; only those in a bin with a known score are compared.

    Args:
        score_P: the known scores, in any order and with repetitions; at least one.
    """

    BINS = 2**20

    def __init__(self, score_P: Tensor) -> None:
        self.value_T, self.index_P = torch.unique(score_P, return_inverse=True)
        self._low, high = float(self.value_T[0]), float(self.value_T[-1])
        self._scale = self.BINS / max(high - self._low, 1e-30)
        in_bin = torch.bincount(self._bin(self.value_T), minlength=self.BINS + 2)
        self._cell = torch.where(in_bin > 0, -1, 2 * (in_bin.cumsum(0) - in_bin)).int()

    def cells(self, scores: Tensor) -> Tensor:
        """The cell of each score, flattened: int32."""
        flat = scores.flatten()
        cell = self._cell.index_select(0, self._bin(flat))
        unclear = (cell < 0).nonzero().squeeze(1)
        value = flat[unclear]
        index = torch.searchsorted(self.value_T, value)
        equal = self.value_T[index.clamp(max=len(self.value_T) - 1)] == value
        cell[unclear] = (2 * index + equal).int()
        return cell

    def curve(self, chosen_P: Tensor, cells: NDArray[np.int64]) -> Curve:
        """The curve of some of the known scores as positives, against negatives counted by cell."""
        size_T = torch.bincount(self.index_P[chosen_P], minlength=len(self.value_T)).cpu().numpy()
        there_T = size_T > 0
        at_least = np.cumsum(cells[::-1])[::-1]
        value_T = self.value_T.double().cpu().numpy()[there_T][::-1]
        hits_T = np.cumsum(size_T[there_T][::-1])
        alarms_T, above_T = at_least[1::2][there_T][::-1], at_least[2::2][there_T][::-1]
        return Curve(value_T, hits_T, above_T, alarms_T, int(size_T.sum()), int(cells.sum()))

    def _bin(self, scores: Tensor) -> Tensor:
        """A number that never falls as the score rises; 0 is below all known scores."""
        return ((scores - self._low) * self._scale + 1).clamp_(0, self.BINS + 1).int()


class Pairs:
    """All pairs of two sides, tile by tile, and what has been counted of them."""

    def __init__(self, query: Side, gallery: Side, genuine: Genuine, metric: str, tile: int) -> None:
        self.query, self.gallery, self.genuine, self.metric, self.tile = query, gallery, genuine, metric, tile
        self.ladder = Ladder(genuine.score_P)
        self.units = int(max(query.units.max(), gallery.units.max())) + 1
        self.in_order = in_order_of_identity(gallery)
        row_S, _ = same_identity(query.ids, self.in_order)
        same_Q = torch.bincount(row_S, minlength=len(query.ids))
        self.impostors_Q = len(gallery.ids) - same_Q
        self.impostors = int(self.impostors_Q.sum())
        self.cells = np.zeros(2 * len(self.ladder.value_T) + 1, np.int64)
        size_T = torch.bincount(self.ladder.index_P, minlength=len(self.ladder.value_T))
        lower_T = size_T.cumsum(0)
        higher = torch.stack([(lower_T - size_T).double(), lower_T - size_T.double() / 2], 1).flatten()
        # share of the genuine pairs that score higher than what is in a cell
        self.higher = (1 - torch.cat([higher, lower_T[-1:]]) / len(genuine.score_P)).float()
        self.placement_Q = torch.zeros(len(query.ids), dtype=torch.float64, device=query.ids.device)
        self.placement_G = self.placement_Q.new_zeros(len(gallery.ids))
        self.best_Q = genuine.score_P.new_full((len(query.ids),), -torch.inf)

    def tiles(self, rows: slice, columns: slice) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Rows, columns and scores of the pairs of a group, pairs of one identity at -inf, and where those are."""
        width = max(1, min(columns.stop - columns.start, self.tile))
        height = max(1, self.tile // width)
        for left in range(columns.start, columns.stop, width):
            part = slice(left, min(left + width, columns.stop))
            side = Side(*(None if column is None else column[part] for column in self.gallery))  # type: ignore[arg-type]
            in_order = in_order_of_identity(side)
            for top in range(rows.start, rows.stop, height):
                band = slice(top, min(top + height, rows.stop))
                score_QG = pair_scores(self.query.features[band], side.features, self.metric)
                row_S, column_S = same_identity(self.query.ids[band], in_order)
                score_QG[row_S, column_S] = -torch.inf
                yield band, part, score_QG, row_S, column_S

    def count(self, rows: slice, columns: slice) -> Curve | None:
        """Counts the pairs of a group; its own curve, or None where it has no pairs of one of the two kinds."""
        cells = torch.zeros(len(self.cells), dtype=torch.int64, device=self.query.ids.device)
        for band, part, score_QG, row_S, column_S in self.tiles(rows, columns):
            cell_QG = self.ladder.cells(score_QG)
            cells += torch.bincount(cell_QG, minlength=len(cells))
            cells[0] -= len(row_S)
            higher_QG = self.higher.index_select(0, cell_QG).view_as(score_QG)
            higher_QG[row_S, column_S] = 0
            self.placement_Q[band] += higher_QG.sum(1, dtype=torch.float64)
            self.placement_G[part] += higher_QG.sum(0, dtype=torch.float64)
            self.best_Q[band] = torch.maximum(self.best_Q[band], score_QG.amax(1))
        counted = cells.cpu().numpy()
        self.cells += counted
        row_P, column_P = self.genuine.row_P, self.genuine.column_P
        inside_P = (row_P >= rows.start) & (row_P < rows.stop)
        inside_P &= (column_P >= columns.start) & (column_P < columns.stop)
        return self.ladder.curve(inside_P, counted) if inside_P.any() and counted.any() else None

    @property
    def curve(self) -> Curve:
        """Of all pairs that have been counted."""
        return self.ladder.curve(torch.ones_like(self.genuine.row_P, dtype=torch.bool), self.cells)

    def counts(self) -> Sums:
        """How many pairs each identity is in."""
        same_U = torch.bincount(self.query.units, minlength=self.units)
        impostors_U = self._by_unit(self.impostors_Q.double(), (len(self.query.ids) - same_U)[self.gallery.units])
        return Sums(self._genuine_sums(torch.ones_like(self.genuine.score_P)), impostors_U)

    def placement(self) -> Sums:
        """For `area_interval`."""
        lower = np.cumsum(self.cells)
        lower_T = torch.from_numpy((lower[0:-1:2] + lower[1::2]) / 2 / self.impostors)
        lower_P = lower_T.to(self.ladder.index_P.device)[self.ladder.index_P]
        return Sums(self._genuine_sums(lower_P), self._by_unit(self.placement_Q, self.placement_G))

    def accepted(self, thresholds: Sequence[float], groups: Sequence[tuple[slice, slice]]) -> list[Sums]:
        """How many pairs of each identity score at least each threshold."""
        columns_Q = [torch.zeros_like(self.placement_Q) for _ in thresholds]
        columns_G = [torch.zeros_like(self.placement_G) for _ in thresholds]
        for group in groups:
            for band, part, score_QG, _, _ in self.tiles(*group):
                for number, threshold in enumerate(thresholds):
                    above_QG = score_QG >= threshold
                    columns_Q[number][band] += above_QG.sum(1)
                    columns_G[number][part] += above_QG.sum(0)
        return [
            Sums(self._genuine_sums(self.genuine.score_P >= threshold), self._by_unit(of_Q, of_G))
            for threshold, of_Q, of_G in zip(thresholds, columns_Q, columns_G, strict=True)
        ]

    def _by_unit(self, value_Q: Tensor, value_G: Tensor) -> NDArray[np.float64]:
        sums_U = torch.zeros(self.units, dtype=torch.float64, device=self.query.ids.device)
        sums_U.index_add_(0, self.query.units, value_Q.double()).index_add_(0, self.gallery.units, value_G.double())
        return sums_U.cpu().numpy()

    def _genuine_sums(self, value_P: Tensor) -> NDArray[np.float64]:
        unit_P = self.query.units[self.genuine.row_P]
        sums_U = torch.zeros(self.units, dtype=torch.float64, device=unit_P.device)
        return sums_U.index_add_(0, unit_P, value_P.double()).cpu().numpy()


def sorted_side(features: Tensor, ids: Tensor, cameras: Tensor, pictures: Tensor | None, units: Tensor) -> Side:
    """One side without junk, by camera and then by identity."""
    ids, cameras = (torch.as_tensor(column).to(features.device, torch.int64) for column in (ids, cameras))
    kept = (ids != JUNK).nonzero().squeeze(1)
    order = kept[torch.argsort(ids[kept], stable=True)]
    order = order[torch.argsort(cameras[order], stable=True)]
    numbers = None if pictures is None else torch.as_tensor(pictures).to(features.device)[order]
    return Side(features[order], ids[order], cameras[order], numbers, units[order])


def in_order_of_identity(side: Side) -> Gallery:
    order = torch.argsort(side.ids, stable=True)
    return Gallery(side.ids, side.cameras, order, side.ids[order], side.pictures)


def genuine_pairs(query: Side, gallery: Side, metric: str, rows: int = 256) -> Genuine:
    """The genuine pairs with their scores, from products of neighbours in the order of identity.

    Of products of matrices, as those of the impostors are: a sum in another order would differ in the last bit, and
    where all features are equal that bit would tell the two kinds apart.
    """
    order_Q, order_G = torch.argsort(query.ids, stable=True), torch.argsort(gallery.ids, stable=True)
    sorted_G = gallery.ids[order_G]
    found = []
    for row_q in order_Q.split(rows):
        low = int(torch.searchsorted(sorted_G, query.ids[row_q[0]]))
        high = int(torch.searchsorted(sorted_G, query.ids[row_q[-1]], right=True))
        for column_g in order_G[low:high].split(TILE // rows):
            score_qg = pair_scores(query.features[row_q], gallery.features[column_g], metric)
            pairs_qg = query.ids[row_q][:, None] == gallery.ids[column_g]
            camera_q = query.cameras[row_q][:, None]
            pairs_qg &= (camera_q != gallery.cameras[column_g]) | (camera_q < 0)
            if query.pictures is not None and gallery.pictures is not None:
                pairs_qg &= query.pictures[row_q][:, None] != gallery.pictures[column_g]
            q, g = pairs_qg.nonzero(as_tuple=True)
            found.append((row_q[q], column_g[g], score_qg[q, g]))
    empty = torch.empty(0, dtype=torch.int64, device=query.ids.device)
    columns = list(zip(*found, strict=True)) or [(empty,), (empty,), (query.features.new_empty(0),)]
    return Genuine(*(torch.cat(column) for column in columns))


def pair_scores(query_QD: Tensor, gallery_GD: Tensor, metric: str) -> Tensor:
    """Cosines of normalised features, or negative squared distances: (Q, G)."""
    with full_precision(gallery_GD.device):
        products_QG = query_QD @ gallery_GD.T
    if metric == "cosine":
        return products_QG
    squares_Q, squares_G = query_QD.square().sum(1), gallery_GD.square().sum(1)
    return products_QG.mul_(2).sub_(squares_Q[:, None]).sub_(squares_G)
