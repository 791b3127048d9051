"""Verification and open-set identification: is this pair the same identity, and is this probe anybody in the gallery?

Every query is paired with every gallery item under the protocol of re-identification: junk is left out, and so is an
item of the query's identity under the query's camera or with the query's picture. The pairs of one identity are
genuine, the others impostors.

Shape suffixes: Q queries, G gallery items, P genuine pairs, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcal.metric.decision import roc
from dcal.metric.decision.pairs import TILE, Pairs, Side, genuine_pairs, sorted_side
from dcal.metric.retrieval import check_sizes, prepare

FALSE_MATCH_RATES = (1e-3, 1e-4)
"""At which the true positive rate of verification is reported."""
FALSE_ALARM_RATES = (0.1, 0.01)
"""At which the detection and identification rate is reported."""
DRAWN_RATES = tuple(10 ** (exponent / 10) for exponent in range(-60, 1))
"""False match rates of the points of the curve that is drawn."""
CAMERA_PAIRS = 1024
"""With more pairs of cameras there is no table by pair."""


@torch.no_grad()
def verification(
    query_features: Tensor,
    query_ids: Tensor,
    query_cams: Tensor,
    gallery_features: Tensor,
    gallery_ids: Tensor,
    gallery_cams: Tensor,
    metric: str = "cosine",
    *,
    query_pictures: Tensor | None = None,
    gallery_pictures: Tensor | None = None,
    tile: int = TILE,
) -> dict[str, Any]:
    """Rates of verification (all pairs, and by camera pair) and of open-set identification, as JSON can hold them.

    - `auc`, `eer` (equal error rate) and `tpr` at false match rates of 1e-3 and 1e-4, over all pairs.
    - `open_set`: the detection and identification rate (Phillips, Grother and Micheals, 2011): the share of the queries
      with a match whose nearest gallery item is of their identity *and* scores at least a threshold. The threshold is
      such that of probes that are nobody in the gallery at most a share `far` gets any answer. Each query serves as
      such a probe, too: it is searched for in the gallery without its own identity.
    - Intervals are of 95 % and over identities: an identity counts with all its pairs, those in which it is the other
      one included. The distractors of Market-1501 and DukeMTMC are one identity, as they are annotated.

    Scores are cosines, or negative squared distances (euclidean), in float32, or float64 if the features are. Runs
    where the gallery features are; extra memory is two copies of the features plus about 20 bytes per pair of a tile.

    Args:
        query_features: (Q, D).
        query_ids, query_cams: (Q,) integers; cameras are negative where unknown.
        gallery_features: (G, D).
        gallery_ids, gallery_cams: (G,) integers; identity -1 is junk.
        metric: "cosine" or "euclidean".
        query_pictures, gallery_pictures: numbers of pictures, equal where files or bytes are equal.
        tile: pairs whose scores are in memory at a time.

    Returns:
        `genuine` and `impostor` (numbers of pairs), `auc`, `eer`, `tpr`, `roc` (false match rate and true positive rate
        of points to draw), `cameras` (one entry per pair of cameras that has both kinds of pairs; empty with one camera
        or none) and `open_set`. Empty if there is no pair of one of the two kinds.

    Raises:
        ValueError: as `evaluate_retrieval`.
    """
    check_sizes(query_ids, query_cams, gallery_ids, gallery_cams)
    query_QD, gallery_GD = prepare(query_features, gallery_features, len(query_ids), len(gallery_ids), metric)
    device = gallery_GD.device
    ids = torch.cat([query_ids, gallery_ids]).to(device)
    units = torch.unique(ids, return_inverse=True)[1]
    query = sorted_side(query_QD, query_ids, query_cams, query_pictures, units[: len(query_ids)])
    gallery = sorted_side(gallery_GD, gallery_ids, gallery_cams, gallery_pictures, units[len(query_ids) :])
    del query_QD, gallery_GD
    genuine = genuine_pairs(query, gallery, metric)
    known = len(torch.unique(query.cameras)) * len(torch.unique(gallery.cameras))
    by_camera = 1 < known <= CAMERA_PAIRS
    groups = list(_groups(query, gallery)) if by_camera else [(slice(0, len(query.ids)), slice(0, len(gallery.ids)))]
    if not len(genuine.score_P):
        return {}
    found = Pairs(query, gallery, genuine, metric, tile)
    if not found.impostors:
        return {}
    cameras = []
    for rows, columns in groups:
        curve = found.count(rows, columns)
        if by_camera and curve is not None:
            pair = {"query": int(query.cameras[rows.start]), "gallery": int(gallery.cameras[columns.start])}
            cameras.append({**pair, **_rates(curve)})
    curve = found.curve
    points = [roc.equal_error_rate(curve), *(roc.hit_rate_at(curve, rate) for rate in FALSE_MATCH_RATES)]
    accepted = found.accepted([point.threshold for point in points], groups)
    return {
        **_rates(curve, points, [*accepted, found.placement()], found.counts()),
        "roc": [[rate, roc.hit_rate_at(curve, rate).hit_rate] for rate in DRAWN_RATES if rate * curve.negatives >= 1],
        "cameras": cameras,
        "open_set": open_set(found),
    }


def open_set(pairs: Pairs) -> dict[str, Any]:
    """The detection and identification rate; see `verification`."""
    row_P = pairs.genuine.row_P
    own_Q = pairs.best_Q.new_full(pairs.best_Q.shape, -torch.inf)
    own_Q.scatter_reduce_(0, row_P, pairs.genuine.score_P, "amax")
    mated_Q = torch.zeros_like(own_Q, dtype=torch.bool)
    mated_Q[row_P] = True
    own_Q[own_Q <= pairs.best_Q] = -torch.inf
    unit_Q, mated = pairs.query.units.cpu().numpy(), mated_Q.cpu().numpy()
    found, nobody = own_Q.double().cpu().numpy()[mated], pairs.best_Q.double().cpu().numpy()
    curve = roc.curve_of(found, nobody)
    count = roc.sums_of(unit_Q[mated], np.ones(len(found)), unit_Q, np.ones(len(nobody)), pairs.units)
    rates = []
    for alarm_rate in FALSE_ALARM_RATES:
        point = roc.hit_rate_at(curve, alarm_rate)
        passed = found >= point.threshold, nobody >= point.threshold
        accepted = roc.sums_of(unit_Q[mated], passed[0], unit_Q, passed[1], pairs.units)
        rates.append({"far": alarm_rate, **roc.rate_entry(roc.hit_rate_interval(curve, point, accepted, count), point)})
    return {"mated": len(found), "non_mated": len(nobody), "dir": rates}


def _groups(query: Side, gallery: Side) -> Iterator[tuple[slice, slice]]:
    """The pairs of cameras, as rows and columns."""

    def runs(cameras: Tensor) -> list[slice]:
        counts = torch.unique_consecutive(cameras, return_counts=True)[1].tolist()
        ends = np.cumsum(counts).tolist()
        return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

    return ((rows, columns) for rows in runs(query.cameras) for columns in runs(gallery.cameras))


def _rates(
    curve: roc.Curve, points: Sequence[roc.Point] = (), sums: Sequence[roc.Sums] = (), count: roc.Sums | None = None
) -> dict[str, Any]:
    """Numbers of pairs, AUC, EER and TPR; with intervals where the sums by identity are given."""
    equal, *at = points or [roc.equal_error_rate(curve), *(roc.hit_rate_at(curve, rate) for rate in FALSE_MATCH_RATES)]
    if count is None:
        auc, eer = (roc.Rate(value, np.nan, np.nan) for value in (roc.area(curve), equal.alarm_rate))
        tpr = [roc.Rate(point.hit_rate, np.nan, np.nan) for point in at]
    else:
        auc, eer = roc.area_interval(curve, sums[-1], count), roc.equal_error_interval(curve, equal, sums[0], count)
        tpr = [roc.hit_rate_interval(curve, point, own, count) for point, own in zip(at, sums[1:-1], strict=True)]
    return {
        "genuine": curve.positives,
        "impostor": curve.negatives,
        "auc": roc.rate_entry(auc),
        "eer": roc.rate_entry(eer, equal),
        "tpr": [
            {"fpr": rate, **roc.rate_entry(own, point)}
            for rate, own, point in zip(FALSE_MATCH_RATES, tpr, at, strict=True)
        ],
    }
