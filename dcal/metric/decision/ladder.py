"""Sorting very many scores in between fewer known ones, without comparing each with several.

Letters in names: P known scores, T distinct ones among them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcal.metric.decision.roc import Curve


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
