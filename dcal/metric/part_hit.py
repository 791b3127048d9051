"""Does GLCA select what is worth a look? Against annotated parts and boxes, and against a random selection.

Shapes: N images, P patches, K selected patches, M parts of all images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

CHUNK = 4096
"""Parts compared with all patches at once: bounds the memory."""


def part_hits(points_M2: Tensor, image_M: Tensor, selected_NK: Tensor, patches_P4: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each part is in a selected patch, and how likely that is when the patches are drawn at random.

    A part in c of the P patches (patches may overlap) is hit by K random ones with probability
    1 - C(P - c, K) / C(P, K), that is K / P where they do not overlap.

    Args:
        points_M2: x and y of the parts.
        image_M: which image each belongs to, in [0, N).
        selected_NK: indices of the patches.
        patches_P4: left, top, right and bottom of each patch; a point on the left or upper edge is inside.

    Returns:
        hit (M,) and chance (M,), in [0, 1]; NaN where a part is in no patch because it was cropped away.
    """
    count, chosen = len(patches_P4), selected_NK.shape[1]
    picked_NP = torch.zeros(len(selected_NK), count, dtype=torch.bool).scatter(1, selected_NK, True)
    hit = torch.empty(len(points_M2), dtype=torch.float64)
    cover = torch.empty(len(points_M2), dtype=torch.int64)
    for start in range(0, len(points_M2), CHUNK):
        part = slice(start, start + CHUNK)
        inside_MP = _inside(points_M2[part], patches_P4)
        hit[part] = (inside_MP & picked_NP[image_M[part]]).any(1).double()
        cover[part] = inside_MP.sum(1)
    chances = {c: 1 - comb(count - c, chosen) / comb(count, chosen) for c in cover.unique().tolist()}
    chance = torch.tensor([chances[c] for c in cover.tolist()], dtype=torch.float64)
    gone = cover == 0
    return hit.masked_fill(gone, torch.nan), chance.masked_fill(gone, torch.nan)


def pointing(boxes_N4: Tensor, selected_NK: Tensor, patches_P4: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the selected patches, and of all patches, whose centre is in the image's box.

    Args:
        boxes_N4: left, top, right and bottom; NaN where an image has no box.

    Returns:
        (N,) each, NaN for images without a box.
    """
    centres_P2 = (patches_P4[:, :2] + patches_P4[:, 2:]) / 2
    inside_NP = _inside(centres_P2, boxes_N4).T.double()
    unknown = boxes_N4.isnan().any(1)
    share, chance = inside_NP.gather(1, selected_NK).mean(1), inside_NP.mean(1)
    return share.masked_fill(unknown, torch.nan), chance.masked_fill(unknown, torch.nan)


def selection_metrics(
    parts: Sequence[Tensor], boxes_N4: Tensor, selected_NK: Tensor, patches_P4: Tensor
) -> dict[str, float]:
    """What the selection of a split looks at, each figure next to that of a random selection of the same size.

    Args:
        parts: x and y of the visible parts of each image, (n, 2).
        boxes_N4: left, top, right and bottom of each image's object, or NaN.
        selected_NK: indices of the selected patches.
        patches_P4: left, top, right and bottom of the patches.

    Returns:
        `part_hit`, `part_hit_chance`: share of all parts that lie in a selected patch; `pointing`,
        `pointing_chance`: share of the selected patches that lie on the object, mean over images. Each pair only
        where something is annotated.
    """
    image_M = torch.repeat_interleave(torch.tensor([len(points) for points in parts]))
    points_M2 = torch.cat(list(parts)) if parts else torch.empty(0, 2)
    pairs = {
        "part_hit": part_hits(points_M2, image_M, selected_NK, patches_P4),
        "pointing": pointing(boxes_N4, selected_NK, patches_P4),
    }
    metrics: dict[str, float] = {}
    for name, (found, chance) in pairs.items():
        if not found.isnan().all():
            metrics |= {name: found.nanmean().item(), f"{name}_chance": chance.nanmean().item()}
    return metrics


def _inside(points_M2: Tensor, boxes_P4: Tensor) -> Tensor:
    """Bool (M, P): which points lie in which boxes."""
    x, y = points_M2[:, :1], points_M2[:, 1:]
    left, top, right, bottom = boxes_P4.T
    return (left <= x) & (x < right) & (top <= y) & (y < bottom)
