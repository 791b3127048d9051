"""The one root of errors that a user can correct, and the one way to choose among named options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=str)


class UserError(Exception):
    """Something that the user can correct: a value, a file, a machine's state. The message says what, where and how."""


USER_ERRORS = (UserError, OSError, ValueError)
"""Exceptions of which a command prints the message alone; of any other it shows the stack, as of a program fault.

The operating system's errors are here since they name the file, and `ValueError` until every wrong option is a
`UserError`. Until then a `ValueError` of the program itself is one line, too; `run.debug=true` shows its stack.
"""


def choose(key: str, value: T, options: Iterable[str]) -> T:
    """Returns `value` if it is one of `options`.

    Args:
        key: the configuration key or the argument that holds the value, as the user types it.
        value: what was asked for.
        options: the names that there are.

    Raises:
        UserError: it is none of them; the message starts with the key and names the nearest options.
    """
    names = list(options)
    if value in names:
        return value
    raise UserError(f"{key}={value!r}: {nearest(str(value), names)}")


def nearest(word: str, options: Sequence[str]) -> str:
    """A hint for a misspelt name: `did you mean ...?` with up to three similar options, or the list of all of them."""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(lower[name] for name in near)}? (one of {', '.join(options)})"
    return f"choose one of {', '.join(options)}"
