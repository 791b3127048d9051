"""`dcal-train` as a user meets it: a run, its directory, resuming, sweeps, and errors that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_command import killed, one_thread, refused, run_command

TINY = [
    "dataset=image_folder",
    "dataset.image_size=[32,32]",
    "dataset.resize=[36,36]",
    "backbone=test_vit",
    "++backbone.kwargs={depth: 3, embed_dim: 32, num_heads: 2, patch_size: 8}",
    "train.batch_size=8",
    "train.epochs=2",
    "train.workers=0",
    "train.precision=fp32",
    "optimizer.schedule.warmup_epochs=0",
    "wandb.mode=disabled",
    "name=tiny",
]

# from a folder of its own, so that the command is shown to work from any; one thread, so that it is fast on few cores
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three classes that differ in colour."""
    root = tmp_path_factory.mktemp("pictures of birds ü")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for number, name in enumerate(("ant", "bee", "cow")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (40, 44, 3), dtype=np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def command(folder: Path | str, runs: Path, *more: str) -> list[str]:
    flags = [word for word in more if word == "-m"]
    words = [word for word in more if word != "-m"]
    return [
        sys.executable,
        "-m",
        "dcal",
        "train",
        *flags,
        *TINY,
        f"dataset.root='{folder}'",
        f"run.root={runs}",
        *words,
    ]


def run(folder: Path | str, runs: Path, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(folder, runs, *more), capture_output=True, text=True, env=ENV, cwd=runs)
    assert done.returncode == code, done.stderr
    return done


def run_inside(folder: Path | str, runs: Path, *more: str) -> None:
    """The same without a process of its own, which would take seconds to start."""
    with one_thread():
        run_command("train", *command(folder, runs, *more)[4:])


def start(folder: Path, runs: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, runs, *more),
        env=ENV,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def results(runs: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(runs.glob("tiny/*/seed=*/result.json"))]


def test_a_run_leaves_what_it_promises_and_is_not_repeated(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(folder, tmp_path, "wandb.mode=offline", "train.ema_decay=0.9", "train.accumulate=2", "task.mixup=0.2")
    (result,) = results(tmp_path)
    assert result["status"] == "finished" and result["seed"] == 0 and len(result["cfg_id"]) == 8
    assert {"top1", "top1_sa", "top1_glca", "top1_macro", "top5", "nll"} <= set(result["metrics"])
    directory = tmp_path / "tiny" / result["cfg_id"] / "seed=0"
    for name in (
        "config_resolved.yaml",
        "metrics.jsonl",
        "last.safetensors",
        "items.npz",
        "examples.png",
        "gallery.npz",
        "train.log",
        "label.txt",
    ):
        assert (directory / name).exists(), name
    assert str(directory) in done.stdout
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    keys = {
        "train/loss",
        "train/loss_sa",
        "train/loss_glca",
        "train/loss_pwca",
        "train/weight_sa",
        "train/lr",
        "test/top1",
    }
    assert keys <= set(lines[0]) and not any(key.startswith("val/") for key in lines[0])  # nothing is held out
    assert list(directory.glob("wandb/offline-run-*/*.wandb"))
    assert not (directory / "best.safetensors").exists()  # without a validation split there is no best but by the test

    before = (directory / "result.json").stat().st_mtime_ns
    words = ["wandb.mode=offline", "train.ema_decay=0.9", "train.accumulate=2", "task.mixup=0.2"]
    run_inside(folder, tmp_path, *words)
    assert "finished before" in capfd.readouterr().out
    assert (directory / "result.json").stat().st_mtime_ns == before


def test_killed_in_mid_epoch_it_goes_on_as_if_it_had_not_been(folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    slow = ["train.checkpoint_minutes=0", "train.epochs=3"]  # a checkpoint after every step
    slow += ["attention.pwca.probability=0.5"]  # some steps have the branch, the same ones after a kill
    run_inside(folder, whole, *slow)
    killed(lambda: run_inside(folder, broken, *slow), step=9)
    assert not results(broken)
    run_inside(folder, broken, *slow)
    assert results(broken)[0]["metrics"] == results(whole)[0]["metrics"]
    weights = [next(runs.glob("tiny/*/*/last.safetensors")).read_bytes() for runs in (whole, broken)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["dataset.root=/nowhere/at/all"], "dataset.root"),
        (["attention.glca.readout=medium"], "attention.glca.readout='medium'"),
        (["attention.pwca.pairing=friends"], "attention.pwca.pairing='friends'"),
        (["dataset.image_size=[33,32]", "dataset.resize=[36,36]"], "dataset.image_size"),
        (["backbone.checkpoint=/nowhere.safetensors"], "backbone.checkpoint"),
        (["task.rerank=true"], "task=reid"),
        (["train.batch_size=4096"], "train.batch_size"),
        (["train.accumulate=9"], "train.accumulate"),
        (["train.eval_every=0"], "train.eval_every=0: must be at least 1"),
        (["train.clip_grad=0"], "train.clip_grad=0"),
        (["train.ema_decay=1"], "train.ema_decay=1"),
        (["train.head_epochs=2"], "train.head_epochs=2.0"),
        (["backbone.freeze=99"], "backbone.freeze=99"),
        (["optimizer.new_lr_scale=-1"], "optimizer.new_lr_scale=-1"),
        (["seed=-1"], "seed=-1"),
        (["wandb.mode=offline", "wandb.project='a:b'"], "wandb.mode=offline: Invalid project name"),
        (["optimizer.lr=1e30", "train.clip_grad=null"], "optimizer.lr"),
        (["device=cuda"], "device=cuda"),
    ],
)
def test_errors_are_one_sentence_that_names_the_key(
    folder: Path,
    tmp_path: Path,
    more: list[str],
    told: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if more == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert told in refused("train", *command(folder, tmp_path, *more)[4:], capfd=capfd)
    assert not results(tmp_path)


def test_a_truncated_image_is_named_or_skipped(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    victim = copy / "train" / "bee" / "3.jpg"
    Image.open(copy / "train" / "bee" / "3.png").save(victim)
    (copy / "train" / "bee" / "3.png").unlink()
    victim.write_bytes(victim.read_bytes()[:-200])
    said = refused("train", *command(copy, tmp_path)[4:], capfd=capfd)
    assert "3.jpg" in said and "dataset.on_bad_image" in said
    run_inside(copy, tmp_path, "dataset.on_bad_image=skip")
    assert len(results(tmp_path)) == 1


def test_two_processes_do_not_share_a_run_and_a_stopped_one_is_saved(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = start(folder, tmp_path, "train.epochs=99999", "train.workers=1")
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("tiny/*/*/metrics.jsonl")):
            assert first.poll() is None and time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.05)
        words = command(folder, tmp_path, "train.epochs=99999", "train.workers=1")[4:]
        assert f"process {first.pid}" in refused("train", *words, capfd=capfd)
    finally:
        os.killpg(first.pid, signal.SIGTERM)  # as a batch system does: the data workers get it, too
        code = first.wait(300)
    assert code == 128 + signal.SIGTERM
    # that a checkpoint is of the very step at which a signal came is in test_faults.py, where the step can be chosen
    saved = max(int(path.parent.name) for path in tmp_path.glob("tiny/*/*/checkpoints/*/manifest.json"))
    (log,) = tmp_path.glob("tiny/*/*/metrics.jsonl")
    assert saved >= json.loads(log.read_text().splitlines()[-1])["step"]
