"""Arguments that come from a configuration, held against the annotations of the function that takes them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcal.utils.errors import UserError


def typed_arguments(function: Callable[..., Any], given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The arguments as the function annotates them, converted as a value of the schema is: 3 to 3.0, but no word.

    Args:
        function: annotated; an argument of a type that a configuration cannot hold is passed as it is.
        given: plain data. A name that is no argument of the function stays, for the call to refuse.
        key: of the node in the configuration, for messages.

    Raises:
        UserError: a value of another type; the message names its key.
    """
    hints = {name: _as_field(hint) for name, hint in get_type_hints(function).items() if name in given}
    columns = [(name, hint, field(default=MISSING)) for name, hint in hints.items()]
    schema: Any = OmegaConf.structured(make_dataclass("Arguments", columns))
    for name, hint in hints.items():
        try:
            schema[name] = given[name]
        except OmegaConfBaseException:
            raise UserError(f"{key}.{name}={given[name]}: must be {_in_words(hint)}") from None
    plain: Any = OmegaConf.to_container(schema)
    return {**given, **plain}


def _in_words(hint: Any) -> str:
    """What a value must be: `a whole number or null`."""
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(hint) is Union:
        return " or ".join("null" if kind is type(None) else _in_words(kind) for kind in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each {_in_words(get_args(hint)[0])}"
    return kinds.get(hint, "values by their names, such as {a:1}")


def _as_field(hint: Any) -> Any:
    """The type of OmegaConf that holds what a hint allows; `Any` where there is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = {_as_field(kind) for kind in inner if kind is not type(None)}
        return Optional[kinds.pop() if len(kinds) == 1 else Any]  # noqa: UP045  # built from values
    if hint is Path:
        return str
    if origin in (Sequence, list) and inner[0] in (int, float, str, Any):
        return list[inner[0]]  # type: ignore[valid-type]
    if origin in (Mapping, dict):
        return dict[str, _as_field(inner[1])]  # type: ignore[misc]
    return hint if hint in (int, float, str, bool) else Any
