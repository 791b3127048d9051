"""Sweeps that are killed, points that fail, and the launchers that run them."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compose import composed
from omegaconf import OmegaConf
from run_command import killed, one_thread, run_command

from dcal.run.directory import Run
from dcal.run.sweep import sweep_table
from dcal.training import execute

HERE = Path(__file__).resolve().parents[1]
LIMIT = "+hydra.callbacks.limit._target_=limit.Limit"
TINY = ("experiment=tiny/fgvc", "train.progress=false")


def sweep(runs: Path, *words: str) -> int:
    """The exit code of a multirun in this process."""
    try:
        run_command("train", "-m", *TINY, f"run.root={runs}", *words)
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


def test_eight_points_killed_twice_are_complete_the_third_time(tmp_path: Path) -> None:
    runs, alone = tmp_path / "sweep", tmp_path / "alone"
    points = [(attention, seed) for attention in ("none", "glca", "pwca", "dcal") for seed in (0, 1)]
    words = ["attention=none,glca,pwca,dcal", "seed=0,1", "train.checkpoint_minutes=0", "train.batch_size=8"]
    with one_thread():
        for step, finished in ((6, 1), (14, 4)):  # a point has four steps; in the midst of the next one
            killed(lambda: sweep(runs, *words), step)
            assert len(results(runs)) == finished
        before = set(results(runs))
        assert sweep(runs, *words) == 0
        found = results(runs)
        assert len(found) == 8
        statuses = {note["directory"].removeprefix(f"{runs}/"): note["status"] for note in notes(runs)}
        assert {point for point, status in statuses.items() if status == "finished before"} == before
        for attention, seed in points:
            point = [f"attention={attention}", f"seed={seed}"]
            execute.train(Run(composed(*TINY, "name=tiny/fgvc", f"run.root={alone}", *point, *words[2:])))
    assert found == results(alone)
    assert len({result["weights"] for result in found.values()}) == 8, "attention and seed decide"


def test_a_point_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    true_build = execute.build

    def broken(config: Any) -> Any:
        if config.seed == 1:
            raise RuntimeError("a bug")
        return true_build(config)

    monkeypatch.setattr(execute, "build", broken)
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
    assert last[-1].startswith("4 points: 1 finished before, 2 failed, 1 finished") and "seed=3" in last[-4]
    assert last[-2].endswith("2 of 4 seeds")
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


def test_a_finished_point_is_skipped_without_the_heavy_imports(fgvc_run: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None; sys.modules['wandb'] = None"
    code = f"{hidden}; from dcal.commands.app import run; run('train')"
    words = ["-m", *TINY, "seed=0,0,0,0", f"run.root={fgvc_run.parents[3]}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 4 + 4 + 1  # each point, each line of the table, the sum


def test_who_comes_second_finds_the_run_finished(
    fgvc_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another process may finish a run between this one's first look and its hold of the run."""
    before = (fgvc_run / "result.json").stat().st_mtime_ns
    monkeypatch.setattr(execute, "build", None)
    execute.train(Run(composed(*TINY, "name=tiny/fgvc", f"run.root={fgvc_run.parents[3]}")))
    assert str(fgvc_run) in capfd.readouterr().out and (fgvc_run / "result.json").stat().st_mtime_ns == before


def test_table() -> None:
    note = {"status": "finished", "primary_metric": "top1", "value": 0.5, "error": "", "directory": "outputs/a"}
    failed = {
        "status": "failed",
        "primary_metric": "",
        "value": float("nan"),
        "error": "ValueError: no",
        "directory": "b",
    }
    text = sweep_table([{**note, "overrides": ["seed=0", "lr=1"]}, {**failed, "overrides": ["seed=10", "lr=1"]}])
    assert text.splitlines() == [
        "seed=0   top1 0.5000  finished  outputs/a",
        "seed=10  -            failed    b",
        "    ValueError: no",
        "over seeds:",
        "top1 0.5000, 1 of 2 seeds",
        "2 points: 1 finished, 1 failed: repeat the command to run the others",
    ]


def test_table_averages_seeds() -> None:
    note = {"status": "finished", "primary_metric": "top1", "error": "", "directory": "a", "value": 0.5}
    seeds = [{**note, "value": value, "overrides": ["lr=1", f"seed={seed}"]} for seed, value in ((0, 0.4), (1, 0.6))]
    other = [{**note, "overrides": ["lr=2", "seed=0"]}]
    assert sweep_table([*seeds, *other], 4).splitlines()[3:] == [
        "over seeds:",
        "lr=1  top1 0.5000, standard deviation 0.1414, 2 of 2 seeds",
        "lr=2  top1 0.5000, 1 of 1 seeds",
        "3 of 4 points: 3 finished: repeat the command to run the others",
    ]


def test_an_interrupted_sweep_shows_its_table(
    fgvc_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcal.training.execute.execute", lambda run: os.kill(os.getpid(), signal.SIGINT))
    assert sweep(fgvc_run.parents[3], "attention=glob([d*,g*])", "seed=0,1") == 128 + signal.SIGINT
    assert capfd.readouterr().out.strip().splitlines()[-1].startswith("2 of 4 points: "), "a glob stands for options"
    assert sweep(fgvc_run.parents[3], "seed=0,1", "train.epochs=1,2") == 128 + signal.SIGINT
    said = capfd.readouterr().out.strip().splitlines()
    assert said[-1] == "2 of 4 points: 1 finished before, 1 interrupted: repeat the command to run the others"
    assert said[-3].startswith("train.epochs=1  top1") and said[-2].startswith("train.epochs=2  -")


def plugin(name: str) -> None:
    pytest.importorskip(f"hydra_plugins.{name}", reason=f"{name} is not installed, see docs/sweeps.md")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        (
            "hydra_submitit_launcher",
            [
                "hydra/launcher=submitit_local",
                "hydra.launcher.timeout_min=60",
                LIMIT,
            ],
        ),
    ],
)
def test_launchers(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One point ends well, one fails; under submitit the first comes to a time limit in its third step."""
    plugin(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), *sys.path]))
    words = ["attention=none", "train.checkpoint_minutes=60", *words]
    assert sweep(tmp_path, "train.batch_size=8,4096", *words) == 1  # more than there are images
    said = capfd.readouterr().out
    assert "2 points: 1 finished, 1 failed" in said and "train.batch_size=4096" in said
    assert [note["status"] for note in notes(tmp_path)] == ["finished", "failed"]
    assert len(results(tmp_path)) == 1
    assert len(list(tmp_path.glob("tiny/fgvc/*"))) == 1, "a start that fails leaves no directory"
    if "submitit" in name:
        logs = "".join(log.read_text() for log in tmp_path.glob("sweeps/*/.submitit/*/*_0_log.*"))
        assert "stopped by SIGUSR2" in logs and "continuing at epoch 1, step 3" in logs


def test_optuna(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plugin("hydra_optuna_sweeper")
    options = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3"]
    options += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"]
    assert sweep(tmp_path, "attention=none", "optimizer.lr=tag(log, interval(1e-4, 1e-3))", *options) == 0
    assert "3 points: 3 finished" in capfd.readouterr().out
    values = [note["value"] for note in notes(tmp_path)]
    best = OmegaConf.load(max((tmp_path / "sweeps").iterdir()) / "optimization_results.yaml")
    assert best.best_value == max(values)
