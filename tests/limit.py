"""A Hydra callback for `test_multirun.py`: a job comes to its time limit, as a batch system announces it."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dcal.run.directory import Run
from dcal.training import trainer as engine


class Limit(Callback):
    """In the third step of a run that has no checkpoint yet."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if (Run(config).directory / "checkpoints").exists():
            return
        update, steps = engine.update, itertools.count(1)

        def announced(*args: Any) -> Any:
            if next(steps) == 3:
                os.kill(os.getpid(), signal.SIGUSR2)
            return update(*args)

        engine.update = announced  # type: ignore[assignment]
