"""The images that a command works on (those of the run's data set, of another one, or loose files); embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dcal.dataset.data import Data, Loader
from dcal.dataset.image_files import find_images, image_loader, spread
from dcal.dataset.record import DataError, Record
from dcal.inference.restore import Opened, Restored, drop_none
from dcal.inference.trust import RunError
from dcal.run.data_digest import data_digest, joint_digest
from dcal.run.directory import IDENTITY_FILE
from dcal.run.files import read_json
from dcal.run.identity import reader_name
from dcal.task.inference import finite
from dcal.training.build import make
from dcal.utils.errors import UserError, check_number, choose

logger = logging.getLogger(__name__)
SEEN_AS_IN_THE_RUN = ("image_size", "resize", "augment", "decode")
"""Keys of a data set in which another one follows the run: its images are for the run's model."""
WHOLE = {"val_fraction": 0.0, "val_ids": 0, "train_fraction": 1.0, "label_noise": 0.0}
"""Another data set is not trained on: nothing is held out or left out."""


def open_data(restored: Restored, dataset: Mapping[str, Any] | None = None) -> Data:
    """The run's data set, the same at another place, or another one.

    Args:
        dataset: of the command's configuration: a whole data set with its `reader`, or single keys such as `root`
            that replace the run's; images are resized and cropped as in the run in either case.

    Raises:
        DataError: the data are not where they should be.
        RunError: the run names code that is not trusted, or its reader has no use for a root.
        UserError: in classification, the classes are not those of the run.
    """
    own: dict[str, Any] = OmegaConf.to_container(restored.config.dataset)  # type: ignore[assignment]
    asked: Any = OmegaConf.to_container(dataset, resolve=True) if isinstance(dataset, DictConfig) else dataset or {}
    members = own["members"]
    if asked.get("reader"):
        if restored.device.num_cameras and (members or reader_name(asked["reader"]) != reader_name(own["reader"])):
            hint = "choose a member with member=NAME" if members else "evaluate it on its own set"
            raise UserError(
                "dataset: the run embeds the cameras that it was trained with (task.side_information), and would take "
                f"this set's for those; {hint}"
            )
        own = {key: own[key] for key in SEEN_AS_IN_THE_RUN}
        node = {**asked, **own, **WHOLE}
    elif asked.get("_target_"):
        raise UserError("dataset=joint: is for dcal-train; datasets=[NAME:ROOT,...] evaluates on several sets")
    elif members:
        node = {**own, **drop_none(asked), "members": _moved_members(members, drop_none(asked))}
    else:
        node = {**own, **drop_none(asked)}
        if node["members"] is not None:
            raise UserError("dataset.members: the run was trained on a single data set; set dataset.root")
        if node["root"] != own["root"]:
            node["reader"] = _moved(own["reader"], own["root"], node["root"])
    restored.trust.check("dataset", own)
    data: Data = make(OmegaConf.create({"dataset": node}).dataset)
    if restored.task.name == "fgvc" and data.class_names != restored.class_names:
        raise UserError(
            f"dataset: the classes of {data.catalog.name} ({data.num_classes}) are not the {len(restored.class_names)} "
            "that the run was trained on, name by name and in their order"
        )
    return data


def member_of(data: Data, name: str | None) -> Data:
    """The data set of this name among those that a run was trained on together.

    Args:
        data: what `open_data` gave.
        name: None for the data themselves.

    Raises:
        UserError: there is none of this name.
    """
    if name is None:
        return data
    if not data.members:
        raise UserError(f"member={name}: the run was trained on a single data set; leave it out")
    return data.members[choose("member", name, data.members)]


def open_images(opened: Opened, images: Sequence[Path | Record], batch_size: int | None = None) -> Loader:
    """Batches of images that belong to no data set, as the model's evaluation would see them.

    Args:
        batch_size: None for that of the model's evaluation.

    Raises:
        UserError: the model embeds cameras or views, and those of an image are unknown to it.
    """
    check_sides(opened, images)
    own, train = opened.config.dataset, opened.config.train
    size = batch_size or train.eval_batch_size
    workers = train.workers if len(images) > size else 0  # not worth starting for one batch
    pins = opened.device.pins_memory
    return image_loader(images, own.image_size, own.resize, size, workers, pins, own.decode)


