"""What every test item came to under every seed, as tables and reports compare it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcal.metric.interval import Floats
from dcal.report.items import decode_groups, decode_outcomes
from dcal.report.records import RunRecord


class Outcomes(NamedTuple):
    """The outcomes of one metric: S seeds, N items."""

    seeds: list[int]
    values_SN: Floats
    digest: str
    """Of their positions in the split, and of their groups."""
    images: str | None
    """Tells which images these are; None where no run has recorded it, as older ones."""
    groups: NDArray[np.int64] | None
    """(N,) Items with the same number belong together: in re-identification, the queries of one identity."""

    def of(self, seeds: Sequence[int]) -> Floats:
        """The rows of these seeds."""
        return self.values_SN[[self.seeds.index(seed) for seed in seeds]]

    def same_items(self, other: Outcomes) -> bool:
        """Whether both are of the same items, so that each has its partner; of older runs, as far as is known."""
        return self.digest == other.digest and (self.images == other.images or None in (self.images, other.images))


def outcomes(records: Sequence[RunRecord], metric: str) -> Outcomes | None:
    """The outcomes of runs that differ in their seed.

    Returns:
        None where they are not recorded, where runs judged other items than each other, where they are too few for an
        interval, and where an older record does not say which queries belong to one identity.
    """
    items = [record["items"] for record in records]
    images = {own["images"] for own in items if "images" in own}
    if not all(metric in own for own in items) or len({own["digest"] for own in items}) > 1 or len(images) > 1:
        return None
    code = items[0].get("group")
    if code is None and records[0]["config"]["task"] == "reid":
        return None
    groups = None if code is None else decode_groups(code)
    if (items[0]["count"] if groups is None else len(np.unique(groups))) < 2:
        return None
    values_SN = np.stack([decode_outcomes(own[metric]) for own in items])
    seeds = [int(record["seed"]) for record in records]
    return Outcomes(seeds, values_SN, items[0]["digest"], next(iter(images), None), groups)
