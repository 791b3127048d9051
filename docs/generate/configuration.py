"""docs/configuration.md: every key with its type, its default and its comment, from conf/ and the schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from omegaconf import DictConfig, OmegaConf

from dcal import config as schema
from dcal.commands.app import CONFIGURED
from dcal.commands.words.keys import config_file, group_options, key_types
from dcal.utils.paths import config_dir

GROUPS = ("dataset", "backbone", "attention", "task", "optimizer")
DATASETS = " Which sets there are, with their own keys `dataset.reader.*`: [data sets](datasets.md)."
COMMANDS = tuple(name for name in CONFIGURED if name != "train")
INTRODUCTION = """\
# Configuration reference

Written from the comments in [conf/](../conf) and the types in [dcal/config.py](../dcal/config.py) by
`python -m docs.generate configuration`; do not edit.

A key is given on the command line as `key=value`, for example `train.epochs=10`. A group is chosen by name, for example
`attention=glca`, and sets several keys at once. `dcal-train --cfg job ...` prints the configuration that a command line
gives, and trains nothing. A list is written `[a,b]`, nothing is `null`, and a value with spaces or special characters
needs quotes for the shell: `'key=a value'`.

*required* means that there is no default: the key or its group must be given. A name in `${...}` is the value of that
key.

