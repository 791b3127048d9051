"""Does a map show what a score depends on? Deletion and insertion curves (Petsiuk et al., RISE, BMVC 2018).

Patches are hidden (deletion) or shown (insertion) in the order of the map, most important first, and the score of the
image is followed. A faithful map has a small area under the deletion curve and a large one under the insertion curve.
What is hidden has one colour in both, so that nothing but the order of the patches differs.

Shapes: T + 1 points of a curve, P patches on a grid of h × w, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcal.metric.interval import mean_interval
from dcal.utils.errors import check_number

Score = Callable[[Tensor], Tensor]
"""`score(images (T + 1, C, H, W)) -> (T + 1,)`."""


class Curves(NamedTuple):
    """The score over the share of patches that are hidden, or shown: 0, 1/T, ..., 1. Each (T + 1,)."""

    deletion: Tensor
    insertion: Tensor


def curves(image_CHW: Tensor, map_hw: Tensor, score: Score, steps: int, hidden: float = 0.0) -> Curves:
    """Both curves of one image.

    Args:
        image_CHW: as the score takes it.
        map_hw: importance of each patch; the first of equal ones comes first.
        score: of a batch of partly hidden images.
        steps: T.
        hidden: the value of hidden pixels; 0 is the mean colour of a normalised image.

    Raises:
        UserError: steps is less than 1.
    """
    check_number("steps", steps, ge=1)
    patches = map_hw.numel()
    rank_P = map_hw.flatten().argsort(descending=True, stable=True).argsort()
    count_T = (torch.arange(steps + 1) * patches / steps).round()
    first_THW = _pixels((rank_P.cpu() < count_T[:, None]).view(-1, *map_hw.shape), image_CHW)
    return Curves(
        score(torch.where(first_THW[:, None], hidden, image_CHW)),
        score(torch.where(first_THW[:, None], image_CHW, hidden)),
    )


def area(curve_T: Tensor) -> float:
    """Area under a curve over [0, 1], by trapezoids."""
    return float(torch.trapezoid(curve_T.cpu().double(), dx=1.0 / (len(curve_T) - 1)))


def summarize(found: Mapping[str, list[Curves]], reference: str) -> dict[str, Any]:
    """Mean curves and areas of each map over images, with 95 % intervals over images.

    Args:
        found: for each map its curves, the same images in the same order.
        reference: the map whose areas are subtracted, image by image.

    Returns:
        by map and curve: `curve` (T + 1 values), `auc`, `low`, `high`; of the others also `minus_<reference>` with
        `auc`, `low` and `high`.

    Raises:
        ValueError: fewer than two images.
    """
    names, results = list(found), {name: {} for name in found}  # type: ignore[var-annotated]
    for kind in Curves._fields:
        areas_KN = np.array([[area(getattr(one, kind)) for one in found[name]] for name in names])
        base = names.index(reference)
        for row, name in enumerate(names):
            mean = torch.stack([getattr(one, kind) for one in found[name]]).mean(0)
            entry = {"curve": mean.tolist(), **_with_interval(areas_KN[row])}
            if row != base:
                entry[f"minus_{reference}"] = _with_interval(areas_KN[row] - areas_KN[base])
            results[name][kind] = entry
    return results


def _with_interval(values_N: NDArray[np.float64]) -> dict[str, float]:
    low, high = mean_interval(values_N)
    return {"auc": float(values_N.mean()), "low": low, "high": high}


def _pixels(mask_Thw: Tensor, image_CHW: Tensor) -> Tensor:
    """A mask of patches as one of pixels, (T, H, W), on the image's device. Cells of the grid do not overlap."""
    large = F.interpolate(mask_Thw[:, None].float(), size=image_CHW.shape[1:], mode="nearest")
    return large[:, 0].bool().to(image_CHW.device)
