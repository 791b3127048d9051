"""The training loop.

Everything it needs comes in a `TrainState`, which `dcal.training.build` puts together; it knows nothing of Hydra. A
step of the optimizer is in `dcal.training.step`, what a checkpoint holds in `dcal.training.resume`.
"""

from __future__ import annotations

from typing import Any

from dcal.dataset.images import worker_deaths
from dcal.distributed.collectives import all_gather_batches, all_reduce_max, world_size
from dcal.run.directory import LAST_WEIGHTS, Run
from dcal.task.evaluation import Evaluation
from dcal.training.checkpoint import save_weights
from dcal.training.meter import Meter, create_meter
from dcal.training.resume import Progress, resume, save
from dcal.training.state import TrainState
from dcal.training.step import update
from dcal.training.wandb_run import catch_up, log_epoch
from dcal.utils.memory import out_of_memory_names
from dcal.utils.signals import Interrupted, Stop, stop_requests


def fit(state: TrainState, run: Run, tracker: Any) -> Evaluation:
    """Trains to the last epoch, from the newest checkpoint if there is one; returns the last evaluation.

    Raises:
        Interrupted: on SIGTERM or Ctrl-C, after a checkpoint.
        BadLoss: on a loss that is not finite; the last checkpoint is kept.
        DataError: an image cannot be read, or a data loading process has died.
        OutOfMemory: the message names the keys to change.
        WriteError: the run directory cannot be written; the last checkpoint is kept.
    """
    cfg, at, meter = state.train, Progress(), create_meter(state, tracker)
    resume(state, run, at, meter)
    catch_up(run, tracker)
    evaluation: Evaluation | None = None
    with stop_requests() as stop, worker_deaths():
        while at.epoch < cfg.epochs:
            # batches: a resumed epoch begins behind the batches that it has seen
            state.loader.batch_sampler.seek(at.epoch, at.batch)  # type: ignore[union-attr]
            for batch in meter.watch(all_gather_batches(state.loader, state.device.torch), at.epoch, at.batch):
                losses = update(state, batch, (at.epoch + at.batch / len(state.loader)) / cfg.epochs)
                at.batch, at.step = at.batch + 1, at.step + 1
                meter.add(losses, batch, at.step)
                # checkpoint: all processes decide together, so that they stop after the same step
                signal, due = all_reduce_max(stop.number, meter.checkpoint_due())
                if signal or due:
                    save(state, run, at, meter)
                if signal:
                    raise Interrupted(signal)
            # evaluation
            evaluation = None
            if (at.epoch + 1) % cfg.eval_every == 0 or at.epoch + 1 == cfg.epochs:
                evaluation = evaluate_or_stop(state, run, at, meter, stop)
            # logging, before a checkpoint, which remembers how much of the log belongs to it
            at.epoch, at.batch = at.epoch + 1, 0
            values = {"epoch": at.epoch, "step": at.step, **meter.close_epoch(), **weights_and_rates(state)}
            values["seconds"] = meter.seconds()
            if evaluation is not None:
                values |= {f"{state.validation}/{key}": value for key, value in evaluation.metrics.items()}
                keep_best(state, run, at, evaluation)
            run.log(values)
            log_epoch(run, tracker, values)
            meter.report(values, f"{state.validation}/{state.task.primary_metric}")
            # the end of training: a result that could not be written is written from this checkpoint
            if at.epoch == cfg.epochs or all_reduce_max(meter.checkpoint_due())[0]:
                save(state, run, at, meter)
        save_weights(run.directory / LAST_WEIGHTS, state.assemble_eval_model().state_dict())
        # None: killed between the last checkpoint and the result
        evaluation = evaluation or evaluate_or_stop(state, run, at, meter, stop)
    state.seconds = meter.seconds()
    return evaluation


def evaluate_or_stop(state: TrainState, run: Run, at: Progress, meter: Meter, stop: Stop) -> Evaluation:
    """The evaluation of the validation split; a request to stop breaks it off, since it changes nothing.

    Raises:
        Interrupted: after a checkpoint of the moment before the evaluation; of several processes, after the last one
            that was due.
    """
    # broken off, several processes would not be at one place, and could not save together
    if world_size() > 1 and all_reduce_max(meter.checkpoint_due())[0]:
        save(state, run, at, meter)
    try:
        with stop.at_once():
            return evaluate(state, state.validation)
    except Interrupted:
        if world_size() == 1:
            save(state, run, at, meter)
        raise


def evaluate(state: TrainState, split: str) -> Evaluation:
    """The task's evaluation of the evaluated model on a split; not compiled, for its batches come in two sizes."""
    cfg = state.train
    with out_of_memory_names("a smaller train.eval_batch_size"):
        model = state.assemble_eval_model()
        return state.task.evaluate(model, state.data, split, cfg.eval_batch_size, cfg.workers, state.device)


def weights_and_rates(state: TrainState) -> dict[str, float]:
    """Learning rate and the weight of each branch's loss, for the log."""
    weights = {f"train/weight_{branch}": weight for branch, weight in state.objective.combine.weights().items()}
    return {"train/lr": float(state.optimization.optimizer.param_groups[0]["lr"]), **weights}


def keep_best(state: TrainState, run: Run, at: Progress, evaluation: Evaluation) -> None:
    """Keeps the best weights by the validation split. Without one there is none to keep: never by the test split."""
    primary_metric = evaluation.metrics[state.task.primary_metric]
    if state.validation == "val" and primary_metric > at.best:
        at.best = primary_metric
        weights = state.assemble_eval_model().state_dict()
        save_weights(run.directory / "best.safetensors", weights, {"epoch": str(at.epoch)})
