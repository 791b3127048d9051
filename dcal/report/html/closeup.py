"""What one run did with single images: examples, confused classes, ranked lists; and tables by class and by camera."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcal.metric.classes import class_accuracies, class_title, confusion_matrix, examples_of, most_confused
from dcal.report.html.experiment import Experiment, Variant
from dcal.report.html.run_files import RunFiles
from dcal.visualize.gallery import Gallery

EXAMPLES = 24
PAIRS = 8
LISTS = 12
RIGHT_RGB, WRONG_RGB = (66, 105, 208), (214, 69, 65)  # to be seen on light and on dark


def closeup(variant: Variant, task: str, is_open: bool) -> SimpleNamespace:
    """Image by image what the run did whose pictures are kept, or the first, by the names of the template."""
    run, config = variant.shown, variant.runs[0].record["config"]
    views = class_views(run) if task == "fgvc" else {"matrix": None, "pairs": [], "examples": []}
    return SimpleNamespace(
        label=variant.label,
        seed=run.record["seed"],
        is_open=is_open,
        **views,
        lists=[] if task == "fgvc" else ranked_lists(run),
        # where the slider begins: the share of patches that the run selects
        top_ratio=float(config["attention.glca.top_ratio"]),
        # how the run itself selects; empty without GLCA
        selection=config["attention.glca.selection"] if config["attention.glca.blocks"] else "",
    )


def class_views(run: RunFiles) -> dict[str, Any]:
    """Confusion matrix, confused classes with a picture of either, and examples of a classifier."""
    names, label, prediction = class_names(run), run.items["label"], run.items["prediction"]
    cells = confusion_matrix(label, prediction, len(names))
    pairs = []
    for pair in most_confused(label, prediction, PAIRS):
        rows = zip(examples_of(pair, label, prediction), (pair.truth, pair.taken_for), strict=True)
        pictures = [None if row is None else kept(run, row, names[of]) for row, of in rows]
        pairs.append(
            SimpleNamespace(
                truth=names[pair.truth],
                taken_for=names[pair.taken_for],
                times=pair.times,
                images=int(cells[pair.truth].sum()),  # of the first class
                mistaken=pictures[0],
                recognised=pictures[1],
            )
        )
    return {"matrix": matrix(cells, names), "pairs": pairs, "examples": examples(run, names)}


def examples(run: RunFiles, names: Sequence[str]) -> list[SimpleNamespace]:
    """The first pictures of the gallery with truth, prediction and confidence."""
    gallery, found = run.gallery, []
    if gallery is None:
        return []
    row_of = {number: row for row, number in enumerate(run.items["index"].tolist())}
    for position, number in enumerate(gallery.number[:EXAMPLES]):
        row = row_of[number]
        truth, guess = (names[run.items[key][row]] for key in ("label", "prediction"))
        sure = f", {100 * run.items['confidence'][row]:.0f}\u00a0%\u00a0sure" if "confidence" in run.items else ""
        right = truth == guess
        lines = [f"{guess}{sure}"] if right else [f"{guess}{sure}", f"is {truth}"]
        alt = f"{truth}, {'recognised' if right else f'taken for {guess}'}"
        found.append(SimpleNamespace(picture=picture(gallery, position, alt), right=right, lines=lines))
    return found


def kept(run: RunFiles, row: int, alt: str) -> SimpleNamespace | None:
    """The picture of a test item, if the run keeps it."""
    position = run.gallery.position(run.record["split"], int(run.items["index"][row])) if run.gallery else None
    return None if position is None or run.gallery is None else picture(run.gallery, position, alt)


def class_names(run: RunFiles) -> list[str]:
    """Names by label; where the run does not keep them, numbers."""
    if run.class_names:
        return [class_title(name) for name in run.class_names]
    count = 1 + int(max(run.items["label"].max(), run.items["prediction"].max()))
    return [f"class {number}" for number in range(count)]


def ranked_lists(run: RunFiles) -> list[SimpleNamespace]:
    """Queries with what was found for them, those missed first."""
    gallery, items = run.gallery, run.items
    if gallery is None or not {"nearest_mark", "camera"} <= items.keys():
        return []
    prefix = "" if run.record["split"] == "test" else f"{run.record['split']}_"
    row_of = {number: row for row, number in enumerate(items["index"].tolist())}
    asked = [(n, row_of[number]) for n, number in enumerate(gallery.number) if gallery.part[n] == f"{prefix}query"]
    asked.sort(key=lambda pair: float(items["average_precision"][pair[1]]))
    return [ranked_list(run, gallery, position, row, f"{prefix}gallery") for position, row in asked[:LISTS]]


def ranked_list(run: RunFiles, gallery: Gallery, position: int, row: int, part: str) -> SimpleNamespace:
    """A query and what was found for it."""
    from dcal.metric.ranking import MARKS  # torch: a second, for Re-ID only

    items, found = run.items, []
    for rank, (number, code) in enumerate(zip(items["nearest"][row], items["nearest_mark"][row], strict=True), 1):
        shown = gallery.position(part, int(number))
        if shown is not None:
            mark = MARKS[code]
            found.append(SimpleNamespace(picture=picture(gallery, shown, f"rank {rank}: {mark}"), mark=mark))
    camera = int(items["camera"][row])
    lines = [f"AP {100 * items['average_precision'][row]:.0f} %", f"first match at {int(items['first_rank'][row])}"]
    lines += [f"camera {camera}"] if camera >= 0 else []
    query = picture(gallery, position, f"query, identity {int(items['label'][row])}")
    return SimpleNamespace(query=query, lines=lines, found=found)


def picture(gallery: Gallery, position: int, alt: str) -> SimpleNamespace:
    """A picture of a gallery, and what the page needs to draw the patches of any ratio over it."""
    attention_hw = gallery.attention[position].astype(np.float64)
    rank = np.empty(attention_hw.size, dtype="<u2")
    rank[np.argsort(-attention_hw.ravel(), kind="stable")] = np.arange(rank.size)
    shades = np.rint(65535 * attention_hw / max(attention_hw.max(), 1e-12)).astype("<u2")
    width, height = Image.open(io.BytesIO(gallery.jpeg[position])).size
    return SimpleNamespace(
        source=data_uri("jpeg", gallery.jpeg[position]),
        alt=alt,
        width=width,
        height=height,
        rows=attention_hw.shape[0],
        columns=attention_hw.shape[1],
        # little-endian uint16, a patch each: 0 for the one with most attention; and as many shades, 65535 for the most
        rank=b64encode(rank.tobytes()).decode(),
        attention=b64encode(shades.tobytes()).decode(),
    )


def data_uri(kind: str, code: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(code).decode()}"


def matrix(cells: NDArray[np.int64], names: Sequence[str]) -> SimpleNamespace:
    """A confusion matrix as an image of a pixel per cell, and its numbers for the pointer.

    Recognised items are blue, confused ones red, stronger with their share of the class; the ground is transparent.
    """
    size = len(cells)
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    pixels = np.empty((size, size, 4), dtype=np.uint8)
    pixels[..., :3] = WRONG_RGB
    pixels[np.arange(size), np.arange(size), :3] = RIGHT_RGB
    pixels[..., 3] = np.rint(255 * np.sqrt(share))  # the root: a share of a tenth is to be seen
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    listed = [[int(row), int(column), int(cells[row, column])] for row, column in zip(*cells.nonzero(), strict=True)]
    told = {"names": list(names), "cells": listed, "totals": cells.sum(1).tolist()}
    perfect = int(((cells.sum(1) == cells.diagonal()) & (cells.sum(1) > 0)).sum())
    return SimpleNamespace(
        source=data_uri("png", buffer.getvalue()),
        size=size,
        summary=f"{cells.trace()} of {cells.sum()} images are recognised; "
        f"{perfect} of {size} classes without a mistake.",
        # names of the classes, [row, column, times] of the cells that are not zero, totals of the rows
        cells=json.dumps(told, ensure_ascii=False, separators=(",", ":")),
    )


def by_class(experiment: Experiment) -> SimpleNamespace:
    """Accuracy of each class, mean over seeds, for each configuration."""
    names = max((class_names(run) for variant in experiment.variants for run in variant.runs), key=len)
    columns = []
    for variant in experiment.variants:
        shares = [class_accuracies(r.items["label"], r.items["prediction"], len(names)) for r in variant.runs]
        columns.append(np.mean(shares, axis=0))
    count = np.bincount(experiment.variants[0].runs[0].items["label"], minlength=len(names))
    rows = [(name, int(count[n]), [number(column[n]) for column in columns]) for n, name in enumerate(names)]
    return breakdown(experiment.variants, rows)


def by_camera(experiment: Experiment) -> SimpleNamespace | None:
    """mAP of each camera's queries, mean over seeds, for each configuration; None where no run keeps cameras."""
    variants = [v for v in experiment.variants if all("camera" in run.items for run in v.runs)]
    tables = [[cameras(run.items) for run in variant.runs] for variant in variants]
    if not tables or set(tables[0][0]) == {-1}:
        return None
    rows = []
    for camera, first in tables[0][0].items():
        values = [number(np.mean([table[camera]["mAP"] for table in seeds if camera in table])) for seeds in tables]
        rows.append((f"camera {camera}" if camera >= 0 else "unknown", int(first["queries"]), values))
    return breakdown(variants, rows)


def cameras(items: dict[str, Any]) -> dict[int, dict[str, float]]:
    """The metrics of each camera's queries, as `evaluate_retrieval(per_camera=True)` gives them."""
    import torch  # a second, for Re-ID only

    from dcal.metric import ranking

    results = ranking.PerQuery(*(torch.from_numpy(items[key]) for key in ranking.PerQuery._fields))
    return ranking.breakdown(results, torch.from_numpy(items["camera"]))


def number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def breakdown(variants: Sequence[Variant], rows: list[tuple[str, int, list[float | None]]]) -> SimpleNamespace:
    """A table by class or by camera: name, number of items, and a value per configuration.

    The worst mean over configurations comes first, what was not judged last, and what has no item not at all.
    """

    def rank(row: tuple[str, int, list[float | None]]) -> tuple[bool, float]:
        values = [value for value in row[2] if value is not None]
        return not values, sum(values) / max(1, len(values))

    columns = [variant.label for variant in variants]
    return SimpleNamespace(columns=columns, rows=sorted((row for row in rows if row[1]), key=rank))
