"""What a program says: on stderr, which must not decide whether a run goes on, and in its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class OptionalStream:
    """A text stream whose errors of writing are ignored: what cannot be written is dropped.

    Args:
        stream: gets every text, and answers for every other attribute.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes `text` where that is possible; returns its length."""
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered where that is possible."""
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_stderr_optional() -> None:
    """From here on this process works on when stderr cannot be written.

    A log on a full disk, a closed terminal or a pipe without a reader would otherwise end a run at the first line that
    it prints, before the epoch is saved. The results of a command go to files and stdout, where errors still count.
    """
    if not isinstance(sys.stderr, OptionalStream):
        sys.stderr = cast(TextIO, OptionalStream(sys.stderr))


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Silences a package's log below errors: for what it will say again at a better time."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
