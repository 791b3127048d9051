"""What a run says of itself: at its start, between epochs, and in its log file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from run_command import refused, run_command

from dcal.run import progress
from dcal.training import trainer
from dcal.training.log_file import LOG_FILE, logged_to
from dcal.utils.errors import UserError
from dcal.utils.signals import Interrupted

TINY = ("experiment=tiny/fgvc", "attention=glca", "train.batch_size=8")


def only_run(root: Path) -> Path:
    (config,) = root.rglob("config_resolved.yaml")
    return config.parent


def test_a_run_says_what_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command("train", *TINY, f"run.root={tmp_path}", "dataset.val_fraction=0.25")
    said = "".join(capfd.readouterr())
    directory = only_run(tmp_path)
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert f"{directory.parent.name}  seed 0: glca test_vit batch_size=8 val_fraction=0.25" in lines["run"]
    assert str(directory) in lines["directory"]
    assert re.search(r"CPU cores, torch uses \d+; fp32", lines["device"])
    assert "16 classes; images: train 32, test 16; 48 of 48 listed images are here" in lines["data"]
    assert "val" in lines["used"], "what is held out of them"
    assert "test_vit at 48×48, attention glca, 0.3 M parameters" in lines["model"]
    assert "of 2 batches of 8 images; evaluated on val" in lines["epochs"]
    assert "disabled" in lines["wandb"]
    assert "backbone.pretrained=true" in lines["random"] and "backbone.checkpoint=" in lines["random"]
    result = json.loads((directory / "result.json").read_text())
    assert result["seconds"] > 0 and result["peak_memory_bytes"] > 2**20
    assert result["parameters"] >= result["learned_parameters"] > 10_000
    assert result["host"] and re.match(r"\d{4}-\d\d-\d\dT\d\d:", result["finished"])


def test_weights_of_a_file_are_named_and_nothing_is_warned_of(
    fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = fgvc_run / "last.safetensors"
    run_command("train", *TINY, f"run.root={tmp_path}", f"backbone.checkpoint='{weights}'", "backbone.freeze=all")
    said = "".join(capfd.readouterr())
    assert f"weights    {weights}" in said and "random weights" not in said


def test_a_model_without_weights_of_its_own_is_not_sent_to_the_hub(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_command("train", *TINY, f"run.root={tmp_path}", "++backbone.kwargs={depth: 2}", "attention=none")
    said = "".join(capfd.readouterr())
    assert "random weights" in said and "backbone.pretrained" not in said


def test_the_log_file_has_every_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error, then the same run to its end; with time and level, and lines between the epochs."""

    def fails(*_: object) -> None:
        raise UserError("a bad day")

    words = [*TINY, f"run.root={tmp_path}", "train.log_every=1", "train.epochs=2", "train.checkpoint_minutes=0"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", fails)
        refused("train", *words, capfd=capfd)
    run_command("train", *words)
    text = (only_run(tmp_path) / LOG_FILE).read_text()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}  (INFO|WARNING|ERROR) ", line) for line in text.splitlines()
    )
    assert text.count("INFO     model ") == 2 and text.count("WARNING  random weights") == 2
    assert "ERROR    UserError: a bad day" in text and "continuing at epoch 1, step 4" in text
    assert [int(step) for step in re.findall(r"epoch 2/2  batch (\d)/4", text)] == [1, 2, 3]
    assert len(re.findall(r"epoch 2/2  loss [\d.]+  test/top1 [\d.]+", text)) == 1
    assert "batch 2/4" in capfd.readouterr().err, "there is no terminal"


def test_levels(tmp_path: Path) -> None:
    run_command("train", *TINY, f"run.root={tmp_path}", "hydra.job_logging.root.level=WARNING")
    text = (only_run(tmp_path) / LOG_FILE).read_text()
    assert "random weights" in text and "test/top1" in text and "INFO     model" not in text


def test_without_logging_set_up_the_file_has_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = logging.getLogger("dcal").level
    with pytest.raises(Interrupted), logged_to(tmp_path):
        logging.getLogger("dcal.training").info("something")
        raise Interrupted(15)
    assert "INFO     something" in (tmp_path / LOG_FILE).read_text()
    assert "INFO     Interrupted: stopped by SIGTERM" in (tmp_path / LOG_FILE).read_text()
    assert logging.getLogger("dcal").level == before


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.Work("evaluation", 100, "batch", initial=20) as piece:
        for _ in range(8):
            clock[0] += 10.0
            piece.advance(10)
    said = capfd.readouterr().err.splitlines()
    assert said == [f"evaluation: batch {count} of 100, 1.0 per second" for count in (50, 80)]


def test_an_interval_of_no_batches_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for word in ("train.checkpoint_minutes=-1.0", "train.checkpoint_minutes=nan"):
        assert f"{word}: must be at least 0" in refused("train", *TINY, f"run.root={tmp_path}", word, capfd=capfd)
    assert "train.log_every=0" in refused("train", *TINY, f"run.root={tmp_path}", "train.log_every=0", capfd=capfd)
