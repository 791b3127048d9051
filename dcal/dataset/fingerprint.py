"""Which data a run was made of: a digest to compare by, and a line to read.

The digest belongs to the data and not to the place: a copy on another machine has the same one, and a folder with other
images, labels or splits has another, wherever it is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dcal.dataset.files import common_folder, file_facts, name_below
from dcal.dataset.record import Catalog

_MISSING = -1


def catalog_digest(catalog: Catalog) -> str:
    """SHA-256 of a data set: the class names and, of each split, the images in their order.

    Of an image enter its label, camera, view, size in bytes, and its path relative to the folder that all images of the
    set share; where tracks are ranked, their numbers, too. What that folder is called, file times, and boxes and parts
    (of which no training reads any) do not enter, nor are images opened. For synthetic sets the recipe stands for the
    sizes: a PNG of the same pixels has another size under another version of the library that wrote it.

    Args:
        catalog: what a reader returned, or `Data.catalog`: a validation split, a fraction or noisy labels make another
            digest.

    Returns:
        64 hexadecimal digits. A file that is missing counts as size -1.
    """
    splits = sorted(catalog.splits.items())
    paths = [record.path for _, records in splits for record in records]
    recipe = catalog.protocol.get("recipe")
    sizes = iter([0] * len(paths) if recipe else _sizes(paths))
    folder = common_folder(paths) if paths else Path()
    tracks = [catalog.protocol["tracks"]] if catalog.protocol.get("tracks") else []
    digest = hashlib.sha256(json.dumps([catalog.class_names, recipe, *tracks]).encode())
    for split, records in splits:
        digest.update(f"\n{json.dumps(split)} {len(records)}\n".encode())
        lines = (f"{r.label} {r.camera} {r.view} {next(sizes)} {name_below(folder, r.path)}" for r in records)
        digest.update("\0".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def describe(catalog: Catalog, root: str | Path | None = None) -> str:
    """One line that says what was read: name, folder, classes, and images per split.

    It ends with how many of the images that the set's authors list are here, or, for a set without an official list,
    how many of those that its own lists name; for example `543 of 11 788 listed images are here`.

    Args:
        catalog: what a reader returned, or `Data.catalog`.
        root: folder to name; None for the one that all images share.
    """
    records = [record for split in catalog.splits.values() for record in split]
    folder = root if root is not None else common_folder(record.path for record in records)
    counts = ", ".join(f"{split} {_thousands(len(images))}" for split, images in catalog.splits.items())
    things = "identities to learn" if "query" in catalog.splits else "classes"
    here = sum(size != _MISSING for size in _sizes([record.path for record in records]))
    listed = sum(catalog.protocol.get("official_images", {}).values()) or len(records)
    return (
        f"{catalog.name} in {folder}: {_thousands(catalog.num_classes)} {things}; images: {counts}; "
        f"{_thousands(here)} of {_thousands(listed)} listed images are here"
    )


def _sizes(paths: list[Path]) -> list[int]:
    return [_MISSING if facts is None else facts.size for facts in file_facts(paths)]


def _thousands(number: int) -> str:
    """Digits in groups of three, as in 11 788."""
    return f"{number:,}".replace(",", " ")
