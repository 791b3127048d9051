"""`dcal-train`: trains, evaluates and logs one run (or, with `-m`, one run per point of a sweep).

A finished run is returned as it is, an interrupted one continues: repeating a command completes it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dcal.commands.app import hydra_command, report_errors
from dcal.distributed.env import rank_zero_only, world_size
from dcal.distributed.launcher import (
    ProcessFailed,
    adopt_batch_system,
    errors_to_agent,
    launch,
    module_command,
    to_be_started,
)
from dcal.run.directory import Run
from dcal.run.sweep import Outcome, run_point
from dcal.training.wandb_run import answer_agent
from dcal.utils.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of `dcal-train`."""
    hydra_command(job, "train")


def job(config: DictConfig) -> float:
    """One Hydra job; returns the headline metric, so that a sweeper can optimise it."""
    adopt_batch_system()
    return run_point(lambda: report_errors(lambda: Run(config), config.run.debug), complete)


def complete(run: Run) -> Outcome:
    """Brings the run to its result, or only looks it up."""
    result, status = run.result(), "finished before"
    if result is not None:
        rank_zero_only(print)("\n  ".join([f"finished before: {summary(result, run)}", *run.remarks(result)]))
        rank_zero_only(answer_agent)(run, result["metrics"])
    else:  # torch, timm and albumentations take seconds to import: not for --help, and not for a finished run
        result = report_errors(lambda: carry_out(run), run.config.run.debug)
        status = "finished"
    headline = result["headline"]
    return Outcome(status, headline, float(result["metrics"][headline]))


def carry_out(run: Run) -> dict[str, Any]:
    """Trains in this process, perhaps as one of several, or starts several of this command; returns the result."""
    from dcal.distributed.collectives import init_distributed

    config = run.config
    if not to_be_started(config.launch.processes):
        with errors_to_agent(), init_distributed(config.device):
            return train(run)
    check_gpus(config)
    try:
        # an ablation's file asks for a sweep: this is one point of it
        words = [*_sources(), *_overrides(), "hydra.mode=RUN"]
        launch(module_command("dcal.commands.train", *words), config.launch.processes)
    except ProcessFailed:
        run.fresh = False  # the processes have seen to it
        with run:  # which notes the failure, over what the others may have left there for want of that process
            raise
    run.fresh = False
    result = run.result()
    assert result is not None  # all processes have ended well
    return result


def check_gpus(config: DictConfig) -> None:
    """Raises a UserError if there are fewer GPUs than processes that want one."""
    import torch

    gpus = torch.accelerator.device_count() if config.device != "cpu" else 0
    if 0 < gpus < config.launch.processes:
        raise UserError(f"launch.processes={config.launch.processes}: torch sees {gpus} GPU(s), one for each process")


def train(run: Run) -> dict[str, Any]:
    """Trains a run and returns what its `result.json` holds."""
    from dcal.distributed.collectives import all_gather_object
    from dcal.inference.restore import write_card
    from dcal.run.data_digest import judged_digest
    from dcal.training.build import build
    from dcal.training.checkpoint import keep_newest
    from dcal.training.trainer import fit
    from dcal.training.wandb_run import keep_artifact, track

    config = run.config
    with run:
        found = next((result for result in all_gather_object(run.result()) if result is not None), None)
        if found is not None:  # of another process, which has finished the run while this one was starting
            rank_zero_only(print)(summary(found, run))
            return found
        run.write_config(_overrides())
        OmegaConf.resolve(config)
        with track(run) as tracker:  # around everything: what the configuration cannot have is a failure on W&B, too
            state = build(config)
            write_card(run.directory, state)
            device = hardware(state.device.torch)
            run.note_start(device)
            evaluation = fit(state, run, tracker)
            evaluation.save(run.directory / "items.npz")
            if config.train.figures:
                show = rank_zero_only(state.task.show)
                show(
                    state.assemble_eval_model(),
                    state.data,
                    state.validation,
                    evaluation,
                    state.device,
                    run.directory,
                    tracker,
                )
            tracker.summary.update({key: value for key, value in evaluation.metrics.items()})
            result = run.prepare_result(
                evaluation.metrics,
                headline=state.task.headline,
                split=state.validation,
                judged=judged_digest(state.data.catalog, state.task.splits(state.validation)),
                device=device,
            )
            rank_zero_only(keep_artifact)(run, tracker)
        # last, for it means finished: a run killed before draws its figures and ends its log when it is repeated
        run.finish()
        rank_zero_only(keep_newest)(run.directory / "checkpoints")
    rank_zero_only(print)(summary(result, run))
    return result


def hardware(device: torch.device) -> str:
    """What the run computed on, for the cost of a table."""
    from dcal.utils.accelerator import device_name

    if device.type == "cpu":
        return f"{os.cpu_count()} CPU cores"
    name = device_name(device)
    return name if world_size() == 1 else f"{world_size()} × {name}"


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _sources() -> list[str]:
    """What tells another command where this one has its configuration from: `--config-dir` and its like."""
    hydra = HydraConfig.get()
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    searched = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return ["--config-name", str(hydra.job.config_name), *(f"--config-dir={path}" for path in given), *searched]


def summary(result: dict[str, Any], run: Run) -> str:
    """What a person wants to read at the end of a run: the figures, where everything is, what to type next."""
    metrics = result["metrics"]
    headline = result["headline"]
    branches = "  ".join(
        f"{branch} {metrics[f'{headline}_{branch}']:.4f}"
        for branch in ("sa", "glca")
        if f"{headline}_{branch}" in metrics
    )
    title = f"{result['name']}  {result['cfg_id']}  seed {result['seed']}"
    lines = [
        f"{title}: {headline} {metrics[headline]:.4f}  ({branches})",
        f"  everything  {run.directory}",
        *([f"  figure      {run.directory / 'examples.png'}"] if run.config.train.figures else []),
        f"  report      dcal-results report={run.directory}",
    ]
    if run.config.wandb.mode == "offline":
        lines.append(f"  dashboard   wandb sync {run.directory / 'wandb'}/offline-run-*")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
