"""From a run directory back to a model: what every command that uses a trained run begins with.

Besides weights and configuration a run keeps `model.json`, what a model needs to be built without its training data:
the names of the classes, and how many cameras and views a side embedding has.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from yaml import YAMLError

from dcal.attention.adapters import merge_adapters
from dcal.attention.options import LoRAOptions, options_of
from dcal.config import Config
from dcal.inference.predictor import Predictor
from dcal.inference.trust import RunError, Trust, plain_data, without_weights
from dcal.model import DCAL
from dcal.run.digest import check_digest, sha256
from dcal.run.files import read_json
from dcal.run.legacy import move_targets
from dcal.run.result import read_result
from dcal.task.options import Task
from dcal.training.build import build_model, check_train, make
from dcal.utils.device import Device, choose_device, computes_in
from dcal.utils.errors import UserError, first_line
from dcal.utils.paths import config_dir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened(ABC):
    """A model, ready for inference, and what is known of it."""

    config: DictConfig
    """Plain values, with the changes that the command asked for."""
    class_names: list[str]
    """By label: the classes, or the identities of the training set; empty for a plain backbone."""
    task: Task
    model: DCAL
    """In evaluation mode, on the device."""
    device: Device
    trust: Trust
    """What a data set may name, once it is opened."""

    @property
    def predictor(self) -> Predictor:
        """The model as it answers."""
        task, dataset = self.task, self.config.dataset
        return Predictor(
            self.model,
            self.device,
            self.class_names,
            task.inference,
            task.flip_test,
            dataset.image_size,
            dataset.resize,
        )

    @property
    @abstractmethod
    def title(self) -> str:
        """By which a user knows the model again."""

    @abstractmethod
    def weights_digest(self) -> str:
        """SHA-256 of the weights, in hexadecimal digits."""

    def provenance(self) -> dict[str, Any]:
        """What embeddings depend on besides the images, as JSON can hold it: two files with the same compare."""
        return {"run": self.title, "weights": self.weights_digest(), **self.predictor.settings()}


@dataclass(frozen=True)
class Restored(Opened):
    """A trained model, ready for inference, and what is known of it."""

    directory: Path
    weights: Path
    """The file that the weights come from."""

    @property
    def title(self) -> str:
        """`name/cfg_id/seed=...`, as in the run's path."""
        result = read_result(self.directory)
        cfg_id = result["cfg_id"] if result else self.directory.absolute().parent.name
        return f"{self.config.name}/{cfg_id}/seed={self.config.seed}"

    def weights_digest(self) -> str:
        """Of the file."""
        return sha256(self.weights)


def restore(
    directory: str | Path,
    weights: str = "last",
    device: str = "auto",
    changes: Mapping[str, Any] | None = None,
    trust: Trust = Trust(),  # noqa: B008  # immutable
) -> Restored:
    """The model of a run.

    What the run says of its data set is neither checked nor used: that is for `open_data`.

    Args:
        directory: the run directory, `<root>/<name>/<cfg_id>/seed=<seed>`.
        weights: `last`, `best`, or the path of a weight file of this run, e.g. one of a checkpoint.
        device: as for `dcal.utils.device.choose_device`.
        changes: nodes to merge into the run's configuration; a value of None keeps what the run has.
        trust: whose code the run may name.

    Raises:
        RunError: the directory holds no such run or weights, they do not fit its configuration, or it is not trusted.
        UserError: a change has no valid value; the message starts with its key.
    """
    folder = Path(directory).expanduser()
    config = read_config(folder)
    for key, node in (changes or {}).items():
        config = OmegaConf.merge(config, {key: drop_none(node)})  # type: ignore[assignment]
    check_train(config)  # type: ignore[arg-type]  # checked against the schema
    config.device = device
    if not drop_none((changes or {}).get("train", {})).get("precision"):
        config.train.precision = available_precision(config.train.precision, device)
    values: dict[str, Any] = plain_data(OmegaConf.to_container(config), folder)
    for group in ("backbone", "attention", "task"):  # what is instantiated here
        trust.check(group, values[group])
    lora = options_of(LoRAOptions, values["backbone"].get("lora"))
    values["backbone"] = without_weights(values["backbone"], trust.everything)
    config = OmegaConf.create(values)
    task: Task = make(config.task)
    if not (folder / "model.json").is_file():
        raise RunError(f"{folder / 'model.json'} is missing: repeat the run's command to complete the run")
    card = read_json(folder / "model.json")
    file = weight_file(folder, weights)
    try:
        check_digest(file)
    except UserError as error:
        raise RunError(str(error)) from None
    height, width = config.dataset.image_size
    cameras, views = card["sides"]
    model, where = build_model(config, len(card["class_names"]), (height, width), task.bnneck, (cameras, views))
    try:
        # a checkpoint of a run with adapters has them apart
        model.load_state_dict(merge_adapters(load_file(file, device=str(where.torch)), lora))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = first_line(error)
        raise RunError(
            f"{file}: not the weights of the model in {folder / 'config_resolved.yaml'} ({reason})"
        ) from None
    return Restored(config, card["class_names"], task, model.eval(), where, trust, folder, file)


def available_precision(precision: str, device: str) -> str:
    """The precision of a run, or fp32 where the device has no such arithmetic, which is logged."""
    where = choose_device(device)
    if computes_in(where, precision):
        return precision
    here = "the CPU" if where.type == "cpu" else where.type
    logger.warning("trained in %s, which %s does not have: computing in fp32", precision, here)
    return "fp32"


def read_config(directory: Path) -> DictConfig:
    """The resolved configuration of a run.

    Raises:
        RunError: there is none, or it is no configuration.
    """
    file = directory / "config_resolved.yaml"
    if not file.is_file():
        found = sorted(str(path.parent) for path in directory.glob("**/config_resolved.yaml"))[:3]
        hint = f"; did you mean {' or '.join(found)}?" if found else ""
        raise RunError(f"run={directory}: no run directory, config_resolved.yaml is missing{hint}")
    try:
        written = plain_data(OmegaConf.to_container(move_targets(OmegaConf.load(file))), file)
        # a run that is older than a key had what is the default today; keys of groups have no such default
        today: Any = OmegaConf.load(config_dir() / "train.yaml")
        defaults = OmegaConf.masked_copy(today, ["train", "launch", "wandb", "run"])
        config = OmegaConf.merge(OmegaConf.structured(Config), defaults, written)
        OmegaConf.resolve(config)  # what the defaults refer to, such as wandb.group to the name
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise RunError(f"{file}: not the configuration of a run ({first_line(error)})") from None
    assert isinstance(config, DictConfig)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise RunError(f"{file}: written by another version of dcal, has no {', '.join(missing)}: add what the run had")
    return config


def weight_file(directory: Path, weights: str) -> Path:
    """The file that `weights` names.

    Raises:
        RunError: it does not exist.
    """
    file = directory / f"{weights}.safetensors" if weights in ("last", "best") else Path(weights).expanduser()
    if file.is_file():
        return file
    last = "the run is not finished: repeat its command, or give weights=PATH of a checkpoint's model.safetensors"
    if (directory / "result.json").is_file():
        last = (
            "the run is finished, but its weights are lost: repeat its command with run.fresh=true, or give "
            "weights=PATH of a checkpoint's model.safetensors"
        )
    reason = {
        "last": last,
        "best": "kept only with a validation split (dataset.val_fraction, dataset.val_ids): use weights=last",
    }
    raise RunError(f"weights={weights}: {file} does not exist; {reason.get(weights, 'choose last, best or a file')}")


def drop_none(node: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node that are not None, as plain data, at any depth."""
    values: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {
        key: drop_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
