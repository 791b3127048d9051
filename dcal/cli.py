"""What the commands share: composing the configuration, and errors a person can act on."""

from __future__ import annotations

import difflib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig

from dcal import config as schema
from dcal.paths import config_dir, experiments_dir


class JobError(CompactHydraException):
    """An error the user can mend: Hydra prints its message alone and exits with 1."""


def hydra_command(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `job` as a Hydra application over `conf/` and `experiments/`, from any directory.

    Errors whose class says that the user can mend them are printed as one sentence; `run.debug=true` shows
    the stack.
    """
    schema.register()
    suggest(sys.argv[1:])
    hydra.main(config_path=str(config_dir()), config_name=config_name, version_base="1.3")(job)()


def suggest(arguments: Sequence[str]) -> None:
    """Exits with the nearest name where an override names an option or a key that does not exist."""
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] not in "-+~"])
    except HydraException:
        return  # Hydra itself explains bad syntax
    for override in overrides:
        key, value = override.key_or_group, override.value()
        choices = list(value.list) if isinstance(value, ChoiceSweep) else [value]
        options = group_options(key)
        for choice in choices if options else ():
            if isinstance(choice, str) and choice not in options:
                _stop(f"{key}={choice}: no such option", choice, options)
        if key == "ablation" and override.is_sweep_override():
            _quit(
                f"{override.input_line}: an ablation is a sweep of its own, and Hydra would "
                "leave out its parameters; give one command per ablation"
            )
        if not options and not key.startswith(FREE) and key not in known_keys():
            _stop(f"{key}: no such key", key, known_keys())


FREE = ("hydra.", "hydra/", "dataset.reader.", "backbone.kwargs.")
"""Keys below these belong to Hydra, a reader or a timm model, so they are not ours to list."""


def group_options(group: str) -> list[str]:
    """The options of a config group, those of `experiments/` included; empty if there is no such group."""
    found: list[str] = []
    for root in (config_dir(), experiments_dir()):
        folder = root / group
        if folder.is_dir() and "." not in group:
            found += [str(f.relative_to(folder).with_suffix("")) for f in sorted(folder.rglob("*.yaml"))]
    return [name.replace("\\", "/") for name in found]


def known_keys() -> list[str]:
    """Every key of the schema in dotted form, groups and inner nodes included."""

    def walk(node: Any, prefix: str) -> list[str]:
        keys = []
        for field in fields(node):
            keys.append(prefix + field.name)
            value = getattr(node, field.name, None)
            if is_dataclass(value):
                keys += walk(value, f"{prefix}{field.name}.")
        return keys

    return walk(schema.Config(), "")


def _stop(problem: str, word: str, options: Sequence[str]) -> None:
    near = difflib.get_close_matches(word, options, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(options)}"
    _quit(f"{problem}; {hint}")


def _quit(problem: str) -> None:
    print(problem, file=sys.stderr)
    raise SystemExit(1)


def reported(job: Callable[[], Any], mendable: tuple[type[Exception], ...], debug: bool) -> Any:
    """Calls `job`; a mendable error becomes a `JobError` of one sentence, unless `debug` asks for more."""
    try:
        return job()
    except mendable as error:
        if debug:
            raise
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        raise JobError(f"error: {error}") from None
