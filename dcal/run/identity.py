"""What makes two runs the same: settings, weights and data, but neither the seed nor what only decides speed or place.

The id is a hash of what differs from the schema's defaults (`dcal.config`), so that a new key at its default changes no
id, and of the last name of a `_target_` of this package, so that a moved module does not either. docs/identity.md has
the table of what counts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dcal.config import Config
from dcal.dataset.record import Catalog
from dcal.run.data_digest import DataDigest, data_digest, joint_digest
from dcal.run.digest import file_digest, json_digest
from dcal.utils.arguments import typed_arguments
from dcal.utils.errors import UserError
from dcal.utils.streams import quiet

IDENTITY = ("backbone", "attention", "task", "dataset", "optimizer", "train", "deterministic")
"""Nodes of the configuration that decide the numbers of a run."""
NOT_IDENTITY = {
    "dataset": {"root", "cache", "on_bad_image"},
    "train": {
        "workers",
        "progress",
        "log_every",
        "figures",
        "checkpoint_minutes",
        "eval_batch_size",
        "accumulate",
        "auto_accumulate",
        "compile",
        "activation_checkpointing",
    },
}
"""Keys of these nodes that only decide where data are and how fast they come."""
ROOT = "<root>"
"""Stands for `dataset.root` in what is hashed: the same data elsewhere are the same data."""

MEMBER = re.compile(r"^dataset\.members\.[^.]+\.")
"""Beginning of the keys of a member of `dataset=joint`."""

Flat = Mapping[str, Any]
"""A configuration in dotted keys, with `attention` by its name; see `attention_name`."""
_NO_GLCA = ("none", "pwca")
_NO_PWCA = ("none", "glca")
IDLE: Mapping[str, Callable[[Flat], bool]] = {
    "backbone.lora.": lambda flat: not flat.get("backbone.lora.rank"),
    "attention.glca.": lambda flat: flat["attention"] in _NO_GLCA,
    "attention.head_fusion": lambda flat: flat["attention"] in _NO_GLCA,
    "attention.pwca.": lambda flat: flat["attention"] in _NO_PWCA,
    "attention.pwca.curriculum": lambda flat: flat.get("attention.pwca.pairing") != "curriculum",
    "attention.pwca.pairing_ratio": lambda flat: (
        "mixed" not in (flat.get("attention.pwca.pairing"), *(flat.get("attention.pwca.curriculum") or ()))
    ),
    "task.loss_weighting": lambda flat: (
        flat["attention"] == "none" and flat.get("task.loss_weighting") != "uncertainty_always"
    ),
    "task.triplet.margin": lambda flat: flat.get("task.triplet.weight") == 0,
}
"""Beginning of a key → whether it decides nothing given the other values of a configuration."""


class Identity(NamedTuple):
    """What makes a run this run, as `identity.json` in its directory keeps it."""

    settings: dict[str, Any]
    """In dotted keys: what differs from the schema's defaults, without idle keys."""
    weights: str | None
    """SHA-256 of the content of `backbone.checkpoint`, or of a folder in `backbone.name`; None without either."""
    data: DataDigest | None
    """None where the options of the reader say it all (drawn sets), or where the data cannot be read."""
    readable: bool = True
    """False if the data cannot be read: the run cannot be told from one on other data."""

    @property
    def settings_id(self) -> str:
        """Eight hexadecimal digits over settings and weights."""
        return _short({"settings": self.settings, "weights": self.weights})

    @property
    def cfg_id(self) -> str:
        """Eight hexadecimal digits over everything: the name of the folder that holds the seeds of a run."""
        if self.data is None:
            return self.settings_id
        return _short({"settings": self.settings, "weights": self.weights, "data": self.data.sha256})

    def to_json(self) -> dict[str, Any]:
        """For `identity.json`."""
        data = None
        if self.data is not None:
            data = {**asdict(self.data), "classes": len(self.data.class_names)}
            del data["class_names"]  # model.json has them
        return {
            "cfg_id": self.cfg_id,
            "settings_id": self.settings_id,
            "settings": self.settings,
            "weights": self.weights,
            "data": data,
        }


def identify(config: DictConfig) -> Identity:
    """The identity of the run that `config` describes; reads the lists of its data set, but no image.

    Raises:
        UserError: `backbone.checkpoint` is not there; the message names the key.
    """
    data, readable = read_digest(config)
    return Identity(settings(config), weights_digest(config), data, readable)


def settings(config: DictConfig) -> dict[str, Any]:
    """What decides the numbers, in dotted keys: no defaults of the schema, no idle keys, no paths."""
    kept = copy.deepcopy(config)
    OmegaConf.set_readonly(kept, False)
    kept.dataset.root = ROOT
    if kept.dataset.members is not None:
        kept.dataset.members = {name: _placeless(member) for name, member in kept.dataset.members.items()}
    nodes = {key: kept[key] for key in IDENTITY}
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }
    for key, left_out in NOT_IDENTITY.items():
        plain[key] = {name: value for name, value in plain[key].items() if name not in left_out}
    flat = dict(flatten(plain))
    described = {**flat, "attention": attention_name(flat)}
    defaults = schema_defaults()
    found = {}
    for key, value in flat.items():
        own = MEMBER.sub("dataset.", key)  # a member's key counts as that of a single data set
        if own in ("backbone.checkpoint", "dataset.root", "dataset.reader.root") or key.endswith("_partial_"):
            continue
        if (own in defaults and value == defaults[own]) or is_idle(key, described):
            continue
        if own.startswith("dataset.reader.") and value is None:  # not given: a reader may learn new options
            continue
        if key.endswith("_target_"):
            value = str(value).rpartition(".")[2] if str(value).startswith("dcal.") else value
        elif key == "backbone.name" and str(value).startswith("local-dir:"):
            value = "local-dir"
        found[key] = value
    return dict(sorted(found.items()))


