"""Requests to stop: SIGTERM from a batch system, Ctrl-C from a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and has saved what it takes to go on. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}: repeat the command to go on from here")


class Stop:
    """Whether somebody has asked to stop; false at first.

    A request waits until the loop looks (between two steps), except inside `at_once`. A second Ctrl-C always raises
    `KeyboardInterrupt` where it arrives; a second SIGTERM changes nothing, for some send it to a process and its group.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False

    def __bool__(self) -> bool:
        return self.number > 0

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Takes a signal in."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        if self._at_once:
            raise Interrupted(self.number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done inside may be broken off anywhere: a request raises `Interrupted` where it arrives."""
        self._at_once = True
        try:
            if self:
                raise Interrupted(self.number)
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Takes SIGTERM and Ctrl-C as requests to stop."""
    stop = Stop()
    try:
        before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
