"""Animals and things from a metadata table in the form of WildlifeReID-10k (Adam et al., CVPR Workshops 2025).

One row per image. Which images are for training is in the table, or is chosen here, the same on every machine.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcal.dataset.readers.reid_custom import held_out, numbers
from dcal.dataset.readers.reid_protocol import Sighting, build_catalog, require_images
from dcal.dataset.readers.tables import find_table, read_rows, whole
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import check_number, choose

SPLITS = ("given", "closed", "open", "closed_by_time", "open_by_time")
FLANKS = ("apart", "together")
SIDES = ("left", "right")
PARTS = {"train": "train", "test": "query", "query": "query", "gallery": "gallery", "database": "gallery"}
"""What the words of the column `split` mean."""


class Row(NamedTuple):
    """An image of the table."""

    line: int
    path: Path
    animal: str
    """The identity as the table has it, of which both flanks are in one split."""
    identity: str
    """What is told apart: the animal, or one of its flanks."""
    orientation: str
    camera: str
    date: datetime.date | None
    split: str


def read_metadata(
    root: str | Path | None,
    file: str = "metadata.csv",
    split: str = "given",
    test_fraction: float = 0.5,
    flanks: str = "apart",
    camera: str | None = None,
    where: Mapping[str, str] | None = None,
) -> Catalog:
    """A table with the columns identity and path, and where they are needed split, orientation and date.

    - `given`: the column `split` has train and test, or train, query (or test) and gallery (or database). Without a
      gallery of its own the training images are the gallery, as WildlifeReID-10k is used: identities are known, and a
      query of an identity that has no training image has no match.
    - `closed`: of each identity the last images by the order of their paths are queries, as many as `test_fraction`
      says, and the others are for training and the gallery. `closed_by_time`: the latest dates instead; images of one
      date stay together, and of an identity that was seen on one date only nothing is tested.
    - `open`: identities are for training or for testing, by the SHA-256 of their names. `open_by_time`: those that were
      first seen last are for testing. The first image of a tested identity in each orientation is a query, provided it
      has another one, and the others are the gallery.

    An image without identity is left out. With `flanks=apart` the left and the right side of an animal are two
    identities, since markings differ between them and no image shows both; other orientations are a third.

    Args:
        root: the folder that the paths count from, or the table itself.
        file: the table, counted from root.
        split: one of `SPLITS`.
        test_fraction: share of the images of each identity, or of the identities, in (0, 1); not with `given`.
        flanks: `apart` or `together`.
        camera: a column whose values are taken for cameras: a match of the query's own is left out. With `date` these
            are images of one day, which are often nearly the same picture. None: no cameras.
        where: columns and the value that a row must have in them, for example a species.

    Raises:
        UserError: an option out of its range.
        DataError: no table, a missing column or image, a date or word that is not understood, or an empty split.
    """
    choose("dataset.reader.split", split, SPLITS)
    choose("dataset.reader.flanks", flanks, FLANKS)
    check_number("dataset.reader.test_fraction", test_fraction, gt=0, lt=1)
    folder, table = find_table(root, file)
    rows, unknown = _rows(table, folder, split, flanks, camera, where or {})
    require_images(
        folder,
        (str(row.path.relative_to(folder) if row.path.is_relative_to(folder) else row.path) for row in rows),
        f"the paths of {table.name} count from it",
    )
    parts = {
        "given": _given,
        "closed": lambda found, _: _closed(found, test_fraction, by_time=False),
        "closed_by_time": lambda found, _: _closed(found, test_fraction, by_time=True),
        "open": lambda found, _: _open(found, set(held_out({row.animal for row in found}, test_fraction))),
        "open_by_time": lambda found, _: _open(found, _newcomers(found, test_fraction)),
    }[split](rows, table)
    number, cameras = numbers(row.identity for row in rows), numbers(row.camera for row in rows)
    views = numbers(row.orientation or "-1" for row in rows)

    def sighting(row: Row) -> Sighting:
        return Sighting(row.path, number[row.identity], cameras[row.camera], views[row.orientation or "-1"])

    return build_catalog(
        "metadata",
        *([sighting(row) for row in parts[part]] for part in ("train", "query", "gallery")),
        protocol={
            "file": table.name,
            "split": split if split == "given" else f"{split}, test_fraction={test_fraction}",
            "flanks": flanks,
            "camera": camera,
            "where": dict(where or {}),
            "passed_over": [f"{unknown} images of {table.name} have no identity and are left out"] if unknown else [],
        },
        identity_names={n: name for name, n in number.items()},
    )


def _rows(
    table: Path, folder: Path, split: str, flanks: str, camera: str | None, where: Mapping[str, str]
) -> tuple[list[Row], int]:
    """The rows that are asked for, in the order of the table, and how many have no identity."""
    timed = split.endswith("by_time")
    needed = {"identity", "path", *where, *({camera} if camera else ()), *({"split"} if split == "given" else ())}
    needed |= {"date"} if timed else set()
    needed |= {"orientation"} if flanks == "apart" else set()
    rows, unknown = [], 0
    for line, row in read_rows(table, sorted(needed), [] if "orientation" in needed else ["orientation"]):
        if any(row[column] != str(value) for column, value in where.items()):
            continue
        name, orientation = whole(row["identity"]), row.get("orientation", "").lower()
        if not name or name in ("-1", "unknown"):
            unknown += 1
            continue
        if not row["path"]:
            raise DataError(f"{table}: line {line}: path is empty")
        side = orientation if orientation in SIDES else "other"
        rows.append(
            Row(
                line,
                folder / row["path"],
                name,
                f"{name}/{side}" if flanks == "apart" else name,
                orientation,
                (row[camera] or "-1") if camera else "-1",
                _date(row["date"], table, line) if timed else None,
                row["split"].lower() if split == "given" else "",
            )
        )
    if not rows:
        chosen = f" with {', '.join(f'{key}={value}' for key, value in where.items())}" if where else ""
        raise DataError(f"{table}: no image with an identity{chosen}; look at dataset.reader.where and the table")
    return rows, unknown


def _date(text: str, table: Path, line: int) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text[:10])
    except ValueError:
        raise DataError(
            f"{table}: line {line}: date={text!r} is not like 2021-06-30; correct it, or choose a split that needs no "
            "dates (dataset.reader.split)"
        ) from None


def _given(rows: Sequence[Row], table: Path) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {"train": [], "query": [], "gallery": []}
    for row in rows:
        if row.split not in PARTS:
            raise DataError(f"{table}: line {row.line}: split={row.split!r} is none of {', '.join(PARTS)}")
        parts[PARTS[row.split]].append(row)
    parts["gallery"] = parts["gallery"] or parts["train"]
    return parts


def _closed(rows: Sequence[Row], fraction: float, by_time: bool) -> dict[str, list[Row]]:
    by_identity: dict[str, dict[Any, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_identity[row.identity][row.date if by_time else row.path].append(row)
    asked: set[int] = set()
    for groups in by_identity.values():
        images = sum(map(len, groups.values()))
        wanted, taken = max(1, round(fraction * images)), 0
        for _, group in sorted(groups.items(), reverse=True)[:-1]:  # the first ones stay for training
            if taken < wanted:
                asked |= {row.line for row in group}
                taken += len(group)
    known = [row for row in rows if row.line not in asked]
    return {"train": known, "query": [row for row in rows if row.line in asked], "gallery": known}


def _newcomers(rows: Sequence[Row], fraction: float) -> set[str]:
    """The animals that were first seen last."""
    first: dict[str, datetime.date] = {}
    for row in rows:
        assert row.date is not None  # read for this split
        first[row.animal] = min(first.get(row.animal, row.date), row.date)
    order = sorted(first, key=lambda name: (first[name], name))
    return set(order[math.ceil((1 - fraction) * len(order)) :])


def _open(rows: Sequence[Row], tested: set[str]) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {
        "train": [row for row in rows if row.animal not in tested],
        "query": [],
        "gallery": [],
    }
    begun: set[tuple[str, str, str]] = set()
    left = Counter(row.identity for row in rows)
    for row in rows:
        if row.animal not in tested:
            continue
        view = (row.identity, row.orientation, row.camera)
        # the last image of an identity stays in the gallery: its queries need a match
        asked = view not in begun and left[row.identity] > 1
        begun.add(view)
        left[row.identity] -= asked
        parts["query" if asked else "gallery"].append(row)
    return parts
