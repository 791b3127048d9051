"""Weights & Biases of one run: everything under the run directory, nothing that the result depends on.

One `with track(...)` per job: leaving the context attributes a failure to the right run, and a run left open would take
in the log of the next job of a multirun.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf

from dcal.run import Run


@contextmanager
def track(run: Run, job_type: str = "train") -> Iterator[Any]:
    """Opens the W&B run of `run` and yields it. Its id follows from the run directory, so a resumed run goes on in it.

    Raises:
        ValueError: unknown `wandb.mode`.
    """
    mode = run.config.wandb.mode
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"wandb.mode={mode!r}: choose one of offline, online, disabled")
    import wandb  # takes a second: only when a run really starts

    # Artifacts are staged here; outside the run directory a later sync would silently leave them out.
    os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_CACHE_DIR"] = str(run.directory / "wandb")
    config = OmegaConf.to_container(run.config, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    settings = wandb.Settings(console="off", x_transaction_log_flush_interval=1, silent=True)
    tracked = wandb.init(
        mode=mode,
        project=run.config.wandb.project,
        entity=run.config.wandb.entity,
        group=run.config.wandb.group,
        tags=list(run.config.wandb.tags),
        job_type=job_type,
        name=f"{run.config.name}/{run.cfg_id}/seed={run.seed}",
        id=f"{run.cfg_id}-{run.config.name}-{run.seed}".replace("/", "-"),
        resume="allow",
        dir=str(run.directory),
        config={**{str(key): value for key, value in config.items()}, "cfg_id": run.cfg_id},
        settings=settings,
    )
    try:
        yield tracked
    except BaseException as error:  # what wandb's own context would do, but without printing the stack
        tracked.summary["error"] = f"{type(error).__name__}: {error}"
        tracked.finish(exit_code=1)
        raise
    tracked.finish()
