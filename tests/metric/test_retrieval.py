"""Retrieval metrics against a plain-Python oracle, other libraries, and the known mistakes."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dcal.metric import ranking
from dcal.metric.retrieval import evaluate_retrieval, nearest
from dcal.utils.errors import UserError

KEYS = {"mAP", "rank1", "rank5", "rank10", "mINP"}


def oracle(
    distances: list[list[float]], q_ids: list[int], q_cams: list[int], g_ids: list[int], g_cams: list[int]
) -> dict[str, float]:
    """The definitions, query by query: stable sort, step AP, means over queries that have a match."""
    rows = []
    for row, identity, camera in zip(distances, q_ids, q_cams, strict=True):
        kept = [
            g
            for g in range(len(g_ids))
            if g_ids[g] != -1 and not (g_ids[g] == identity and g_cams[g] == camera and camera >= 0)
        ]
        ranked = sorted(kept, key=lambda g: row[g])
        ranks = [rank for rank, g in enumerate(ranked, start=1) if g_ids[g] == identity]
        if ranks:
            rows.append(
                {
                    "mAP": sum(j / rank for j, rank in enumerate(ranks, start=1)) / len(ranks),
                    **{f"rank{k}": float(ranks[0] <= k) for k in (1, 5, 10)},
                    "mINP": len(ranks) / ranks[-1],
                }
            )
    return {key: sum(row[key] for row in rows) / len(rows) if rows else 0.0 for key in KEYS}


def quietly(*args: Any, **options: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate_retrieval(*args, **options)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[int], Tensor]:
    """Few identities, cameras and distances: many ties, junk, queries without a match, single cameras."""
    ids, cams = st.integers(-1, 3), st.integers(-1, draw(st.integers(-1, 2)))
    num_queries, num_gallery = draw(st.integers(1, 5)), draw(st.integers(1, 14))
    q_ids = draw(st.lists(st.integers(0, 3), min_size=num_queries, max_size=num_queries))
    q_cams = draw(st.lists(cams, min_size=num_queries, max_size=num_queries))
    g_ids = draw(st.lists(ids, min_size=num_gallery, max_size=num_gallery))
    g_cams = draw(st.lists(cams, min_size=num_gallery, max_size=num_gallery))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = draw(st.integers(1, 20))
    distances = torch.randint(0, levels, (num_queries, num_gallery), generator=generator).double()
    return q_ids, q_cams, g_ids, g_cams, distances


@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from([1, 200, 2**20]))
def test_equals_oracle_on_distances(problem: Any, block_bytes: int) -> None:
    q_ids, q_cams, g_ids, g_cams, distances = problem
    result = quietly(
        None, *map(torch.tensor, (q_ids, q_cams)), None, *map(torch.tensor, (g_ids, g_cams)),
        distances=distances, block_bytes=block_bytes,
    )  # fmt: skip
    assert set(result) == KEYS and all(type(value) is float for value in result.values())
    assert result == pytest.approx(oracle(distances.tolist(), q_ids, q_cams, g_ids, g_cams), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(problems(), st.sampled_from(["euclidean", "cosine"]), st.integers(0, 2**31))
def test_equals_oracle_on_features(problem: Any, metric: str, seed: int) -> None:
    """Small integers (euclidean) and one-hot vectors (cosine): products are exact, so ties are ties."""
    q_ids, q_cams, g_ids, g_cams, _ = problem
    generator = torch.Generator().manual_seed(seed)
    if metric == "euclidean":
        query, gallery = (torch.randint(-2, 3, (len(i), 2), generator=generator).double() for i in (q_ids, g_ids))
        distances = [[math.dist(q, g) for g in gallery.tolist()] for q in query.tolist()]
    else:
        query, gallery = (
            torch.eye(4, dtype=torch.float64)[torch.randint(0, 4, (len(i),), generator=generator)] * 4
            for i in (q_ids, g_ids)
        )
        distances = [[float(q.index(4) != g.index(4)) for g in gallery.tolist()] for q in query.tolist()]
    ids_cams = [torch.tensor(x) for x in (q_ids, q_cams, g_ids, g_cams)]
    result = quietly(query, *ids_cams[:2], gallery, *ids_cams[2:], metric=metric)
    assert result == pytest.approx(oracle(distances, q_ids, q_cams, g_ids, g_cams), abs=1e-12)


def random_problem(
    num_queries: int, num_gallery: int, identities: int, noise: float, seed: int = 0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(identities, 16, generator=generator, dtype=torch.float64)
    sides = []
    for number in (num_queries, num_gallery):
        ids = torch.randint(0, identities, (number,), generator=generator)
        cams = torch.randint(0, 3, (number,), generator=generator)
        noisy = centre[ids] + noise * torch.randn(number, 16, generator=generator, dtype=torch.float64)
        sides += [noisy, ids, cams]
    return tuple(sides)


@pytest.mark.parametrize("identities", [2, 40])  # 2: more than MANY_POSITIVES each, so rows are sorted
@pytest.mark.parametrize("noise", [0.1, 10.0])  # 0.1: matches come first, so rows are shortened
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_oracle_on_larger_sets(identities: int, noise: float, metric: str) -> None:
    query, q_ids, q_cams, gallery, g_ids, g_cams = random_problem(20, 600, identities, noise)
    if metric == "cosine":
        distances = 1 - torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T
    else:
        distances = torch.cdist(query, gallery)
    expected = oracle(distances.tolist(), *(t.tolist() for t in (q_ids, q_cams, g_ids, g_cams)))
    result = evaluate_retrieval(query, q_ids, q_cams, gallery, g_ids, g_cams, metric)
    assert result == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**31), st.integers(1, 12))
def test_counting_equals_sorting(width: int, rows: int, levels: int, seed: int, many: int) -> None:
    """The CPU's way and the GPU's way, on rows full of ties."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randint(0, levels, (rows, width), generator=generator).float()
    row_P, column_P = (torch.rand(rows, width, generator=generator) < 0.4).nonzero(as_tuple=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "MANY_POSITIVES", many)
        patch.setattr(ranking, "FEW_ITEMS", many % 3)
        patch.setattr(ranking, "SORT_BYTES", 64 * width)
        counted = ranking.counted_ranks(distances, row_P, column_P)
        assert torch.equal(counted, ranking.sorted_ranks(distances, row_P, column_P))


