"""`dcal-query`: which images of an index are nearest to an image, as a table and as a picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from dcal.commands.opened import check_picture, end_incomplete, open_model, printable, with_folder
from dcal.dataset.image_files import UNKNOWN, find_images, image_loader, numbers_in
from dcal.dataset.record import Record
from dcal.inference.images import embed_images
from dcal.inference.index import Index, read_index
from dcal.inference.index_parts import setting_differences
from dcal.inference.restore import Opened, Restored
from dcal.inference.thresholds import NOBODY, promises, read_thresholds, same_or_different
from dcal.metric.ranking import MARKS, judge
from dcal.metric.retrieval import nearest
from dcal.utils.errors import UserError, check_number, choose
from dcal.utils.text import aligned
from dcal.visualize.examples import RankedList, draw_ranked_lists

PICTURED = 8
"""Queries in the picture, at most."""


class Found(NamedTuple):
    """What is nearest to a query, nearest first."""

    query: Record
    rows: list[int]
    """Of the index."""
    similarity: list[float]
    marks: list[str]
    """What the protocol makes of each: `right`, `wrong`, `same camera`, `junk`; empty if nothing is known."""
    answers: list[str]
    """`same`, `different` or `unsure` of each; empty without thresholds (`dcal-calibrate`)."""
    nobody: bool = False
    """Whether nothing is near enough for the query to be anybody in the index."""


def query(config: DictConfig) -> None:
    """Searches, prints and draws."""
    check_number("top", config.top, ge=1, whole=True)
    choose("same_camera", config.same_camera, ("mark", "drop"))
    if config.picture:
        check_picture(config.picture)
    paths = find_images(config.image, "image")
    file = Path(config.index).expanduser()
    index = read_index(file, "index")
    task = {key: index.settings.get(key) for key in ("inference", "flip_test")}
    opened = open_model(config, task=task, backbone={key: index.settings.get(key) for key in ("image_size", "resize")})
    check_origin(index, opened, file)
    began = time.monotonic()
    found = search(opened, index, asked(config, index, paths), config.top, config.same_camera == "drop")
    taken = time.monotonic() - began
    for one in found:
        print(ranked_table(one, index))
    if found and found[0].answers:
        print("\n".join(["what the answers promise:", *promises(thresholds_of(opened) or {})]))
    print(f"{len(found)} of {len(paths)} images looked up among {len(index.columns.path)} in {taken:.2f} s")
    if config.picture:
        draw(found[:PICTURED], index, opened, with_folder(config.picture))
        print(f"picture  {config.picture}")
    end_incomplete(range(len(paths) - len(found)), len(paths))


def check_origin(index: Index, opened: Opened, file: Path) -> None:
    """Features of two models do not compare.

    Raises:
        UserError: the index is of other weights, or its images were resized otherwise.
    """
    now = {key: value for key, value in opened.provenance().items() if key != "run"}
    other = setting_differences({key: index.settings.get(key) for key in now}, now)
    if other:
        raise UserError(
            f"index={file}: made by another model, {index.settings.get('run')} ({other}); "
            "search it with that run and those weights, or make it again with dcal-extract"
        )


def asked(config: DictConfig, index: Index, paths: Sequence[Path]) -> list[Record]:
    """The queries, with camera and label as far as they are known."""
    columns = []
    for key in ("label", "camera"):
        given, pattern = config[key], index.settings.get(key)
        if isinstance(given, int):
            columns.append([given] * len(paths))
        elif given is not None:
            columns.append(numbers_in(paths, str(given), key))
        else:
            columns.append(numbers_in(paths, pattern, key, required=False) if pattern else [UNKNOWN] * len(paths))
    return [Record(path, label, camera) for path, label, camera in zip(paths, *columns, strict=True)]


def thresholds_of(opened: Opened) -> dict[str, Any] | None:
    """What `dcal-calibrate` has left with a run for re-identification; a plain backbone has none."""
    return read_thresholds(opened) if isinstance(opened, Restored) and opened.task.name == "reid" else None


def search(opened: Opened, index: Index, queries: Sequence[Record], top: int, drop: bool) -> list[Found]:
    """Embeds the queries and compares each with the whole index."""
    gallery_GD = torch.tensor(index.features, dtype=torch.float32)  # a copy: what parquet gives is read-only
    if index.features.dtype != "float32":  # rounded to half precision, they are no longer of length 1
        gallery_GD = F.normalize(gallery_GD)
    left_out = torch.tensor([MARKS.index("same camera"), MARKS.index("junk")])
    thresholds = thresholds_of(opened)
    found = []
    for positions, query_BD in embed_images(opened, queries):
        for position, query_D in zip(positions.tolist(), query_BD, strict=True):
            marks_G = judged(queries[position], index)
            out_1G = torch.isin(marks_G, left_out)[None] if drop else None
            (similarity_L,), (row_L,) = nearest(query_D[None], gallery_GD, top, out_1G)
            row_L = row_L[similarity_L > -torch.inf]
            marks = [("", *MARKS)[mark + 1] for mark in marks_G[row_L].tolist()]
            values = similarity_L[: len(row_L)].tolist()
            answers, nobody = [], False
            if thresholds is not None:
                answers = [same_or_different(value, thresholds) for value in values]
                nobody = max(values, default=-1.0) < thresholds["known"]["threshold"]
            found.append(Found(queries[position], row_L.tolist(), values, marks, answers, nobody))
    return found


def judged(query: Record, index: Index) -> Tensor:
    """What the protocol makes of each image of the index, as positions in `MARKS`: int64 (G,); -1 where unknown.

    Without labels it cannot tell who is who; then all that is known is which images are of the query's camera.
    """
    unknown_G = torch.full((len(index.columns.path),), -1)
    camera_G = unknown_G if index.columns.camera is None else torch.tensor(index.columns.camera)
    if index.columns.label is not None and query.label >= 0:
        label_G = torch.tensor(index.columns.label)
        return judge(torch.tensor([query.label]), torch.tensor([query.camera]), label_G[None], camera_G[None])[0].long()
    same_G = (camera_G == query.camera) & (query.camera >= 0)
    return torch.where(same_G, MARKS.index("same camera"), unknown_G)


def ranked_table(found: Found, index: Index) -> str:
    """The query and an aligned line for each image that was found; columns that are known."""
    columns = {
        "rank": [str(rank) for rank in range(1, len(found.rows) + 1)],
        "similarity": [f"{value:.4f}" for value in found.similarity],
        **{
            name: [str(values[row]) for row in found.rows]
            for name, values in (("camera", index.columns.camera), ("label", index.columns.label))
            if values is not None
        },
        **({"answer": found.answers} if found.answers else {}),
        **({"mark": found.marks} if any(found.marks) else {}),
        "image": [index.columns.path[row] for row in found.rows],
    }
    known = (("camera", found.query.camera), ("label", found.query.label))
    words = [f"{name} {value}" for name, value in known if value >= 0] + [NOBODY] * found.nobody
    title = "  ".join([printable(found.query.path), *words])
    right = [n for n, name in enumerate(columns) if name not in ("answer", "mark", "image")]
    lines = aligned([list(columns), *map(list, zip(*columns.values(), strict=True))], right)
    return "\n".join([title, *lines, ""])


def draw(found: Sequence[Found], index: Index, opened: Opened, path: Path) -> None:
    """Draws a row per query, as a run does for its own; a file that is no longer there is left grey."""
    names = {one.query.path for one in found} | {Path(index.columns.path[row]) for one in found for row in one.rows}
    paths, size = sorted(names), opened.config.dataset
    pictures = {path: torch.full((3, *size.image_size), 128, dtype=torch.uint8) for path in paths}
    for batch in image_loader(paths, size.image_size, size.resize, batch_size=64, decode=size.decode):
        pictures.update({paths[int(i)]: image for i, image in zip(batch["index"], batch["image"], strict=True)})
    rows = []
    for one in found:
        seen = [pictures[Path(index.columns.path[row])] for row in one.rows]
        marks = [mark or f"{value:.3f}" for mark, value in zip(one.marks, one.similarity, strict=True)]
        rows.append(RankedList(pictures[one.query.path], seen, marks))
    draw_ranked_lists(rows, path)
