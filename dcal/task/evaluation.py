"""What an evaluation gives back, for either task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dcal.distributed.env import rank_zero_only
from dcal.run.files import atomic_write


class Evaluation(NamedTuple):
    """The metrics of a split, and what each item did."""

    metrics: dict[str, float]
    items: dict[str, Tensor]
    """One row per item: predictions (fgvc), or average precision and rank of the first match (reid)."""
    names: Sequence[str] = ()
    """Of the items, see `Data.names`: by them other programs' predictions are paired with these."""
    reliability: dict[str, Any] | None = None
    """Of `classifier_reliability` or `verification` in `dcal.metric.decision`; None where it was not asked for."""

    @rank_zero_only
    def save(self, path: Path) -> None:
        """Writes the items as .npz (no pickle), for paired tests between runs."""
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in self.items.items()}
        if self.names:
            arrays["name"] = np.array(self.names)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
