"""What people type in their first minutes with a command: it works, or one sentence says what does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from run_command import refused, run_command
from torch import nn

import dcal
from dcal.commands import app
from dcal.commands.words.keys import check_words
from dcal.commands.words.overrides import follow_image_size, prepare
from dcal.dataset.record import DataError
from dcal.optimizer import create_optimization
from dcal.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MANDATORY: dict[str, list[str]] = {
    "calibrate": ["run=a"],
    "evaluate": ["run=a"],
    "explain": ["run=a"],
    "export": ["run=a", "format=onnx"],
    "predict": ["run=a", "images=a"],
    "extract": ["run=a", "out=a"],
    "query": ["run=a", "index=a", "image=a"],
}
"""Words without which a command has nothing to do."""


def composed_by(*words: str, command: str = "train") -> DictConfig:
    """The configuration that the job of a command is given."""
    given: list[DictConfig] = []
    with doing(given.append):
        run_command(command, *words)
    return given[0]


def doing(job: Callable[[DictConfig], object]) -> AbstractContextManager[object]:
    """Inside, `job` takes the place of what a command does with its configuration."""
    return mock.patch.object(app, "command_function", lambda name: job)


def value_of(word: str, command: str = "train") -> Any:
    (changed,) = prepare([word], command)
    return OverridesParser.create().parse_override(changed).value()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("train", "-sc", f"install={shell}")
    assert "complet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dcal-train dataset=c", "dataset=cub"),
        ("dcal-train train.ep", "train.epochs="),
        ("dcal-train ablation=", "ablation=readout"),
    ],
)
def test_completion_offers_keys_options_and_ablations(line: str, offered: str) -> None:
    """In a process of its own, as a shell asks for it: what completion registers with Hydra stays there."""
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-m", "dcal", "train", "-sc", "query=bash"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert offered in done.stdout.split(), done.stderr


def test_version_is_that_of_dcal(capsys: pytest.CaptureFixture[str]) -> None:
    run_command("train", "--version")
    assert capsys.readouterr().out == f"dcal {dcal.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config-dir", "no_such_folder", "experiment=mine"], "no_such_folder: there is no such folder"),
        (["backbone=null"], "backbone=null: null is no option; choose one of"),
        (["experiment=null"], "experiment=null: null is no option; leave the word out"),
        (["ablation=null"], "ablation=null"),
        (["dataset=CUB"], "did you mean cub"),
        (["backbone.checkpoint="], "is not set?); backbone.checkpoint=null is none"),
        (["run.root="], "run.root=: the value is empty (a shell variable that is not set?)\n"),
        (["--config-dir=", "experiment=mine"], "--config-dir: the folder's name is empty"),
        (["name=null"], "name=null: must have a value"),
        (["name=a/../../b"], "name=a/../../b: is a path below run.root"),
        (["name=/elsewhere"], "name=/elsewhere: is a path below run.root"),
        (["lr=1e-4"], "lr: no such key; did you mean optimizer.lr?"),
        (["batch_size=8"], "did you mean train.batch_size?"),
        (["epochs=3"], "did you mean train.epochs?"),
        (["+my.key=3"], "my.key: no such key"),
        (["+train.foo=3"], "train.foo: no such key"),
        (["~attention"], "attention=none"),
        (["~wandb"], "wandb.mode=disabled"),
        (["-m", "dataset.image_size=64,96"], "needs dataset.resize, too"),
        (["train.epochs=many"], "error: train.epochs=many: Value 'many' of type 'str' could not be converted to Int"),
        (["dataset.image_size=[a,b]"], "dataset.image_size"),
        (["train.epochs=[1"], "train.epochs=[1: this is no key=value"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    told = refused("train", *words, capfd=capfd)
    assert said in told
    assert told.startswith("error: ") and told.count("\n") == 1


def test_an_experiment_file_without_its_first_line_is_explained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("train:\n  epochs: 1\n", encoding="utf-8")
    said = refused("train", "--config-dir", str(tmp_path), "experiment=mine", capfd=capfd)
    assert said.startswith("error: In 'experiment/mine'") and said.count("\n") == 1
    assert said.endswith(": the first line of such a file must be: # @package _global_\n") and "::" not in said


@pytest.mark.parametrize("word", ["run=null", "images=null", "weights=null", "root=null"])
def test_null_is_refused_where_it_is_no_value(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    given = [other for other in ("run=there", "images=a.jpg") if other[:3] != word[:3]]
    assert f"{word}: must have a value" in refused("predict", *given, word, capfd=capfd)


def test_null_is_taken_where_it_means_something() -> None:
    check_words(["picture=null"], "query")
    check_words(["train.clip_grad=null", "attention.pwca.blocks=null", "+dataset.reader.x=null"])


def test_words_of_hydra_and_of_free_nodes_may_be_new() -> None:
    check_words(["+hydra.job.env_set.A=1", "+backbone.kwargs.depth=8", "++dataset.reader.x=1", "~dataset.reader.x"])


def test_a_mandatory_key_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    told = refused("predict", "images=a.jpg", capfd=capfd)
    assert told == "error: run=... must be given; --help explains each key\n"


@pytest.mark.parametrize("text", ["2026_11_27", "1e5", "0x10", "true", "007", "nan", "1.50"])
@pytest.mark.parametrize(
    ("key", "command"), [("name", "train"), ("run.root", "train"), ("dataset.root", "train"), ("out", "predict")]
)
def test_text_that_looks_like_a_number_remains_text(key: str, command: str, text: str) -> None:
    assert value_of(f"{key}={text}", command) == text


def test_other_values_remain_what_they_are() -> None:
    assert value_of("wandb.tags=[2026_11,night,1e5]") == ["2026_11", "night", "1e5"]
    assert value_of("backbone.checkpoint=null") is None
    assert value_of("train.epochs=3") == 3 and value_of("train.figures=true") is True
    assert value_of("name='2026_11'") == "2026_11"
    sweep = value_of("name=1,2")
    assert [choice.text for choice in sweep.list] == ["1", "2"]


def test_a_number_reaches_the_job_as_the_name_it_is() -> None:
    config = composed_by("name=2026_11_27", "wandb.tags=2026", "wandb.entity=12e3")
    assert (config.name, config.wandb.tags, config.wandb.entity) == ("2026_11_27", ["2026"], "12e3")


@pytest.mark.parametrize("word", ["dataset.image_size=224", "dataset.image_size=[224]", "dataset.image_size=[224,224]"])
def test_the_resize_follows_the_image_size(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed_by("dataset=image_folder", word)
    assert (config.dataset.image_size, config.dataset.resize) == ([224, 224], [275, 275])  # as 550 to 448
    assert "dataset.resize=[275,275]" in capsys.readouterr().err


def test_a_resize_that_is_given_remains() -> None:
    words = ["dataset.image_size=[64,64]", "dataset.resize=[72,72]"]
    assert follow_image_size(words, "train") == words
    people = composed_by("dataset=identity_folder", "dataset.image_size=[128,64]").dataset
    assert people.resize == [128, 64]


def test_the_warm_up_ends_before_the_run(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(2, 2)
    model.vit = nn.Identity()
    settings = {"opt": "sgd", "lr": 0.1, "lr_batch_size": None, "weight_decay": 0.0, "momentum": 0.9}
    scales = {"bias_lr_scale": 1.0, "new_lr_scale": 1.0}
    schedule = {"warmup_epochs": 5.0, "warmup_lr_ratio": 0.0, "final_lr_ratio": 0.0}
    optimizer, rates = create_optimization(
        model, nn.Module(), set(), 20, 10, 4, **settings, **scales, schedule=schedule
    )
    factors = []
    for _ in range(20):
        factors.append(rates.get_last_lr()[0] / 0.1)
        optimizer.step()
        rates.step()
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert rates.get_last_lr()[0] == pytest.approx(0.0)
    assert "optimizer.schedule.warmup_epochs=5" in caplog.text and len(caplog.records) == 1


def test_ctrl_c_while_torch_is_imported(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(config: DictConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped, doing(interrupt):
        run_command("train")
    assert stopped.value.code == 130
    assert capfd.readouterr().err == "stopped at once: repeat the command to go on\n"


@pytest.mark.parametrize("command", app.CONFIGURED)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("the disk is full"), "error: the disk is full\n"),
        (DataError("root: no such folder"), "error: root: no such folder\n"),
        (FileNotFoundError(2, "No such file", "a.npz"), "error: [Errno 2] No such file: 'a.npz'\n"),
    ],
)
def test_what_the_user_can_correct_is_one_sentence(
    command: str, error: Exception, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with doing(lambda config: fail(error)):
        assert refused(command, *MANDATORY.get(command, ()), capfd=capfd) == told


@pytest.mark.parametrize("command", app.CONFIGURED)
@pytest.mark.parametrize("error", [ValueError("shapes (2, 3) and (4,)"), OSError("of no file")])
def test_an_error_of_the_program_shows_its_stack(
    command: str, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, doing(lambda config: fail(error)):
        run_command(command, *MANDATORY.get(command, ()))
    assert ended.value.code == 1
    told = capfd.readouterr().err
    assert "Traceback" in told and "in fail" in told and str(error) in told


def test_debug_shows_the_stack_of_every_error(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "run.debug=true"], ["evaluate", "run=a", "debug=true"]):
        with pytest.raises(SystemExit), doing(lambda config: fail(UserError("the disk is full"))):
            run_command(*words)
        assert "in fail" in capfd.readouterr().err


def fail(error: Exception) -> None:
    raise error


def test_a_module_of_the_current_folder_is_found_behind_the_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths: list[str] = []
    with doing(lambda config: paths.extend(sys.path)):
        run_command("train")
    assert paths[-1] == str(tmp_path)
    assert str(tmp_path) not in sys.path
