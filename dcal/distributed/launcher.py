"""Starting the processes of a run, and telling what became of them.

`launch.processes=N` makes the Hydra job a launcher: it starts its own command N times through torch's agent (what
`torchrun` is, without a process more), waits, and passes on signals and errors. Of several errors the first counts:
when a process dies, the others fail for want of it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dcal.distributed.env import world_size
from dcal.utils.errors import UserError, check_number, is_for_user
from dcal.utils.signals import Interrupted, stop_with_parent

HANDLED = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
LAUNCHER = "DCAL_LAUNCHER"
"""In the environment of a process of `launch`: the id of the process that has started it."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's agent wants a process to leave its error."""


class ProcessFailed(UserError):
    """A process of the run failed; the message is its own, or says how it ended."""


def to_be_started(wanted: int) -> bool:
    """Whether `launch.processes` processes are still to be started.

    Raises:
        UserError: it is no number of processes, or contradicts what torchrun or the batch system has started.
    """
    check_number("launch.processes", wanted, ge=1)
    if wanted > 1 and world_size() not in (1, wanted):
        raise UserError(
            f"launch.processes={wanted}, but {world_size()} processes were started already (torchrun or the batch "
            "system): leave the key out"
        )
    return wanted > 1 and world_size() == 1


@contextmanager
def errors_to_agent() -> Iterator[None]:
    """In a process that torch's agent has started: errors go to the agent, which reports the first of them all."""
    if ERROR_FILE not in os.environ:
        yield
        return
    if LAUNCHER in os.environ:
        stop_with_parent(int(os.environ[LAUNCHER]))
    handler = get_error_handler()
    handler.initialize()
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise SystemExit(128 + getattr(stopped, "number", signal.SIGINT)) from None
    except Exception as error:
        handler.record_exception(ProcessFailed(str(error)) if is_for_user(error) else error)
        raise SystemExit(1) from None


def launch(command: Sequence[str], count: int) -> None:
    """Runs `count` processes of a Python command on this machine until all are done.

    Args:
        command: what follows `python`; its processes find their rank in torchrun's environment variables.

    Raises:
        ProcessFailed: one failed; the others are ended.
        Interrupted: on SIGTERM, SIGINT, SIGHUP or SIGQUIT, which the processes got, too, and 30 seconds to end.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would tell everything twice
    with tempfile.TemporaryDirectory(prefix="dcal-launch-") as folder, handlers_restored():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(os.getpid()),
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
        )
        os.environ[LAUNCHER] = str(os.getpid())
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except ChildFailedError as failed:
            by_agent = -signal.SIGTERM  # how it ends the others
            ends = {rank: end for rank, end in failed.failures.items() if end.exitcode != by_agent} or failed.failures
            rank, end = min(ends.items(), key=lambda entry: entry[1].exitcode)
            message = first_error(Path(folder))
            if message is None or end.exitcode < 0:
                how = f"was killed by {end.signal_name()}" if end.exitcode < 0 else f"ended with code {end.exitcode}"
                message = f"process {rank} of {count} {how}: repeat the command to go on from the last checkpoint"
            raise ProcessFailed(message) from None
        except SignalException as stopped:
            raise Interrupted(stopped.sigval) from None
        finally:
            del os.environ[LAUNCHER]


def first_error(folder: Path) -> str | None:
    """The message of the process that failed first; its stack goes to stderr, unless the error is one for the user."""
    files = sorted(folder.rglob("error.json"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return None
    error = json.loads(files[0].read_text(encoding="utf-8"))["message"]
    kind, _, message = error["message"].partition(": ")
    if kind == ProcessFailed.__name__:
        return str(message)
    print(error["extraInfo"]["py_callstack"], file=sys.stderr)
    return f"process {files[0].parent.name} failed with {error['message']}"


@contextmanager
def handlers_restored() -> Iterator[None]:
    """Puts back the signal handlers that the agent replaces: other jobs of a sweep may follow in this process."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread: the agent has left them alone
            for number, handler in before.items():
                signal.signal(number, handler)
