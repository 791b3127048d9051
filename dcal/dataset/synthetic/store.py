"""Draws the images of a synthetic data set once and keeps them as PNG files.

The folder's name holds a hash of the recipe (the options and the drawing code itself), so a changed recipe
never meets old images. A folder appears whole or not at all: it is filled under another name and renamed,
and a lock makes other processes wait instead of drawing the same images again. A damaged folder is drawn
anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
from filelock import FileLock

from dcal.dataset.record import DataError, Part, Record
from dcal.dataset.synthetic import drawing
from dcal.dataset.synthetic.drawing import Image
from dcal.utils.paths import cache_home

logger = logging.getLogger(__name__)
Job = TypeVar("Job")
Draw = Callable[[Job], tuple[Image, Record]]
Entry = dict[str, Any]
_INDEX = "index.json"


def recipe_hash(options: Mapping[str, object], sources: Sequence[str]) -> str:
    """Ten hexadecimal digits that change with the options or with the text of the modules in `sources`."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for source in (*sources, drawing.__file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:10]


def drawn_once(
    root: str | Path | None,
    name: str,
    recipe: str,
    jobs: Sequence[Job],
    draw: Draw[Job],
) -> list[Record]:
    """The records of all `jobs`, in order, their images in `<root>/<name>-<recipe>`; draws them if need be.

    `draw` returns an RGB image and its record with a path relative to that folder; it runs in other
    processes. Raises `DataError` when the folder cannot be written.
    """
    parent = Path(root).expanduser() if root is not None else cache_home()
    folder = parent / f"{name}-{recipe}"
    if (records := _load(folder)) is not None:
        return records
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f".{folder.name}.lock"):
            if (records := _load(folder)) is None:
                logger.info("drawing %d images of %s into %s (once)", len(jobs), name, folder)
                _fill(folder, jobs, draw)
                records = _load(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot keep the drawn images here ({error.strerror or error}); set dataset.root to a "
            "folder that can be written"
        ) from error
    if records is None:
        raise DataError(f"{folder}: images just drawn are not there any more; is the disk full or being cleaned?")
    return records


def _fill(folder: Path, jobs: Sequence[Job], draw: Draw[Job]) -> None:
    """Draws all images and puts them at `folder` in one step; only for the holder of the lock."""
    for left_over in folder.parent.glob(f".{folder.name}.part-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        entries = _draw_all(partial(_save, folder=part, draw=draw), jobs)
        (part / _INDEX).write_text(json.dumps(entries))
        part.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save(job: Job, folder: Path, draw: Draw[Job]) -> Entry:
    image, record = draw(job)
    path = folder / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
    path.write_bytes(png.tobytes())
    return {"bytes": len(png), **asdict(record), "path": record.path.as_posix()}


def _draw_all(save: Callable[[Job], Entry], jobs: Sequence[Job]) -> list[Entry]:
    """`save` of every job, in order; in several processes, as threads gain nothing here."""
    workers = min(8, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    if workers == 1 or len(jobs) < 100:
        return [save(job) for job in jobs]
    # Forked, also where Python starts processes in another way (since 3.14): a script needs no __main__ guard, and no
    # child imports torch. Drawing is NumPy and OpenCV, whose threads do not survive a fork: hence none in the children.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        return list(pool.map(save, jobs, chunksize=16))


def _load(folder: Path) -> list[Record] | None:
    """The records of a complete folder, or None where anything is missing or of another size than written."""
    try:
        entries = json.loads((folder / _INDEX).read_text())
        records = []
        for entry in entries:
            size, path = entry.pop("bytes"), folder / entry.pop("path")
            if path.stat().st_size != size:
                return None
            parts, box = entry.pop("parts"), entry.pop("box")
            box = tuple(box) if box else None
            records.append(Record(path, **entry, box=box, parts=tuple(Part(**part) for part in parts)))
        return records
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
