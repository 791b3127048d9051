"""Do the thresholds of dcal-calibrate keep their promises on real features? Not a test: run it.

    dcal-extract run=DIR split=query out=query.npz
    python tests/bench_promise.py query.npz

Of each identity every second image is a query, the others are the gallery. Many times half of the identities are drawn
at random for the calibration, and the rates are counted on the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcal.inference.index import read_index
from dcal.metric.decision.promise import PairThresholds, pair_thresholds

Side = tuple[Tensor, Tensor, Tensor]


def part(side: Side, identities: Tensor) -> Side:
    kept = torch.isin(side[1], identities)
    return side[0][kept], side[1][kept], side[2][kept]


def counted(query: Side, gallery: Side, found: PairThresholds) -> tuple[float, float, float]:
    """Mean over couples of identities of false matches; over identities of false non-matches and false alarms."""
    both = torch.tensor(sorted({*query[1].tolist()} & {*gallery[1].tolist()}))
    query, gallery = part(query, both), part(gallery, both)
    score_QG = query[0] @ gallery[0].T
    q, g = (torch.searchsorted(both, side[1]) for side in (query, gallery))
    size_q, size_g = (torch.bincount(unit, minlength=len(both)).double() for unit in (q, g))
    same_QG = q[:, None] == g
    weight_QG = (~same_QG).double() / (size_q[q][:, None] * size_g[g] + size_g[q][:, None] * size_q[g])
    matched = (weight_QG * (score_QG >= found.same.threshold)).sum() / (len(both) * (len(both) - 1) / 2)
    genuine_QG = same_QG & (query[2][:, None] != gallery[2])
    pairs, missed = (
        torch.zeros(len(both), dtype=torch.float64).index_add_(0, q, column.double())
        for column in (genuine_QG.sum(1), (genuine_QG & (score_QG < found.different.threshold)).sum(1))
    )
    best_Q = score_QG.masked_fill(same_QG, -1).amax(1)
    alarms = ((best_Q >= found.known.threshold).double() / size_q[q]).sum() / len(both)
    return float(matched), float((missed / pairs)[pairs > 0].mean()), float(alarms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="a file of dcal-extract with labels and cameras")
    parser.add_argument("--rates", type=float, nargs=3, default=(0.02, 0.05, 0.05))
    parser.add_argument("--repeat", type=int, default=100)
    options = parser.parse_args()
    index = read_index(options.index, "index")
    features = torch.tensor(index.features, dtype=torch.float32)
    ids, cameras = torch.tensor(index.columns.label), torch.tensor(index.columns.camera)
    place = torch.tensor([int((ids[:row] == ids[row]).sum()) for row in range(len(ids))])
    query, gallery = ((features[s], ids[s], cameras[s]) for s in (place % 2 == 0, place % 2 == 1))
    people, rng, rates = ids.unique(), np.random.default_rng(0), []
    for _ in range(options.repeat):
        one, other = torch.from_numpy(rng.permutation(people.numpy())).chunk(2)
        found = pair_thresholds(part(query, one), part(gallery, one), *options.rates)
        rates.append(counted(part(query, other), part(gallery, other), found))
    print(f"{len(people)} identities, {len(ids)} images, {features.shape[1]} channels; {options.repeat} halves")
    for name, values, rate in zip(
        ("false matches", "false non-matches", "false alarms"), np.array(rates).T, options.rates, strict=True
    ):
        half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
        print(
            f"{name}: promised {rate:.3f}, mean {values.mean():.5f} [{values.mean() - half:.5f}, "
            f"{values.mean() + half:.5f}], {values.min():.5f} .. {values.max():.5f}, above the promise in "
            f"{(values > rate).sum()} of {len(values)}"
        )


if __name__ == "__main__":
    main()
