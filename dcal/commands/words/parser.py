"""Hydra's parser of command lines on Python 3.14 and later."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def late_help_texts() -> Iterator[None]:
    """Lets Hydra build its parser where `add_argument` reads a help text at once, as it does since Python 3.14.

    Hydra 1.3 gives `--shell-completion` an object that writes its text only when it is printed, and Python says
    `ValueError: badly formed help string`. Inside this context such an object is attached after the argument was added.
    Where Python reads no help text early, and for texts that are strings, nothing changes.
    """
    if not _reads_help_at_once():
        yield
        return
    add_argument = argparse.ArgumentParser.add_argument

    def add(parser: argparse.ArgumentParser, *names: Any, **options: Any) -> argparse.Action:
        late = options.pop("help") if not isinstance(options.get("help", ""), str) else None
        action = add_argument(parser, *names, **options)
        if late is not None:
            action.help = late
        return action

    argparse.ArgumentParser.add_argument = add  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        # the method is inherited: a copy of it would stay in the class
        del argparse.ArgumentParser.add_argument


def _reads_help_at_once() -> bool:
    try:
        argparse.ArgumentParser().add_argument("--option", help=object())  # type: ignore[arg-type]
    except ValueError:
        return True
    return False
