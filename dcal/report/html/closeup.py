"""What one run did with single images: examples, confused classes, ranked lists; and tables by class and by camera."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dcal.metric.classes import class_accuracies, class_title, confusion_matrix, examples_of, most_confused
from dcal.report.html.experiment import Experiment, Variant
from dcal.report.html.picture import Matrix, Picture, matrix, picture
from dcal.report.html.run_files import RunFiles
from dcal.visualize.gallery import Gallery

EXAMPLES = 24
PAIRS = 8
LISTS = 12


class Example(NamedTuple):
    """A picture and what became of it."""

    picture: Picture
    right: bool
    lines: list[str]


class Pair(NamedTuple):
    """A class that is taken for another, with a picture of either."""

    truth: str
    taken_for: str
    times: int
    images: int
    """Of the first class."""
    mistaken: Picture | None
    recognised: Picture | None


class Found(NamedTuple):
    picture: Picture
    mark: str


class RankedList(NamedTuple):
    """A query and what was found for it."""

    query: Picture
    lines: list[str]
    found: list[Found]


class Closeup(NamedTuple):
    """One run of a configuration, image by image."""

    label: str
    seed: int
    is_open: bool
    matrix: Matrix | None
    pairs: list[Pair]
    examples: list[Example]
    lists: list[RankedList]
    top_ratio: float
    """Where the slider begins: the share of patches that the run selects."""
    selection: str
    """How the run itself selects; empty without GLCA."""


class Breakdown(NamedTuple):
    """A table by class or by camera: name, number of items, and a value per configuration."""

    columns: list[str]
    rows: list[tuple[str, int, list[float | None]]]
    """Worst first."""


def closeup(variant: Variant, task: str, is_open: bool) -> Closeup:
    """The run of a configuration whose pictures are kept, or its first."""
    run, config = variant.shown, variant.runs[0].record["config"]
    cells, pairs, shown, lists = class_views(run) if task == "fgvc" else (None, [], [], ranked_lists(run))
    selection = config["attention.glca.selection"] if config["attention.glca.blocks"] else ""
    ratio = float(config["attention.glca.top_ratio"])
    return Closeup(variant.label, run.record["seed"], is_open, cells, pairs, shown, lists, ratio, selection)


def class_views(run: RunFiles) -> tuple[Matrix, list[Pair], list[Example], list[RankedList]]:
    """Confusion matrix, confused classes and examples of a classifier."""
    names, label, prediction = class_names(run), run.items["label"], run.items["prediction"]
    cells = confusion_matrix(label, prediction, len(names))
    pairs = []
    for pair in most_confused(label, prediction, PAIRS):
        rows = zip(examples_of(pair, label, prediction), (pair.truth, pair.taken_for), strict=True)
        pictures = [None if row is None else kept(run, row, names[of]) for row, of in rows]
        times, images = pair.times, int(cells[pair.truth].sum())
        pairs.append(Pair(names[pair.truth], names[pair.taken_for], times, images, *pictures))
    return matrix(cells, names), pairs, examples(run, names), []


def examples(run: RunFiles, names: Sequence[str]) -> list[Example]:
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
        found.append(Example(picture(gallery, position, alt), right, lines))
    return found


def kept(run: RunFiles, row: int, alt: str) -> Picture | None:
    """The picture of a test item, if the run keeps it."""
    position = run.gallery.position(run.record["split"], int(run.items["index"][row])) if run.gallery else None
    return None if position is None or run.gallery is None else picture(run.gallery, position, alt)


def class_names(run: RunFiles) -> list[str]:
    """Names by label; where the run does not keep them, numbers."""
    if run.class_names:
        return [class_title(name) for name in run.class_names]
    count = 1 + int(max(run.items["label"].max(), run.items["prediction"].max()))
    return [f"class {number}" for number in range(count)]


def ranked_lists(run: RunFiles) -> list[RankedList]:
    """Queries with what was found for them, those missed first."""
    gallery, items = run.gallery, run.items
    if gallery is None or not {"nearest_mark", "camera"} <= items.keys():
        return []
    prefix = "" if run.record["split"] == "test" else f"{run.record['split']}_"
    row_of = {number: row for row, number in enumerate(items["index"].tolist())}
    asked = [(n, row_of[number]) for n, number in enumerate(gallery.number) if gallery.part[n] == f"{prefix}query"]
    asked.sort(key=lambda pair: float(items["average_precision"][pair[1]]))
    return [ranked_list(run, gallery, position, row, f"{prefix}gallery") for position, row in asked[:LISTS]]


def ranked_list(run: RunFiles, gallery: Gallery, position: int, row: int, part: str) -> RankedList:
    from dcal.metric.ranking import MARKS  # torch: a second, for Re-ID only

    items, found = run.items, []
    for rank, (number, code) in enumerate(zip(items["nearest"][row], items["nearest_mark"][row], strict=True), 1):
        shown = gallery.position(part, int(number))
        if shown is not None:
            mark = MARKS[code]
            found.append(Found(picture(gallery, shown, f"rank {rank}: {mark}"), mark))
    camera = int(items["camera"][row])
    lines = [f"AP {100 * items['average_precision'][row]:.0f} %", f"first match at {int(items['first_rank'][row])}"]
    lines += [f"camera {camera}"] if camera >= 0 else []
    return RankedList(picture(gallery, position, f"query, identity {int(items['label'][row])}"), lines, found)


def by_class(experiment: Experiment) -> Breakdown:
    """Accuracy of each class, mean over seeds, for each configuration."""
    names = max((class_names(run) for variant in experiment.variants for run in variant.runs), key=len)
    columns = []
    for variant in experiment.variants:
        shares = [class_accuracies(r.items["label"], r.items["prediction"], len(names)) for r in variant.runs]
        columns.append(np.mean(shares, axis=0))
    count = np.bincount(experiment.variants[0].runs[0].items["label"], minlength=len(names))
    rows = [(name, int(count[n]), [number(column[n]) for column in columns]) for n, name in enumerate(names)]
    return Breakdown([variant.label for variant in experiment.variants], worst_first(rows))


def by_camera(experiment: Experiment) -> Breakdown | None:
    """mAP of each camera's queries, mean over seeds, for each configuration; None where no run keeps cameras."""
    variants = [v for v in experiment.variants if all("camera" in run.items for run in v.runs)]
    tables = [[cameras(run.items) for run in variant.runs] for variant in variants]
    if not tables or set(tables[0][0]) == {-1}:
        return None
    rows = []
    for camera, first in tables[0][0].items():
        values = [number(np.mean([table[camera]["mAP"] for table in seeds if camera in table])) for seeds in tables]
        rows.append((f"camera {camera}" if camera >= 0 else "unknown", int(first["queries"]), values))
    return Breakdown([variant.label for variant in variants], worst_first(rows))


def cameras(items: dict[str, Any]) -> dict[int, dict[str, float]]:
    """The metrics of each camera's queries, as `evaluate_retrieval(per_camera=True)` gives them."""
    import torch  # a second, for Re-ID only

    from dcal.metric.ranking import PerQuery, breakdown

    results = PerQuery(*(torch.from_numpy(items[key]) for key in PerQuery._fields))
    return breakdown(results, torch.from_numpy(items["camera"]))


def number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def worst_first(rows: list[tuple[str, int, list[float | None]]]) -> list[tuple[str, int, list[float | None]]]:
    """By the mean over configurations; what was not judged last."""

    def rank(row: tuple[str, int, list[float | None]]) -> tuple[bool, float]:
        values = [value for value in row[2] if value is not None]
        return not values, sum(values) / max(1, len(values))

    return sorted((row for row in rows if row[1]), key=rank)
