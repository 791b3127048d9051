"""The keys and the options that a command has, read from the schema and from the files of `conf/`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from dcal import config as schema
from dcal.utils.paths import config_dir, experiments_dir

FREE = ("hydra.", "hydra/", "dataset.reader.", "backbone.kwargs.")
"""Keys below these belong to Hydra, a reader or a timm model, so they are not ours to list."""

NAMES_AND_PATHS = frozenset(
    {"run", "runs", "images", "image", "index", "out", "picture", "report", "tables", "figures", "html", "repo"}
    | {"dataset.root"}
)
"""Keys that hold text, in the files of the commands beside `dcal-train`, which give no types."""


def config_file(config_name: str) -> Path:
    """`conf/<name>.yaml`, or `conf/<name>/<name>.yaml`, where Hydra sees no groups.

    The latter is for a command with keys that are called like groups: `dcal-bench attention=[glca,dcal]`.
    """
    own = config_dir() / config_name / f"{config_name}.yaml"
    return own if own.is_file() else config_dir() / own.name


def has_groups(config_name: str) -> bool:
    """Whether words such as `attention=glca` choose an option of a group in this command."""
    return config_file(config_name).parent == config_dir()


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The user's own folder of YAML files, which `--config-dir DIR` puts beside `conf/`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    given = parser.parse_known_args(list(arguments))[0].config_dir
    return [] if given is None else [given.absolute()]


def group_options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The options of a config group, those of `experiments/` and of `folders` included; empty if there is none."""
    found: list[str] = []
    for root in (config_dir(), experiments_dir(), *folders):
        folder = root / group
        if folder.is_dir() and "." not in group:
            found += [str(f.relative_to(folder).with_suffix("")) for f in sorted(folder.rglob("*.yaml"))]
    return [name.replace("\\", "/") for name in found]


def known_keys(config_name: str) -> list[str]:
    """Every key of a command in dotted form, groups and inner nodes included.

    Those of `train` are the schema's; the other commands have theirs in their `config_file`, and, where they take a
    data set, its keys.
    """
    if config_name == "train":
        return _fields(schema.Config(), "")
    own = OmegaConf.load(config_file(config_name))
    return [*_entries(own, ""), *(_fields(schema.DatasetConfig(), "dataset.") if "dataset" in own else ())]


def _fields(node: Any, prefix: str) -> list[str]:
    keys = []
    for field in fields(node):
        keys.append(prefix + field.name)
        value = getattr(node, field.name, None)
        if is_dataclass(value):
            keys += _fields(value, f"{prefix}{field.name}.")
    return keys


def _entries(node: Any, prefix: str) -> list[str]:
    keys = []
    for key in node:
        if key not in ("defaults", "hydra"):
            keys.append(prefix + key)
            value = node._get_node(key)
            keys += _entries(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else []
    return keys


@cache
def text_keys(config_name: str) -> frozenset[str]:
    """Keys whose value is text, or a list of texts, whatever it looks like."""
    if config_name != "train":
        return NAMES_AND_PATHS & set(known_keys(config_name))
    return frozenset(key for key, kind in _types(schema.Config, "") if kind in (str, str | None, list[str]))


@cache
def list_keys(config_name: str) -> frozenset[str]:
    """Keys of `dcal-train` whose value is a list; the other commands take a single value as it is."""
    if config_name != "train":
        return frozenset()
    return frozenset(key for key, kind in _types(schema.Config, "") if kind in (list[str], list[int]))


def _types(node: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(node).items():
        if is_dataclass(kind):
            yield from _types(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, kind
