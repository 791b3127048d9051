"""Commands on Python 3.14, on any Python: its check of help texts, and how it starts data workers."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from run_command import run_command

TRAIN = """
import multiprocessing, sys
multiprocessing.set_start_method("forkserver")
from dcal.commands.app import train
sys.argv = ["dcal-train", *sys.argv[1:]]
train()
"""


@pytest.fixture
def early_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """`add_argument` reads a help text at once, as since Python 3.14."""
    add_argument = argparse.ArgumentParser.add_argument

    def add(parser: Any, *names: Any, **options: Any) -> argparse.Action:
        if options.get("help"):
            try:
                "%" in options["help"]  # noqa: B015
            except TypeError as error:
                raise ValueError("badly formed help string") from error
        return add_argument(parser, *names, **options)

    # of the base class: the method that a parser inherits
    monkeypatch.setattr("argparse._ActionsContainer.add_argument", add)


@pytest.mark.usefixtures("early_check")
def test_commands_accept_the_help_text_of_completion(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="badly formed help string"):
        get_args_parser()  # so it is with Hydra alone; once this passes, `late_help_texts` can go
    run_command("train", "experiment=tiny/fgvc", "--cfg", "job", "--package", "train")
    assert "epochs:" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        run_command("train", "--hydra-help")
    assert "--shell-completion" in capfd.readouterr().out
    assert "add_argument" not in vars(argparse.ArgumentParser), "nothing of it stays behind"


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_run_whose_workers_are_not_forked(cache: str, tmp_path: Path) -> None:
    words = ["experiment=tiny/fgvc", "train.epochs=2", "train.workers=1", f"dataset.cache={cache}"]
    command = [sys.executable, "-c", TRAIN, *words, f"run.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 1
