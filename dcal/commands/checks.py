"""What a command line may ask for, checked before anything is composed or torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dcal.commands.keys import FREE, config_folders, group_options, has_groups, known_keys
from dcal.utils.errors import UserError, nearest


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
    overrides = [_parse(word) for word in arguments if word[:1] == "~" or ("=" in word and word[0] != "-")]
    keys = known_keys(config_name)
    for override in overrides:
        options = group_options(override.key_or_group, folders) if has_groups(config_name) else []
        _check_value(override)
        if options:
            _check_option(override, options)
        elif not override.key_or_group.startswith(FREE) and override.key_or_group not in keys:
            raise UserError(f"{override.key_or_group}: no such key; {_similar_key(override.key_or_group, keys)}")


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise UserError(f"{word}: this is no key=value that can be read ({str(error).splitlines()[0]})") from None


def _check_value(override: Override) -> None:
    key, word = override.key_or_group, override.input_line
    if override.is_delete() and not key.startswith(FREE):
        switch = {"wandb": "; wandb.mode=disabled switches it off", "attention": "; attention=none is the plain ViT"}
        raise UserError(f"{word}: no part of the configuration can be removed{switch.get(key.split('.')[0], '')}")
    if not override.is_delete() and override.value() == "" and not key.startswith(FREE):
        raise UserError(f"{word}: the value is empty (a shell variable that is not set?); {key}=null is none")
    if key == "ablation" and override.is_sweep_override():
        raise UserError(
            f"{word}: an ablation is a sweep of its own, and Hydra would leave out its parameters; give one command "
            "per ablation"
        )


def _check_option(override: Override, options: Sequence[str]) -> None:
    key, value = override.key_or_group, override.value()
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        if choice is None:
            optional = key in ("experiment", "variant", "ablation")
            hint = "leave the word out" if optional else f"choose one of {', '.join(options)}"
            raise UserError(f"{key}=null: null is no option; {hint}")
        if isinstance(choice, str | int | float) and str(choice) not in options:
            raise UserError(f"{key}={choice}: no such option; {nearest(str(choice), options)}")


def _similar_key(key: str, keys: Sequence[str]) -> str:
    """A hint for a key that does not exist: the full name of a last part such as `lr`, or similar keys."""
    full = [name for name in keys if name.endswith(f".{key}")]
    return f"did you mean {' or '.join(full)}?" if full else nearest(key, keys)


def check_complete(config: DictConfig) -> None:
    """Refuses a configuration that lacks a mandatory key.

    Raises:
        UserError: the message names the keys.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{' '.join(f'{key}=...' for key in missing)} must be given; --help explains each key")
