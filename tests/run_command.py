"""Commands as a user types them, in this process: a second import of torch would cost seconds a test."""

from __future__ import annotations

import configparser
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dcal.commands.app import run
from dcal.commands.queue import parse
from dcal.commands.words.keys import check_words, config_folders
from dcal.commands.words.overrides import follow_image_size, prepare
from dcal.config import register
from dcal.run.queue import jobs_of, read_queue
from dcal.training import trainer as engine
from dcal.utils.paths import config_dir, experiments_dir


def run_command(name: str, *words: str) -> None:
    """Does what `dcal-NAME` does with a command line."""
    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", [f"dcal-{name}", *words]):
        run(name)


def incomplete(name: str, *words: str) -> None:
    """Calls a command that must do its work and say by its exit code that it left images out."""
    with pytest.raises(SystemExit) as stopped:
        run_command(name, *words)
    assert stopped.value.code == 3


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a fork, where the other threads are not: sums over several threads differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def killed(call: Callable[[], object], step: int) -> None:
    """Runs `call` in a fork, which spares the imports, and which kills itself before its `step`-th optimizer step."""

    def alone() -> None:
        update, steps = engine.update, itertools.count(1)

        def last(*args: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(*args)

        engine.update = last  # type: ignore[assignment]
        call()

    with one_thread():
        process = multiprocessing.get_context("fork").Process(target=alone)
        process.start()
        process.join(300)
    assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"


def refused(name: str, *words: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Calls a command that must fail with a message and without a stack; returns what it said."""
    with pytest.raises(SystemExit) as stopped:
        run_command(name, *words)
    said = capfd.readouterr().err
    assert stopped.value.code == 1
    assert "Traceback" not in said
    return said


def composed_command(words: Sequence[str]) -> DictConfig | None:
    """The configuration that a command line gives, of a sweep its first point; None where it only asks for help.

    Fails as the command would on a name or a key that does not exist.
    """
    program, *arguments = words
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[1] / "setup.cfg", encoding="utf-8")
    assert f"{program} =" in setup["options.entry_points"]["console_scripts"], f"{program}: no such command"
    if {"-h", "--help", "--version"} & set(arguments):
        return None
    if program == "dcal-doctor" and any(word.startswith("run=") for word in arguments):  # composes nothing
        return None
    if program == "dcal-queue":  # reads its own words, and gives the others to `dcal-train`
        options = parse(arguments)
        queue = read_queue(experiments_dir().parent / options.file)
        return composed_command(["dcal-train", *jobs_of(queue, options.cells, options.common)[0].words])
    name = "train" if program == "dcal-doctor" else program.removeprefix("dcal-")  # which checks a run's settings
    folder = config_dir() if (config_dir() / f"{name}.yaml").is_file() else config_dir() / name
    register()
    arguments = prepare(arguments, name)
    if folder == config_dir():
        check_words(arguments, name)
        arguments = follow_image_size(arguments, name)
    overrides = [word for word in arguments if word[0] != "-" and ("=" in word or word[0] == "~")]
    # elsewhere `figures=` is a key, not the folder of experiments/
    own = [] if name == "results" else [experiments_dir()]
    search = [f"file://{path}" for path in (*own, *config_folders(arguments))]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        searchpath = f"hydra.searchpath=[{','.join(repr(place) for place in search)}]"
        config = compose(name, [searchpath, *first_point(overrides)], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    OmegaConf.to_container(config, resolve=True)
    return config


def first_point(overrides: Sequence[str]) -> list[str]:
    """The overrides of the first run of a sweep; Hydra's own are left out."""
    first = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_interval_sweep():
            first.append(f"{override.key_or_group}={override.value().start}")  # type: ignore[union-attr]
        elif override.is_sweep_override():
            first.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
        elif not override.key_or_group.startswith(("hydra.", "hydra/")):
            first.append(str(override.input_line))
    return first
