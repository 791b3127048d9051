"""`dcal-queue`: a list of experiments, several at a time, in the order of their value.

    dcal-queue experiments/protocol/when.yaml cells=R0 dataset.root=MARKET backbone.checkpoint=WEIGHTS
    dcal-queue experiments/protocol/when.yaml show=true     how far each run is, and nothing else

cells=R0,R1   of the file; all if not given
arms=A0,A7    of these cells; all if not given
jobs=1        runs at a time, on one card or machine
show=false    only print the table of states

Every other `key=value` goes to every run, after the file's own. A run is one `dcal-train` process, with its output in
`queue.log` of its directory. Repeating the command continues: finished runs are left as they are, interrupted ones
resume, failed ones are tried again, and what another process works on is left to it. Ctrl-C and SIGTERM let the runs
save a checkpoint. The table of states is written to `<run.root>/<name>.md` whenever a run ends, and printed at the end,
with the last line of the error and the log of each run that has failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from omegaconf import DictConfig

from dcal.commands.app import modules_of_current_folder
from dcal.commands.words.overrides import composed_train
from dcal.config import register
from dcal.distributed.env import module_command
from dcal.run.directory import Run
from dcal.run.files import write_atomically
from dcal.run.identity import Identity, identify
from dcal.run.listing import state_of
from dcal.run.queue import Job, jobs_of, read_queue, state_table
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir
from dcal.utils.signals import Stop, stop_requests

POLL_SECONDS = 0.5


class Options(NamedTuple):
    """The command line."""

    file: Path
    cells: list[str]
    arms: list[str]
    jobs: int
    show: bool
    common: list[str]
    """Overrides of every run."""


class Queued(NamedTuple):
    """A run of the list and where it is."""

    job: Job
    run: Run


def queue(words: Sequence[str]) -> None:
    """Runs the list that the command line names, or shows it.

    Raises:
        UserError: a word of the command line or an entry of the file is wrong.
        SystemExit: when all has been tried, 1 if a run has failed; or after a request to stop.
    """
    options = parse(words)
    listed = read_queue(options.file)
    with modules_of_current_folder():  # for a reader of the user's own, as in dcal-train
        queued = locate(jobs_of(listed, options.cells, options.common, options.arms))
    if options.show:
        print(report(listed, queued))
        return
    with stop_requests() as stop:
        failed = work(queued, options.jobs, stop, lambda: write_table(listed, queued))
    print(report(listed, queued))
    if stop:
        print("stopped: repeat the command to go on", file=sys.stderr)
        raise SystemExit(128 + stop.number)
    raise SystemExit(1 if failed else 0)


def parse(words: Sequence[str]) -> Options:
    """The command line as options.

    Raises:
        UserError: no file or several, or an option of the wrong kind.
    """
    own = {"cells": "", "arms": "", "jobs": "1", "show": "false"}
    files = [word for word in words if "=" not in word]
    common = []
    for word in (word for word in words if "=" in word):
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        elif key.lstrip("+") == "seed":
            raise UserError(f"{word}: the seeds are those of the file's cells; leave it out")
        else:
            common.append(word)
    if len(files) != 1:
        raise UserError(f"dcal-queue takes one file, a list of experiments, got {', '.join(files) or 'none'}")
    if not own["jobs"].isdigit() or int(own["jobs"]) < 1:
        raise UserError(f"jobs={own['jobs']}: the number of runs at a time, at least 1")
    if own["show"] not in ("true", "false"):
        raise UserError(f"show={own['show']}: true or false")
    cells, arms = ([name for name in own[key].strip("[]").split(",") if name] for key in ("cells", "arms"))
    return Options(Path(files[0]).expanduser(), cells, arms, int(own["jobs"]), own["show"] == "true", common)


def locate(jobs: Sequence[Job]) -> list[Queued]:
    """Each job with its run. The configuration is composed, and its data are read, once for all seeds."""
    register()
    composed: dict[tuple[str, ...], tuple[DictConfig, Identity]] = {}
    queued = []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for job in jobs:
            if job.overrides not in composed:
                config = composed_train(job.overrides)
                if config.run.fresh:
                    raise UserError("run.fresh=true: a list is continued; train a single run anew with dcal-train")
                composed[job.overrides] = config, identify(config)
            config, identity = composed[job.overrides]
            config = config.copy()
            config.seed = job.seed
            queued.append(Queued(job, Run(config, identity)))
    return queued


def report(queue: Mapping[str, Any], queued: Sequence[Queued]) -> str:
    """The table of states, and below it a line for each run that has failed: its error and where its log is."""
    states = [(job, state_of(run.directory)) for job, run in queued]
    failed = [f"{one.job}: {outcome(one)}" for one, (_, state) in zip(queued, states, strict=True) if state == "failed"]
    return "\n".join([state_table(queue, states), *(["", *failed] if failed else [])])


def outcome(one: Queued) -> str:
    """The state of a run, of a failed one with the last line of its error, and its log."""
    state = state_of(one.run.directory)
    error = (last_line(log_of(one)) or last_line(one.run.failure_file)) if state == "failed" else ""
    return f"{state}{f', {error}' if error else ''}; see {log_of(one)}"


def last_line(file: Path) -> str:
    """The last line of a text that is not empty; an empty text if there is none."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def log_of(one: Queued) -> Path:
    """The file with the output of a run."""
    return one.run.directory / "queue.log"


