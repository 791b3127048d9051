"""Thresholds with a promise that holds for identities, or images, that the calibration has not seen.

Each promise is conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, ICLR 2024): the expected rate of a
new unit is at most the promised one whatever the distribution of scores, provided that calibration and use draw units
alike. What it costs is that the rate observed must be smaller than the promised one by about the share of one unit.

False matches are a rate of *two* identities, so that the units are not independent. Let U be the mean over the
n (n - 1) / 2 couples of calibration identities of the share of their image pairs that score at least a threshold. With
two new identities there are (n + 2) (n + 1) / 2 couples, of which 2 n + 1 are new. If all of these matched, the mean
would be (n (n - 1) U + 4 n + 2) / ((n + 1) (n + 2)). The smallest threshold at which even this is at most the promised
rate is therefore never below the one that all n + 2 identities would give, and in the latter the new couple is as good
as any other: its expected rate is at most the promised one.

Shape suffixes: Q queries, G gallery items, D features, N identities (or images), B bins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dcal.metric.decision.pairs import TILE, Side, genuine_pairs, pair_scores, sorted_side
from dcal.metric.interval import Floats
from dcal.metric.retrieval import prepare
from dcal.utils.errors import UserError

BINS = 2**20
"""Of cosines in [-1, 1]: thresholds are multiples of 2e-6."""


class Threshold(NamedTuple):
    """A threshold and what it promises."""

    rate: float
    """Promised for what is new."""
    threshold: float
    observed: float
    """On the calibration data."""


class PairThresholds(NamedTuple):
    """Of re-identification; cosines."""

    same: Threshold
    """At least this: of image pairs of two new identities at most `rate` score so high."""
    different: Threshold
    """Below this: of image pairs of one new identity at most `rate` score so low."""
    known: Threshold
    """Best score of a search: of the searches for a new identity that is not in a gallery like this one, at most `rate`
    find anything at least so near."""
    identities: int
    """Calibrated on; the gallery of `known` has one less."""


@torch.no_grad()
def pair_thresholds(
    query: tuple[Tensor, Tensor, Tensor],
    gallery: tuple[Tensor, Tensor, Tensor],
    false_match_rate: float,
    false_non_match_rate: float,
    false_alarm_rate: float,
) -> PairThresholds:
    """The thresholds of re-identification.

    Identities that have no query or no gallery image are left out, distractors and junk among them. Genuine pairs are
    those of the protocol, of two cameras where cameras are known.

    Args:
        query, gallery: features (Q, D), identities (Q,) and cameras (Q,); the same of the gallery.
        false_match_rate: of `same`.
        false_non_match_rate: of `different`.
        false_alarm_rate: of `known`.

    Raises:
        UserError: there are too few identities for such a promise; the message names the key and the smallest rate.
        ValueError: features that are not finite, or do not fit.
    """
    both = torch.tensor(sorted({*query[1].tolist()} & {*gallery[1].tolist()} - {-1}))
    (query, gallery) = (_of_identities(side, both) for side in (query, gallery))
    count = len(both)
    if count < 2:
        raise UserError(f"{count} identities have a query and a gallery image: thresholds need at least two")
    q, g = prepare(query[0], gallery[0], len(query[1]), len(gallery[1]), "cosine")
    rows, columns = (
        sorted_side(features, ids, cameras, None, torch.searchsorted(both, ids).to(features.device))
        for features, (_, ids, cameras) in zip((q, g), (query, gallery), strict=True)
    )
    couples, best_Q = _impostors(rows, columns, count)
    size_N = torch.bincount(rows.units, minlength=count)
    searches = _histogram(best_Q, 1 / (size_N[rows.units].double() * count))
    genuine = genuine_pairs(rows, columns, "cosine")
    unit_P = rows.units[genuine.row_P]
    seen_N = torch.bincount(unit_P, minlength=count)
    matched = int((seen_N > 0).sum())
    pairs = _histogram(genuine.score_P, 1 / (seen_N[unit_P].double() * max(1, matched)))
    return PairThresholds(
        _lowest(couples, "false_match_rate", false_match_rate, lambda u: _of_couples(u, count)),
        _highest(pairs, "false_non_match_rate", false_non_match_rate, lambda u: (matched * u + 1) / (matched + 1)),
        _lowest(searches, "false_alarm_rate", false_alarm_rate, lambda u: (count * u + 1) / (count + 1)),
        count,
    )


def confidence_threshold(confidence: ArrayLike, refused_rate: float) -> Threshold:
    """Below it a classifier answers "none of these classes": of new images of its classes at most this share.

    Args:
        confidence: (N,) of images of the classes that were not trained on.
        refused_rate: the promised rate.

    Raises:
        UserError: there are too few images for such a promise.
    """
    ordered_N = np.sort(np.asarray(confidence, np.float64))
    allowed = int(np.floor(refused_rate * (len(ordered_N) + 1) * (1 + 1e-12))) - 1  # that may score less
    if allowed < 0:
        raise UserError(_too_few("refused_rate", refused_rate, 1 / (len(ordered_N) + 1), f"{len(ordered_N)} images"))
    threshold = float(ordered_N[min(allowed, len(ordered_N) - 1)])
    return Threshold(refused_rate, threshold, float((ordered_N < threshold).mean()))


def _of_couples(observed: float, identities: int) -> float:
    """The false match rate that so many identities can promise after an observed one; the least is that of 0.0."""
    n = identities
    return (n * (n - 1) * observed + 4 * n + 2) / ((n + 1) * (n + 2))


def _of_identities(side: tuple[Tensor, Tensor, Tensor], identities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = torch.isin(side[1], identities)
    return side[0][kept.to(side[0].device)], side[1][kept], side[2][kept]


def _impostors(rows: Side, columns: Side, identities: int) -> tuple[Floats, Tensor]:
    """Histogram of the impostors' scores in which every couple of identities counts alike, and each query's best."""
    queries_N, items_N = (torch.bincount(side.units, minlength=identities).double() for side in (rows, columns))
    couples = identities * (identities - 1) / 2
    histogram_B = np.zeros(BINS)
    best = []
    for part in torch.arange(len(rows.ids), device=rows.ids.device).split(max(1, TILE // len(columns.ids))):
        unit_q, unit_g = rows.units[part], columns.units
        score_qg = pair_scores(rows.features[part], columns.features, "cosine")
        pairs_qg = queries_N[unit_q][:, None] * items_N[unit_g] + items_N[unit_q][:, None] * queries_N[unit_g]
        same_qg = unit_q[:, None] == unit_g
        histogram_B += _histogram(score_qg, (~same_qg).double() / pairs_qg / couples)
        best.append(score_qg.masked_fill(same_qg, -1.0).amax(1))
    return histogram_B, torch.cat(best)


def _histogram(score: Tensor, weight: Tensor) -> Floats:
    """Sum of the weights of scores by bin: (B,). Bin b begins at the cosine 2 b / B - 1."""
    bin_ = ((score.flatten().double() + 1) * (BINS / 2)).clamp_(0, BINS - 1).long()
    sums: Floats = torch.bincount(bin_, weight.flatten().double(), BINS).cpu().numpy()
    return sums


def _lowest(histogram_B: Floats, key: str, rate: float, bound: Callable[[float], float]) -> Threshold:
    """The lowest threshold at which so few score at least it that the promise holds."""
    at_least = np.append(np.cumsum(histogram_B[::-1])[::-1], 0.0)
    return _chosen(np.arange(BINS, -1, -1), at_least[::-1], key, rate, bound)


def _highest(histogram_B: Floats, key: str, rate: float, bound: Callable[[float], float]) -> Threshold:
    """The highest threshold at which so few score less that the promise holds."""
    below = np.insert(np.cumsum(histogram_B), 0, 0.0)
    return _chosen(np.arange(BINS + 1), below, key, rate, bound)


def _chosen(
    edges: NDArray[np.int64], shares: Floats, key: str, rate: float, bound: Callable[[float], float]
) -> Threshold:
    """The last of the edges, in an order in which the shares rise, whose bound is at most the rate."""
    if bound(0.0) > rate:
        raise UserError(_too_few(key, rate, bound(0.0), "the identities"))
    last = bisect_right(shares, rate, key=lambda share: bound(float(share))) - 1
    return Threshold(rate, float(2 * edges[last] / BINS - 1), float(shares[last]))


def _too_few(key: str, rate: float, smallest: float, what: str) -> str:
    return (
        f"{key}={rate:g}: {what} of this split are too few for such a promise, the least they can give is "
        f"{np.ceil(smallest * 1e5) / 1e5:g}; promise that or more, or calibrate on a larger split "
        "(split=test, or a run with a larger dataset.val_ids or dataset.val_fraction)"
    )
