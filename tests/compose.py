"""The configuration of `dcal-train` in a test's own process, and its id."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dcal.config import register
from dcal.run.identity import identify
from dcal.utils.paths import config_dir


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["name=test", *overrides])


def settings_id(config: DictConfig) -> str:
    """The id over settings and weights alone, which is the run's where the data need no digest."""
    return identify(config).settings_id
