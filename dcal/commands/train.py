"""`dcal-train`: trains, evaluates and logs one run (or, with `-m`, one run per point of a sweep).

A finished run is returned as it is, an interrupted one continues: repeating a command completes it.
"""

from __future__ import annotations

from omegaconf import DictConfig

from dcal.distributed.env import adopt_batch_system, rank_zero_only
from dcal.run.directory import Run
from dcal.run.result import summary
from dcal.run.sweep import Outcome, run_point
from dcal.training.wandb_run import answer_agent


def train(config: DictConfig) -> float:
    """One run; returns the primary metric, so that a sweeper can optimise it."""
    adopt_batch_system()
    return run_point(lambda: Run(config), complete)


def complete(run: Run) -> Outcome:
    """Brings the run to its result, or only looks it up."""
    result, status = run.result(), "finished before"
    if result is not None:
        rank_zero_only(print)("\n  ".join([f"finished before: {summary(result, run)}", *run.remarks(result)]))
        rank_zero_only(answer_agent)(run, result)
    else:
        from dcal.training.execute import execute  # torch, timm and the like take seconds: not for a finished run

        result, status = execute(run), "finished"
    primary_metric = result["primary_metric"]
    return Outcome(status, primary_metric, float(result["metrics"][primary_metric]))
