"""Runs made before 28 November 2026: how their id was computed, and what has another name today.

Their id hashed whole nodes of the configuration, dotted targets included, the file name of `backbone.checkpoint`, and
nothing of the data. Such a directory is still found, returned, resumed and opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcal.run.digest import json_digest
from dcal.run.identity import NOT_IDENTITY as LEFT_OUT_TODAY
from dcal.run.identity import schema_defaults

MOVED = {
    "dcal.dataset.loader.Data": "dcal.dataset.data.Data",
    "dcal.dataset.fgvc.": "dcal.dataset.readers.fgvc.",
    "dcal.dataset.fgvc_mat.": "dcal.dataset.readers.fgvc_mat.",
    "dcal.dataset.reid.": "dcal.dataset.readers.reid_person.",
    "dcal.dataset.reid_identity.": "dcal.dataset.readers.reid_custom.",
    "dcal.dataset.reid_vehicle.": "dcal.dataset.readers.reid_vehicle.",
    "dcal.dataset.synthetic_birds.": "dcal.dataset.synthetic.birds.",
    "dcal.dataset.synthetic_people.": "dcal.dataset.synthetic.people.",
}
"""Beginning of an old `_target_` → what has replaced it."""

RENAMED = {"headline": "primary_metric"}
"""Key of a result or of a file of records → its name today."""

# What follows is as it was then, and not taken from `dcal.run.identity`: a change there must change no older id.
IDENTITY = ("backbone", "attention", "task", "dataset", "optimizer", "train", "deterministic")
NOT_IDENTITY = {
    "dataset": {"root", "cache", "on_bad_image"},
    "train": {
        "workers",
        "progress",
        "figures",
        "checkpoint_minutes",
        "eval_batch_size",
        "accumulate",
        "auto_accumulate",
        "compile",
        "activation_checkpointing",
    },
}
_KEYS = {
    "backbone": "_target_ _partial_ name pretrained checkpoint drop_path_rate patch_stride kwargs",
    "attention": (
        "_target_ _partial_ glca.blocks glca.top_ratio glca.selection glca.readout glca.init pwca.blocks "
        "pwca.stream pwca.pairing pwca.pairing_ratio pwca.curriculum head_fusion"
    ),
    "task": (
        "_target_ loss_weighting label_smoothing triplet.weight triplet.margin bnneck instances mixup cutmix "
        "inference flip_test metric rerank side_information"
    ),
    "dataset": (
        "_target_ reader root image_size resize augment.flip augment.pad augment.erase val_fraction val_ids "
        "train_fraction label_noise decode cache on_bad_image allow_mismatch"
    ),
    "optimizer": (
        "_target_ _partial_ opt lr lr_batch_size weight_decay momentum bias_lr_scale new_lr_scale "
        "schedule.warmup_epochs schedule.warmup_lr_ratio schedule.final_lr_ratio"
    ),
    "train": (
        "epochs batch_size eval_batch_size accumulate auto_accumulate precision compile "
        "activation_checkpointing clip_grad ema_decay eval_every checkpoint_minutes workers progress figures"
    ),
}
KEYS = frozenset(f"{node}.{key}" for node, keys in _KEYS.items() for key in keys.split()) | {"deterministic"}
"""What the schema had then. A run that sets a newer key to more than its default has no older id."""


def legacy_id(config: DictConfig) -> str | None:
    """The id that the run had before, or None if it could not have been described then."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    identity = {
        key: {name: value for name, value in plain[key].items() if name not in NOT_IDENTITY.get(key, ())}
        if isinstance(plain[key], dict)
        else plain[key]
        for key in IDENTITY
    }
    idle = {f"{node}.{name}" for node, names in LEFT_OUT_TODAY.items() for name in names}
    for key in schema_defaults().keys() - KEYS:
        if _remove(identity, key, schema_defaults()[key]) != schema_defaults()[key] and key not in idle:
            return None
    reader: Any = identity["dataset"].get("reader")
    # without an option of today's reader, which takes it from a newer key
    for key, value in list(reader.items()) if isinstance(reader, dict) else ():
        if isinstance(value, str) and value.startswith("${dataset.") and value[2:-1] not in KEYS:
            del reader[key]
    checkpoint = identity["backbone"].get("checkpoint")
    if checkpoint:
        identity["backbone"]["checkpoint"] = PurePath(checkpoint).name
    backwards = {new: old for old, new in MOVED.items()}
    return json_digest(_with_targets(identity, backwards))[:8]


def move_targets(config: Any) -> DictConfig:
    """The configuration of an older run with its `_target_`s where they are today; interpolations stay."""
    moved = _with_targets(OmegaConf.to_container(config, resolve=False), MOVED)
    return OmegaConf.create(moved)


def renamed_keys(content: Any) -> Any:
    """What a result or a file of records holds, by the names that its keys have today."""
    if not isinstance(content, dict):
        return content
    return {RENAMED.get(key, key): value for key, value in content.items()}


def _with_targets(node: Any, moved: Mapping[str, str]) -> Any:
    """The node with another beginning of every `_target_` that has moved."""
    if isinstance(node, list):
        return [_with_targets(value, moved) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _renamed(value, moved) if key == "_target_" and isinstance(value, str) else _with_targets(value, moved)
        for key, value in node.items()
    }


def _renamed(target: str, moved: Mapping[str, str]) -> str:
    for before, after in moved.items():
        if target.startswith(before):
            return after + target.removeprefix(before)
    return target


def _remove(node: dict[str, Any], key: str, missing: Any) -> Any:
    """Takes a dotted key out of nested dictionaries, with its group if that is then empty; its value, or `missing`."""
    first, _, rest = key.partition(".")
    if not rest:
        return node.pop(first, missing)
    group = node.get(first) or {}
    value = _remove(group, rest, missing)
    if not group:
        node.pop(first, None)
    return value
