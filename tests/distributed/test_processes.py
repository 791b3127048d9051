"""Several processes do what one does: the same step, the same evaluation; and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CASES
from run_command import run_command

from dcal.distributed.env import module_command
from dcal.distributed.launcher import ProcessFailed, launch, to_be_started
from dcal.training import trainer as engine
from dcal.training.build import share_of_batch
from dcal.utils.errors import UserError

HERE = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each process of `ranks.py` found, by `<processes>-<rank>`."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run([sys.executable, HERE / "ranks.py", folder], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # torch 2.8 warns of its own process groups, from C++
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line and "ProcessGroup.hpp" not in line]
    assert not warnings, done.stderr
    return {file.stem: torch.load(file, weights_only=False) for file in folder.glob("*.pt")}


@pytest.mark.parametrize(("case", "strategy"), [(case, name) for case, names in CASES for name in names.split()])
def test_two_processes_take_the_steps_of_one(results: dict[str, dict[str, Any]], case: str, strategy: str) -> None:
    alone = results["1-0"][case]
    for place in ("2-0", "2-1"):
        found = results[place][case, strategy]
        assert found["metrics"] == alone["metrics"]  # before the first step: exactly
        for name, column in alone["items"].items():
            assert torch.equal(found["items"][name], column), name
        for ours, theirs in zip(found["losses"], alone["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
        for part in ("weights", "evaluated", "objective", "optimizer"):
            torch.testing.assert_close(found[part], alone[part], rtol=1e-5, atol=1e-6)


def test_ranking_is_shared_and_equal_in_every_bit(results: dict[str, dict[str, Any]]) -> None:
    alone, *others = (results[place]["ranking"] for place in ("1-0", "2-0", "2-1"))
    for found in others:
        assert {key: found[key] for key in found if key != "per_query"} == {
            key: alone[key] for key in alone if key != "per_query"
        }
        assert all(torch.equal(a, b) for a, b in zip(found["per_query"], alone["per_query"], strict=True))


def test_two_processes_are_stopped_and_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = ["experiment=tiny/fgvc", f"run.root={tmp_path}", "train.epochs=9999", "train.eval_every=9999"]
    overrides += ["train.checkpoint_minutes=0"]
    several = [sys.executable, "-m", "dcal", "train", *overrides, "launch.processes=2", "launch.strategy=fsdp"]
    started = subprocess.Popen(several, env=ENV, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not any(int(path.name) > 2 for path in tmp_path.glob("tiny/fgvc/*/*/checkpoints/[0-9]*")):
            assert started.poll() is None and time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.02)
        started.send_signal(signal.SIGTERM)
        _, said = started.communicate(timeout=300)
    finally:
        started.kill()
    assert started.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said and "Traceback" not in said
    (directory,) = tmp_path.glob("tiny/fgvc/*/seed=0")
    newest = max(directory.glob("checkpoints/*"))
    assert len(torch.load(newest / "training_state.pt", weights_only=True)["rng"]) == 2

    update, calls = engine.update, iter(range(99))

    def until_the_third_epoch(*args: Any) -> Any:  # of this session
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(engine, "update", until_the_third_epoch)
    with pytest.raises(SystemExit):
        run_command("train", *overrides)
    assert f"step {int(newest.name)}\n" in capfd.readouterr().out  # "continuing at ..."
    assert int(max(directory.glob("checkpoints/*")).name) == int(newest.name) + 5
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in logged] == list(range(1, (int(newest.name) + 4) // 2 + 1))


DYING = """
import os, signal, time
if os.environ["RANK"] == "0":
    time.sleep(600)
{death}
"""
RAISING = """
from dcal.distributed.launcher import errors_to_agent
from dcal.utils.errors import UserError
with errors_to_agent():
    raise {error}
"""


@pytest.mark.parametrize(
    ("death", "told", "printed"),
    [
        (RAISING.format(error="UserError('train.key=3: take 4')"), "^train.key=3: take 4$", ""),
        (RAISING.format(error="ValueError('shapes')"), "^process 1 failed with ValueError: shapes", "Traceback"),
        (RAISING.format(error="KeyError('lost')"), "^process 1 failed with KeyError: 'lost'", "Traceback"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "^process 1 of 2 was killed by SIGKILL: repeat", ""),
        ("os._exit(7)", "^process 1 of 2 ended with code 7: repeat", ""),
    ],
)
def test_a_process_that_dies_is_told_in_one_sentence_and_ends_the_others(
    tmp_path: Path,
    death: str,
    told: str,
    printed: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
    script = tmp_path / "dying.py"
    script.write_text(DYING.format(death=death))
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    begun = time.monotonic()
    with pytest.raises(ProcessFailed, match=told):
        launch([str(script)], 2)
    assert time.monotonic() - begun < 300
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    said = capfd.readouterr().err
    assert printed in said and (printed or not said)


def test_launched_processes_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("dcal", "runpy", "json"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'a').write(__name__)")
    command = module_command("json.tool", "--compact")
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=ENV, input='{"a": 1}', capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ('{"a":1}\n', "")
    assert not (tmp_path / "imported").exists()


def test_the_number_of_processes_is_not_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_be_started(2) and not to_be_started(1)
    with pytest.raises(UserError, match=r"launch\.processes=0"):
        to_be_started(0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29400")
    assert not to_be_started(4) and not to_be_started(1)
    with pytest.raises(UserError, match=r"launch\.processes=2, but 4 processes"):
        to_be_started(2)


@pytest.mark.parametrize(("size", "instances", "told"), [(9, 1, "multiple of 2"), (12, 4, "multiple of 8")])
def test_a_batch_that_cannot_be_divided_names_its_key(size: int, instances: int, told: str) -> None:
    with pytest.raises(UserError, match=rf"train\.batch_size={size}.*{told}"):
        share_of_batch(size, instances, 2)
