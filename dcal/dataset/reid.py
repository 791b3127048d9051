"""Readers of the known re-identification sets, each in the layout of its official download.

Every reader returns a Catalog with `train`, `query` and `gallery`, whose protocol carries the fingerprint
described in `reid_protocol`. Cameras keep their annotated number. Parsing lists is separate from looking for
the images, so annotations can be read without them (`check_images=False`).
"""

from __future__ import annotations

import re
from pathlib import Path

from dcal.dataset.record import Catalog
from dcal.dataset.reid_protocol import (
    Counts,
    build_catalog,
    find_root,
    list_images,
    parse_all,
)

PERSON_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")

# identities, images, cameras of train, query and gallery without junk, as the sets' authors publish them
MARKET1501 = {"train": Counts(751, 12936, 6), "query": Counts(750, 3368, 6), "gallery": Counts(751, 15913, 6)}
DUKEMTMC = {"train": Counts(702, 16522, 8), "query": Counts(702, 2228, 8), "gallery": Counts(1110, 17661, 8)}
OCCLUDED_DUKE = {
    "train": Counts(702, 15618, 8),
    "query": Counts(519, 2210, 8),
    "gallery": Counts(1110, 17661, 8),
}
MSMT17_TEST = {"query": Counts(3060, 11659, 15), "gallery": Counts(3060, 82161, 15)}
MSMT17_TRAIN = {"train": Counts(1041, 30248, 15), "train+val": Counts(1041, 32621, 15)}
VERI = {"train": Counts(576, 37778, 20), "query": Counts(200, 1678, 19), "gallery": Counts(200, 11579, 19)}


def read_market1501(root: str | Path | None, allow_mismatch: bool = False) -> Catalog:
    """Market-1501 (Zheng et al., ICCV 2015): folders bounding_box_train, query, bounding_box_test.

    Names are like 0002_c1s1_000451_03.jpg. Identity -1 is junk; identity 0 is a distractor: it stays in the
    gallery and is never trained on. The 3 368 queries and 15 913 gallery images (plus 3 819 junk) are the
    single-query protocol.

    Raises:
        DataError: wrong root, a name of another pattern, or other counts than the official ones.
    """
    folder = find_root(root, "Market-1501-v15.09.15", PERSON_FOLDERS)
    train, query, gallery = (
        parse_all(folder / f, list_images(folder / f), market_name, "0002_c1s1_000451_03.jpg")
        for f in PERSON_FOLDERS
    )
    protocol = {"distractors": sum(s.identity == 0 for s in gallery)}
    train = [s for s in train if s.identity > 0]
    return build_catalog(
        "market1501",
        train,
        query,
        gallery,
        protocol=protocol,
        official=MARKET1501,
        allow_mismatch=allow_mismatch,
    )


def market_name(name: str) -> tuple[int, int] | None:
    match = re.match(r"(-1|\d+)_c(\d+)s\d+_", name)
    return match and (int(match[1]), int(match[2]))
