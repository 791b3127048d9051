"""Requests to stop: SIGTERM, Ctrl-C, a terminal that is closed, and submitit's announcement of a time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """The run was asked to stop and has saved what it takes to go on. `number` is the signal's.

    Like `KeyboardInterrupt` no `Exception`, for which nothing that handles errors may take it.
    """

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
    """Takes SIGTERM, Ctrl-C, SIGHUP and the announcement of a time limit as requests to stop.

    A signal that is ignored stays so, as SIGHUP is under nohup.
    """
    stop = Stop()
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    asking = [number for number in (signal.SIGTERM, signal.SIGINT, hangup, time_limit_signal()) if number]
    wanted = [number for number in asking if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, stop.ask) for number in wanted}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def time_limit_signal() -> signal.Signals | None:
    """What a job of submitit (SLURM, or its local executor) gets some time before its limit; None outside of one."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]


def stop_with_parent(parent: int) -> None:
    """Has this process asked to stop once its parent is gone, and killed five minutes later: nobody waits for it.

    Args:
        parent: its process id, as the parent gave it: it may be gone already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(300)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def hand_on(number: int) -> None:
    """Once a run is saved, gives submitit its signal, whose handler puts the job back into the queue.

    Raises:
        SystemExit: the job ends and begins again. (That of the first task; the others' end must not look like an error,
            for then all would be killed before it is in the queue.)
    """
    if number == time_limit_signal():
        signal.raise_signal(number)
        raise SystemExit(0)
