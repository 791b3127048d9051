"""Time and memory of the retrieval metrics at the size of real sets, on random features. Not a test: run it.

    python tests/bench_retrieval.py market   # against a loop over queries that sorts the gallery
    python tests/bench_retrieval.py msmt17
    python tests/bench_retrieval.py rerank   # the whole of Market-1501, junk included
    python tests/bench_retrieval.py pairs    # verification and open sets at the size of MSMT17

Extra memory is the process's peak less what it held with the features in memory, before the call
(read from /proc, so on Linux).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dcal.metric.decision.verification import verification
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import evaluate_retrieval

T = TypeVar("T")
# queries, gallery, junk among it, identities, cameras
SIZES = {"market": (3368, 19732, 3819, 750, 6), "msmt17": (11659, 82161, 0, 3060, 15)}


def random_set(size: tuple[int, int, int, int, int], noise: float, dim: int = 384) -> tuple[Tensor, ...]:
    """Features, identities and cameras of queries and gallery: clusters with noise around them."""
    queries, gallery, junk, identities, cameras = size
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(identities, dim, generator=generator)
    sides = []
    for number in (queries, gallery):
        ids = torch.randint(0, identities, (number,), generator=generator).sort().values
        features = torch.randn(number, dim, generator=generator).mul_(noise).add_(centres[ids])
        sides += [features, ids, torch.randint(0, cameras, (number,), generator=generator)]
    sides[4][torch.randperm(gallery, generator=generator)[:junk]] = -1
    return tuple(sides)


def sorting_loop(query: Tensor, q_ids: Tensor, q_cams: Tensor, gallery: Tensor, g_ids: Tensor, g_cams: Tensor) -> float:
    """mAP as most code bases compute it: all distances at once, then one argsort per query."""
    normalise = torch.nn.functional.normalize
    distances = (1 - normalise(query) @ normalise(gallery).T).numpy()
    ids, cams = g_ids.numpy(), g_cams.numpy()
    scores = []
    for row, identity, camera in zip(distances, q_ids.numpy(), q_cams.numpy(), strict=True):
        order = np.argsort(row)
        keep = (ids[order] != -1) & ~((ids[order] == identity) & (cams[order] == camera))
        match = ids[order][keep] == identity
        if match.any():
            precision = np.cumsum(match) / np.arange(1, len(match) + 1)
            scores.append(precision[match].mean())
    return float(np.mean(scores))


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (peak since the last reset) of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 2**10


def measured(what: str, call: Callable[[], T]) -> tuple[T, float]:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    held, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what}: {wall:.2f} s ({cpu:.2f} s of CPU), {memory('VmHWM') - held:.0f} MiB extra", flush=True)
    return result, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("market", "msmt17", "rerank", "pairs"))
    parser.add_argument("--noise", type=float, default=3.0, help="10 and more: features without any information")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    sides = random_set(SIZES["msmt17" if options.what in ("msmt17", "pairs") else "market"], options.noise)
    if options.what == "pairs":
        found, _ = measured("verification", lambda: verification(*sides))
        print(f"peak {memory('VmHWM'):.0f} MiB; {found['impostor']} impostors, {found['auc']}, {found['tpr']}")
        return
    if options.what == "rerank":
        distances, _ = measured("k_reciprocal_rerank", lambda: k_reciprocal_rerank(sides[0], sides[3]))
        print(f"mAP {evaluate_retrieval(*sides, metric='euclidean')['mAP']:.4f} before, ", end="")
        print(f"{evaluate_retrieval(*sides, distances=distances)['mAP']:.4f} after")
        return
    ours, loops = [], []
    for _ in range(options.repeat if options.what == "market" else 1):  # in turn: the machine may not be idle
        ours.append(measured("evaluate_retrieval", lambda: evaluate_retrieval(*sides)))
        if options.what == "market":
            loops.append(measured("argsort loop", lambda: sorting_loop(*sides)))
    print(ours[0][0])
    if loops:
        print(f"mAP differs by {abs(loops[0][0] - ours[0][0]['mAP']):.1e}")
        fastest, median = (f([t for _, t in loops]) / f([t for _, t in ours]) for f in (min, statistics.median))
        print(f"{fastest:.1f} times as fast by the best run of each, {median:.1f} by the median")


if __name__ == "__main__":
    main()
