"""What a run's configuration may do when it is opened: it is a file, and a stranger may have written it.

- It is plain data. `${oc.env:NAME}` would read the environment of whoever opens it, and `${device}` could mean
  something else after it was checked; so a configuration that holds an interpolation is not opened.
- It may name the code that the files of `conf/` name, or those of a folder that the user gives by `--config-dir`. What
  is instantiated is the very data that was checked. (Hydra refuses some targets besides, such as `os.system`.)
- Its backbone is built by name, without weights: nothing is fetched, and no file that it names is read.

`trust=true` lifts the last two rules: the user vouches for the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm

from dcal.run.directory import CONFIG_FILE
from dcal.run.label import FILES, GROUPS
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir

NORMALIZATION = ("mean", "std")
"""What is kept of a `pretrained_cfg`: timm reads everything else in it, such as `url`, to find weights."""
READS_FILES = ("pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "pretrained", "pretrained_strict")
"""Arguments of `timm.create_model` that only say where weights come from."""
TIMM_VIT, DCAL_TARGET = "dcal.backbone.create_backbone", "dcal.model.DCAL"


class RunError(UserError):
    """A run directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Trust:
    """Whose code a run may name."""

    everything: bool = False
    """The user vouches for the run: any target, and a backbone of the hub or of a folder."""
    folders: tuple[Path, ...] = ()
    """Folders of the user's own YAML files, whose targets count as named in `conf/`."""

    def check(self, key: str, node: Any) -> None:
        """Refuses a node that would run other code.

        Args:
            key: of the node in the configuration, e.g. `backbone`.
            node: plain data.

        Raises:
            RunError: a `_target_` that nobody has named; the message names its key.
        """
        if self.everything:
            return
        known = _known_targets(config_dir()).union(*map(_known_targets, self.folders))
        for name, target in _leaves(node, f"{key}."):
            if name.rpartition(".")[2] == "_target_" and str(target) not in known:
                raise RunError(
                    f"{name}={target}: the run wants to execute code that conf/ does not name, and is not opened. If "
                    "it is your own, give the folder of its YAML file (--config-dir DIR); if you trust whoever made "
                    "it, trust=true"
                )


def plain_data(node: Any, file: Path) -> Any:
    """A node of a configuration file, if it is plain data.

    Args:
        node: as YAML reads it, dictionaries and lists.
        file: for the message.

    Raises:
        RunError: it holds an interpolation; the message names its key, and does not resolve it.
    """
    for key, value in _leaves(node):
        if isinstance(value, str) and "${" in value:
            raise RunError(
                f"{file}: {key}={value} refers to something outside of the file, and is not opened: a run keeps plain "
                "values. Write the value in its place"
            )
    return node


def without_weights(backbone: Mapping[str, Any], trusted: bool = False) -> dict[str, Any]:
    """The arguments of `create_backbone` that build the architecture and nothing else: no weights, no adapters.

    Args:
        backbone: node of a configuration, or of `config.json`.
        trusted: the name may be that of a model on the hub or in a folder, whose configuration is then read.

    Raises:
        RunError: the name is none of timm's registry.
    """
    name, kwargs = backbone["name"], dict(backbone.get("kwargs") or {})
    of_timm = backbone.get("_target_", TIMM_VIT) == TIMM_VIT
    if of_timm and not trusted and not (isinstance(name, str) and timm.is_model(name.split(".")[0])):
        raise RunError(
            f"backbone.name={name}: not in timm's registry, and what a run names is neither fetched nor read from a "
            "folder; if you trust whoever made it, trust=true"
        )
    for key in READS_FILES:
        kwargs.pop(key, None)
    overlay = kwargs.pop("pretrained_cfg", None)
    if isinstance(overlay, Mapping):
        kwargs["pretrained_cfg"] = {key: overlay[key] for key in NORMALIZATION if key in overlay}
    return {**backbone, "kwargs": kwargs, "pretrained": False, "checkpoint": None, "lora": None}


@cache
def _known_targets(folder: Path) -> frozenset[str]:
    """Every `_target_` in a folder of configuration: in its own files and in its groups, but of no run below it."""
    inside = (file for group in (*GROUPS, *FILES) for file in (folder / group).rglob("*.yaml"))
    files = (file for file in (*folder.glob("*.yaml"), *inside) if file.is_file() and file.name != CONFIG_FILE)
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return frozenset(target for text in texts for target in re.findall(r"""_target_["']?: *["']?([\w.]+)""", text))


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of everything in a node that is no node itself, and of every `_target_`, whatever it is."""
    if isinstance(node, (dict, list)):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            if name == "_target_":
                yield f"{key}{name}", value
            else:
                yield from _leaves(value, f"{key}{name}.")
    else:
        yield key.removesuffix("."), node
