"""How far a long piece of work is: a bar on a terminal, a line every half minute where there is none.

What is said here goes to stderr, and into the log file of a run that is being trained (`dcal.training.log_file`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

from dcal.distributed.env import rank, rank_zero_only

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal."""
log_file = logging.getLogger("dcal.progress")
"""Takes the lines that are on stderr already: only the log file of a run listens to it."""
log_file.propagate = False
log_file.setLevel(logging.INFO)
_wanted = ContextVar("bars", default=True)


@contextmanager
def bars(wanted: bool) -> Iterator[None]:
    """Whether bars may be drawn inside (`train.progress`)."""
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)


def bars_shown() -> bool:
    """Whether this process draws bars: they are wanted, it is the first of a run, and has a terminal."""
    return _wanted.get() and rank() == 0 and sys.stderr.isatty()


@rank_zero_only
def say(text: str, terminal: bool = True) -> None:
    """A line on stderr, above a bar if there is one, and in the log file.

    Args:
        terminal: False for the log file alone.
    """
    if terminal:
        tqdm.write(text, file=sys.stderr)
    log_file.info("%s", text)


class Work:
    """Shows how far a piece of work is: what is done in `with Work(...) as piece:` tells it by `advance`.

    Args:
        title: what is done, e.g. `evaluation`.
        total: number of units.
        unit: name of one.
        initial: units that were done before.
    """

    def __init__(self, title: str, total: int, unit: str, initial: int = 0) -> None:
        self.title, self.total, self.unit, self.initial = title, total, unit, initial
        self.count = initial
        self.started = self.said = time.monotonic()
        self.bar = tqdm(
            total=total, initial=initial, desc=title, unit=unit, leave=False, disable=not bars_shown()
        )  # fmt: skip

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        """Adds `count` units to what is done."""
        self.count += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= LINE_SECONDS:
            self.said = now
            speed = (self.count - self.initial) / (now - self.started)
            say(f"{self.title}: {self.unit} {self.count} of {self.total}, {speed:.1f} per second")
