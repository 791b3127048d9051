"""Sweeps that are killed, points that fail, and the launchers that run them."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from omegaconf import OmegaConf
from test_config import composed

from dcal import build
from dcal.multirun import table
from dcal.train import main, train

TINY = ("experiment=tiny/fgvc", "train.progress=false")


def sweep(runs: Path, *words: str) -> int:
    """The exit code of a multirun in this process."""
    try:
        run_command(main, "-m", *TINY, f"run.root={runs}", *words)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def results(runs: Path) -> dict[str, dict[str, Any]]:
    """By the part of the directory that names the point."""
    found = {}
    for file in sorted(runs.glob("tiny/fgvc/*/seed=*/result.json")):
        result = json.loads(file.read_text())
        found[str(file.parent.relative_to(runs))] = {
            "metrics": result["metrics"],
            "weights": (file.parent / "last.safetensors").read_bytes(),
        }
    return found


def notes(runs: Path) -> list[dict[str, Any]]:
    """Of the last sweep."""
    folder = max((runs / "sweeps").iterdir())
    return [json.loads(file.read_text()) for file in sorted(folder.glob("points/*.json"))]


def killed(call: Callable[[], object], when: Callable[[], bool]) -> None:
    """Runs `call` in a fork, which spares the imports, and kills it as soon as `when` says so."""

    def alone() -> None:
        os.setsid()
        torch.set_num_threads(1)  # the threads of this process are not there after a fork
        call()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    deadline = time.monotonic() + 120
    while not when():
        assert process.is_alive() and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_eight_points_killed_twice_are_complete_the_third_time(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the forks: sums over several threads differ in their last bits
    try:
        runs, alone = tmp_path / "sweep", tmp_path / "alone"
        points = [(attention, seed) for attention in ("none", "glca", "pwca", "dcal") for seed in (0, 1)]
        words = ["attention=none,glca,pwca,dcal", "seed=0,1", "train.checkpoint_minutes=0", "train.batch_size=8"]

        def midway(finished: int) -> bool:
            """So many are finished, and another one has a checkpoint."""
            done = len(list(runs.glob("tiny/fgvc/*/*/result.json")))
            begun = {path.parent.parent for path in runs.glob("tiny/fgvc/*/*/checkpoints/[0-9]*")}
            return done >= finished and any(not (run / "result.json").exists() for run in begun)

        for finished in (1, 4):
            killed(lambda: sweep(runs, *words), lambda enough=finished: midway(enough))
            assert finished <= len(results(runs)) < 8
        before = set(results(runs))
        assert sweep(runs, *words) == 0
        found = results(runs)
        assert len(found) == 8
        statuses = {note["directory"].removeprefix(f"{runs}/"): note["status"] for note in notes(runs)}
        assert {point for point, status in statuses.items() if status == "finished before"} == before
        for attention, seed in points:
            point = [f"attention={attention}", f"seed={seed}"]
            train(composed(*TINY, "name=tiny/fgvc", f"run.root={alone}", *point, *words[2:]))
        assert found == results(alone)
        assert len({result["weights"] for result in found.values()}) == 8, "attention and seed decide"
    finally:
        torch.set_num_threads(threads)


def test_a_point_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    true_build = build.build

    def broken(config: Any) -> Any:
        if config.seed == 1:
            raise RuntimeError("a bug")
        return true_build(config)

    monkeypatch.setattr(build, "build", broken)
    words = ["seed=0,1,2,3", "attention=none"]
    assert sweep(tmp_path, "seed=0", "attention=none") == 0
    (first,) = tmp_path.glob("tiny/fgvc/*/seed=0")
    (first.parent / "seed=2").mkdir()
    with (first.parent / "seed=2" / "run.lock").open("w") as lock:
        lock.write("process 4711 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep(tmp_path, *words) == 1
    said = capfd.readouterr()
    assert [note["status"] for note in notes(tmp_path)] == ["finished before", "failed", "failed", "finished"]
    assert "being worked on by process 4711" in said.err and "RuntimeError: a bug" in said.err
    last = said.out.strip().splitlines()
    assert last[-1].startswith("4 points: 1 finished before, 2 failed, 1 finished") and "seed=3" in last[-2]
    assert "Traceback" in (first.parent / "seed=1" / "failure.txt").read_text()
    assert not (first.parent / "seed=2" / "failure.txt").exists(), "it belongs to another process"

    monkeypatch.undo()
    assert sweep(tmp_path, *words) == 0
    assert [note["status"] for note in notes(tmp_path)] == [
        "finished before",
        "finished",
        "finished",
        "finished before",
    ]
    assert not list(tmp_path.glob("**/failure.txt")) and len(results(tmp_path)) == 4


def test_a_request_to_stop_ends_the_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the first point must not begin the second."""
    words = ["seed=0,1", "attention=none", "train.epochs=500"]
    command = [sys.executable, "-m", "dcal.train", "-m", *TINY, f"run.root={tmp_path}", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tiny/fgvc/*/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert [note["status"] for note in notes(tmp_path)] == ["interrupted"]
    assert len(list(tmp_path.glob("tiny/fgvc/*/*"))) == 1 and not list(tmp_path.glob("**/failure.txt"))


def test_a_finished_point_is_skipped_without_the_heavy_imports(tmp_path: Path) -> None:
    assert sweep(tmp_path, "seed=0", "attention=none") == 0
    code = "import sys; sys.modules['torch'] = None; sys.modules['wandb'] = None; from dcal.train import main; main()"
    words = ["-m", *TINY, "seed=0,0,0,0", "attention=none", f"run.root={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 4 + 4 + 1  # each point, each line of the table, the sum


def test_table() -> None:
    note = {"status": "finished", "headline": "top1", "value": 0.5, "error": "", "directory": "outputs/a"}
    failed = {"status": "failed", "headline": "", "value": float("nan"), "error": "ValueError: no", "directory": "b"}
    text = table([{**note, "overrides": ["seed=0", "lr=1"]}, {**failed, "overrides": ["seed=10", "lr=1"]}])
    assert text.splitlines() == [
        "seed=0   top1 0.5000  finished  outputs/a",
        "seed=10  -            failed    b",
        "    ValueError: no",
        "2 points: 1 finished, 1 failed: repeat the command to run these again",
    ]


def plugin(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.{name}", reason=f"{name} is not installed, see docs/sweeps.md")


def shell(runs: Path, *words: str, code: int) -> str:
    """A sweep in a process of its own, for launchers that start others."""
    command = [sys.executable, "-m", "dcal.train", "-m", *TINY, f"run.root={runs}", "attention=none", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]),
    ],
)
def test_launchers(name: str, words: list[str], tmp_path: Path) -> None:
    plugin(name)
    said = shell(tmp_path, "train.batch_size=16,4096", *words, code=1)  # more than there are images
    assert "2 points: 1 finished, 1 failed" in said and "train.batch_size=4096" in said
    assert [note["status"] for note in notes(tmp_path)] == ["finished", "failed"]
    assert len(results(tmp_path)) == 1 and len(list(tmp_path.glob("tiny/fgvc/*/*/failure.txt"))) == 1


def test_optuna(tmp_path: Path) -> None:
    plugin("hydra_optuna_sweeper")
    options = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3"]
    options += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    said = shell(tmp_path, "optimizer.lr=interval(1e-4,1e-3)", *options, code=0)
    assert "3 points: 3 finished" in said
    values = [note["value"] for note in notes(tmp_path)]
    best = OmegaConf.load(max((tmp_path / "sweeps").iterdir()) / "optimization_results.yaml")
    assert best.best_value == max(values)
