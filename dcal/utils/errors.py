"""The one root of errors that a user can correct, and the one way to check a number or a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Something that the user can correct: a value, a file, a machine's state. The message says what, where and how.

    It is a `ValueError` for those who call `dcal` from Python. A command prints the message of a `UserError` alone; any
    other `ValueError` is a fault of the program to it, and its stack is shown.
    """


def is_for_user(error: BaseException) -> bool:
    """Whether the message of an error suffices: a `UserError`, or one of the operating system that names the file."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None)


def choose(key: str, value: T, options: Iterable[T]) -> T:
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
    raise UserError(f"{key}={value!r}: {nearest(str(value), [str(name) for name in names])}")


def check_number(
    key: str,
    value: float | None,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    whole: bool = False,
    note: str = "",
) -> None:
    """Refuses a number out of its range; None, where a key may be null, passes.

    Args:
        key: as the user types it.
        value: what was asked for; NaN is in no range.
        ge, gt, le, lt: at least, more than, at most, less than.
        whole: whether it must be an integer, of a key that no schema types.
        note: what else the user should know, e.g. what null does.

    Raises:
        UserError: no number, or one out of the range, which the message says after the key.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral if whole else Real)):
        raise UserError(f"{key}={value}: must be a {'whole ' if whole else ''}number")
    limits = [("at least", ge), ("more than", gt), ("at most", le), ("less than", lt)]
    within = value is None or (
        (ge is None or value >= ge)
        and (gt is None or value > gt)
        and (le is None or value <= le)
        and (lt is None or value < lt)
    )
    if not within:
        words = " and ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
        raise UserError(f"{key}={value}: must be {words}{f'; {note}' if note else ''}")


def nearest(word: str, options: Sequence[str]) -> str:
    """A hint for a misspelt name: `did you mean ...?` with up to three similar options, or the list of all of them."""
    lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(lower[name] for name in near)}? (one of {', '.join(options)})"
    return f"choose one of {', '.join(options)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def first_error(error: BaseException) -> BaseException:
    """The error during whose handling this one arose, back to the first: what went wrong before other things did."""
    while error.__context__ is not None:
        error = error.__context__
    return error
