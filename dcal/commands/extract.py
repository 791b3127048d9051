"""`dcal-extract`: features of any images in one file, computed in parts, so that a killed extraction continues."""

from __future__ import annotations

import glob
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from dcal.commands.opened import end_incomplete, open_model, printable
from dcal.dataset.image_files import numbers_in
from dcal.dataset.record import DataError, Record
from dcal.inference.images import chosen, embed_images
from dcal.inference.index import Columns, Index, check_suffix, file_stamp, read_index, write_index
from dcal.inference.index_parts import drop_parts, open_parts, read_part, setting_differences, write_part
from dcal.inference.restore import Opened
from dcal.run.digest import json_digest
from dcal.run.files import remove_partial
from dcal.run.lock import acquire_lock
from dcal.run.progress import Work
from dcal.utils.errors import UserError
from dcal.utils.signals import Interrupted, stop_requests

PART_SECONDS = 30.0
"""Between two parts: what a kill costs at most."""


def extract(config: DictConfig) -> None:
    """Extracts what is missing or has changed, then writes the file."""
    out = Path(config.out).expanduser()
    check_suffix(out, "out")
    opened = open_model(config)
    records, origin = chosen_records(config, opened)
    stamps = [file_stamp(record.path) for record in records]
    settings = all_settings(config, opened, records)
    folder = out.with_name(f"{out.name}.parts")
    if out.exists():
        index = read_index(out, "out")
        other = setting_differences(index.settings, settings)
        if other:
            raise UserError(f"out={out}: exists, made with other settings ({other}); delete it or choose another name")
        shutil.rmtree(folder, ignore_errors=True)
        skipped = update(opened, records, stamps, out, index)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with acquire_lock(folder):  # two processes would mix their parts, which end where each happens to be
            begun = unchanged(folder, open_parts(folder, settings), stamps)
            parts = compute(opened, records, stamps, folder, begun, settings["dtype"])
            remove_partial(out.parent, glob.escape(out.name))
            present = [int(row) for number in range(parts) for row in read_part(folder, number)["index"]]
            features = (read_part(folder, number)["features"] for number in range(parts))
            skipped = write(records, stamps, present, features, out, settings)
            print(f"{out}: {len(present)} embeddings")
            shutil.rmtree(folder)
    print(f"of {origin}")
    end_incomplete(skipped, len(records))


def chosen_records(config: DictConfig, opened: Opened) -> tuple[Sequence[Record], str]:
    """The images of `images`, or those of `split`, with cameras and labels as far as they are known; and their origin.

    Raises:
        UserError: both are given, or neither; or something that belongs to the other one.
        DataError: nothing is there.
    """
    records, origin = chosen(opened, config.images, config.split, config.dataset)
    for key in ("label", "camera"):
        if config[key] is None:
            continue
        if config.split is not None:
            raise UserError(f"{key}: goes with images; with split={config.split} the data set knows it")
        numbers = numbers_in([record.path for record in records], str(config[key]), key)
        known: list[dict[str, Any]] = [{key: number} for number in numbers]
        records = [replace(record, **column) for record, column in zip(records, known, strict=True)]
    return records, origin


