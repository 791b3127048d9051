"""What is looked at before a data set is used: labels, counts, every file, and images that occur twice.

`Data` runs these checks once, for whatever command it was made. What cannot be used is a `DataError`; what can, but
makes figures doubtful, is a sentence for the user: training logs it, and `dcal-doctor` lists it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dcal.dataset.files import FileFacts, common_folder, file_facts, first_alike
from dcal.dataset.record import Catalog, DataError, Record

Pictures = Mapping[Path, int]
"""A number for each image file: equal where two are the same file, or have the same bytes."""
_ALLOW = "If that is meant, set dataset.allow_mismatch=true"


def check_catalog(
    catalog: Catalog, root: str | Path | None, *, allow_mismatch: bool = False, skip_missing: bool = False
) -> tuple[list[str], Pictures]:
    """All checks of a data set as it was read.

    Args:
        catalog: what a reader returned.
        root: `dataset.root`, for messages.
        allow_mismatch: accept what contradicts the official protocol.
        skip_missing: accept images that are missing, as long as some are there.

    Returns:
        What the user has to know, one sentence each, and the number of each file's picture.

    Raises:
        DataError: a split is empty; a label is out of range; an image is missing or is no regular file; or a set that
            claims to be the official one is not.
    """
    _check_labels(catalog)
    for split, records in catalog.splits.items():
        if not records:
            raise DataError(f"{catalog.name}: split '{split}' has no images; check dataset.root={root}")
    notes = [f"{catalog.name}: {sentence}" for sentence in catalog.protocol.get("passed_over", ())]
    notes += _official(catalog, allow_mismatch)
    paths = list(dict.fromkeys(record.path for records in catalog.splits.values() for record in records))
    facts = file_facts(paths)
    notes += _files(catalog, paths, facts, root, skip_missing, allow_mismatch)
    pictures = dict(zip(paths, first_alike(paths, facts), strict=True))
    return notes + list(_overlaps(catalog, pictures)), pictures


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
    here = sum(found is not None for found in file_facts([record.path for record in records]))
    listed = sum(catalog.protocol.get("official_images", {}).values()) or len(records)
    return (
        f"{catalog.name} in {folder}: {_thousands(catalog.num_classes)} {things}; images: {counts}; "
        f"{_thousands(here)} of {_thousands(listed)} listed images are here"
    )


def claims_official(catalog: Catalog) -> bool:
    """Whether figures of this catalog pass for those of the official set: its lists have the official counts."""
    protocol = catalog.protocol
    if "mismatch" in protocol:
        return not protocol["mismatch"]
    return "official_images" in protocol and protocol["images"] == protocol["official_images"]


def _check_labels(catalog: Catalog) -> None:
    """Those of queries and galleries are identities, of which any number will do."""
    for split, records in catalog.splits.items():
        if split == "train" or "query" not in catalog.splits:
            wrong = next((record for record in records if not 0 <= record.label < catalog.num_classes), None)
            if wrong is not None:
                raise DataError(
                    f"{wrong.path}: its label is {wrong.label}, but the {catalog.num_classes} classes of "
                    f"{catalog.name} count from 0"
                )


def _official(catalog: Catalog, allow_mismatch: bool) -> list[str]:
    """Part of a classification set is often used and only noted; Re-ID figures depend on every gallery image."""
    name, protocol = catalog.name, catalog.protocol
    mismatch = "; ".join(protocol.get("mismatch", ()))
    if mismatch and not allow_mismatch:
        raise DataError(
            f"{name} in dataset.root is not the official set: {mismatch}. Its figures do not compare with "
            f"published ones. {_ALLOW}"
        )
    if mismatch:
        return [f"{name} is not the official set (allowed): {mismatch}"]
    official, here = protocol.get("official_images", {}), protocol.get("images", {})
    other = [
        f"{split} {here.get(split, 0)} instead of {images}"
        for split, images in official.items()
        if "mismatch" not in protocol and here.get(split, 0) != images
    ]
    return [f"{name} has other numbers of images than the official set: {', '.join(other)}"] if other else []


def _files(
    catalog: Catalog,
    paths: Sequence[Path],
    facts: Sequence[FileFacts | None],
    root: str | Path | None,
    skip_missing: bool,
    allow_mismatch: bool,
) -> list[str]:
    odd = [path for path, found in zip(paths, facts, strict=True) if found is not None and not found.regular]
    if odd:
        raise DataError(
            f"{odd[0]}: is a folder, a device or a pipe and no image file, but {catalog.name} lists it"
            f"{f' (and {len(odd) - 1} others)' if len(odd) > 1 else ''}; remove it from the list or the folder"
        )
    missing = [path for path, found in zip(paths, facts, strict=True) if found is None]
    if not missing:
        return []
    count = f"{len(missing)} of {len(paths)} images are missing"
    if not skip_missing or len(missing) == len(paths):
        raise DataError(
            f"{missing[0]}: no such file, but the lists of {catalog.name} name it ({count}); are the images unpacked, "
            f"and is dataset.root={root} right? dataset.on_bad_image=skip goes on without what is missing"
        )
    if claims_official(catalog) and not allow_mismatch:
        raise DataError(
            f"{catalog.name} has the lists of the official set, but {count}, first {missing[0]}: its figures do not "
            f"compare with published ones. {_ALLOW}"
        )
    return [f"{catalog.name}: {count} and left out, first {missing[0]}"]


def _overlaps(catalog: Catalog, pictures: Pictures) -> Iterator[str]:
    """Images that are in training and test, that have two labels, or that a split to be judged on has twice."""
    name = catalog.name
    picture = {split: [pictures[record.path] for record in records] for split, records in catalog.splits.items()}
    trained = set(picture.get("train", ()))
    for split, numbers in picture.items():
        if split == "train":
            continue
        both = [record.path for record, one in zip(catalog.splits[split], numbers, strict=True) if one in trained]
        if both:
            yield (
                f"{name}: {len(both)} of the {len(numbers)} images of split '{split}' are also training images (the "
                f"same file or the same bytes), first {both[0]}: scores will flatter"
            )
        twice = len(numbers) - len(set(numbers))
        if twice:
            yield f"{name}: split '{split}' has {twice} duplicates: each counts as an image of its own"
    yield from _two_labels(catalog, picture)
    yield from _own_matches(catalog, picture)


def _two_labels(catalog: Catalog, picture: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Labels compare within a classification set; of a Re-ID set within training, and within query and gallery."""
    retrieval = "query" in catalog.splits
    labels: dict[tuple[int, bool], dict[int, Record]] = defaultdict(dict)
    for split, records in catalog.splits.items():
        for record, one in zip(records, picture[split], strict=True):
            if record.label >= 0:
                labels[one, retrieval and split != "train"].setdefault(record.label, record)
    torn = [list(found.values()) for found in labels.values() if len(found) > 1]
    if torn:
        first, other = torn[0][:2]
        yield (
            f"{catalog.name}: {len(torn)} images have two labels or more, first {first.path}"
            f"{'' if other.path == first.path else f' = {other.path}'} ({_named(catalog, first)} and "
            f"{_named(catalog, other)})"
        )


def _own_matches(catalog: Catalog, picture: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Queries that are in the gallery and that the camera rule does not remove there (VeRi-776 has all of them)."""
    if "query" not in catalog.splits:
        return
    cameras: dict[tuple[int, int], set[int]] = defaultdict(set)
    for record, one in zip(catalog.splits["gallery"], picture["gallery"], strict=True):
        cameras[one, record.label].add(record.camera)
    met = 0
    for record, one in zip(catalog.splits["query"], picture["query"], strict=True):
        seen_by = cameras.get((one, record.label), set())
        met += bool(seen_by if record.camera < 0 else seen_by - {record.camera})
    if met:
        yield (
            f"{catalog.name}: {met} of the {len(picture['query'])} queries are also in the gallery (the same file or "
            "the same bytes): no query counts as its own match"
        )


def _named(catalog: Catalog, record: Record) -> str:
    return f"'{catalog.class_names[record.label]}'" if "query" not in catalog.splits else f"identity {record.label}"


def _thousands(number: int) -> str:
    """Digits in groups of three, as in 11 788."""
    return f"{number:,}".replace(",", " ")