COUNTED = frozenset(
    {
        *(f"attention.glca.{key}" for key in ("blocks", "top_ratio", "selection", "readout", "init")),
        *(f"attention.pwca.{key}" for key in ("blocks", "stream", "pairing", "pairing_ratio", "curriculum")),
    }
)
"""Keys that were given a default after runs had been made: they count in an id whatever their value."""


@cache
def schema_defaults() -> dict[str, Any]:
    """Dotted key → the schema's default, for the keys that have one. It never moves: that would change ids."""
    schema: Any = OmegaConf.to_container(OmegaConf.structured(Config), throw_on_missing=False)
    nodes = {key: schema[key] for key in IDENTITY}
    return {key: value for key, value in flatten(nodes) if value != "???" and key not in COUNTED}


@cache
def recorded_defaults() -> dict[str, Any]:
    """`schema_defaults` of the keys that a record of a finished run has: neither targets, nor places, nor speed."""
    left_out = {f"{node}.{key}" for node, keys in NOT_IDENTITY.items() for key in keys}
    left_out |= {"backbone.kwargs", *(key for key in schema_defaults() if key.endswith(("_target_", "_partial_")))}
    return {key: value for key, value in schema_defaults().items() if key not in left_out}


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested configuration as dotted keys and their values; empty nodes give nothing."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def attention_name(flat: Flat) -> str:
    """`none`, `glca`, `pwca` or `dcal`, by the branches that a flat configuration has."""
    glca, pwca = flat["attention.glca.blocks"] != 0, flat.get("attention.pwca.blocks") != 0
    return {(False, False): "none", (True, False): "glca", (False, True): "pwca", (True, True): "dcal"}[glca, pwca]


def is_idle(key: str, flat: Flat) -> bool:
    """Whether a key decides nothing in this configuration, as an option of a branch that is off."""
    return any(key.startswith(beginning) and idle(flat) for beginning, idle in IDLE.items())


def weights_digest(config: DictConfig) -> str | None:
    """SHA-256 of the weights that the backbone starts from, None where timm or chance gives them.

    Raises:
        UserError: the file is not there.
    """
    checkpoint, name = config.backbone.checkpoint, str(config.backbone.name)
    if checkpoint:
        file = Path(checkpoint).expanduser()
        if not file.is_file():
            raise UserError(f"backbone.checkpoint={checkpoint}: no such file; give the path of a weight file")
        return file_digest(file)
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if name.startswith("local-dir:") and folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file())
        return json_digest([(file.name, file_digest(file)) for file in files])
    return None


def read_digest(config: DictConfig) -> tuple[DataDigest | None, bool]:
    """The digest of the data set, and whether it could be read.

    What is wrong with the data is not said here: the run meets it again when it opens them, and has a place to note it.
    """
    members = config.dataset.members
    readers = {"": config.dataset.get("reader")} if members is None else {n: m.reader for n, m in members.items()}
    catalogs: dict[str, Catalog | None] = {}
    for name, reader in readers.items():
        if not OmegaConf.is_dict(reader) or _is_drawn(reader):
            catalogs[name] = None  # its options are part of the settings
            continue
        try:
            with quiet("dcal.dataset"):
                catalog = instantiate(typed_reader(reader, "dataset.reader"), _convert_="all", _partial_=False)
        except Exception:  # a reader may be the user's own, and raise anything
            return None, False
        if not isinstance(catalog, Catalog):
            return None, False
        catalogs[name] = catalog
    if members is not None:
        return joint_digest(catalogs), True
    (only,) = catalogs.values()
    return None if only is None else data_digest(only), True


def typed_reader(reader: DictConfig, key: str) -> dict[str, Any]:
    """The node of a reader, its options as the function annotates them; see `typed_arguments`.

    Raises:
        InstantiationException: there is no such function.
        UserError: an option of another type; the message names its key.
    """
    function = instantiate({"_target_": reader._target_, "_partial_": True}).func
    given: Any = OmegaConf.to_container(reader, resolve=True)
    return typed_arguments(function, given, key)


def _is_drawn(reader: DictConfig) -> bool:
    """Whether the program itself draws the images."""
    return str(reader.get("_target_")).startswith("dcal.") and reader_name(reader).startswith("synthetic_")


def reader_name(reader: Mapping[str, Any] | None) -> str:
    """The name of a data set by the node of its reader: `market1501` of `read_market1501`; empty without one."""
    return str((reader or {}).get("_target_", "")).rpartition(".")[2].removeprefix("read_")


def dataset_name(dataset: Mapping[str, Any]) -> str:
    """The name of the data set of a configuration; of several the names of the members, joined by +."""
    return "+".join(sorted(dataset.get("members") or ())) or reader_name(dataset.get("reader"))


def _placeless(member: Mapping[str, Any]) -> dict[str, Any]:
    """A member of a joint data set with `ROOT` wherever its folder is named: in the values that referred to it."""
    root = member["root"]
    reader = {key: ROOT if root is not None and value == root else value for key, value in member["reader"].items()}
    return {**member, "root": ROOT, "reader": reader}


def _short(content: Any) -> str:
    return json_digest(content)[:8]
