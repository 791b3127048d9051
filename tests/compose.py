"""The configuration of `dcal-train` in a test's own process."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dcal.config import register
from dcal.utils.paths import config_dir


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["name=test", *overrides])
