"""The keys and the options that a command has, by the schema and the files of `conf/`; words that name others.

All of it is known before anything is composed or torch is imported.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dcal import config as schema
from dcal.run.identity import flatten
from dcal.utils.errors import UserError, first_line, nearest
from dcal.utils.paths import config_dir, experiments_dir

FREE = ("hydra.", "hydra/", "dataset.reader.", "dataset.members.", "backbone.kwargs.")
"""Keys below these belong to Hydra, a reader, a member or a timm model, so they are not ours to list."""

INTERNAL = ("_partial_", "_args_", "_recursive_", "_convert_")
"""Hydra's own keys in a node, which say how `dcal` calls a `_target_`."""

NULL_IS_NONE = frozenset({"picture", "threads"})
"""Keys of the commands other than `dcal-train` that have a default and may be null."""

NAMES_AND_PATHS = frozenset(
    {"run", "runs", "images", "image", "index", "out", "picture", "tables", "figures", "html", "repo", "root"}
    | {"unknown", "pair", "member", "save_items", "pages"}
    | {"report", "verdicts", "list", "compare", "best", "where", "dataset.root", "backbone.name", "backbone.checkpoint"}
)
"""Keys that hold text, in the files of the commands other than `dcal-train`, which give no types."""


def config_file(config_name: str) -> Path:
    """`conf/<name>.yaml`, or `conf/<name>/<name>.yaml`, where Hydra sees no groups.

    The latter is for a command with keys that are called like groups: `dcal-bench attention=[glca,dcal]`.
    """
    own = config_dir() / config_name / f"{config_name}.yaml"
    return own if own.is_file() else config_dir() / own.name


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The user's own folder of YAML files, which `--config-dir DIR` puts beside `conf/`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    given = parser.parse_known_args(list(arguments))[0].config_dir
    if given == "":
        raise UserError("--config-dir: the folder's name is empty (a shell variable that is not set?)")
    return [] if given is None else [Path(given).absolute()]


def search_path(arguments: Sequence[str]) -> str:
    """The word that makes Hydra find `experiments/` and the user's own folder, for a composition of our own."""
    folders = [f"'file://{folder}'" for folder in (experiments_dir(), *config_folders(arguments))]
    return f"hydra.searchpath=[{','.join(folders)}]"


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
        return _entries(OmegaConf.structured(schema.Config), "")
    own = OmegaConf.load(config_file(config_name))
    of_data = _entries(OmegaConf.structured(schema.DatasetConfig), "dataset.") if "dataset" in own else []
    return _entries(own, "") + of_data


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
    return frozenset(key for key, kind in key_types(schema.Config, "") if kind in (str, str | None, list[str]))


@cache
def required_keys(config_name: str) -> frozenset[str]:
    """Keys for which null is no value."""
    if config_name == "train":
        types = key_types(schema.Config, "")
        return frozenset(key for key, kind in types if kind is not Any and type(None) not in get_args(kind))
    return frozenset(key for key, value in _own_values(config_name).items() if value is not None) - NULL_IS_NONE


@cache
def switches(config_name: str) -> frozenset[str]:
    """Keys of the commands other than `dcal-train` that are true or false; those of `dcal-train` have their type."""
    if config_name == "train":
        return frozenset()
    return frozenset(key for key, value in _own_values(config_name).items() if isinstance(value, bool))