def test_known_case() -> None:
    """Ranks 1 and 3 of the kept items: step AP (1 + 2/3) / 2, where the trapezoid would give 0.79."""
    result = evaluate_retrieval(
        None, torch.tensor([7]), torch.tensor([1]), None,
        torch.tensor([7, -1, 7, 5, 7, 5]), torch.tensor([1, 2, 2, 1, 3, 2]),
        distances=torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]]),
    )  # fmt: skip
    expected = {"mAP": (1 + 2 / 3) / 2, "rank1": 1.0, "rank5": 1.0, "rank10": 1.0, "mINP": 2 / 3}
    assert result == pytest.approx(expected, abs=1e-12)


def test_torchmetrics_and_metric_learning_agree() -> None:
    """Where the definitions meet: no cameras, no junk (torchmetrics' AP needs positive scores)."""
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    query, q_ids, _, gallery, g_ids, _ = (t.float() for t in random_problem(15, 90, 9, 1.5, seed=3))
    cams = [torch.full((n,), -1) for n in (15, 90)]
    result = evaluate_retrieval(query, q_ids, cams[0], gallery, g_ids, cams[1])
    scores = 2 + torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T
    pairs = [(score, g_ids == identity) for score, identity in zip(scores, q_ids, strict=True)]
    mean_ap = torch.stack([functional.retrieval_average_precision(s, t) for s, t in pairs]).mean()
    hit_rate = torch.stack([functional.retrieval_hit_rate(s, t, top_k=5) for s, t in pairs]).mean()
    assert result["mAP"] == pytest.approx(mean_ap.item(), abs=1e-6)
    assert result["rank5"] == pytest.approx(hit_rate.item(), abs=1e-6)
    calculator = accuracy.AccuracyCalculator(
        include=("mean_average_precision", "precision_at_1"), k=90,
        knn_func=inference.CustomKNN(pytest.importorskip("pytorch_metric_learning.distances").CosineSimilarity()),
    )  # fmt: skip
    theirs = calculator.get_accuracy(query, q_ids, gallery, g_ids)
    assert result["mAP"] == pytest.approx(theirs["mean_average_precision"], abs=1e-6)
    assert result["rank1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)


def test_extras_on_request() -> None:
    query, q_ids, q_cams, gallery, g_ids, g_cams = random_problem(30, 80, 6, 1.0)
    q_ids[4] = 99  # nobody
    sides = (query, q_ids, q_cams, gallery, g_ids, g_cams)
    with pytest.warns(UserWarning, match="1 of 30 queries have no match"):
        result = evaluate_retrieval(*sides, per_query=True, per_camera=True)
    each, cameras = result["per_query"], result["per_camera"]
    assert each.valid.sum() == 29 and not each.valid[4]
    assert result["mAP"] == pytest.approx(each.average_precision[each.valid].mean().item(), abs=1e-12)
    assert result["rank1"] == pytest.approx((each.first_rank[each.valid] == 1).double().mean().item())
    assert sum(table["queries"] for table in cameras.values()) == 30
    alone = quietly(query[q_cams == 1], q_ids[q_cams == 1], q_cams[q_cams == 1], *sides[3:])
    assert {key: cameras[1][key] for key in KEYS} == pytest.approx(alone, abs=1e-12)


def test_tracks_rank_by_their_nearest_image() -> None:
    arguments = {"distances": torch.tensor([[0.9, 0.2, 0.5, 0.1, 0.8, 0.6]])}
    ids, cams = torch.tensor([1, 2, 1, 2, 1, 3]), torch.tensor([2, 2, 2, 2, 3, 2])
    query = (None, torch.tensor([1]), torch.tensor([1]), None)
    tracks = torch.tensor([5, 9, 5, 9, 7, 8])
    # nearest image of each track: 9 (id 2) 0.1, 5 (id 1) 0.5, 8 (id 3) 0.6, 7 (id 1) 0.8
    result = evaluate_retrieval(*query, ids, cams, gallery_tracks=tracks, **arguments)
    assert result["mAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    with pytest.raises(ValueError, match="share identity and camera"):
        evaluate_retrieval(*query, ids, cams, gallery_tracks=torch.zeros(6, dtype=torch.long), **arguments)


def test_without_any_valid_query_all_is_zero() -> None:
    """One camera: every match is of the query's own camera."""
    query, q_ids, _, gallery, g_ids, _ = random_problem(5, 20, 3, 1.0)
    with pytest.warns(UserWarning, match="5 of 5 queries have no match"):
        result = evaluate_retrieval(query, q_ids, torch.ones(5), gallery, g_ids, torch.ones(20))
    assert result == dict.fromkeys(KEYS, 0.0)
    with pytest.warns(UserWarning, match="no match"):
        evaluate_retrieval(query, q_ids, torch.ones(5), gallery, torch.full((20,), -1), torch.zeros(20))


def test_unknown_cameras_remove_nothing() -> None:
    query, q_ids, _, gallery, g_ids, _ = random_problem(8, 30, 3, 1.0)
    unknown = evaluate_retrieval(query, q_ids, torch.full((8,), -1), gallery, g_ids, torch.full((30,), -1))
    apart = evaluate_retrieval(query, q_ids, torch.zeros(8), gallery, g_ids, torch.ones(30))
    assert unknown == apart


@pytest.mark.parametrize("metric", ["features", "distances"])
def test_a_query_is_never_its_own_match(metric: str) -> None:
    """Queries that are in the gallery, too, without cameras: each is judged on the gallery without itself."""
    query, q_ids, _, gallery, g_ids, _ = random_problem(8, 30, 3, 1.0)
    both, ids, unknown = torch.cat([query, gallery]), torch.cat([q_ids, g_ids]), torch.full((38,), -1)
    sides: tuple[Any, ...] = (query, q_ids, unknown[:8], both, ids, unknown)
    options: dict[str, Any] = {}
    if metric == "distances":
        options["distances"] = torch.cdist(F.normalize(query), F.normalize(both))
        sides = (None, q_ids, unknown[:8], None, ids, unknown)
    assert evaluate_retrieval(*sides, **options)["rank1"] == 1.0, "each query finds itself"
    pictures = {"query_pictures": torch.arange(8), "gallery_pictures": torch.arange(38)}
    result = evaluate_retrieval(*sides, **options, **pictures, per_query=True)["per_query"]
    for row in range(8):
        kept = torch.arange(38) != row
        asked = query[row : row + 1], q_ids[row : row + 1], unknown[:1]
        alone = evaluate_retrieval(*asked, both[kept], ids[kept], unknown[kept])
        assert float(result.average_precision[row]) == pytest.approx(alone["mAP"])


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_collapsed_features_are_reported(noise: float) -> None:
    _, q_ids, q_cams, _, g_ids, g_cams = random_problem(10, 60, 4, 1.0)
    query, gallery = (torch.ones(n, 16) + noise * torch.randn(n, 16) for n in (10, 60))
    with pytest.warns(UserWarning, match="collapsed"):
        evaluate_retrieval(query, q_ids, q_cams, gallery, g_ids, g_cams)
    with pytest.warns(UserWarning, match="equally far"):
        evaluate_retrieval(None, q_ids, q_cams, None, g_ids, g_cams, distances=torch.ones(10, 60))


def test_half_precision_and_autocast_rank_in_float32() -> None:
    query, q_ids, q_cams, gallery, g_ids, g_cams = random_problem(10, 200, 5, 1.0)
    half = [t.bfloat16() for t in (query, gallery)]
    arguments = (q_ids, q_cams, half[1].float(), g_ids, g_cams)
    expected = evaluate_retrieval(half[0].float(), *arguments)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert evaluate_retrieval(half[0], q_ids, q_cams, half[1], g_ids, g_cams) == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    sides = random_problem(50, 700, 12, 1.0)
    expected = evaluate_retrieval(*sides)
    assert evaluate_retrieval(*(t.cuda() for t in sides)) == pytest.approx(expected, abs=1e-9)


def test_faults_are_named() -> None:
    query, q_ids, q_cams, gallery, g_ids, g_cams = random_problem(4, 9, 2, 1.0)
    with pytest.raises(UserError, match=r"^task.metric='manhattan': choose one of cosine, euclidean"):
        evaluate_retrieval(query, q_ids, q_cams, gallery, g_ids, g_cams, metric="manhattan")
    with pytest.raises(ValueError, match="1 of 4 query features are NaN"):
        broken = query.index_fill(0, torch.tensor([2]), torch.nan)
        evaluate_retrieval(broken, q_ids, q_cams, gallery, g_ids, g_cams)
    with pytest.raises(ValueError, match="9 gallery features for 8"):
        evaluate_retrieval(query, q_ids, q_cams, gallery, g_ids[:8], g_cams[:8])
    with pytest.raises(ValueError, match="one identity and one camera"):
        evaluate_retrieval(query, q_ids, q_cams[:3], gallery, g_ids, g_cams)
    with pytest.raises(UserError, match="0 queries"):
        evaluate_retrieval(query[:0], q_ids[:0], q_cams[:0], gallery, g_ids, g_cams)
    with pytest.raises(ValueError, match=r"distances \(4, 9\) expected"):
        evaluate_retrieval(None, q_ids, q_cams, None, g_ids, g_cams, distances=torch.ones(4, 8))
    with pytest.raises(ValueError, match="or distances"):
        evaluate_retrieval(query, q_ids, q_cams, None, g_ids, g_cams)


class Precisions(TorchFunctionMode):
    """Notes how float32 products are rounded where one is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "matmul" in func.__name__:
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


def test_lists_are_exact_in_a_run_under_tf32() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with Precisions() as products:
            nearest(torch.eye(3), torch.eye(3), 2)
        assert products.seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
