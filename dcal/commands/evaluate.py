"""`dcal-evaluate`: the metrics of a trained run once more, and whether they are equal; or on another data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from dcal.commands.app import hydra_command, report_errors, typed_overrides
from dcal.commands.opened import open_run
from dcal.utils.errors import UserError


def main() -> None:
    """Entry point of `dcal-evaluate`."""
    hydra_command(job, "evaluate")


def job(config: DictConfig) -> None:
    """One evaluation, reported in one sentence if it cannot be had."""
    report_errors(check_dataset_keys, config.debug)
    report_errors(lambda: evaluate(config), config.debug)


def check_dataset_keys() -> None:
    """Raises a UserError if a key of the data set was typed that is the run's in any case."""
    from dcal.inference.images import SEEN_AS_IN_THE_RUN, WHOLE

    of_the_run = {f"dataset.{key}" for key in (*SEEN_AS_IN_THE_RUN, *WHOLE)}
    for word, key in typed_overrides():
        if ".".join(key.split(".")[:2]) in of_the_run:
            raise UserError(f"{word}: images are seen as in the run, and none are held out; leave it out")


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluates, prints and writes what was asked for; returns the metrics."""
    from dcal.inference.images import check_sides, data_title, is_data_of_run, open_data
    from dcal.inference.restore import read_result
    from dcal.report.compare.predictions import write_predictions
    from dcal.run.files import write_atomically

    if config.save_items and Path(config.save_items).suffix not in (".npz", ".csv"):
        raise UserError(f"save_items={config.save_items}: its suffix must be .npz or .csv")
    restored = open_run(config)
    data = open_data(restored, config.dataset)
    result = read_result(restored.directory)
    split = config.split or (result["split"] if result and not config.dataset.get("reader") else "test")
    train, task = restored.config.train, restored.task
    for part in task.splits(split):
        check_sides(restored, data.records(part))
    evaluation = task.evaluate(restored.model, data, split, train.eval_batch_size, train.workers, restored.device)
    comparable = result is not None and result["split"] == split and is_data_of_run(restored, data, config.dataset)
    print(report(evaluation.metrics, result["metrics"] if result and comparable else None))
    images = sum(len(data.records(part)) for part in task.splits(split))
    print(f"{data_title(data, *task.splits(split))}, {images} images, {restored.weights}")
    if result and not comparable:
        print("result.json is about other images, and is not compared with")
    if config.out:
        content = {
            "run": str(restored.directory),
            "weights": str(restored.weights),
            "dataset": data.catalog.name,
            "root": None if data.root is None else str(data.root),
            "split": split,
            "metrics": evaluation.metrics,
        }
        write_atomically(with_folder(config.out), json.dumps(content, indent=1) + "\n")
    if config.save_items:
        file = with_folder(config.save_items)
        if file.suffix == ".csv":
            write_predictions(evaluation, file, restored.class_names)
        else:
            evaluation.save(file)
    return evaluation.metrics


def with_folder(file: str) -> Path:
    """The path of a file to write, its folder made."""
    path = Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def report(metrics: Mapping[str, float], before: Mapping[str, float] | None) -> str:
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


if __name__ == "__main__":
    main()
