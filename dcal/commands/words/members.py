"""The members of `dataset=joint` in full: each is composed from the file of its name, then changed by its own keys.

A configuration that a run keeps holds plain values and needs no other file; so what Hydra has composed is completed
here, before anything reads it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dcal.commands.words.keys import config_folders, group_options, search_path
from dcal.config import OF_MEMBERS, DatasetConfig
from dcal.utils.errors import UserError, choose, first_line, nearest

JOINT = "joint"
FORM = "dataset"
"""Key of a member: the file of conf/dataset that it is read by, where that is not its name."""
NAME = re.compile(r"[A-Za-z0-9][\w-]*")
FROM_FIRST = ("image_size", "resize", "augment.flip", "augment.pad", "augment.erase")
"""Keys of all members that are those of the first one, unless they are given."""


def with_members(config: DictConfig) -> DictConfig:
    """A composed configuration of `dcal-train` with the members of its data set in full; else as it is.

    Args:
        config: is changed in place.

    Raises:
        UserError: a member cannot be had, or has a key that it cannot have; the message names the key.
    """
    dataset = config.dataset
    if dataset.members is None:
        return config
    if (dataset.reader or {}).get("_target_"):
        raise UserError("dataset.members: of several data sets, needs dataset=joint")
    if dataset.reader:
        raise UserError(
            f"dataset.reader.{next(iter(dataset.reader))}: every member has its own, "
            "dataset.members.NAME.reader; if experiment=... has set it, leave that out"
        )
    given: Any = OmegaConf.to_container(dataset.members, resolve=True) if OmegaConf.is_dict(dataset.members) else None
    if not given:
        raise UserError(
            "dataset.members: dataset=joint needs members, such as dataset.members.market1501.root=FOLDER "
            "dataset.members.msmt17.root=FOLDER"
        )
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(DatasetConfig), throw_on_missing=False)
    for key in OF_MEMBERS:
        if key != "reader" and dataset[key] != defaults[key]:
            raise UserError(f"dataset.{key}: every member has its own; set dataset.members.NAME.{key}")
    nodes = {str(name): member_node(str(name), own or {}) for name, own in given.items()}
    with open_dict(config):
        dataset.members = {name: {key: node[key] for key in OF_MEMBERS} for name, node in nodes.items()}
    first = OmegaConf.create(next(iter(nodes.values())))
    for key in FROM_FIRST:
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(dataset, parent) if parent else dataset
        if OmegaConf.is_missing(node, last):
            node[last] = OmegaConf.select(first, key)
    return config


def member_node(name: str, own: Any) -> dict[str, Any]:
    """The whole configuration of one member, in plain values.

    Raises:
        UserError: naming its key.
    """
    prefix = f"dataset.members.{name}"
    if not NAME.fullmatch(name):
        raise UserError(f"{prefix}: a member's name has letters, digits, _ and - alone: it is part of file names")
    if not isinstance(own, dict):
        raise UserError(f"{prefix}={own}: is a data set, and has keys: {prefix}.root=FOLDER")
    form = str(own.pop(FORM, name))
    options = [option for option in group_options("dataset", config_folders(sys.argv[1:])) if option != JOINT]
    choose(f"{prefix}.{FORM}" if form != name else "dataset.members", form, options)
    try:
        composed = compose("train", [search_path(sys.argv[1:]), f"dataset={form}"])
        for key, value in _checked(own, composed.dataset, prefix):
            OmegaConf.update(composed, f"dataset.{key}", value)
        node: Any = OmegaConf.to_container(composed.dataset, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{prefix}: {first_line(error)}") from None
    node["reader"]["_partial_"] = True  # called by the joint set, which says whose reader it was
    return dict(node)


def _checked(own: Mapping[str, Any], node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys that a member gives below its name, each with its value.

    Raises:
        UserError: the set has no such key, or all members share it.
    """
    for key, value in own.items():
        if key not in OF_MEMBERS:
            if key in node:
                raise UserError(f"{prefix}.{key}: all members have the same; set dataset.{key}")
            raise UserError(f"{prefix}.{key}: no such key; {nearest(str(key), [FORM, *OF_MEMBERS])}")
        if key != "reader":
            yield key, value
            continue
        if not isinstance(value, dict):
            raise UserError(f"{prefix}.reader={value}: has keys of its own: {prefix}.reader.KEY=VALUE")
        for option, chosen in value.items():
            known = [str(name) for name in node.reader if name not in ("_target_", "root")]
            if option not in known:
                hint = nearest(str(option), known) if known else "this set has no options"
                raise UserError(f"{prefix}.reader.{option}: no such key; {hint}")
            yield f"reader.{option}", chosen
