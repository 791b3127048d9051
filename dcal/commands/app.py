"""What the commands share: composing the configuration, and errors a person can act on."""

from __future__ import annotations

import argparse
import difflib
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from dcal import config as schema
from dcal.utils.memory import keep_freed_memory
from dcal.utils.paths import config_dir, experiments_dir
from dcal.utils.signals import Interrupted, hand_on


class JobError(CompactHydraException):
    """An error the user can mend: Hydra prints its message alone and exits with 1."""


def hydra_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `job` as a Hydra application over `conf/` and `experiments/`, from any directory.

    Args:
        job: what to do with the composed configuration.
        config_name: of the command, see `config_file`.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(config_name))
        return
    keep_freed_memory()
    schema.register()
    sys.argv[1:] = [quoted(expand_home(argument)) for argument in sys.argv[1:]]
    suggest(sys.argv[1:], config_name)
    hydra.main(config_path=str(config_file(config_name).parent), config_name=config_name, version_base="1.3")(job)()


def config_file(config_name: str) -> Path:
    """`conf/<name>.yaml`, or `conf/<name>/<name>.yaml`, where Hydra sees no groups.

    The latter is for a command with keys that are called like groups: `dcal-bench attention=[glca,dcal]`.
    """
    own = config_dir() / config_name / f"{config_name}.yaml"
    return own if own.is_file() else config_dir() / own.name


def help_text(config_name: str) -> str:
    """What `--help` prints: the command's configuration file with its comments, and the options of its groups."""
    lines = config_file(config_name).read_text(encoding="utf-8").splitlines()
    head = lines[: lines.index("defaults:")]
    end = lines.index("hydra:") if "hydra:" in lines else len(lines)
    body = lines[lines.index("", len(head)) : end]
    groups = [entry for entry in OmegaConf.create("\n".join(lines)).defaults if isinstance(entry, DictConfig)]
    names = [str(key).split()[-1] for entry in groups for key in entry if not str(key).startswith("override")]
    options = [f"{name}: {', '.join(group_options(name))}" for name in names]
    return "\n".join(
        [
            *(line.removeprefix("# ").removeprefix("#") for line in head),
            *(["", "GROUPS (group=option)", *options] if options else []),
            "",
            "KEYS (key=value) and their defaults; in a group: what --cfg job shows",
            *body,
            *([""] if body[-1] else []),
            "Hydra: --cfg job shows the composed configuration, -m runs a sweep, --hydra-help lists the other flags.",
        ]
    )


def expand_home(argument: str) -> str:
    """The override with its `~/` expanded, which shells do not do behind `key=`."""
    return re.sub(r"^([^=]+=)~(?=/|$)", lambda match: match[1] + str(Path.home()), argument)


def typed_overrides() -> Iterator[tuple[str, str]]:
    """The overrides of the command line: each as it was typed, and its key."""
    for word in HydraConfig.get().overrides.task:
        yield word, word.lstrip("+~").partition("=")[0]


TEXT = re.compile(r"[/\\]|.\[|\.[A-Za-z]\w*(,|]|$)")
"""A path, a regular expression, a glob or a file name: nothing of these is Hydra's grammar."""


def quoted(argument: str) -> str:
    """The override, with quotes around a value that is text but no word of Hydra's grammar.

    As in `run=outputs/x/seed=0`, `camera=_c(\\d+)`, `image=photo(1).jpg` or a list of such.
    """
    key, equals, value = argument.partition("=")
    if not TEXT.search(value) or _parses(argument):
        return argument
    if value[0] == "[" and value[-1] == "]":
        mended = f"{key}=[{','.join(_text(word.strip()) for word in value[1:-1].split(','))}]"
    else:
        mended = f"{key}{equals}{_text(value)}"
    return mended if _parses(mended) else argument


def _text(word: str) -> str:
    """A word of Hydra's grammar as it is, anything else in quotes."""
    if _parses(f"key={word}"):
        return word
    # in the grammar a backslash escapes only where a quote follows
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), word) + "'"


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def suggest(arguments: Sequence[str], config_name: str = "train") -> None:
    """Exits with the nearest name where an override names an option or a key that does not exist.

    Args:
        arguments: of the command line.
        config_name: of the command.
    """
    keys, folders = known_keys(config_name), config_folders(arguments)
    grouped = config_file(config_name).parent == config_dir()
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] not in "-+~"])
    except HydraException:
        return  # Hydra itself explains bad syntax
    for override in overrides:
        key, value = override.key_or_group, override.value()
        choices = list(value.list) if isinstance(value, ChoiceSweep) else [value]
        options = group_options(key, folders) if grouped else []
        for choice in choices if options else ():
            if isinstance(choice, str) and choice not in options:
                _stop(f"{key}={choice}: no such option", choice, options)
        if key == "ablation" and override.is_sweep_override():
            _quit(
                f"{override.input_line}: an ablation is a sweep of its own, and Hydra would "
                "leave out its parameters; give one command per ablation"
            )
        if not options and not key.startswith(FREE) and key not in keys:
            _stop(f"{key}: no such key", key, keys)


FREE = ("hydra.", "hydra/", "dataset.reader.", "backbone.kwargs.")
"""Keys below these belong to Hydra, a reader or a timm model, so they are not ours to list."""


def config_folders(arguments: Sequence[str]) -> list[Path]:
    """The user's own folder of YAML files, which `--config-dir DIR` puts beside `conf/`."""
    parser = argparse.ArgumentParser(add_help=False)
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


def _stop(problem: str, word: str, options: Sequence[str]) -> None:
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(options)}"
    _quit(f"{problem}; {hint}")


def _quit(problem: str) -> None:
    print(problem, file=sys.stderr)
    raise SystemExit(1)


def report_errors(job: Callable[[], Any], mendable: tuple[type[Exception], ...], debug: bool) -> Any:
    """Calls `job`; a mendable error becomes a `JobError` of one sentence, unless `debug` asks for more.

    A request to stop ends the process, and with it a sweep, with the exit code that shells give to its signal.
    """
    try:
        return job()
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(stopped if str(stopped) else "stopped at once: repeat the command to go on", file=sys.stderr)
        number = getattr(stopped, "number", signal.SIGINT)
        hand_on(number)
        raise SystemExit(128 + number) from None
    except mendable as error:
        if debug:
            raise
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        raise JobError(f"error: {error}") from None