def embed_images(opened: Opened, records: Sequence[Record], first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeds batch by batch.

    The features are those of a run's evaluation: each branch's L2-normalised, concatenated, normalised again. Those of
    a plain backbone are L2-normalised, see `PlainBackbone`.

    Args:
        first: position of the first record in a longer list, of which these continue the computation.

    Yields:
        positions in `records` (b,) and features float32 (b, D), both on the CPU; images that cannot be read, or for
        which the model answers with NaN, are left out, with a warning.

    Raises:
        DataError: at the end, if not one of the images can be read, or the model answers with NaN for all.
        UserError: the model needs cameras that the records lack.
    """
    predictor, any_usable = opened.predictor, False
    for seen in predictor.batches(open_images(opened, records), features_only=True, first=first):
        usable = finite(seen)
        for position in seen.index[~usable].tolist():
            logger.warning("left out: %s: the model answers with NaN", records[position].path)
        if usable.any():
            any_usable = True
            yield seen.index[usable], predictor.embedding(seen)[usable]
    if not any_usable:
        raise DataError("the model answers with NaN for every image: its weights are of no use")


def check_sides(opened: Opened, images: Sequence[Path | Record]) -> None:
    """Refuses images whose cameras or views a model with a camera embedding does not know.

    Raises:
        UserError: naming the first of them.
    """
    device = opened.device
    for image in images if device.num_cameras else ():
        camera, view = (image.camera, image.view) if isinstance(image, Record) else (-1, -1)
        if not 0 <= camera < device.num_cameras or (device.num_views > 1 and not 0 <= view < device.num_views):
            path = image.path if isinstance(image, Record) else image
            raise UserError(
                f"task.side_information={opened.task.side_information}: the model has learned {device.num_cameras} "
                f"cameras, and needs one of them for each image (for camera_view also its view); not so for {path}"
            )


def chosen(
    opened: Opened,
    images: str | Sequence[str] | None,
    split: str | None,
    dataset: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> tuple[list[Record], str]:
    """The images, at most `limit` of them, at equal distances (a split is sorted by class), and where they are from.

    Args:
        images: file, folder or glob, see `dcal.dataset.image_files.find_images`; their label is -1.
        split: of the run's data set; a plain backbone has none.
        dataset: keys that replace the run's, as `open_data` takes them.

    Raises:
        UserError: both or neither are given, there is no such split, or no image is asked for.
        DataError: nothing is where it should be.
    """
    if (images is None) == (split is None):
        raise UserError("images, split: give one of the two, images=PATH or split=NAME of the run's data set")
    check_number("limit", limit, ge=1, whole=True)
    if split is not None:
        if not isinstance(opened, Restored):
            raise UserError(f"split={split}: {opened.title} has no data set of its own: give images=PATH")
        data = open_data(opened, dataset)
        records, origin = data.records(split), data_title(data, split)
    else:
        refuse_data_keys(dataset, f"images={images}")
        records = [Record(Path(path), -1) for path in find_images(images)]  # type: ignore[arg-type]  # not None here
        origin = f"images={images}"
    records = records if limit is None else spread(records, limit)
    return records, f"{origin}, {len(records)} images"


def refuse_data_keys(dataset: Mapping[str, Any] | None, instead: str) -> None:
    """Refuses keys of a data set where none is opened.

    Args:
        dataset: of the command's configuration.
        instead: what is looked at, for the message.

    Raises:
        UserError: naming the first of them.
    """
    for key, value in drop_none(dataset or {}).items():
        raise UserError(
            f"dataset.{key}={value}: has no effect on {instead}, only on a split of a data set; leave it out"
        )


def is_data_of_run(restored: Restored, data: Data, dataset: Mapping[str, Any]) -> bool:
    """Whether a data set is the one that the run was trained and evaluated on, wherever it is.

    Args:
        data: what `open_data` gave.
        dataset: of the command's configuration, with which `open_data` was called.
    """
    file = restored.directory / IDENTITY_FILE
    known = read_json(file)["data"] if file.is_file() else None
    drawn = {name: "recipe" in one.source.protocol for name, one in data.members.items()}
    if data.members:
        here = joint_digest({name: None if drawn[name] else one.source for name, one in data.members.items()})
        return (None if here is None else here.sha256) == (known and known["sha256"])
    if known is not None:
        return bool(data_digest(data.source).sha256 == known["sha256"])
    # a drawn set is what its reader's options say, and an older run has kept nothing but the place
    same_place = "recipe" in data.source.protocol or str(data.root) == str(restored.config.dataset.root)
    return same_place and not dataset.get("reader")


def data_title(data: Data, *splits: str) -> str:
    """On which data a figure is: name, root and splits."""
    where = "" if data.root is None else f" in {data.root}"
    return f"{data.catalog.name}{where}, split {' and '.join(splits)}"


def _moved_members(members: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a run's data set, some of them at another place.

    Raises:
        UserError: there is no such member, or something else than its place is asked for.
    """
    if "root" in asked:
        raise UserError(
            f"dataset.root={asked['root']}: the run was trained on {', '.join(members)}; set dataset.members.NAME.root"
        )
    allowed = {"allow_mismatch": asked["allow_mismatch"]} if "allow_mismatch" in asked else {}
    moved = {name: {**own, **allowed} for name, own in members.items()}
    for name, given in (asked.get("members") or {}).items():
        own = moved[choose("dataset.members", name, members)]
        for key in given:
            choose(f"dataset.members.{name}", key, ("root", "allow_mismatch"))
        reader = _moved(own["reader"], own["root"], given["root"]) if "root" in given else own["reader"]
        moved[name] = {**own, **given, "reader": reader}
    return moved


def _moved(reader: Mapping[str, Any], old: str | None, new: str) -> dict[str, Any]:
    """The arguments of a run's reader for the same data set at another place.

    A run keeps values and no references, so what was `${dataset.root}` is found by its value.
    """
    places = [key for key, value in reader.items() if key == "root" or (old is not None and value == old)]
    if not places:
        raise RunError(f"dataset.root={new}: the run's reader, {reader.get('_target_')}, takes no root")
    return {**reader, **dict.fromkeys(places, new)}