def all_settings(config: DictConfig, opened: Opened, records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the bytes of the file depend on."""
    listing = [[printable(record.path.absolute()), record.label, record.camera] for record in records]
    return {
        **opened.provenance(),
        "dtype": "float16" if config.fp16 else "float32",
        "images": len(records),
        "images_sha256": json_digest(listing),
        "split": config.split,
        "camera": config.camera,
        "label": config.label,
        "batch_size": opened.config.train.eval_batch_size,
        "precision": opened.config.train.precision,
        "device": opened.device.torch.type,
        "torch": torch.__version__,
    }


def update(opened: Opened, records: Sequence[Record], stamps: Sequence[str], out: Path, index: Index) -> Sequence[str]:
    """Computes anew what has changed since a file was written; returns the paths of images that are not in it.

    Whole batches, as in an extraction from the beginning, so that the file gets the very same bytes.
    """
    size = opened.config.train.eval_batch_size
    paths = [printable(record.path.absolute()) for record in records]
    row_of, row = {}, 0
    for position, path in enumerate(paths):  # the file has the images in the same order, without those left out
        if row < len(index.columns.path) and index.columns.path[row] == path:
            row_of[position], row = row, row + 1
    known = index.columns.stamp
    changed = [
        position
        for position, stamp in enumerate(stamps)
        if (known[row_of[position]] != stamp if position in row_of and known else position not in row_of)
        and stamp != "missing"
    ]
    gone = [position for position in row_of if stamps[position] == "missing"]
    if not changed and not gone:
        print(f"{out}: finished before")
        return index.skipped
    features = {position: index.features[row] for position, row in row_of.items() if position not in gone}
    for start in sorted({position // size * size for position in (*changed, *gone)}):
        batch = range(start, min(start + size, len(records)))
        for position in batch:
            features.pop(position, None)
        try:
            for positions, rows in embed_images(opened, records[start : batch.stop], first=start):
                values = rows.numpy().astype(index.features.dtype)
                features |= {
                    start + position: value for position, value in zip(positions.tolist(), values, strict=True)
                }
        except DataError:  # of this batch not one image can be read
            continue
    if not features:
        raise UserError(f"out={out}: not one of its images can be read any more; it is left as it was")
    print(f"{out}: {len(changed) + len(gone)} of {len(records)} images changed or could not be read: computed anew")
    present = sorted(features)
    return write(records, stamps, present, [np.stack([features[row] for row in present])], out, index.settings)


def unchanged(folder: Path, parts: int, stamps: Sequence[str]) -> int:
    """How many of the parts, from the first, are of images that are as they were; the others are deleted."""
    for number in range(parts):
        part = read_part(folder, number)
        changed = sum(stamps[row] != stamp for row, stamp in zip(part["index"], part["stamp"], strict=True))
        if changed:
            print(
                f"{folder}: {changed} of {len(part['index'])} images of part {number} changed: computed anew from there"
            )
            drop_parts(folder, number, parts)
            return number
    return parts


def compute(
    opened: Opened, records: Sequence[Record], stamps: Sequence[str], folder: Path, number: int, dtype: str
) -> int:
    """Writes the parts that follow the first `number`; returns how many there are then.

    Parts end where batches end, and batches are those of an undisturbed extraction: so their rounding is the same.

    Raises:
        Interrupted: on SIGTERM or Ctrl-C, with everything computed so far in parts.
    """
    batch_size = opened.config.train.eval_batch_size
    last = int(read_part(folder, number - 1)["index"][-1]) if number else -1
    start = min(math.ceil((last + 1) / batch_size) * batch_size, len(records))
    pending: list[tuple[Tensor, Tensor]] = []
    written = time.monotonic()
    try:
        with stop_requests() as stop, Work("extract", len(records), "image", start) as piece:
            for index, features in embed_images(opened, records[start:], first=start) if start < len(records) else ():
                pending.append((index + start, features.to(getattr(torch, dtype))))
                piece.advance(int(index[-1]) + 1 + start - piece.count)
                if stop or time.monotonic() - written >= PART_SECONDS:
                    write_part(folder, number, joined(pending, stamps))
                    number, written = number + 1, time.monotonic()
                    pending.clear()
                if stop:
                    raise Interrupted(stop.number)
    except DataError:  # of the rest not one image can be read: an error only if it is everything
        if not number:
            raise
    if pending:
        write_part(folder, number, joined(pending, stamps))
        number += 1
    return number


def joined(pending: Sequence[tuple[Tensor, Tensor]], stamps: Sequence[str]) -> dict[str, Any]:
    """The arrays of a part: positions in the records, features, and the stamps of the images' files."""
    index, features = (torch.cat(column).numpy() for column in zip(*pending, strict=True))
    return {"index": index, "features": features, "stamp": np.array([stamps[row] for row in index], dtype=np.str_)}


def write(
    records: Sequence[Record],
    stamps: Sequence[str],
    present: Sequence[int],
    features: Iterable[NDArray[Any]],
    out: Path,
    settings: dict[str, Any],
) -> list[str]:
    """Writes the embeddings of the records at `present`; returns the paths of the others, which the file names, too."""
    kept, missing = [records[row] for row in present], sorted(set(range(len(records))) - set(present))
    camera, label = (
        column if any(value >= 0 for value in column) else None
        for column in ([record.camera for record in kept], [record.label for record in kept])
    )
    paths = [printable(record.path.absolute()) for record in kept]
    skipped = [printable(records[row].path.absolute()) for row in missing]
    columns = Columns(paths, camera, label, [stamps[row] for row in present])
    write_index(out, features, settings["dtype"], columns, skipped, settings)
    return skipped
