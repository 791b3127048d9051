"""`dcal-doctor`: what it says of machines, data, weights and runs in every state."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
import torch
from run_command import run_command
from safetensors.torch import load_file, save_file

from dcal.commands import doctor
from dcal.training.checkpoint import save_checkpoint
from dcal.utils.errors import UserError

TINY = ("experiment=tiny/fgvc",)


def asked(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """Exit code and the lines of a report."""
    code = 0
    try:
        run_command("doctor", *words)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, capfd.readouterr().out.splitlines()


def line(lines: list[str], level: str, topic: str) -> str:
    (found,) = [text for text in lines if text.split()[:2] == [level, topic]]
    return found


def test_a_training_that_can_begin(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines = asked(capfd, *TINY)
    assert code == 0 and not [text for text in lines if text.startswith("FAIL")]
    assert "16 classes; images: train 32, test 16; 48 of 48 listed images are here" in line(lines, "OK", "data")
    assert "2 batches of 16 images" in line(lines, "OK", "settings")
    assert "test_vit" in line(lines, "OK", "model") and "GiB free" in line(lines, "OK", "disk")
    assert not list(tmp_path.iterdir()), "a check leaves nothing behind"


def test_what_cannot_be_had_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(3, 1)}, other)
    words = ["dataset=cub", f"dataset.root={tmp_path}", "backbone=test_vit", f"backbone.checkpoint={other}"]
    code, lines = asked(capfd, *words, "train.workers=4096")
    assert code == 1
    assert str(tmp_path) in line(lines, "FAIL", "data") and "other.safetensors" in line(lines, "FAIL", "model")
    assert any(text.startswith("WARN  workers") and "4096" in text for text in lines)  # and perhaps shared memory


def test_an_option_that_no_training_would_take_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    code, lines = asked(capfd, *TINY, "attention.pwca.stream=medium", "ablation=stream")
    assert code == 1 and "attention.pwca.stream='medium'" in line(lines, "FAIL", "settings")


def test_wandb_needs_a_key_and_a_server(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, lines = asked(capfd, *TINY, "wandb.mode=online")
    assert code == 1 and "no key" in line(lines, "FAIL", "wandb")
    assert "127.0.0.1:9 cannot be reached" in line(lines, "WARN", "wandb")


def test_a_run_in_every_state(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(fgvc_run, run)
    code, lines = asked(capfd, f"run={run}")
    assert code == 0 and "finished: top1" in line(lines, "OK", "state")
    assert "fits" in line(lines, "OK", "weights")
    assert not any(" checkpoint " in text for text in lines), "a finished run keeps none"
    weights = load_file(run / "last.safetensors")
    save_checkpoint(run / "checkpoints", 2, weights, {})
    assert "step 2 is whole" in line(asked(capfd, f"run={run}")[1], "OK", "checkpoint")

    (run / "result.json").unlink()
    assert "interrupted, after epoch 1" in line(asked(capfd, f"run={run}")[1], "WARN", "state")
    with (run / "run.lock").open("w") as lock:
        lock.write("process 4711 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "running: process 4711 on elsewhere" in line(asked(capfd, f"run={run}")[1], "OK", "state")
    (run / "failure.txt").write_text("Traceback ...\nValueError: no such thing\n")
    code, lines = asked(capfd, f"run={run}")
    assert code == 1 and "failed: ValueError: no such thing" in line(lines, "FAIL", "state")
    assert "dcal-train experiment=tiny/fgvc" in "\n".join(lines)

    for file in run.glob("checkpoints/*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps({**versions, "torch": "1.0"}))
    save_file({"weight": torch.zeros(1)}, run / "last.safetensors")
    code, lines = asked(capfd, f"run={run}")
    assert "checksum of model.safetensors" in line(lines, "WARN", "checkpoint")
    assert "torch 1.0" in line(lines, "WARN", "versions") and "not the weights" in line(lines, "FAIL", "weights")
    config = run / "config_resolved.yaml"
    config.write_text(config.read_text().replace("dcal.dataset.synthetic.birds.read_synthetic_birds", "os.system"))
    code, lines = asked(capfd, f"run={run}")
    assert code == 1 and "dataset.reader._target_=os.system" in line(lines, "WARN", "code")
    assert "no run directory" in line(asked(capfd, f"run={tmp_path}")[1], "FAIL", "run")


def test_a_slow_precision_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcal.bench.measure.interleaved_medians", lambda calls, *_: {"fp32": 1.0, "bf16": 3.0})
    _, lines = asked(capfd, *TINY, "train.precision=bf16")
    assert "3.0 times slower" in line(lines, "WARN", "precision")
    assert doctor.FAIL not in {text[:4] for text in lines}


def test_a_fault_of_a_check_shows_its_stack(capfd: pytest.CaptureFixture[str]) -> None:
    """What the user can correct is a sentence (above); anything else is no mistake of the user's."""

    def faulty() -> list[doctor.Finding]:
        raise IndexError("no such row")

    def absent() -> list[doctor.Finding]:
        raise UserError("dataset.root=birds: no such folder")

    assert doctor.run_checks([("data", faulty), ("root", absent)]) == 1
    said = capfd.readouterr()
    assert "this check itself failed: IndexError: no such row" in line(said.out.splitlines(), "FAIL", "data")
    assert "in faulty" in said.err and "in absent" not in said.err
    assert "dataset.root=birds: no such folder" in line(said.out.splitlines(), "FAIL", "root")