def write_table(queue: Mapping[str, Any], queued: Sequence[Queued]) -> None:
    """Writes the table of states where the runs are: `<run.root>/<name>.md`."""
    if queued:
        root = Path(queued[0].run.config.run.root).expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / f"{queue['name']}.md", f"{report(queue, queued)}\n")


def work(queued: Sequence[Queued], at_a_time: int, stop: Stop, changed: Callable[[], None]) -> int:
    """Brings all runs to their end, or until a request to stop.

    Args:
        queued: in the order in which they are wanted.
        at_a_time: processes.
        stop: true once somebody has asked to stop.
        changed: called at first and whenever a run has ended.

    Returns:
        how many runs have failed.
    """
    waiting, failed = list(queued), 0
    running: dict[subprocess.Popen[bytes], Queued] = {}
    changed()
    while (waiting and not stop) or running:
        while waiting and len(running) < at_a_time and not stop:
            chosen = next((one for one in waiting if state_of(one.run.directory) != "running"), None)
            if chosen is None:  # all that is left is being worked on elsewhere
                break
            waiting.remove(chosen)
            if state_of(chosen.run.directory) != "finished":
                print(f"{time.strftime('%H:%M:%S')} {chosen.job}: starts in {chosen.run.directory}", flush=True)
                running[start(chosen, at_a_time)] = chosen
        if stop:
            for process in running:
                with suppress(ProcessLookupError):
                    process.send_signal(stop.number)
            for process in running:
                process.wait()
        ended = [process for process in running if process.poll() is not None]
        for process in ended:
            one = running.pop(process)
            # dcal-train leaves nothing behind of a start that a wrong option ends: such a run would count as not begun
            if process.returncode and not stop and state_of(one.run.directory) == "not yet":
                write_atomically(one.run.failure_file, f"{last_line(log_of(one))}\n")
            print(f"{time.strftime('%H:%M:%S')} {one.job}: {outcome(one)}", flush=True)
            failed += state_of(one.run.directory) != "finished" and not stop
        if ended:
            changed()
        elif not stop:
            time.sleep(POLL_SECONDS)
    return failed


def start(one: Queued, at_a_time: int) -> subprocess.Popen[bytes]:
    """Starts `dcal-train` on a job, in a session of its own: a Ctrl-C comes from here, once."""
    one.run.directory.mkdir(parents=True, exist_ok=True)
    one.run.failure_file.unlink(missing_ok=True)  # of an attempt before this one
    threads = str(max(1, (os.cpu_count() or 1) // at_a_time))
    with log_of(one).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *module_command("dcal", "train", *one.job.words)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,
        )
