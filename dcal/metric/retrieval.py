"""Retrieval metrics of re-identification: exact, in blocks of queries with bounded memory, on CPU and GPU.

This module turns features into distances, block by block, and results into figures or ranked lists; the ranking itself
is in `ranking`.

Shape suffixes: Q queries (of a block), G gallery items, T tracks, D features, L items of a list.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcal.distributed.collectives import gather_items, rank_and_world_size
from dcal.metric.ranking import Gallery, PerQuery, breakdown, from_ranks, mean_over_queries, positive_ranks
from dcal.utils.errors import UserError, choose

METRICS = ("cosine", "euclidean")
JUNK = -1
BLOCK_BYTES = 64 * 2**20  # of the distances of one block of queries
COLLAPSED = 1e-6  # share of the features' energy around their mean, below which float32 ranks rounding errors


@torch.no_grad()
def evaluate_retrieval(
    query_features: Tensor | None,
    query_ids: Tensor,
    query_cams: Tensor,
    gallery_features: Tensor | None,
    gallery_ids: Tensor,
    gallery_cams: Tensor,
    metric: str = "cosine",
    *,
    distances: Tensor | None = None,
    gallery_tracks: Tensor | None = None,
    query_pictures: Tensor | None = None,
    gallery_pictures: Tensor | None = None,
    per_query: bool = False,
    per_camera: bool = False,
    block_bytes: int = BLOCK_BYTES,
    sharded: bool = False,
) -> dict[str, Any]:
    """mAP, CMC at 1, 5 and 10 and mINP of ranking the gallery per query, as the Re-ID field defines them.

    - Gallery items of the query's identity *and* camera are removed, items with identity -1 (junk), too.
      A negative camera means unknown and equals none, so sets without cameras lose nothing. The query's own
      picture is removed whatever its camera, where `query_pictures` and `gallery_pictures` tell it.
    - AP is the step (not trapezoid) form, mean over the matches of j / rank_j (Zheng et al., ICCV 2015 single
      query, as in every current code base; the 2015 MATLAB code's trapezoid differs by about a point). mINP
      as in Ye et al., TPAMI 2021.
    - Queries without a match are left out of all means, with a warning that says how many. Without any valid
      query all values are 0. A gallery of fewer than k items is searched whole for rank k.
    - Equal distances are ranked in gallery order, as a stable sort would. Distances are computed in float64
      if features are, else in float32 (also inside autocast, TF32 off); "euclidean" ranks by the squared
      distance.

    Runs where the gallery features (or `distances`) are. Extra memory is a copy of the features plus about
    three times `block_bytes`.

    Args:
        query_features, gallery_features: (Q, D) and (G, D), of any scale; None if `distances` is given.
        query_ids, gallery_ids: (Q,) and (G,) integers; in the gallery -1 is junk.
        query_cams, gallery_cams: (Q,) and (G,) integers, negative where unknown.
        metric: "cosine" or "euclidean"; ignored with `distances`.
        distances: (Q, G) to rank by instead of features, e.g. after re-ranking; smaller is nearer.
        gallery_tracks: (G,) number of the track of each gallery item: ranks tracks instead, by their nearest
            image (the image-to-track protocol of VeRi-776). All images of a track share identity and camera.
        query_pictures: (Q,) integers: the number of each query's picture.
        gallery_pictures: (G,) the same of the gallery: equal to a query's where it is the same file or has the same
            bytes. Not looked at for tracks, of which the camera rule removes the query's own.
        per_query: adds "per_query", a `PerQuery`.
        per_camera: adds "per_camera", {camera: the five metrics and "queries"} over the queries of each camera.
        block_bytes: upper limit of one block of distances.
        sharded: every process of the run calls this with the same input; they share the blocks among them, and
            all get the same result as one process, to the last bit.

    Returns:
        {"mAP", "rank1", "rank5", "rank10", "mINP"}, floats in [0, 1], plus what was asked for.

    Raises:
        ValueError: unknown metric, shapes that do not fit, no query or gallery item, NaN or infinite input.
    """
    source = distances if distances is not None else gallery_features
    if source is None or (distances is None and query_features is None):
        raise ValueError("evaluate_retrieval needs query_features and gallery_features, or distances")
    device = torch.as_tensor(source).device
    query_ids, query_cams, gallery_ids, gallery_cams = (
        torch.as_tensor(t).to(device, torch.int64).flatten() for t in (query_ids, query_cams, gallery_ids, gallery_cams)
    )
    check_sizes(query_ids, query_cams, gallery_ids, gallery_cams)
    keep_G = (gallery_ids != JUNK).nonzero().squeeze(1)
    rows = rows_per_block(query_ids, gallery_ids[keep_G], block_bytes)
    rank, processes = rank_and_world_size() if sharded else (0, 1)
    spans = [slice(start, start + rows) for start in range(0, len(query_ids), rows)][rank::processes]
    if distances is not None:
        blocks = blocks_of_matrix(torch.as_tensor(distances), len(query_ids), len(gallery_ids), keep_G, spans)
    else:
        query_QD, gallery_GD = prepare(query_features, gallery_features, len(query_ids), len(gallery_ids), metric)
        blocks = blocks_of_features(query_QD, gallery_GD[keep_G], metric, spans)
    ids_G, cams_G = gallery_ids[keep_G], gallery_cams[keep_G]
    pictures_Q = pictures_G = None
    if query_pictures is not None and gallery_pictures is not None and gallery_tracks is None:
        pictures_Q, pictures_G = query_pictures.to(device), gallery_pictures.to(device)[keep_G]
    if gallery_tracks is not None:
        blocks, ids_G, cams_G = by_track(blocks, torch.as_tensor(gallery_tracks).to(device)[keep_G], ids_G, cams_G)
    if len(spans) > 1:
        blocks = one_ahead(blocks)
    order_G = torch.argsort(ids_G, stable=True)
    gallery = Gallery(ids_G, cams_G, order_G, ids_G[order_G], pictures_G)
    columns = rank_blocks(blocks, spans, query_ids, query_cams, gallery, pictures_Q)
    if sharded:
        columns = gather_items(columns, "query")
    results = PerQuery(*(columns[field] for field in PerQuery._fields))
    if unmatched := int((~results.valid).sum()):
        warnings.warn(
            f"{unmatched} of {len(results.valid)} queries have no match in the gallery (of another camera, another "
            "image, not junk) and are left out of the means",
            stacklevel=2,
        )
    extras: dict[str, Any] = {}
    if per_query:
        extras["per_query"] = results
    if per_camera:
        extras["per_camera"] = breakdown(results, query_cams.cpu())
    return {**mean_over_queries(results), **extras}


def check_sizes(query_ids: Tensor, query_cams: Tensor, gallery_ids: Tensor, gallery_cams: Tensor) -> None:
    if len(query_ids) != len(query_cams) or len(gallery_ids) != len(gallery_cams):
        raise ValueError(
            f"one identity and one camera per image expected; got {len(query_ids)} and {len(query_cams)} for queries, "
            f"{len(gallery_ids)} and {len(gallery_cams)} for the gallery"
        )
    if not len(query_ids) or not len(gallery_ids):
        raise UserError(f"nothing to rank: {len(query_ids)} queries, {len(gallery_ids)} gallery items")


def rows_per_block(query_ids: Tensor, gallery_ids: Tensor, block_bytes: int) -> int:
    """Queries whose distances, and lists of items of the same identity, fit the block."""
    shared = gallery_ids[torch.isin(gallery_ids, query_ids)]
    matches = int(torch.unique(shared, return_counts=True)[1].max()) if len(shared) else 0
    return max(1, block_bytes // (4 * len(gallery_ids) + 64 * matches + 1))


def prepare(
    query: Tensor | None, gallery: Tensor | None, num_queries: int, num_gallery: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Features as float32 or float64 on the gallery's device, normalised for the cosine; else ValueError."""
    choose("task.metric", metric, METRICS)
    query, gallery = torch.as_tensor(query), torch.as_tensor(gallery)
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"features (Q, D) and (G, D) expected, got {tuple(query.shape)} and {tuple(gallery.shape)}")
    if len(query) != num_queries or len(gallery) != num_gallery:
        raise ValueError(
            f"{len(query)} query features for {num_queries} identities, "
            f"{len(gallery)} gallery features for {num_gallery}"
        )
    dtype = torch.float64 if torch.float64 in (query.dtype, gallery.dtype) else torch.float32
    query, gallery = query.detach().to(gallery.device, dtype), gallery.detach().to(dtype)
    for name, features in (("query", query), ("gallery", gallery)):
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        if bad:
            raise ValueError(f"{bad} of {len(features)} {name} features are NaN or infinite")
    if metric == "cosine":
        query, gallery = F.normalize(query), F.normalize(gallery)
    sample = gallery[:: max(1, len(gallery) // 1000)]
    spread = (sample - sample.mean(dim=0)).square().sum()
    if len(sample) > 1 and spread <= COLLAPSED * sample.square().sum():
        warnings.warn("the features have collapsed to a point: the ranking is rounding noise", stacklevel=3)
    return query, gallery


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in the dtype of their factors: no autocast, no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def blocks_of_features(query_QD: Tensor, gallery_GD: Tensor, metric: str, spans: Sequence[slice]) -> Iterator[Tensor]:
    """Distances (rows, G) of the spans of queries, up to a constant per query; overwrites the last but one."""
    largest = max((len(query_QD[span]) for span in spans), default=0)
    buffers = [gallery_GD.new_empty(largest, len(gallery_GD)) for _ in range(2)]
    # per query, |q - g|^2 ranks like |g|^2 - 2 qg, and 1 - qg like -qg
    squares_G = gallery_GD.square().sum(dim=1) if metric == "euclidean" else None
    query_QD = query_QD * (-1 if squares_G is None else -2)
    for span, buffer_QG in zip(spans, itertools.cycle(buffers), strict=False):
        block_QD = query_QD[span]
        distance_QG = buffer_QG[: len(block_QD)]
        with full_precision(gallery_GD.device):
            torch.mm(block_QD, gallery_GD.T, out=distance_QG)
        if squares_G is not None:
            distance_QG += squares_G
        yield distance_QG


def blocks_of_matrix(
    distances: Tensor, num_queries: int, num_gallery: int, keep_G: Tensor, spans: Sequence[slice]
) -> Iterator[Tensor]:
    """The same from given distances, copied without the junk columns."""
    if distances.shape != (num_queries, num_gallery):
        raise ValueError(f"distances ({num_queries}, {num_gallery}) expected, got {tuple(distances.shape)}")
    dtype = torch.float64 if distances.dtype == torch.float64 else torch.float32
    sample = distances[:: max(1, len(distances) // 100)]
    low, high = torch.aminmax(sample, dim=1)
    if num_gallery > 1 and bool((high - low <= COLLAPSED * high.abs()).all()):
        warnings.warn("all gallery items are equally far from the queries: the ranking is arbitrary", stacklevel=4)
    for span in spans:
        kept_QG = distances[span].index_select(1, keep_G).to(dtype)
        if not torch.isfinite(kept_QG).all():
            raise ValueError("distances are NaN or infinite")
        yield kept_QG


def by_track(
    blocks: Iterator[Tensor], tracks_G: Tensor, ids_G: Tensor, cams_G: Tensor
) -> tuple[Iterator[Tensor], Tensor, Tensor]:
    """Distances, identities and cameras of tracks instead of images; a track is as near as its nearest."""
    numbers_T, track_G = torch.unique(tracks_G, return_inverse=True)
    ids_T = torch.empty_like(numbers_T).scatter_(0, track_G, ids_G)
    cams_T = torch.empty_like(numbers_T).scatter_(0, track_G, cams_G)
    if not (torch.equal(ids_T[track_G], ids_G) and torch.equal(cams_T[track_G], cams_G)):
        raise ValueError("gallery_tracks: the images of a track must share identity and camera")

    def merged() -> Iterator[Tensor]:
        for block_QG in blocks:
            index_QG = track_G.expand(len(block_QG), -1)
            block_QT = block_QG.new_full((len(block_QG), len(numbers_T)), torch.inf)
            yield block_QT.scatter_reduce_(1, index_QG, block_QG, "amin")

    return merged(), ids_T, cams_T


def one_ahead(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    """Computes the next block while the caller counts in this one, which keeps a single core busy."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


def rank_blocks(
    blocks: Iterator[Tensor],
    spans: Sequence[slice],
    query_ids: Tensor,
    query_cams: Tensor,
    gallery: Gallery,
    pictures_Q: Tensor | None = None,
) -> dict[str, Tensor]:
    """The columns of `PerQuery`, and the position of each `query`, over all blocks; nothing if there is no block."""
    parts = []
    for span, distance_QG in zip(spans, blocks, strict=True):
        pictures = None if pictures_Q is None else pictures_Q[span]
        row_P, rank_P = positive_ranks(distance_QG, query_ids[span], query_cams[span], gallery, pictures)
        results = from_ranks(row_P, rank_P, len(distance_QG))
        parts.append({"query": torch.arange(span.start, span.start + len(distance_QG)), **results._asdict()})
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}


@torch.no_grad()
def nearest(
    query_QD: Tensor, gallery_GD: Tensor, length: int, left_out_QG: Tensor | None = None, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """Exact nearest neighbours by cosine of L2-normalised features, `rows` queries at a time.

    A similarity of NaN counts as -inf: what cannot be compared is near to nothing. (torch ranks NaN first.)

    Args:
        length: of a list; L is the gallery's size if that is smaller.
        left_out_QG: items that no list may hold. They come last, at similarity -inf, where too few others are left.

    Returns:
        cosines and positions in the gallery, nearest first, (Q, L) each, on the CPU.
    """
    length = min(length, len(gallery_GD))
    left_out = itertools.repeat(None) if left_out_QG is None else left_out_QG.split(rows)
    found = []
    for block_QD, mask_QG in zip(query_QD.split(rows), left_out, strict=False):
        with full_precision(gallery_GD.device):
            similarity_QG = block_QD @ gallery_GD.T
        similarity_QG.masked_fill_(similarity_QG.isnan(), -torch.inf)
        if mask_QG is not None:
            similarity_QG.masked_fill_(mask_QG, -torch.inf)
        found.append(similarity_QG.topk(length))
    similarity_QL, index_QL = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return similarity_QL, index_QL
