"""`dcal-evaluate`: the metrics of a trained run once more, and whether they are equal; or on another data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, ListConfig, OmegaConf

from dcal.commands.opened import check_picture, open_run, with_folder
from dcal.commands.words.keys import config_folders, group_options
from dcal.commands.words.members import JOINT
from dcal.commands.words.overrides import words_of
from dcal.dataset.image_files import find_images
from dcal.inference.cross_domain import evaluate_on, keep_cells
from dcal.inference.images import (
    SEEN_AS_IN_THE_RUN,
    WHOLE,
    check_sides,
    data_title,
    is_data_of_run,
    member_of,
    open_data,
    open_images,
)
from dcal.inference.restore import Restored, drop_none
from dcal.metric.decision.calibration import unknown_detection
from dcal.report.compare.predictions import write_predictions
from dcal.run.digest import sha256
from dcal.run.directory import CONFIG_FILE
from dcal.run.files import write_json
from dcal.run.label import typed_overrides
from dcal.run.listing import find_run, finished_runs
from dcal.run.result import read_result
from dcal.task.evaluation import Evaluation
from dcal.utils.errors import UserError, choose
from dcal.visualize.cross_table import cross_text, draw_cross_table
from dcal.visualize.reliability import FILE, reliability_rows, reliability_text

ONE_DATA_SET = ("dataset", "member", "split", "reliability", "unknown", "save_items")
"""Keys that `datasets=` does not go with."""


def check_dataset_keys() -> None:
    """Raises a UserError if a key of the data set was typed that is the run's in any case."""
    of_the_run = {f"dataset.{key}" for key in (*SEEN_AS_IN_THE_RUN, *WHOLE)}
    for word, key in typed_overrides():
        if ".".join(key.split(".")[:2]) in of_the_run:
            raise UserError(f"{word}: images are seen as in the run, and none are held out; leave it out")


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluates, prints and writes what was asked for; returns the metrics."""
    check_dataset_keys()
    if config.datasets is not None:
        return cross_domain(config)
    if config.picture is not None:
        raise UserError("picture: draws the table of datasets=[...]; name some, or leave it out")
    wanted = config.reliability or config.unknown is not None
    if config.save_items and Path(config.save_items).suffix not in (".npz", ".csv"):
        raise UserError(f"save_items={config.save_items}: its suffix must be .npz or .csv")
    restored = open_run(config)
    if config.unknown is not None and restored.task.name != "fgvc":
        raise UserError(
            "unknown: are images of no class of the run, but re-identification has no classes; leave it out"
        )
    data = member_of(open_data(restored, config.dataset), config.member)
    result = read_result(restored.directory)
    split = config.split or (result["split"] if result and not config.dataset.get("reader") else "test")
    train, task = restored.config.train, restored.task
    for part in task.splits(split):
        check_sides(restored, data.records(part))
    evaluation = task.evaluate(
        restored.model, data, split, train.eval_batch_size, train.workers, restored.device, reliability=wanted
    )
    comparable = (
        result is not None
        and result["split"] == split
        and config.member is None
        and is_data_of_run(restored, data, config.dataset)
    )
    print(metric_lines(evaluation.metrics, result["metrics"] if result and comparable else None))
    images = sum(len(data.records(part)) for part in task.splits(split))
    print(f"{data_title(data, *task.splits(split))}, {images} images, {restored.weights}")
    if result and not comparable:
        print("result.json is about other images, and is not compared with")
    found = evaluation.reliability
    if found is not None:
        if config.unknown is not None:
            found["unknown"] = unknown_images(config, restored, evaluation)
        print(reliability_text(reliability_rows(found)))
        keep(found, config, restored, split, comparable)
    if config.out:
        content = {
            "run": str(restored.directory),
            "weights": str(restored.weights),
            "dataset": data.catalog.name,
            "root": None if data.root is None else str(data.root),
            "split": split,
            "metrics": evaluation.metrics,
            **({} if found is None else {"reliability": found}),
        }
        write_json(with_folder(config.out), content)
    if config.save_items:
        file = with_folder(config.save_items)
        if file.suffix == ".csv":
            write_predictions(evaluation, file, restored.class_names)
        else:
            evaluation.save(file)
    return evaluation.metrics


def cross_domain(config: DictConfig) -> dict[str, float]:
    """Evaluates one run, or every finished run below a folder, on several data sets; returns the metrics by both."""
    typed = [word for word, key in typed_overrides() if key in ONE_DATA_SET or key.startswith("dataset.")]
    if typed:
        raise UserError(f"{typed[0]}: is for one data set, and datasets=[...] names several; leave one of them out")
    if config.picture is not None:
        check_picture(config.picture)
    nodes = named_sets(config.datasets)
    folder, rows, metric = Path(config.run).expanduser(), [], ""
    several = folder.is_dir() and not (folder / CONFIG_FILE).is_file()
    runs, copies = finished_runs(folder) if several else ([find_run(config.run, config.root)], [])
    for copy in copies:
        print(copy, file=sys.stderr)
    if not runs:
        raise UserError(f"run={config.run}: no finished run is below this folder")
    for directory in runs:
        restored = open_run(OmegaConf.merge(config, {"run": str(directory)}))  # type: ignore[arg-type]
        if metric not in ("", restored.task.primary_metric):
            raise UserError(f"run={config.run}: holds runs of both tasks; name a folder with runs of one")
        metric = restored.task.primary_metric
        found = {name: evaluate_on(restored, node) for name, node in nodes.items()}
        if config.weights == "last" and not drop_none(config.task):
            keep_cells(restored, found)
        label = str(directory.relative_to(folder)) if several else str(directory)
        rows.append((label, {name: cell._asdict() for name, cell in found.items()}))
    print(cross_text(rows, metric))
    for name, shown in rows[0][1].items():
        print(f"{name}: {shown['data']}, {shown['items']} items")
    if config.picture is not None:
        draw_cross_table(rows, metric, Path(config.picture).expanduser())
    if config.out:
        write_json(with_folder(config.out), {"metric": metric, "runs": dict(rows)})
    return {f"{label} on {name}": cell["value"] for label, cells in rows for name, cell in cells.items()}


def named_sets(datasets: ListConfig | str) -> dict[str, DictConfig]:
    """The configurations, by name, of data sets of `conf/dataset` that are written NAME or NAME:ROOT."""
    options = [option for option in group_options("dataset", config_folders(sys.argv[1:])) if option != JOINT]
    found: dict[str, DictConfig] = {}
    for word in words_of(datasets):
        name, _, root = word.partition(":")
        choose("datasets", name, options)
        if name in found:
            raise UserError(f"datasets: names {name} twice")
        found[name] = compose("evaluate", [f"dataset={name}"]).dataset
        found[name].root = str(Path(root).expanduser()) if root else None
    if not found:
        raise UserError("datasets=[]: name at least one data set")
    return found


def unknown_images(config: DictConfig, restored: Restored, evaluation: Evaluation) -> dict[str, Any]:
    """How well low confidence tells the images of `unknown=` from those of the split."""
    predictor = restored.predictor
    seen = predictor.infer(open_images(restored, find_images(config.unknown, "unknown")))
    confidence: torch.Tensor = predictor.log_probabilities(seen).exp().amax(1)
    return unknown_detection(evaluation.items["confidence"].numpy(), confidence.numpy())


def keep(found: dict[str, Any], config: DictConfig, restored: Restored, split: str, comparable: bool) -> None:
    """Writes `reliability.json` where what was found is about the run's own data, weights and settings."""
    if not comparable or config.weights != "last" or drop_none(config.task):
        print(f"not kept in {FILE} of the run: the data, the weights or the settings are others than in its result")
        return
    content = {"weights": sha256(restored.weights), "split": split, **found}
    write_json(restored.directory / FILE, content)
    print(f"kept  {restored.directory / FILE}")


def metric_lines(metrics: Mapping[str, float], before: Mapping[str, float] | None) -> str:
    """One line per metric; beside it what the run's `result.json` says, and whether that is the very same number."""
    width = max(map(len, metrics))
    lines = []
    for name, value in metrics.items():
        known = (before or {}).get(name)
        shown, beside = f"{value:.6f}", ""
        if known is not None:
            beside = "  = result.json" if known == value else f"  result.json: {known:.6f}"
            if beside.endswith(shown):  # digits that are not shown differ
                beside += f" ({value - known:+.0e})"
        lines.append(f"{name:<{width}}  {shown:>12}{beside}")
    return "\n".join(lines)
