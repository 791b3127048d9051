"""The words of a command line, made what the user means by them, before Hydra reads them.

Hydra's grammar takes a value for a number wherever it can, and refuses what is neither a number nor a plain word. So
the path `2024_01` would become 202401, and `photo(1).jpg` would be an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig

from dcal.commands.words.keys import check_words, config_file, is_override, list_keys, search_path, text_keys
from dcal.commands.words.members import with_members
from dcal.utils.errors import UserError

TEXT = re.compile(r"[/\\=]|.\[|\.[A-Za-z]\w*(,|]|$)")
"""A path, a regular expression, a glob, a file name or `key=value`: none of these is in Hydra's grammar."""

MEMBER = re.compile(r"^dataset\.members\.[^.=]+\.?")
"""A member of `dataset=joint`: its name is the user's, which Hydra takes with `++` alone."""

WORDS = re.compile(r"[\w.+-]+(,[\w.+-]+)*")
"""One word or several, separated by commas: no quotes, no brackets, no function of Hydra's grammar."""


def prepare(arguments: Sequence[str], config_name: str) -> list[str]:
    """The words of a command line as Hydra takes them: paths and names are text, a list may be written as one item.

    Flags come first: Hydra's parser takes no overrides on both sides of one.

    Args:
        arguments: as the user has typed them.
        config_name: of the command.
    """
    words = [quoted(expand_home(argument)) for argument in sorted(arguments, key=is_override)]
    words = [as_list(keep_text(word, text_keys(config_name)), list_keys(config_name)) for word in words]
    return [f"++{word}" if MEMBER.match(word) else word for word in words]


def expand_home(argument: str) -> str:
    """The override with its `~/` expanded, which shells do not do behind `key=`."""
    return re.sub(r"^([^=]+=)~(?=/|$)", lambda match: match[1] + str(Path.home()), argument)


def quoted(argument: str) -> str:
    """The override, with quotes around a value that is text but no word of Hydra's grammar.

    As in `run=outputs/x/seed=0`, `camera=_c(\\d+)`, `image=photo(1).jpg` or a list of such.
    """
    key, equals, value = argument.partition("=")
    if not TEXT.search(value) or _parsed(argument):
        return argument
    if value[0] == "[" and value[-1] == "]":
        changed = f"{key}=[{','.join(_text(word.strip()) for word in value[1:-1].split(','))}]"
    else:
        changed = f"{key}{equals}{_text(value)}"
    return changed if _parsed(changed) else argument


def keep_text(argument: str, keys: Iterable[str]) -> str:
    """The override, with quotes around numbers and truth values where its key is one of `keys`, which hold text.

    As in `name=2026_11_27`, which is the number 20261127 to Hydra. `null` remains null.
    """
    key, equals, value = argument.partition("=")
    bracketed = value[:1] == "[" and value[-1:] == "]"
    inner = value[1:-1] if bracketed else value
    name = MEMBER.sub("dataset.", key.lstrip("+"))
    if name not in keys or not WORDS.fullmatch(inner):
        return argument
    words = ",".join(f"'{word}'" if isinstance(_value(word), int | float) else word for word in inner.split(","))
    return f"{key}{equals}[{words}]" if bracketed else f"{key}{equals}{words}"


def as_list(argument: str, keys: Iterable[str]) -> str:
    """The override, with brackets around a single value where its key is one of `keys`, which hold lists.

    As in `wandb.tags=night`. One side of an image size is both: `dataset.image_size=224` is `[224,224]`.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if name not in keys or not _parsed(argument):
        return argument
    given = _value(value)
    if name in ("dataset.image_size", "dataset.resize"):
        sides = [int(side) for side in given] if isinstance(given, list) and _are_integers(given) else given
        side = sides[0] if isinstance(sides, list) and len(sides) == 1 else sides
        return f"{key}{equals}[{side},{side}]" if _are_integers([side]) else argument
    return f"{key}{equals}[{value}]" if isinstance(given, str | int | float) else argument


def follow_image_size(arguments: Sequence[str], config_name: str) -> list[str]:
    """The words and, where they set `dataset.image_size` alone, `dataset.resize` in its old ratio to the image size.

    With the resize of another size, a crop would see a part of each image that nobody has asked for: 224 pixels of the
    550 that belong to 448. The new value is printed.

    Raises:
        UserError: a sweep over image sizes, or over what sets them, without `dataset.resize`.
        HydraException: the words do not compose.
    """
    values = {word.lstrip("+").partition("=")[0]: word for word in arguments if "=" in word and word[0] not in "-~"}
    own = values.pop("dataset.image_size", None)
    if config_name != "train" or own is None or "dataset.resize" in values:
        return list(arguments)
    size = _value(own.partition("=")[2])
    sweeping = [word for key, word in values.items() if key in ("dataset", "experiment", "variant") and is_sweep(word)]
    if sweeping or is_sweep(own):
        raise UserError(f"{' '.join([*sweeping, own])}: a sweep over image sizes needs dataset.resize, too")
    if not (isinstance(size, list) and len(size) == 2 and _are_integers(size)):
        return list(arguments)  # Hydra and the data set say what is wrong with it
    searched = values.get("hydra.searchpath", search_path(arguments))
    others = [word for key, word in values.items() if not key.startswith("hydra") and not is_sweep(word)]
    folder = str(config_file(config_name).parent)
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_dir(folder, version_base="1.3"):
        before = with_members(compose(config_name, [searched, *others])).dataset
    new = [round(r * n / o) for r, n, o in zip(before.resize, size, before.image_size, strict=True)]
    word = f"dataset.resize=[{new[0]},{new[1]}]"
    if new != list(before.resize):
        ratio = f"{before.resize} to {before.image_size}"
        print(f"{word}: follows dataset.image_size, in the ratio of {ratio}", file=sys.stderr)
    return [*arguments, word]


def words_of(value: Any) -> list[str]:
    """A key that holds one word or a list of words; null is none."""
    return [] if value is None else [str(word) for word in (value if isinstance(value, ListConfig) else [value])]


def composed_train(overrides: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    """The configuration that `dcal-train` makes of these words, composed by the Hydra that is running.

    Args:
        overrides: as the user has typed them.
        return_hydra_config: whether Hydra's own configuration is in it, too.

    Raises:
        UserError: there is no such key or option, or a value that cannot be meant.
        HydraException: the words do not compose.
    """
    words = prepare(overrides, "train")
    check_words(words)
    words = follow_image_size(words, "train")
    return with_members(compose("train", words, return_hydra_config=return_hydra_config))


def _are_integers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def is_sweep(word: str) -> bool:
    """Whether an override gives several values, one after the other."""
    override = _parsed(word)
    return override is not None and override.is_sweep_override()


def _text(word: str) -> str:
    """A word of Hydra's grammar as it is, anything else in quotes."""
    if _parsed(f"key={word}"):
        return word
    # in the grammar a backslash escapes only where a quote follows
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), word) + "'"


def _parsed(argument: str) -> Override | None:
    """The override; None if it is none of Hydra's grammar."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _value(word: str) -> Any:
    """What Hydra's grammar makes of a value; None where it is none."""
    override = _parsed(f"key={word}")
    return None if override is None else override.value()
