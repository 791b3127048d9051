"""`dcal-evaluate`: the metrics of a trained run once more, and whether they are equal; or on another data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from dcal.commands.app import hydra_command, report_errors, typed_overrides


def main() -> None:
    """Entry point of `dcal-evaluate`."""
    hydra_command(job, "evaluate")


def job(config: DictConfig) -> None:
    """One evaluation, reported in one sentence if it cannot be had."""
    from dcal.dataset.record import DataError
    from dcal.inference.restore import RunError

    report_errors(check_dataset_keys, (ValueError,), config.debug)
    report_errors(lambda: evaluate(config), (ValueError, OSError, DataError, RunError), config.debug)


def check_dataset_keys() -> None:
    """Raises a ValueError if a key of the data set was typed that is the run's in any case."""
    from dcal.inference.restore import SEEN_AS_IN_THE_RUN, WHOLE

    of_the_run = {f"dataset.{key}" for key in (*SEEN_AS_IN_THE_RUN, *WHOLE)}
    for word, key in typed_overrides():
        if ".".join(key.split(".")[:2]) in of_the_run:
            raise ValueError(f"{word}: images are seen as in the run, and none are held out; leave it out")


def evaluate(config: DictConfig) -> dict[str, float]:
    """Evaluates, prints and writes what was asked for; returns the metrics."""
    from dcal.inference.restore import open_data, read_result, restore
    from dcal.run.files import write_atomically

    restored = restore(config.run, config.weights, config.device, {"task": config.task, "train": config.train})
    data = open_data(restored, config.dataset)
    result = read_result(restored.directory)
    split = config.split or (result["split"] if result and "reader" not in config.dataset else "test")
    train = restored.config.train
    evaluation = restored.task.evaluate(
        restored.model, data, split, train.eval_batch_size, train.workers, restored.device
    )
    print(report(evaluation.metrics, result["metrics"] if result else None))
    print(f"{data.catalog.name}, split {split}, {restored.weights}")
    if config.out:
        content = {"run": str(restored.directory), "weights": str(restored.weights), "dataset": data.catalog.name}
        text = json.dumps({**content, "split": split, "metrics": evaluation.metrics}, indent=1)
        write_atomically(with_folder(config.out), text + "\n")
    if config.save_items:
        evaluation.save(with_folder(config.save_items))
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
