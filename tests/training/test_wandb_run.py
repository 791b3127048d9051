"""Weights & Biases beyond offline, against a server on the loopback interface: tests/wandb_server.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from run_command import refused, run_command
from wandb_server import Sent, Server, answering, serving

from dcal.inference.restore import restore
from dcal.training import trainer as engine
from dcal.training import wandb_run as tracking
from dcal.utils.errors import UserError
from dcal.utils.signals import Interrupted

ROOT = Path(__file__).resolve().parents[2]
WANDB = shutil.which("wandb", path=Path(sys.executable).parent) or "wandb"
TINY = ("experiment=tiny/fgvc", "attention=glca", "train.progress=false", "train.epochs=2")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with answering(monkeypatch, tmp_path) as running:
        yield running


def train(runs: Path, *words: str) -> Path:
    """A run in this process; its directory."""
    run_command("train", *TINY, f"run.root={runs}", *words)
    (result,) = runs.glob("**/result.json")
    return result.parent


def in_second_epoch(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Does something before its evaluation."""
    evaluate, calls = engine.evaluate, iter(range(9))

    def evaluated(*args: Any) -> Any:
        if next(calls) == 1:
            do()
        return evaluate(*args)

    monkeypatch.setattr(engine, "evaluate", evaluated)


def breaks_off(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """In the second epoch."""

    def fail() -> None:
        raise error

    in_second_epoch(monkeypatch, fail)


def check_history(sent: Sent, directory: Path) -> None:
    """What arrived is what the run has written itself."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    arrived = [line for line in sent.history if "epoch" in line]
    assert [line["epoch"] for line in arrived] == [1, 2]
    for line, there in zip(lines, arrived, strict=True):
        for key, value in line.items():
            if key.endswith(("/images", "_chance")) or key == "seconds":
                assert key not in there, "the same after every epoch: that is no curve"
            elif key != "train/images_per_second":  # by the clock: an epoch that is trained again was logged before
                assert there[key] == value


def test_online(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failure, the same run again to its end, figures, artifacts."""
    words = ["wandb.mode=online", "wandb.tags=[one,two]", "wandb.artifacts=true", "train.figures=true"]
    with monkeypatch.context() as patch:
        breaks_off(patch, UserError("train.lr: a bad day"))
        said = refused("train", *TINY, f"run.root={tmp_path}", *words, capfd=capfd)
    assert "a bad day" in said
    (sent,) = server.runs.values()
    assert sent.complete and sent.exitcode == 1 and sent.summary["error"] == "UserError: train.lr: a bad day"
    assert len(sent.history) == 1

    directory = train(tmp_path, *words)
    assert list(server.runs.values()) == [sent], "the same run goes on"
    assert sent.complete and sent.exitcode == 0
    check_history(sent, directory)
    result = json.loads((directory / "result.json").read_text())
    assert {key: sent.summary[key] for key in result["metrics"]} == result["metrics"]
    fields = sent.fields
    assert (fields["groupName"], fields["jobType"]) == ("tiny/fgvc", "train")
    assert fields["tags"] == ["synthetic_birds", "test_vit", "glca", "one", "two"]
    assert fields["displayName"] == f"tiny/fgvc: glca test_vit epochs=2 seed=0 {result['cfg_id']}"
    assert fields["notes"].startswith("dcal-train experiment=tiny/fgvc attention=glca")
    assert any(name.startswith("media/table/examples") for name in sent.files)
    assert any(name.startswith("media/table/confusion_table") for name in sent.files)
    (alert,) = server.alerts
    assert alert["title"] == "tiny/fgvc failed" and "a bad day" in alert["text"] and alert["severity"] == "ERROR"

    (model,) = [artifact for artifact in server.artifacts.values() if artifact.type == "model"]
    assert model.committed and "last.safetensors" in model.files and "last.safetensors" in model.manifest.decode()
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, content in model.files.items():
        assert content == (directory / name).read_bytes()
        (copy / name).write_bytes(content)
    restore(copy)


def test_what_is_on_the_dashboard(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Choices of the groups, axes, the best epoch, values within an epoch, the run's address, changes of the code."""
    monkeypatch.setattr("dcal.run.directory.git_state", lambda: {"commit": "0" * 40, "dirty": True})
    monkeypatch.setattr("dcal.run.directory.git_diff", lambda: "+ one line more")
    words = [
        "wandb.mode=online",
        "train.log_every=1",
        "dataset.val_fraction=0.5",
        "train.batch_size=8",
        "wandb.notes=mine",
    ]
    directory = train(tmp_path, *words, "optimizer.lr=1e-4")
    (sent,) = server.runs.values()
    config = sent.config
    chosen = {"attention": "glca", "backbone": "test_vit", "dataset": "synthetic_birds", "task": "fgvc"}
    assert {key: config[key] for key in chosen} == chosen and config["experiment"] == "tiny/fgvc"
    assert config["options"]["attention"]["glca"]["top_ratio"] == 0.1 and config["train"]["epochs"] == 2
    assert "torch" in config["versions"] and config["label"].startswith("glca test_vit epochs=2 ")
    assert sent.fields["notes"] == "mine" and "lr=0.0001" in sent.fields["displayName"]
    assert sent.files["code.diff"] == b"+ one line more\n" == (directory / "code.diff").read_bytes()

    within = [line for line in sent.history if "batch/loss" in line]
    assert [line["step"] for line in within] == [1, 3], "two batches an epoch, the second of which is the epoch's own"
    assert {"batch/loss_sa", "batch/lr", "batch/grad_norm", "batch/data_seconds"} <= set(within[0])
    axes = sent.step_metrics()
    assert axes["val/*"] == axes["train/*"] == "epoch" and axes["batch/*"] == "step"

    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: float(line["val/top1"]))
    assert (sent.summary["best/top1"], sent.summary["best/epoch"]) == (best["val/top1"], best["epoch"])
    assert sent.summary["parameters"] > 10_000 and sent.summary["images"] == 16
    assert f"{server.url}/somebody/dcal/runs/{sent.name}" in "".join(capfd.readouterr())


def test_a_request_to_stop_is_a_preemption(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_off(monkeypatch, Interrupted(15))
    with pytest.raises(SystemExit):
        train(tmp_path, "wandb.mode=online", "name='one: two/three'")  # more than the client takes for an id
    (sent,) = server.runs.values()
    assert "-one--two-three-0-" in sent.name and "one: two/three" in sent.fields["displayName"] and not server.alerts
    assert sent.preempting and sent.exitcode == 1 and "error" not in sent.summary


def test_offline_runs_are_synced(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make sync`: both sessions of a run that was interrupted, in their order, and the artifact."""
    words = ["wandb.mode=offline", "wandb.artifacts=true"]
    with monkeypatch.context() as patch:
        breaks_off(patch, Interrupted(15))
        with pytest.raises(SystemExit):
            train(tmp_path, *words)
    directory = train(tmp_path, *words)
    assert len(list(directory.glob("wandb/offline-run-*"))) == 2 and not server.runs
    command = ["make", "sync", f"VENV={sys.prefix}", f"RUNS={tmp_path}", "-o", f"{sys.prefix}/.dcal-installed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (sent,) = server.runs.values()
    check_history(sent, directory)
    result = json.loads((directory / "result.json").read_text())
    assert sent.summary["top1"] == result["metrics"]["top1"] and sent.exitcode == 0
    (model,) = [artifact for artifact in server.artifacts.values() if artifact.type == "model"]
    assert model.committed and model.files["last.safetensors"] == (directory / "last.safetensors").read_bytes()


def test_without_a_network_the_run_goes_on_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    directory = train(tmp_path, "wandb.mode=online", "wandb.timeout=3")
    said = "".join(capfd.readouterr())
    assert "wandb.timeout=3" in said and f"wandb sync {directory}" in said
    assert list(directory.glob("wandb/offline-run-*/*.wandb"))


def test_a_server_that_goes_away_does_not_stop_the_training(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the second epoch. What it has not got is told, kept, and sent to it by `wandb sync` when it is back."""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 1.0)
    with monkeypatch.context() as patch:
        in_second_epoch(patch, server.vanish)
        directory = train(tmp_path, "wandb.mode=online")
    said = "".join(capfd.readouterr())
    (kept,) = directory.glob("wandb/run-*")
    assert "server has gone away" in said and f"wandb sync --include-online {kept}" in said
    assert len(next(iter(server.runs.values())).history) < 2
    with serving() as back:
        environment = {**os.environ, "WANDB_BASE_URL": back.url}
        done = subprocess.run(
            [WANDB, "sync", "--include-online", kept], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert back.runs, done.stdout + done.stderr
        check_history(next(iter(back.runs.values())), directory)


def test_online_without_a_key_says_so(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    said = refused("train", *TINY, f"run.root={tmp_path}", "wandb.mode=online", capfd=capfd)
    assert "wandb.mode=online" in said and "wandb login" in said


def test_an_agent_of_a_sweep(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that it starts, and one that was finished before the sweep asked for it."""
    words = [*TINY, f"run.root={tmp_path}", "wandb.mode=online"]
    command = ["${env}", sys.executable, "-m", "dcal", "train", *words, "${args_no_hyphens}"]
    server.sweep = {"config": yaml.dump({"command": command, "program": "dcal-train"})}
    server.sweep["points"] = [{"seed": 0, "optimizer.lr": 0.0005}]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    agent = [WANDB, "agent", "somebody/dcal/sweep-0"]
    done = subprocess.run(agent, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep-0")  # as the agent does
    monkeypatch.setenv("WANDB_RUN_ID", "drawn-1")
    wandb.teardown()  # the client reads them once
    (lost,) = tmp_path.glob("**/metrics.jsonl")
    lost.unlink()
    run_command("train", *words, "seed=0", "optimizer.lr=0.0005")
    assert set(server.runs) == {"drawn-0", "drawn-1"}, done.stderr
    (result,) = map(json.loads, (path.read_text() for path in tmp_path.glob("**/result.json")))
    for sent in server.runs.values():
        assert sent.exitcode == 0 and sent.fields["sweep"] == "sweep-0"
        assert sent.summary["test/top1"] == result["metrics"]["top1"]
        assert sent.config["attention"] == "glca", "as in runs of no sweep"


def test_a_run_trained_anew_is_another_one_on_the_server(server: Server, tmp_path: Path) -> None:
    first = train(tmp_path, "wandb.mode=online")
    shutil.rmtree(first)
    second = train(tmp_path, "wandb.mode=online")
    run_command("train", *TINY, f"run.root={tmp_path}", "wandb.mode=online", "run.fresh=true")
    assert first == second and len(server.runs) == 3
    for sent in server.runs.values():
        assert [line["epoch"] for line in sent.history if "epoch" in line] == [1, 2]


def test_the_end_of_a_log_is_sent_again(server: Server, tmp_path: Path) -> None:
    """A process that dies while W&B sends the end is not finished: repeated, the run completes its log."""
    words = [*TINY, f"run.root={tmp_path}/runs", "wandb.mode=online"]
    code = (
        "import os, sys; from dcal.training import wandb_run; wandb_run._finish = lambda *_: os.kill(os.getpid(), 9); "
        f"sys.argv[1:] = {words!r}; from dcal.commands.app import run; run('train')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert not list(tmp_path.glob("**/result.json")) and list(tmp_path.glob("**/wandb_open"))
    directory = train(tmp_path / "runs", "wandb.mode=online")
    (sent,) = server.runs.values()
    assert sent.complete and sent.exitcode == 0 and not (directory / "wandb_open").exists()
    check_history(sent, directory)


def test_a_run_that_was_deleted_on_the_server_is_logged_as_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    true_init = wandb.init

    def init(**options: Any) -> Any:
        if options["mode"] == "online":
            asked.append(options["id"])
            raise wandb.errors.CommError(f"run somebody/dcal/{options['id']} was previously created and deleted")
        return true_init(**options)

    monkeypatch.setattr(wandb, "init", init)
    train(tmp_path, "wandb.mode=online")
    said = "".join(capfd.readouterr())
    assert len(set(asked)) == 2, "it is tried once more under another id"
    assert "was deleted on the server: it is logged as a new one" in said
    assert "this run was deleted there" in said and "logged offline" in said and "no answer" not in said


def test_a_tag_that_is_too_long_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tags = f"wandb.tags=[short,{'x' * 65}]"
    told = refused("train", *TINY, f"run.root={tmp_path}", "wandb.mode=disabled", tags, capfd=capfd)
    assert "wandb.tags" in told and "65 characters" in told
