"""Readers of one's own re-identification data: a folder per identity, or a table.

Identities and cameras may be any text. A name that reads as a number keeps it (so -1 stays junk); otherwise
all names of the set are numbered in order, numbers first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dcal.dataset.readers.reid_protocol import Sighting, build_catalog, require_images
from dcal.dataset.readers.tables import find_table, list_folders, numbered, read_rows, whole
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import UserError, check_number

SPLITS = ("train", "query", "gallery")
COLUMNS = ("path", "id", "camera", "split")


def read_identity_folder(root: str | Path | None, camera: str | None = None, test_fraction: float = 0.5) -> Catalog:
    """One folder of images per identity, either below train/, query/ and gallery/, or all below `root`.

    Without the three folders the split is made, the same on every machine and at every run:

    - Identities are ordered by the SHA-256 of their folder's name; the first round(test_fraction *
      identities) are for testing, the others for training. Nothing but the names enters.
    - With cameras, the first image (by name) of a test identity under each camera is a query, provided the
      identity is seen by another camera too; without, the first image of an identity that has several. All
      other test images are the gallery; a query's match under another camera may be another query's image, so
      where an identity has a single image under a camera, that image is a query and in the gallery.

    A folder called -1 holds junk: ignored in the gallery, never trained on.

    Args:
        root: the folder.
        camera: regular expression searched in the file name, whose first group is the camera, e.g.
            `_c(\\d+)`; None: the set has no cameras, and a query is compared with all other images.
        test_fraction: share of the identities, in (0, 1).

    Raises:
        UserError: an unusable expression or fraction.
        DataError: no root, no identities, an image whose name has no camera, or an empty split.
    """
    check_number("dataset.reader.test_fraction", test_fraction, gt=0, lt=1)
    pattern = camera_pattern(camera)
    if root is None:
        raise DataError("dataset.root is not set: give the folder with one folder of images per identity")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"dataset.root={folder}: no such folder; give the one with one folder per identity")
    given = [split for split in SPLITS if (folder / split).is_dir()]
    if given and len(given) < len(SPLITS):
        raise DataError(f"dataset.root={folder}: has {', '.join(given)}, expected all of {', '.join(SPLITS)} or none")
    files: dict[str, dict[str, list[Path]]] = {}
    passed: list[str] = []
    for split in given or ["all"]:
        below = folder / split if given else folder
        files[split], sentences = list_folders(below)
        if not files[split]:
            raise DataError(f"{below}: no folder with images in it; dataset.root must hold one folder per identity")
        passed += sentences
    number = numbers(name for identities in files.values() for name in identities)
    paths = [path for identities in files.values() for images in identities.values() for path in images]
    cameras = numbers(camera_of(path, pattern) for path in paths)
    seen = {
        split: [
            Sighting(path, number[name], cameras[camera_of(path, pattern)])
            for name, images in identities.items()
            for path in images
        ]
        for split, identities in files.items()
    }
    if not given:
        seen = split_identities(seen["all"], {number[name] for name in held_out(files["all"], test_fraction)})
    return build_catalog(
        "identity_folder",
        *(seen[split] for split in SPLITS),
        protocol={
            "split": "folders" if given else f"by name, test_fraction={test_fraction}",
            "camera": camera,
            "passed_over": passed,
        },
        identity_names={n: name for name, n in number.items()},
    )


def camera_pattern(camera: str | None) -> re.Pattern[str] | None:
    try:
        pattern = re.compile(camera) if camera else None
    except re.error as error:
        raise UserError(f"dataset.reader.camera={camera!r}: is no regular expression ({error})") from None
    if pattern is not None and pattern.groups < 1:
        raise UserError(f"dataset.reader.camera={camera!r}: needs a group for the camera, e.g. '_c(\\d+)'")
    return pattern


def camera_of(path: Path, pattern: re.Pattern[str] | None) -> str:
    """The camera's name; "-1" where the set has none."""
    if pattern is None:
        return "-1"
    match = pattern.search(path.name)
    if match is None or match[1] is None:
        raise DataError(
            f"{path}: dataset.reader.camera={pattern.pattern!r} does not match its name; "
            "change the expression, or leave it null if the set has no cameras"
        )
    return match[1]


def numbers(names: Iterable[str]) -> Mapping[str, int]:
    """A number per distinct name: what it reads as if all do and stay distinct, else its place."""
    distinct = set(names)
    as_read = {name: int(name) for name in distinct if re.fullmatch(r"-1|\d+", name)}
    if len(as_read) == len(distinct) == len(set(as_read.values())):
        return as_read
    return {**numbered(distinct - {"-1"}), **({"-1": -1} if "-1" in distinct else {})}


def held_out(names: Iterable[str], fraction: float) -> list[str]:
    """Identities for testing, junk among them."""
    ordered = sorted(names, key=lambda name: (name != "-1", hashlib.sha256(name.encode()).digest()))
    junk = ordered[:1] == ["-1"]
    return ordered[: junk + round(fraction * (len(ordered) - junk))]


def split_identities(sightings: Iterable[Sighting], test: set[int]) -> dict[str, list[Sighting]]:
    """Train, query and gallery as `read_identity_folder` describes."""
    splits: dict[str, list[Sighting]] = {split: [] for split in SPLITS}
    by_camera: dict[int, dict[int, list[Sighting]]] = {}
    for sighting in sightings:
        if sighting.identity in test:
            by_camera.setdefault(sighting.identity, {}).setdefault(sighting.camera, []).append(sighting)
        else:
            splits["train"].append(sighting)
    for identity, views in by_camera.items():
        matched = len(views) > 1 or (-1 in views and len(views[-1]) > 1)
        for seen in views.values():
            if identity != -1 and matched:
                splits["query"].append(seen[0])
                splits["gallery"] += seen[1:] or seen
            else:
                splits["gallery"] += seen
    return splits


def read_identity_csv(root: str | Path | None, file: str = "images.csv") -> Catalog:
    """A table with the columns path, id, camera and split, in any order; other columns are passed over.

    `path` counts from `root`, `split` is train, query or gallery, an empty `camera` means unknown, id -1 is
    junk. Ids and cameras to which a spreadsheet gave a decimal (12.0, -1.0) are whole numbers.

    Args:
        root: the folder that the paths count from, or the table itself.
        file: the table, counted from root.

    Raises:
        DataError: no table, a missing column, an unknown split, a missing image, or an empty split.
    """
    folder, table = find_table(root, file, f" with the columns {', '.join(COLUMNS)}")
    rows = []
    for line, row in read_rows(table, COLUMNS):
        if row["split"] not in SPLITS or not row["path"] or not row["id"]:
            raise DataError(
                f"{table}: line {line}: path={row['path']!r}, id={row['id']!r}, split={row['split']!r}; "
                f"none may be empty, and split is one of {', '.join(SPLITS)}"
            )
        rows.append({**row, "id": whole(row["id"]), "camera": whole(row["camera"])})
    require_images(folder, (row["path"] for row in rows), f"the paths in {table.name} count from this folder")
    number = numbers(row["id"] for row in rows)
    cameras = numbers(row["camera"] or "-1" for row in rows)
    seen: dict[str, list[Sighting]] = {split: [] for split in SPLITS}
    for row in rows:
        seen[row["split"]].append(Sighting(folder / row["path"], number[row["id"]], cameras[row["camera"] or "-1"]))
    return build_catalog(
        "identity_csv",
        *(seen[split] for split in SPLITS),
        protocol={"file": table.name},
        identity_names={n: name for name, n in number.items()},
    )
