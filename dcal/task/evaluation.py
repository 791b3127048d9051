"""What an evaluation gives back, for either task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dcal.task.inference import BRANCHES


class Evaluation(NamedTuple):
    """The metrics of a split, and what each item did."""

    metrics: dict[str, float]
    items: dict[str, Tensor]
    """One row per item: predictions (fgvc), or average precision and rank of the first match (reid)."""

    def save(self, path: Path) -> None:
        """Writes the items as .npz (no pickle), for paired tests between runs."""
        temporary = path.with_name(f".{path.stem}.npz")
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in self.items.items()}
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)


def check_inference(branches: Sequence[str]) -> tuple[str, ...]:
    """The branches of combined inference.

    Raises:
        ValueError: none, or one that does not exist at test time.
    """
    chosen = tuple(branches)
    if not chosen or any(branch not in BRANCHES for branch in chosen):
        raise ValueError(f"task.inference={list(chosen)}: choose from {', '.join(BRANCHES)}")
    return chosen
