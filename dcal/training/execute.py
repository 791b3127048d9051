"""Executing a run: in this process, alone or as one of several, or by starting several."""

from __future__ import annotations

from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dcal.distributed.collectives import all_gather_object, init_distributed
from dcal.distributed.env import module_command, rank_zero_only
from dcal.distributed.launcher import ProcessFailed, errors_to_agent, launch, to_be_started
from dcal.run.data_digest import joint_judged_digest, judged_digest
from dcal.run.directory import Run
from dcal.run.files import write_json
from dcal.run.label import typed_words
from dcal.run.progress import bars
from dcal.run.result import summary
from dcal.training.build import build, side_sizes
from dcal.training.checkpoint import remove_checkpoints
from dcal.training.describe import announce, facts, hardware
from dcal.training.log_file import logged_to
from dcal.training.state import TrainState
from dcal.training.trainer import fit
from dcal.training.wandb_content import summarize
from dcal.training.wandb_run import keep_artifact, track
from dcal.utils.accelerator import find_accelerator
from dcal.utils.errors import UserError


def execute(run: Run) -> dict[str, Any]:
    """Trains in this process, perhaps as one of several, or starts several of this command; returns the result."""
    config = run.config
    if not to_be_started(config.launch.processes):
        with errors_to_agent(), init_distributed(config.device):
            return train(run)
    check_gpus(config)
    try:
        # an ablation's file asks for a sweep: this is one point of it
        words = [*_sources(), *typed_words(), "hydra.mode=RUN"]
        launch(module_command("dcal", "train", *words), config.launch.processes)
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
    gpus = torch.accelerator.device_count() if config.device != "cpu" and find_accelerator() else 0
    if 0 < gpus < config.launch.processes:
        raise UserError(f"launch.processes={config.launch.processes}: torch sees {gpus} GPU(s), one for each process")


def train(run: Run) -> dict[str, Any]:
    """Trains a run and returns what its `result.json` holds."""
    config = run.config
    with run, logged_to(run.directory), bars(config.train.progress):
        found = next((result for result in all_gather_object(run.result()) if result is not None), None)
        if found is not None:  # of another process, which has finished the run while this one was starting
            rank_zero_only(print)(summary(found, run))
            return found
        run.write_config(typed_words())
        OmegaConf.resolve(config)
        with track(run) as tracker:  # around everything: what the configuration cannot have is a failure on W&B, too
            state = build(config)
            if not run.identity.readable:
                raise UserError("the data could not be read when the run began, and can be now: repeat the command")
            # what the model's outputs and its embedding of cameras stand for
            sides = side_sizes(state.task.side_information, state.data)
            write_json(run.directory / "model.json", {"class_names": state.data.class_names, "sides": sides})
            device = hardware(state.device.torch)
            run.note_start(device)
            announce(state, run, tracker)
            evaluation = fit(state, run, tracker)
            evaluation.save(run.directory / "items.npz")
            if config.train.figures:
                model = state.assemble_eval_model()
                show = rank_zero_only(state.task.show)
                show(model, state.data, state.validation, evaluation, state.device, run.directory, tracker)
            result = run.prepare_result(
                evaluation.metrics,
                primary_metric=state.task.primary_metric,
                split=state.validation,
                judged=judged(state),
                device=device,
                **facts(state),
            )
            rank_zero_only(summarize)(run, tracker, result)
            rank_zero_only(keep_artifact)(run, tracker)
        remove_checkpoints(run.directory / "checkpoints")
        # last, for it means finished: a run killed before draws its figures and ends its log when it is repeated
        run.finish()
    rank_zero_only(print)(summary(result, run))
    return result


def judged(state: TrainState) -> str:
    """Tells which images the run is judged on."""
    splits, members = state.task.splits(state.validation), state.data.members
    if members:
        return joint_judged_digest({name: member.catalog for name, member in members.items()}, splits)
    return judged_digest(state.data.catalog, splits)


def _sources() -> list[str]:
    """What tells another command where this one has its configuration from: `--config-dir` and its like."""
    hydra = HydraConfig.get()
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    searched = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return ["--config-name", str(hydra.job.config_name), *(f"--config-dir={path}" for path in given), *searched]
