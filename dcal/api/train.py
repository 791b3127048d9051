"""Training runs from Python, by the words of the command line: what `dcal-train` does, in a script or a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from dcal.commands.app import one_sentence
from dcal.commands.words.keys import check_complete
from dcal.commands.words.overrides import composed_train, is_sweep, prepare
from dcal.config import register
from dcal.run.directory import Run
from dcal.training.execute import execute
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir

ONE_RUN = "this is a sweep, and dcal.train is one run: call it once for each point, or use dcal-train -m"


class FinishedRun(NamedTuple):
    """A run that is finished."""

    directory: Path
    """With `result.json`, weights, figures and the log; `dcal.load(directory)` gives its model."""
    metrics: dict[str, float]
    """Shares in [0, 1] and losses, by name."""
    primary_metric: str
    """Name of the metric that the run is compared by: `top1`, or `mAP` in re-identification."""

    @property
    def value(self) -> float:
        """The metric that the run is compared by."""
        return self.metrics[self.primary_metric]


def train(overrides: Sequence[str] = ()) -> FinishedRun:
    """Trains one run and evaluates it, as `dcal-train` with the same words does.

        run = dcal.train(["dataset=image_folder", "dataset.root=pictures", "backbone=deit_tiny", "attention=none"])
        model = dcal.load(run.directory)

    The directory follows from the configuration: a finished run is returned as it is, an interrupted one continues.
    Training seeds the global random number generators of Python, NumPy and torch.

    Args:
        overrides: `key=value` and `group=option`, as on the command line; docs/configuration.md lists them.

    Raises:
        UserError: the words do not compose, or the run cannot do what they ask for; the message names the key.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is saved, and the same call continues the run.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides={overrides!r}: give a list of words, [{overrides!r}]")
    with composed(overrides) as config:
        run = Run(config)
        result = run.result() or execute(run)
    return FinishedRun(run.directory, result["metrics"], result["primary_metric"])


@contextmanager
def composed(overrides: Sequence[str]) -> Iterator[DictConfig]:
    """The configuration that the words give; while inside, Hydra's own configuration knows them, as in a command.

    Raises:
        UserError: they do not compose, or ask for several runs.
    """
    register()
    before = HydraConfig.instance().cfg
    try:
        words = prepare(overrides, "train")
        sweeps = [word for word in words if is_sweep(word)]
        if sweeps:
            raise UserError(f"{' '.join(sweeps)}: {ONE_RUN}")
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = composed_train(overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        if config.hydra.mode is not None and config.hydra.mode.name == "MULTIRUN":
            raise UserError(f"{' '.join(words)}: {ONE_RUN}")
        with open_dict(config):
            del config["hydra"]
        check_complete(config)
        yield config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_sentence(error)) from error
    finally:
        HydraConfig.instance().cfg = before
