"""Weights & Biases of one run: everything under the run directory, nothing that the result depends on.

One `with track(...)` per job: leaving the context attributes a failure to the right run, and a run left open would take
in the log of the next job of a multirun.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dcal.distributed.env import rank
from dcal.run.directory import Run
from dcal.run.files import write_atomically
from dcal.training import wandb_content as content
from dcal.utils.errors import UserError, choose, first_line
from dcal.utils.signals import Interrupted

# wandb takes a second to import: inside the functions that need it, for a finished run is looked up without
log = logging.getLogger(__name__)

FINISH_SECONDS = 600.0
"""How long the end of a run waits for a server that has gone away; what has not been sent is kept."""
OPEN = "wandb_open"
"""In the run directory while the log is not ended: the number of lines that W&B had when it was opened."""
ID_FILE = "wandb_id"
"""In the run directory: the id of the run at W&B."""
RESERVED = re.compile(r"[^\w.-]")
"""What an id of W&B may not contain, or only in escapes, and the name of a run may."""
ARTIFACT = ("config_resolved.yaml", "model.json", "result.json", "items.npz", "last.safetensors", "best.safetensors")
"""The part of a run directory from which other commands can open the run."""


@contextmanager
def track(run: Run, job_type: str = "train") -> Iterator[Any]:
    """Opens the W&B run of `run` and yields it. The run directory keeps its id, so a resumed run goes on in it.

    A failure ends it as failed, a request to stop as preempted.

    Raises:
        UserError: unknown `wandb.mode`, online without a valid key, or a tag that W&B does not take.
    """
    mode = choose("wandb.mode", run.config.wandb.mode, ("offline", "online", "disabled"))
    for tag in run.config.wandb.tags:
        if not 1 <= len(str(tag)) <= content.TAG_LENGTH:
            raise UserError(f"wandb.tags: {tag!r} has {len(str(tag))} characters; W&B takes 1 to {content.TAG_LENGTH}")
    if rank() > 0:  # the first process tells for all
        mode = "disabled"
    # Artifacts are staged here; outside the run directory a later sync would silently leave them out.
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(run.directory / "wandb")
    tracked = _online(run, job_type) if mode == "online" else _init(run, mode, job_type)
    if mode != "disabled":
        _open_marker(run)
        content.begin(run, tracked)
    try:
        yield tracked
    except BaseException as error:  # what wandb's own context would do, but without printing the stack
        if isinstance(error, Interrupted | KeyboardInterrupt):
            tracked.mark_preempting()  # an agent of a sweep may go on with it
        else:
            problem = f"{type(error).__name__}: {error}"
            tracked.summary["error"] = problem
            if mode == "online":
                tracked.alert(f"{run.config.name} failed", f"{content.display_name(run)}: {problem}", level="ERROR")
        _finish(run, tracked, 1)
        raise
    _finish(run, tracked, 0)


def _finish(run: Run, tracked: Any, exit_code: int) -> None:
    """Ends the W&B run; a server that has gone away is no error of the training."""
    try:
        tracked.finish(exit_code=exit_code)
        (run.directory / OPEN).unlink(missing_ok=True)
    except TimeoutError:
        log.warning(
            "wandb: the server has gone away or is slow, not everything was sent within %g s. It is kept; upload it "
            "later with: wandb sync --include-online %s",
            FINISH_SECONDS,
            Path(tracked.dir).parent,
        )


def _open_marker(run: Run) -> None:
    """Notes how many lines of `metrics.jsonl` W&B has for certain, until the log is ended properly."""
    if not (run.directory / OPEN).is_file():
        lines = run.metrics_file.read_text(encoding="utf-8").splitlines() if run.metrics_file.is_file() else []
        write_atomically(run.directory / OPEN, str(len(lines)))


def catch_up(run: Run, tracked: Any) -> None:
    """Logs again what a killed process may have taken with it; a server leaves out the steps that it has."""
    marker = run.directory / OPEN
    if rank() > 0 or not marker.is_file():
        return
    for values in run.metrics()[int(marker.read_text(encoding="utf-8")) :]:
        if values["step"] >= tracked.step:
            log_epoch(run, tracked, values)


def log_epoch(run: Run, tracked: Any, values: Mapping[str, Any]) -> None:
    """Logs what an epoch has given, as far as it is a curve."""
    log_step(tracked, content.curves(run, values), values["step"])


def log_step(tracked: Any, values: Mapping[str, Any], step: int) -> None:
    """Logs values of a step, but for steps that a session which was broken off has logged."""
    if step >= tracked.step:
        tracked.log(values, step=step)


def _online(run: Run, job_type: str) -> Any:
    """A run on the server, or, if that cannot be had, an offline one: training does not wait for a network.

    A run that was deleted on the server cannot be logged there again: it gets another id.
    """
    import wandb

    for attempt in (1, 2):
        try:
            return _init(run, "online", job_type)
        except wandb.errors.CommError as error:
            reason = first_line(error)
            wandb.teardown()
            deleted = "deleted" in str(error)
            if not deleted or attempt == 2 or _agent_run() is not None:
                break
            log.warning("wandb: the run %s was deleted on the server: it is logged as a new one", _id(run))
            _choose_id(run, unique=True)
    problem = "the server says that this run was deleted there"
    if not deleted:
        problem = f"no answer within wandb.timeout={run.config.wandb.timeout:g} s"
    log.warning(
        "wandb.mode=online: %s (%s). The run is logged offline; upload it later with: "
        "wandb sync %s/wandb/offline-run-*",
        problem,
        reason,
        run.directory,
    )
    return _init(run, "offline", job_type)


def _init(run: Run, mode: Literal["offline", "online", "disabled"], job_type: str) -> Any:
    import wandb

    settings = wandb.Settings(
        console="off",
        silent=True,
        x_transaction_log_flush_interval=1,
        init_timeout=run.config.wandb.timeout,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    try:
        return wandb.init(
            mode=mode,
            project=run.config.wandb.project,
            entity=run.config.wandb.entity,
            group=run.config.wandb.group,
            tags=content.tags(run),
            notes=content.notes(run),
            job_type=job_type,
            name=content.display_name(run),
            # none where nothing is logged: only the first process writes the file that keeps the id
            id=None if mode == "disabled" else _id(run),
            resume="allow",
            dir=str(run.directory),
            config=content.logged_config(run),
            settings=settings,
        )
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        login = "; `wandb login` first, or set wandb.mode=offline" if mode == "online" else ""
        raise UserError(f"wandb.mode={mode}: {first_line(error)}{login}") from None


def _id(run: Run) -> str:
    """The id of a run at W&B: the same whenever it is resumed, another one when it is trained anew."""
    agent = _agent_run()
    if agent is not None:
        return agent
    file = run.directory / ID_FILE
    if not file.is_file():
        older = (run.directory / "wandb").is_dir()  # from before such a file was kept
        _choose_id(run, unique=not older)
    return RESERVED.sub("-", file.read_text(encoding="utf-8").strip())


def _choose_id(run: Run, unique: bool) -> None:
    plain = f"{run.cfg_id}-{run.config.name}-{run.seed}"
    write_atomically(run.directory / ID_FILE, f"{plain}-{secrets.token_hex(3)}" if unique else plain)


def _agent_run() -> str | None:
    """The id that the agent of a W&B sweep wants its run to have, if one has started this process."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def keep_artifact(run: Run, tracked: Any) -> None:
    """With `wandb.artifacts=true` the directory of a finished run, as far as other commands need it, as an artifact."""
    if not run.config.wandb.artifacts:
        return
    import wandb

    title = f"{run.config.name}-{run.cfg_id}-seed{run.seed}".replace("/", "-")
    artifact = wandb.Artifact(title, "model", "weights and configuration: a run directory for dcal-evaluate and others")
    for name in ARTIFACT:
        file = run.prepared_file if name == "result.json" else run.directory / name
        if file.exists():
            # a file that is about to be renamed is copied; others are sent from where they are
            policy: Literal["mutable", "immutable"] = "mutable" if name == "result.json" else "immutable"
            artifact.add_file(str(file), name=name, policy=policy, skip_cache=True)
    tracked.log_artifact(artifact)


def answer_agent(run: Run, result: Mapping[str, Any]) -> None:
    """Tells a W&B sweep the result of a point that was finished before the sweep asked for it."""
    if _agent_run() is not None:
        with track(run) as tracked:
            tracked.log({f"{result['split']}/{key}": value for key, value in result["metrics"].items()})
            content.summarize(run, tracked, result)