def _own_values(config_name: str) -> dict[str, Any]:
    """The values in the file of a command other than `dcal-train`, by key in dotted form."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(config_file(config_name)))
    return dict(flatten({key: value for key, value in plain.items() if key not in ("defaults", "hydra")}))


@cache
def list_keys(config_name: str) -> frozenset[str]:
    """Keys of `dcal-train` whose value is a list; the other commands take a single value as it is."""
    if config_name != "train":
        return frozenset()
    return frozenset(key for key, kind in key_types(schema.Config, "") if kind in (list[str], list[int]))


def key_types(node: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys of a dataclass of the schema and of those in it, in dotted form, each with its annotated type."""
    for name, kind in get_type_hints(node).items():
        if is_dataclass(kind):
            yield from key_types(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, kind


def check_words(arguments: Sequence[str], config_name: str = "train") -> None:
    """Refuses words that name a folder, an option or a key that does not exist, or that remove a key.

    Args:
        arguments: of the command line.
        config_name: of the command.

    Raises:
        UserError: the message has the nearest names.
    """
    folders = config_folders(arguments)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    required = required_keys(config_name)
    overrides = [_parse(word) for word in arguments if is_override(word)]
    keys = known_keys(config_name)
    has_groups = config_file(config_name).parent == config_dir()  # so that `attention=glca` chooses a file
    for override in overrides:
        options = group_options(override.key_or_group, folders) if has_groups else []
        _check_value(override, override.key_or_group in required)
        if override.key_or_group in switches(config_name) and not isinstance(override.value(), bool):
            raise UserError(f"{override.input_line}: must be true or false")
        if options:
            _check_option(override, options)
        elif not override.key_or_group.startswith(FREE) and override.key_or_group not in keys:
            raise UserError(f"{override.key_or_group}: no such key; {_similar_key(override.key_or_group, keys)}")


def is_override(word: str) -> bool:
    """Whether a word of a command line is a `key=value` or removes a key, and no flag nor what belongs to one."""
    return word[:1] == "~" or ("=" in word and word[0] != "-")


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UserError(f"{word}: this is no key=value that can be read ({first_line(error)})") from None


def _check_value(override: Override, required: bool) -> None:
    """Refuses a value that cannot be meant; `required`: null is none for this key."""
    key, word = override.key_or_group, override.input_line
    if override.is_delete() and not key.startswith(FREE):
        switch = {"wandb": "; wandb.mode=disabled switches it off", "attention": "; attention=none is the plain ViT"}
        raise UserError(f"{word}: no part of the configuration can be removed{switch.get(key.split('.')[0], '')}")
    if key.rpartition(".")[2] in INTERNAL:
        raise UserError(f"{word}: is how dcal calls the _target_ beside it, and no option; leave it out")
    if not override.is_delete() and override.value() == "" and not key.startswith(FREE):
        none = "" if required else f"; {key}=null is none"
        raise UserError(f"{word}: the value is empty (a shell variable that is not set?){none}")
    if required and not override.is_delete() and override.value() is None:
        raise UserError(f"{word}: must have a value; --help explains each key")
    if key == "ablation" and override.is_sweep_override():
        raise UserError(
            f"{word}: an ablation is a sweep of its own, and Hydra would leave out its parameters; give one command "
            "per ablation"
        )


def _check_option(override: Override, options: Sequence[str]) -> None:
    key, value = override.key_or_group, override.value()
    optional = key in ("experiment", "variant", "ablation")
    if optional and isinstance(value, list):  # several files at once
        choices = value
    else:
        choices = value.list if isinstance(value, ChoiceSweep) else [value]
    for choice in choices:
        if isinstance(choice, Sweep | Glob):
            continue
        if choice is None:
            hint = "leave the word out" if optional else f"choose one of {', '.join(options)}"
            raise UserError(f"{key}=null: null is no option; {hint}")
        if not isinstance(choice, str | int | float) or str(choice) not in options:
            raise UserError(f"{key}={choice}: no such option; {nearest(str(choice), options)}")


def _similar_key(key: str, keys: Sequence[str]) -> str:
    """A hint for a key that does not exist: the full name of a last part such as `lr`, or similar keys."""
    full = [name for name in keys if name.endswith(f".{key}")] or difflib.get_close_matches(key, keys, cutoff=0.4)
    return f"did you mean {' or '.join(full)}?" if full else "--help lists the keys"


def check_complete(config: DictConfig) -> None:
    """Refuses a configuration that lacks a mandatory key.

    Raises:
        UserError: the message names the keys.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{' '.join(f'{key}=...' for key in missing)} must be given; --help explains each key")