- `dcal-train`: [the run](#the-run), [train](#train), [launch](#launch), [wandb](#wandb), [run](#run);
  the groups [dataset](#dataset), [backbone](#backbone), [attention](#attention), [task](#task), [optimizer](#optimizer)
- the other commands: {others}; `dcal-doctor` takes the keys of `dcal-train`, and
  `dcal-queue --help` explains its own
"""
TYPES: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    list[str]: "list of text",
    list[int]: "list of integers",
    Any: "any",
}
"""Words for the types of the schema; a type that is `| None` gets ", or null"."""
INTERNAL = ("_target_", "_partial_", "dataset.reader")
"""What a key's name may end with that is no setting: which Python class a group builds."""


class Key(NamedTuple):
    """A key of a YAML file, as it is written there."""

    name: str
    """In dotted form."""
    value: str
    """Empty for a key that only holds others."""
    comment: str


def keys_of(text: str) -> Iterator[Key]:
    """The keys of a YAML file in order, with the comment behind a value, below it (indented) or above it."""
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    found: list[Key] = []
    for line in text.splitlines():
        comment = re.fullmatch(r"( *)# ?(.*)", line)
        if comment:
            if parents and len(comment[1]) > parents[-1][0] and found[-1].value:
                found[-1] = found[-1]._replace(comment=f"{found[-1].comment} {comment[2]}")
            else:
                above.append(comment[2])
            continue
        entry = re.fullmatch(r"( *)(\w+):(?: +(?!#)(.*?))?(?: +# (.*))?", line)
        if entry:
            indent = len(entry[1])
            parents = [*(parent for parent in parents if parent[0] < indent), (indent, entry[2])]
            name = ".".join(part for _, part in parents)
            found.append(Key(name, entry[3] or "", entry[4] or " ".join(above)))
        above = []
    yield from found


def settings(text: str, prefix: str = "") -> list[Key]:
    """The keys of a file that hold a value and are settings of the program; the head of the file is no comment."""
    body = text[re.search(r"^[^#]", text, re.MULTILINE).start() :]  # type: ignore[union-attr]
    return [
        key._replace(name=prefix + key.name)
        for key in keys_of(body)
        if key.value and key.name.split(".")[0] not in ("defaults", "hydra") and not internal(prefix + key.name)
    ]


def internal(name: str) -> bool:
    return name.endswith(INTERNAL[:2]) or name.startswith(INTERNAL[2])


def type_of(key: Key, kinds: dict[str, Any]) -> str:
    """In words, by the schema; of a key that the schema does not have, by the value."""
    value = OmegaConf.to_container(OmegaConf.create(f"value: {key.value}"))["value"]  # type: ignore[call-overload,index]
    if key.name in kinds:
        kind = kinds[key.name]
        words = next(text for plain, text in TYPES.items() if kind in (plain, plain | None))
    elif value is None:
        words = "integer" if key.comment.startswith("number of") else "text"
    else:
        words = "list" if isinstance(value, list) else TYPES[type(value)]
    optional = value is None or (key.name in kinds and type(None) in get_args(kinds[key.name]))
    return f"{words}, or null" if optional else words


def default_of(value: str) -> str:
    environment = re.fullmatch(r"\$\{oc\.env:(\w+),(.*)\}", value)
    if environment:
        return f"`{environment[2]}`, or `${environment[1]}`"
    return "*required*" if value == "???" else f"`{value}`"


def table(keys: list[Key], kinds: dict[str, Any], explained: dict[str, str]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        meaning = (key.comment or explained.get(key.name, "")).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{key.name}` | {type_of(key, kinds)} | {default_of(key.value)} | {meaning} |")
    return [*rows, ""]


def options(group: str) -> list[str]:
    """What each option of a group is, and which keys it sets."""
    rows = [f"| `{group}=` | | sets |", "|---|---|---|"]
    for name in group_options(group):
        file = config_dir() / group / f"{name}.yaml"
        title = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").rstrip(".")
        changed = [f"`{group}.{key}={value}`" for key, value in leaves(OmegaConf.load(file))]
        rows.append(f"| `{name}` | {title} | {' '.join(changed)} |")
    return [*rows, ""]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key in node:
        value = node._get_node(key)
        if key in ("defaults", "reader", "_target_"):
            continue
        if isinstance(value, DictConfig) and prefix + key != "kwargs":
            yield from leaves(value, f"{prefix}{key}.")
        else:
            shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else node[key]
            yield prefix + key, "null" if shown is None else str(shown).replace("'", "").replace(" ", "")


def train_keys() -> dict[str, list[Key]]:
    """The keys of `dcal-train` by the title of their section."""
    found: dict[str, list[Key]] = {"The run": []}
    for key in settings((config_dir() / "train.yaml").read_text(encoding="utf-8")):
        found.setdefault(key.name.split(".")[0] if "." in key.name else "The run", []).append(key)
    for group in GROUPS:
        text = (config_dir() / f"_{group}.yaml").read_text(encoding="utf-8")
        found[group] = settings(text, f"{group}.")
    return found


def page() -> str:
    kinds = dict(key_types(schema.Config, ""))
    chosen = {group: name for entry in OmegaConf.load(config_file("train")).defaults for group, name in pairs(entry)}
    others = ", ".join(f"[{name}](#dcal-{name})" for name in COMMANDS)
    parts, explained = [INTRODUCTION.replace("{others}", others)], {}
    for title, keys in train_keys().items():
        parts += [f"## {title}", ""]
        explained |= {key.name: key.comment for key in keys}
        if title in GROUPS:
            parts += [f"By default `{title}={chosen[title]}`.{DATASETS if title == 'dataset' else ''}", ""]
            parts += options(title) if title != "dataset" else []
        parts += table(keys, kinds, {})
    for command in COMMANDS:
        text = config_file(command).read_text(encoding="utf-8")
        parts += [f"## dcal-{command}", "", f"What it does, with examples: `dcal-{command} --help`.", ""]
        if "has the run's value" in " ".join(text.replace("#", "").split()):
            parts += ["A key of `dataset`, `task` or `train` that is null has the run's value.", ""]
        parts += table(settings(text), kinds, explained)
    return "\n".join(parts)


def pairs(entry: Any) -> Iterator[tuple[str, str]]:
    """Group and option of an entry in a list of defaults; none of an entry that is a plain name."""
    if isinstance(entry, DictConfig):
        yield from ((str(group), str(name)) for group, name in entry.items())
