"""What is nearest to a query: ranked lists to look at, where metrics need ranks only.

Shape suffixes: Q queries, G gallery items, D features, L items of a list.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


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
        similarity_QG = block_QD @ gallery_GD.T
        similarity_QG.masked_fill_(similarity_QG.isnan(), -torch.inf)
        if mask_QG is not None:
            similarity_QG.masked_fill_(mask_QG, -torch.inf)
        found.append(similarity_QG.topk(length))
    similarity_QL, index_QL = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return similarity_QL, index_QL
