"""`dcal-calibrate`: thresholds of a run with a promise for identities and images that it has not seen."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from dcal.commands.opened import open_run
from dcal.inference.images import check_sides, data_title, member_of, open_data
from dcal.inference.restore import Restored
from dcal.inference.thresholds import promises, read_thresholds, write_thresholds
from dcal.metric.decision.promise import Threshold, confidence_threshold, pair_thresholds
from dcal.run.data_digest import data_digest
from dcal.run.label import typed_overrides
from dcal.task.inference import Inferred, combined_features, combined_scores, infer
from dcal.utils.errors import UserError, check_number, choose

RATES = {
    "reid": ("false_match_rate", "false_non_match_rate", "false_alarm_rate"),
    "fgvc": ("refused_rate",),
}


def calibrate(config: DictConfig) -> dict[str, Any]:
    """Finds the thresholds, writes and prints them."""
    restored = open_run(config)
    rates = promised(config, restored.task.name)
    data = member_of(open_data(restored, config.dataset), config.member)
    if data.members:
        raise UserError(
            f"member: a threshold is for images like those it was found on; choose one of {', '.join(data.members)}"
        )
    if config.split is not None:
        choose("split", config.split, ("val", "test"))  # never the images that it was trained on
    split = config.split or ("val" if restored.task.splits("val")[0] in data.catalog.splits else "test")
    parts = restored.task.splits(split)
    for part in parts:
        check_sides(restored, data.records(part))
    train, task = restored.config.train, restored.task
    loaders = (data.eval_loader(part, train.eval_batch_size, train.workers) for part in parts)
    seen = [
        infer(restored.model, loader, restored.device, task.flip_test, features_only=task.name == "reid")
        for loader in loaders
    ]
    found = thresholds(restored, seen, rates)
    images = sum(len(side.labels) for side in seen)
    file = write_thresholds(restored, split, data_digest(data.catalog).sha256, images, found)
    print("\n".join(promises(read_thresholds(restored) or {})))
    print(f"{data_title(data, *parts)}, {images} images, {restored.weights}\nkept  {file}")
    return found


def promised(config: DictConfig, task: str) -> dict[str, float]:
    """The rates of the task.

    Raises:
        UserError: one is out of its range, or one of the other task was typed.
    """
    typed = {key for _, key in typed_overrides()}
    for other, keys in RATES.items():
        for key in keys:
            if other != task and key in typed:
                raise UserError(
                    f"{key}: is promised by a run of task={other}, and this one has task={task}; leave it out"
                )
            check_number(key, config[key], gt=0, lt=1)
    return {key: float(config[key]) for key in RATES[task]}


def thresholds(restored: Restored, seen: list[Inferred], rates: dict[str, float]) -> dict[str, Any]:
    """The thresholds of re-identification, from queries and gallery, or the one of classification."""
    branches = restored.task.inference
    if restored.task.name == "fgvc":
        scores = combined_scores(seen[0].logits, branches)
        return {"class": confidence_threshold(scores.exp().amax(1).numpy(), **rates)._asdict()}
    query, gallery = (
        (combined_features(side.features, branches).to(restored.device.torch), side.labels, side.cameras)
        for side in seen
    )
    found = pair_thresholds(query, gallery, **rates)._asdict()
    return {key: value._asdict() if isinstance(value, Threshold) else value for key, value in found.items()}
