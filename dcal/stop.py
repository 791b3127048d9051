"""Requests to stop: SIGTERM from a batch system, Ctrl-C from a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM or Ctrl-C) and has saved a checkpoint."""


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is non-empty once SIGTERM or Ctrl-C has asked to stop. A second Ctrl-C stops at once."""
    requests: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
