"""From a run directory back to a model: what every command that uses a trained run begins with.

Beside weights and configuration a run keeps `model.json`, what a model needs to be built without its training data:
the names of the classes, and how many cameras and views a side embedding has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from yaml import YAMLError

from dcal.config import Config, check_targets
from dcal.dataset.data import Data, Loader
from dcal.dataset.image_files import image_loader
from dcal.dataset.record import Record
from dcal.model import DCAL
from dcal.run.digest import check_digest
from dcal.run.files import write_atomically
from dcal.run.legacy import move_targets
from dcal.training.build import build_model, check_train, make, side_sizes
from dcal.training.state import Task, TrainState
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir


class RunError(UserError):
    """A run directory cannot be used; the message says why and what to do."""


class Restored(NamedTuple):
    """A trained model, ready for inference, and what is known of it."""

    directory: Path
    config: DictConfig
    """Resolved, with the changes that the command asked for."""
    class_names: list[str]
    """By label: the classes, or the identities of the training set."""
    task: Task
    model: DCAL
    """In evaluation mode, on the device."""
    device: Device
    weights: Path
    """The file that the weights come from."""


def write_card(directory: Path, state: TrainState) -> None:
    """Leaves `model.json` in a run directory."""
    card = {
        "class_names": state.data.class_names,
        "sides": side_sizes(state.task.side_information, state.data),
    }
    write_atomically(directory / "model.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def restore(
    directory: str | Path, weights: str = "last", device: str = "auto", changes: Mapping[str, Any] | None = None
) -> Restored:
    """The model of a run.

    Args:
        directory: the run directory, `<root>/<name>/<cfg_id>/seed=<seed>`.
        weights: `last`, `best`, or the path of a weight file of this run, e.g. one of a checkpoint.
        device: `auto`, `cpu` or `cuda`.
        changes: nodes to merge into the run's configuration; a value of None keeps what the run has.

    Raises:
        RunError: the directory holds no such run or weights, or they do not fit its configuration.
        ValueError: a change has no valid value; the message starts with its key.
    """
    folder = Path(directory).expanduser()
    config = read_config(folder)
    for key, node in (changes or {}).items():
        config = OmegaConf.merge(config, {key: drop_none(node)})  # type: ignore[assignment]
    check_train(config)  # type: ignore[arg-type]  # checked against the schema
    config.device = device
    config.backbone.pretrained, config.backbone.checkpoint = False, None  # the run's own weights follow
    card = _read_json(folder / "model.json")
    file = weight_file(folder, weights)
    try:
        check_digest(file)
    except UserError as error:
        raise RunError(str(error)) from None
    task: Task = make(config.task)
    height, width = config.dataset.image_size
    cameras, views = card["sides"]
    model, place = build_model(config, len(card["class_names"]), (height, width), task.bnneck, (cameras, views))
    try:
        model.load_state_dict(load_file(file, device=str(place.torch)))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{file}: not the weights of the model in {folder / 'config_resolved.yaml'} ({reason})"
        ) from None
    return Restored(folder, config, card["class_names"], task, model.eval(), place, file)


SEEN_AS_IN_THE_RUN = ("image_size", "resize", "augment", "decode")
"""Keys of a data set in which another one follows the run: its images are for the run's model."""
WHOLE = {"val_fraction": 0.0, "val_ids": 0, "train_fraction": 1.0, "label_noise": 0.0}
"""Another data set is not trained on: nothing is held out or left out."""


def open_data(restored: Restored, dataset: Mapping[str, Any] | None = None) -> Data:
    """The run's data set, or another one.

    Args:
        dataset: of the command's configuration: a whole data set with its `reader`, or single keys such as `root`
            that replace the run's; images are resized and cropped as in the run in either case.

    Raises:
        DataError: the data are not where they should be.
        ValueError: in classification, the classes are not those of the run.
    """
    own = restored.config.dataset
    changes = drop_none(dataset or {})
    node = OmegaConf.merge(own, changes)
    if "reader" in changes:
        node = OmegaConf.merge(changes, {key: own[key] for key in SEEN_AS_IN_THE_RUN}, WHOLE)
    if node.root is None and own.root is not None:
        raise ValueError("dataset.root: say where the data set lies")
    data: Data = make(OmegaConf.create({"dataset": OmegaConf.to_container(node, resolve=False)}).dataset)
    if restored.task.name == "fgvc" and data.class_names != restored.class_names:
        raise ValueError(
            f"dataset: the classes of {data.catalog.name} ({data.num_classes}) are not the {len(restored.class_names)} "
            "that the run was trained on, name by name and in their order"
        )
    return data


def open_images(restored: Restored, images: Sequence[Path | Record], batch_size: int | None = None) -> Loader:
    """Batches of images that belong to no data set, as the run's evaluation would see them.

    Args:
        batch_size: None for that of the run's evaluation.

    Raises:
        ValueError: the model embeds cameras or views, and those of an image are unknown to it.
    """
    device, own, train = restored.device, restored.config.dataset, restored.config.train
    for image in images if device.num_cameras else ():
        camera, view = (image.camera, image.view) if isinstance(image, Record) else (-1, -1)
        if not 0 <= camera < device.num_cameras or (device.num_views > 1 and not 0 <= view < device.num_views):
            path = image.path if isinstance(image, Record) else image
            raise ValueError(
                f"task.side_information={restored.task.side_information}: the model wants to know the camera of each "
                f"image (below {device.num_cameras}) and, for camera_view, its view; not so for {path}"
            )
    size = batch_size or train.eval_batch_size
    workers = train.workers if len(images) > size else 0  # not worth starting for one batch
    on_gpu = device.torch.type == "cuda"
    return image_loader(images, own.image_size, own.resize, size, workers, on_gpu, own.decode)


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
        # a run that is older than a key had what is the default today; keys of groups have no such default
        today: Any = OmegaConf.load(config_dir() / "train.yaml")
        defaults = OmegaConf.masked_copy(today, ["train", "launch", "wandb", "run"])
        config = OmegaConf.merge(OmegaConf.structured(Config), defaults, move_targets(OmegaConf.load(file)))
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise RunError(f"{file}: not the configuration of a run ({str(error).splitlines()[0]})") from None
    assert isinstance(config, DictConfig)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise RunError(f"{file}: written by another version of dcal, has no {', '.join(missing)}: add what the run had")
    try:
        check_targets(config)
    except ValueError as error:
        raise RunError(f"{file}: {error}") from None
    return config


def read_result(directory: Path) -> dict[str, Any] | None:
    """`result.json` of a run, None if it is not finished."""
    file = directory / "result.json"
    return _read_json(file) if file.is_file() else None


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
    """The values of a node that are not None, nested nodes likewise."""
    plain: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    return {
        key: drop_none(value) if isinstance(value, dict) else value for key, value in plain.items() if value is not None
    }


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file} is missing: repeat the run's command to complete the run") from None
    except ValueError as error:
        raise RunError(f"{file}: not JSON ({error})") from None
    return content
