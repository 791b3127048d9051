"""`train.log` in the directory of a run: what is said while it is trained, with time and level, in all its sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcal.distributed.env import rank
from dcal.run.files import explain_write_errors
from dcal.run.progress import log_file
from dcal.utils.signals import Interrupted

LOG_FILE = "train.log"
FORMAT = "%(asctime)s  %(levelname)-7s  %(message)s"


class OptionalFile(logging.FileHandler):
    """A log file whose errors of writing are ignored: a full disk ends a run where it loses something."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drops the line."""


@contextmanager
def logged_to(directory: Path) -> Iterator[None]:
    """Inside, everything that is said, and the error that ends it, is appended to the log file of a run.

    The level is that of Python's logging, which Hydra sets: `hydra.verbose=true` adds debugging,
    `hydra.job_logging.root.level=WARNING` leaves warnings and progress. Where nobody has set it up, it is INFO.

    Raises:
        WriteError: the file cannot be opened.
    """
    if rank() > 0:
        yield
        return
    path = directory / LOG_FILE
    with explain_write_errors(path):
        file = OptionalFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter(FORMAT))
    package = logging.getLogger("dcal")
    level = package.level
    if not logging.getLogger().handlers:
        package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    for logger in (package, log_file):
        logger.addHandler(file)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        log_file.log(logging.INFO if stopped else logging.ERROR, "%s: %s", type(error).__name__, error)
        raise
    finally:
        package.setLevel(level)
        for logger in (package, log_file):
            logger.removeHandler(file)
        file.close()
