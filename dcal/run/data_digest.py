"""The data of a run, in a digest and in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcal.dataset.files import common_folder, file_facts, name_below
from dcal.dataset.record import Catalog
from dcal.run.digest import json_digest

SAMPLED = 256
"""Images of a data set whose content counts for its digest."""


@dataclass(frozen=True)
class DataDigest:
    """What tells two data sets apart, and what a sentence can say about one."""

    sha256: str
    """Over `catalog_digest` and the content of some images."""
    folder: str
    """The folder that holds all images."""
    class_names: list[str]
    images: dict[str, int]
    """Number of images by split."""


def data_digest(catalog: Catalog) -> DataDigest:
    """The digest of a data set; equal for the same data in another place.

    Of `SAMPLED` images, at equal distances, every byte counts: without compression all images have one size.
    """
    paths = [record.path for records in catalog.splits.values() for record in records]
    digest = hashlib.sha256(catalog_digest(catalog).encode())
    for path in paths[:: 1 + len(paths) // SAMPLED]:
        digest.update(_content(path))
    images = {split: len(records) for split, records in catalog.splits.items()}
    folder = str(common_folder(paths)) if paths else ""
    return DataDigest(digest.hexdigest(), folder, catalog.class_names, images)


def catalog_digest(catalog: Catalog) -> str:
    """SHA-256 of a data set: the class names and, of each split, the images in their order.

    It belongs to the data and not to the place: a copy on another machine has the same one.

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
    sizes = iter([0] * len(paths) if recipe else [-1 if facts is None else facts.size for facts in file_facts(paths)])
    folder = common_folder(paths) if paths else Path()
    tracks = [catalog.protocol["tracks"]] if catalog.protocol.get("tracks") else []
    digest = hashlib.sha256(json.dumps([catalog.class_names, recipe, *tracks]).encode())
    for split, records in splits:
        digest.update(f"\n{json.dumps(split)} {len(records)}\n".encode())
        lines = (f"{r.label} {r.camera} {r.view} {next(sizes)} {name_below(folder, r.path)}" for r in records)
        digest.update("\0".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def joint_digest(catalogs: Mapping[str, Catalog | None]) -> DataDigest | None:
    """The digest of several data sets: that of each, by its name.

    Args:
        catalogs: None for a set that the options of its reader describe, as they do drawn ones.

    Returns:
        None where that is so of all.
    """
    digests = {name: None if catalog is None else data_digest(catalog) for name, catalog in catalogs.items()}
    known = {name: digest for name, digest in digests.items() if digest is not None}
    if not known:
        return None
    return DataDigest(
        json_digest({name: None if digest is None else digest.sha256 for name, digest in digests.items()}),
        ", ".join(digest.folder for digest in known.values()),
        [f"{name}/{one}" for name, digest in known.items() for one in digest.class_names],
        {f"{name}/{split}": count for name, digest in known.items() for split, count in digest.images.items()},
    )


def judged_digest(catalog: Catalog, splits: Iterable[str]) -> str:
    """Sixteen digits that tell which images, with which labels, runs were judged on, whatever they were trained on.

    Args:
        catalog: of the run, with the validation split if there is one.
        splits: that the evaluation reads.
    """
    # the classes of a re-identification set are the identities of its training split
    names = [] if "query" in catalog.splits else catalog.class_names
    judged = {split: catalog.splits[split] for split in splits}
    return data_digest(replace(catalog, splits=judged, class_names=names)).sha256[:16]


def joint_judged_digest(catalogs: Mapping[str, Catalog], splits: Sequence[str]) -> str:
    """`judged_digest` of runs on several data sets, by their names."""
    return json_digest({name: judged_digest(catalog, splits) for name, catalog in catalogs.items()})[:16]


def _content(path: Path) -> bytes:
    """Of a file that cannot be read, or of a pipe or a device, which may never end, none."""
    try:
        return hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""
    except OSError:
        return b""
