"""Readers of the fine-grained sets in common text layouts: CUB-200-2011, folders by class, CSV.

Readers trust the lists and do not look at the images: whether they are there is checked when they are loaded.
Labels are contiguous over the classes that occur, in the set's own order, so subsets of the official sets
read fine.
"""

from __future__ import annotations

from pathlib import Path

from dcal.dataset.files import find_root, look_up, numbered, read_lines, read_table
from dcal.dataset.record import Catalog, DataError, Part, Record

CUB = "CUB-200-2011"


def read_cub(root: str | Path | None) -> Catalog:
    """CUB-200-2011 (Wah et al. 2011): 5 994 training and 5 794 test images of 200 species, boxes, 15 parts.

    Reads images.txt, classes.txt, image_class_labels.txt and train_test_split.txt, and bounding_boxes.txt and
    parts/ where they exist. Rows are joined by image id: ids may start anywhere, and lists longer than
    images.txt are fine.

    Raises:
        DataError: a file is missing or malformed, an image lacks a label or split, or the lists contradict
        each other.
    """
    root = find_root(root, CUB, "images.txt", "CUB_200_2011")
    images = read_table(root / "images.txt", CUB)
    return _read_joined(root, CUB, images, official={"train": 5994, "test": 5794})


def _read_joined(root: Path, name: str, images: dict[str, str], official: dict[str, int]) -> Catalog:
    """CUB's layout: several files that speak of the images of images.txt by id."""
    classes = read_table(root / "classes.txt", name)
    class_file, split_file = root / "image_class_labels.txt", root / "train_test_split.txt"
    class_of, split_of = read_table(class_file, name), read_table(split_file, name)
    boxes = _read_boxes(root / "bounding_boxes.txt", name)
    parts = _read_parts(root / "parts", name)
    names = {key: look_up(class_of, key, class_file, f"image {key}") for key in images}
    labels = numbered(names.values())
    class_names = [look_up(classes, key, root / "classes.txt", f"class {key}") for key in labels]
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for key, file in images.items():
        flag = look_up(split_of, key, split_file, f"image {key}")
        if flag not in ("0", "1"):
            raise DataError(f"{split_file}: image {key} has '{flag}'; expected 1 for training or 0 for test")
        label = labels[names[key]]
        _check_folder(root, file, class_names[label], class_names)
        record = Record(root / "images" / file, label, box=boxes.get(key), parts=tuple(parts.get(key, ())))
        splits["train" if flag == "1" else "test"].append(record)
    counts = {split: len(records) for split, records in splits.items()}
    if counts == dict(zip(official, reversed(official.values()), strict=True)) and counts != official:
        raise DataError(f"{split_file}: {counts} are the official counts swapped: 1 must mean training")
    protocol = {"counts": counts, "official_counts": counts == official, "classes": len(labels)}
    return Catalog(name, splits, class_names, protocol)


def _check_folder(root: Path, file: str, expected: str, class_names: list[str]) -> None:
    """Numbers that are off by one between the files (0-based copies) still join; the image's folder tells."""
    folder = file.split("/")[0]
    if folder != expected and folder in class_names:
        raise DataError(
            f"{root / 'image_class_labels.txt'}: puts {file} into class '{expected}'; do images or classes "
            "count from 0 in one file and from 1 in another?"
        )


def _read_boxes(file: Path, name: str) -> dict[str, tuple[float, float, float, float]]:
    if not file.exists():
        return {}
    boxes = {}
    for key, text in read_table(file, name).items():
        try:
            x, y, width, height = (float(value) for value in text.replace(",", " ").split())
        except ValueError:
            raise DataError(f"{file}: image {key} has '{text}'; expected x, y, width and height") from None
        boxes[key] = (x, y, width, height)
    return boxes


def _read_parts(folder: Path, name: str) -> dict[str, list[Part]]:
    """Visible parts by image id."""
    parts: dict[str, list[Part]] = {}
    file = folder / "part_locs.txt"
    if not file.exists():
        return parts
    names = read_table(folder / "parts.txt", name)
    for number, line in enumerate(read_lines(file, name), 1):
        try:
            image, part, x, y, visible = line.replace(",", " ").split()
            if visible == "1":
                location = Part(names[part], float(x), float(y))
                parts.setdefault(image, []).append(location)
        except (ValueError, KeyError):
            raise DataError(
                f"{file}: line {number} ('{line}'); expected image, part, x, y and 0 or 1 for visible"
            ) from None
    return parts
