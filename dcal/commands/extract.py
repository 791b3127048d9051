"""`dcal-extract`: features of any images in one file, computed in parts, so that a killed extraction goes on."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from dcal.commands.app import hydra_command, report_errors

if TYPE_CHECKING:
    from torch import Tensor

    from dcal.dataset.record import Record
    from dcal.inference.restore import Restored

PART_SECONDS = 30.0
"""Between two parts: what a kill costs at most."""


def main() -> None:
    """Entry point of `dcal-extract`."""
    hydra_command(job, "extract")


def job(config: DictConfig) -> None:
    """One extraction, reported in one sentence if it cannot be had."""
    from dcal.dataset.record import DataError
    from dcal.inference.restore import RunError
    from dcal.run.lock import RunLocked
    from dcal.utils.signals import Interrupted

    mendable = (ValueError, OSError, DataError, RunError, RunLocked, Interrupted)
    report_errors(lambda: extract(config), mendable, config.debug)


def extract(config: DictConfig) -> None:
    """Extracts what is missing, then writes the file."""
    from dcal.inference.index import check_suffix, read_index
    from dcal.inference.index_parts import differences, open_parts
    from dcal.inference.restore import restore
    from dcal.run.lock import acquire_lock

    out = Path(config.out).expanduser()
    check_suffix(out, "out")
    restored = restore(config.run, config.weights, config.device, {"task": config.task, "train": config.train})
    records = chosen_records(config, restored)
    settings = all_settings(config, restored, records)
    folder = out.with_name(f"{out.name}.parts")
    if out.exists():
        other = differences(read_index(out, "out").settings, settings)
        if other:
            raise ValueError(f"out={out}: exists, made with other settings ({other}); delete it or choose another name")
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{out}: finished before")
        return
    folder.mkdir(parents=True, exist_ok=True)
    with acquire_lock(folder):  # two processes would mix their parts, which end where each happens to be
        parts = compute(restored, records, folder, open_parts(folder, settings), settings["dtype"])
        for left in out.parent.glob(f".{glob.escape(out.name)}.[0-9]*"):  # half-written by a process that was killed
            left.unlink()
        print(join(records, folder, parts, out, settings))
        shutil.rmtree(folder)


def chosen_records(config: DictConfig, restored: Restored) -> Sequence[Record]:
    """The images of `images`, or those of `split`, with cameras and labels as far as they are known.

    Raises:
        ValueError: both are given, or neither; or something that belongs to the other one.
        DataError: nothing is there.
    """
    from dcal.dataset.image_files import numbers_in
    from dcal.inference.images import chosen

    images = list(config.images) if isinstance(config.images, ListConfig) else config.images
    records = chosen(restored, images, config.split, config.dataset)
    for key in ("label", "camera"):
        if config[key] is None:
            continue
        if config.split is not None:
            raise ValueError(f"{key}: goes with images; with split={config.split} the data set knows it")
        numbers = numbers_in([record.path for record in records], config[key], key)
        known: list[dict[str, Any]] = [{key: number} for number in numbers]
        records = [replace(record, **column) for record, column in zip(records, known, strict=True)]
    return records


def all_settings(config: DictConfig, restored: Restored, records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the bytes of the file depend on."""
    import torch

    from dcal.inference.embed import provenance

    listing = json.dumps([[str(record.path.absolute()), record.label, record.camera] for record in records])
    return {
        **provenance(restored),
        "dtype": "float16" if config.fp16 else "float32",
        "images": len(records),
        "images_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "split": config.split,
        "camera": config.camera,
        "label": config.label,
        "batch_size": restored.config.train.eval_batch_size,
        "precision": restored.config.train.precision,
        "device": restored.device.torch.type,
        "torch": torch.__version__,
    }


def compute(restored: Restored, records: Sequence[Record], folder: Path, number: int, dtype: str) -> int:
    """Writes the parts that follow the first `number`; returns how many there are then.

    Parts end where batches end, and batches are those of an undisturbed extraction: so their rounding is the same.

    Raises:
        Interrupted: on SIGTERM or Ctrl-C, with everything computed so far in parts.
    """
    import torch
    from tqdm import tqdm

    from dcal.dataset.record import DataError
    from dcal.inference.embed import embed
    from dcal.inference.index_parts import read_part, write_part
    from dcal.utils.signals import Interrupted, stop_requests

    batch_size = restored.config.train.eval_batch_size
    last = int(read_part(folder, number - 1)["index"][-1]) if number else -1
    start = min(math.ceil((last + 1) / batch_size) * batch_size, len(records))
    pending: list[tuple[Tensor, Tensor]] = []
    written = time.monotonic()
    try:
        with (
            stop_requests() as stop,
            tqdm(total=len(records), initial=start, desc="extract", unit="image", disable=None) as bar,
        ):
            for index, features in embed(restored, records[start:]) if start < len(records) else ():
                pending.append((index + start, features.to(getattr(torch, dtype))))
                bar.update(int(index[-1]) + 1 + start - bar.n)
                if stop or time.monotonic() - written >= PART_SECONDS:
                    write_part(folder, number, joined(pending))
                    number, written = number + 1, time.monotonic()
                    pending.clear()
                if stop:
                    raise Interrupted(stop.number)
    except DataError:  # of the rest not one image can be read: an error only if it is everything
        if not number:
            raise
    if pending:
        write_part(folder, number, joined(pending))
        number += 1
    return number


def joined(pending: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The arrays of a part: positions in the records, and features."""
    import torch

    index, features = (torch.cat(column).numpy() for column in zip(*pending, strict=True))
    return {"index": index, "features": features}


def join(records: Sequence[Record], folder: Path, parts: int, out: Path, settings: dict[str, Any]) -> str:
    """Writes the file from its parts; returns a sentence on what is in it."""
    from dcal.inference.index import Columns, write_index
    from dcal.inference.index_parts import read_part

    present = [int(row) for number in range(parts) for row in read_part(folder, number)["index"]]
    kept, missing = [records[row] for row in present], sorted(set(range(len(records))) - set(present))
    known = (
        column if any(value >= 0 for value in column) else None
        for column in ([record.camera for record in kept], [record.label for record in kept])
    )
    columns = Columns([str(record.path.absolute()) for record in kept], *known)
    skipped = [str(records[row].path.absolute()) for row in missing]
    features = (read_part(folder, number)["features"] for number in range(parts))
    write_index(out, features, settings["dtype"], columns, skipped, settings)
    beside = f"; {len(skipped)} images could not be read" if skipped else ""
    return f"{out}: {len(kept)} embeddings{beside}"


if __name__ == "__main__":
    main()
