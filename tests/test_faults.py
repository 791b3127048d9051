"""Faults while a run is going on: what is said, what is kept, and that repeating the command goes on from it.

The rows of `docs/faults.md` and these tests are held together: what a row quotes is looked for in what is said.
"""

from __future__ import annotations

import ast
import errno
import itertools
import logging
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from run_command import run_command
from safetensors.torch import load_file

from dcal.dataset.images import worker_deaths
from dcal.dataset.record import DataError
from dcal.model import DCAL
from dcal.run.files import WriteError, explain_write_errors
from dcal.task import fgvc
from dcal.training import checkpoint
from dcal.training import trainer as engine
from dcal.training.checkpoint import save_checkpoint

TESTS = Path(__file__).parent
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| `(.+?)` \|$", (TESTS.parent / "docs/faults.md").read_text(), re.M)
TINY = ("experiment=tiny/fgvc", "name=fault", "attention=none", "train.batch_size=8", "train.checkpoint_minutes=0")


def test_every_row_has_a_test_and_every_test_a_row() -> None:
    named = [row[3].split("::") for row in ROWS]
    defined = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {tuple(name) for name in named} <= defined
    ours = {name for file, name in defined if file == Path(__file__).name}
    assert ours - {name for _, name in named} == {"test_every_row_has_a_test_and_every_test_a_row"}


@pytest.fixture
def row(request: pytest.FixtureRequest) -> list[str]:
    """The words that this test's row of the table quotes."""
    (sees,) = (sees for _, sees, _, test in ROWS if test.endswith(f"::{request.node.originalname}"))
    return re.findall("`(.+?)`", sees)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "läufe mit leerzeichen"


def train(root: Path, *words: str) -> None:
    first = ("-m",) if "-m" in words else ()
    run_command("train", *first, *TINY, f"run.root={root}", *(word for word in words if word != "-m"))


def fails(root: Path, row: list[str], capfd: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """A training that ends with `code` and says what the table quotes, without a stack."""
    with pytest.raises(SystemExit) as stopped:
        train(root, *words)
    said = "".join(capfd.readouterr())
    assert stopped.value.code == code, said
    assert "Traceback" not in said
    for words_ in row:
        assert words_ in said, said
    return said


def steps(root: Path) -> list[int]:
    """The checkpoints that are there, by step; they must be whole."""
    assert not [file for file in root.rglob(".*") if file.is_file()], "half-written files"
    return sorted(int(path.parent.name) for path in root.rglob("checkpoints/*/manifest.json"))


def finished(root: Path) -> bool:
    return len(list(root.rglob("result.json"))) == 1


@contextmanager
def at_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, do: Callable[[], None]
) -> Iterator[None]:
    """Inside, does something before the `number`-th call (from 1) of a function."""
    function, calls = getattr(owner, name), itertools.count(1)

    def called(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            do()
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, called)
        yield


def failure(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def send(*signals: signal.Signals) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in signals] and None


def test_sigterm_in_training(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, engine, "update", 3, send(signal.SIGTERM, signal.SIGTERM)):
        fails(root, row, capfd, "train.checkpoint_minutes=60", code=143)
    assert steps(root) == [3]
    train(root)
    assert finished(root)


def test_sigterm_in_an_evaluation(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, fgvc, "classification_metrics", 1, send(signal.SIGTERM)):
        fails(root, row, capfd, "train.checkpoint_minutes=60", code=143)
    (step,) = steps(root)
    assert not list(root.rglob("metrics.jsonl"))
    updates: list[int] = []
    with at_call(monkeypatch, engine, "update", 1, lambda: updates.append(1)):
        train(root)
    (log,) = root.rglob("metrics.jsonl")
    (line,) = log.read_text().splitlines()
    assert finished(root) and not updates and f'"step": {step},' in line


def test_ctrl_c(root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Hydra logs to the captured stream of the test before
    with at_call(monkeypatch, engine, "update", 2, send(signal.SIGINT)):
        # a sweep: the second job must not be begun
        fails(root, row, capfd, "-m", "train.checkpoint_minutes=60", "seed=0,1", code=130)
    assert steps(root) == [2] and len(list(root.rglob("seed=*"))) == 1
    (note,) = root.glob("sweeps/*/points/*.json")
    assert '"interrupted"' in note.read_text() and not list(root.rglob("failure.txt"))


def test_ctrl_c_twice(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, engine, "update", 3, send(signal.SIGINT, signal.SIGINT)):
        fails(root, row, capfd, code=130)
    assert steps(root) == [1, 2]


def test_time_limit(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a handler like submitit's; with its own in test_multirun.py."""

    def requeue(*_: object) -> None:
        assert steps(root) == [3]
        raise SystemExit(144)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setattr("dcal.commands.train.adopt_batch_system", lambda: None)
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with at_call(monkeypatch, engine, "update", 3, send(signal.SIGUSR2)):
            fails(root, row, capfd, "train.checkpoint_minutes=60", code=144)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_disk_full(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for number, (owner, name) in enumerate(((checkpoint.torch, "save"), (checkpoint, "serialize"))):
        with at_call(monkeypatch, owner, name, 2, failure(full)):
            fails(root / str(number), row, capfd)
        assert steps(root / str(number)) == [1]
    train(root / "0")
    assert finished(root / "0")


@pytest.mark.parametrize("large", ["weights", "state"])
def test_file_too_large(root: Path, row: list[str], large: str) -> None:
    """By a limit of the operating system: the libraries themselves run into it."""
    tensors = {name: torch.zeros(100_000 if name == large else 10) for name in ("weights", "state")}
    save_checkpoint(root, 1, {"w": torch.ones(1)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(WriteError) as raised:
            save_checkpoint(root, 2, {"w": tensors["weights"]}, {"s": tensors["state"]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(words in str(raised.value) for words in row), raised.value
    assert [entry.name for entry in root.iterdir()] == ["00000001"]


def test_output_not_writable(row: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/sys").is_dir():
        pytest.skip("no folder that is not writable even for root")
    fails(Path("/sys/dcal"), row, capfd)


def test_corrupt_checkpoint(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, engine, "update", 3, send(signal.SIGTERM)):
        fails(root, [], capfd, code=143)
    (newest,) = root.rglob("checkpoints/00000003/model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    with at_call(monkeypatch, engine, "update", 1, send(signal.SIGTERM)):
        fails(root, row, capfd, code=143)
    assert steps(root) == [2, 3]
    assert load_file(newest)


def test_loss_not_finite(root: Path, row: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    said = fails(root, row, capfd, "optimizer.lr=1e30", "train.clip_grad=null")
    assert len(re.findall(r"[^ /]+/[^ /]+\.\w+", said.split("The images of that step:")[1])) == 8
    assert steps(root)
    for file in root.rglob("model.safetensors"):
        assert all(value.isfinite().all() for value in load_file(file).values())


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, DCAL, "features", 3, failure(OUT_OF_MEMORY)):
        fails(root, row, capfd)
    train(root, "train.accumulate=2", "train.activation_checkpointing=true")
    assert finished(root)  # one result: it went on in the same directory


def test_out_of_memory_with_parts(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, DCAL, "features", 3, failure(OUT_OF_MEMORY)):
        train(root, "train.auto_accumulate=true")
    said = "".join(capfd.readouterr())
    assert finished(root) and all(words in said for words in row), said


def test_out_of_memory_in_an_evaluation(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_call(monkeypatch, fgvc, "infer", 1, failure(OUT_OF_MEMORY)):
        fails(root, row, capfd)
    assert steps(root)


def test_data_worker_dies(
    root: Path, row: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:  # from here: a patch would be in a forked worker only
        (worker,) = multiprocessing.active_children()
        worker.kill()

    with at_call(monkeypatch, engine, "update", 2, kill):
        fails(root, row, capfd, "train.workers=1")
    assert steps(root)
    train(root)
    assert finished(root)


def test_data_worker_dies_while_a_file_is_written(root: Path, row: list[str]) -> None:
    death = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(DataError) as raised, worker_deaths(), explain_write_errors(root / "model.safetensors"):
        raise death
    assert all(words in str(raised.value) for words in row)
    # the file that torch was writing complains, too
    with pytest.raises(DataError) as raised, worker_deaths(), explain_write_errors(root / "training_state.pt"):
        try:
            raise death
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 284288 vs 284176")
    assert all(words in str(raised.value) for words in row)


def test_stderr_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        train(root, "train.epochs=2", "train.progress=true")
        assert finished(root)
        with suppress(OSError):
            full.close()


def test_clock_set_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = time.time(), itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now - 3600.0 * next(calls))
        train(root)
    assert finished(root)


def test_unicode_and_spaces(tmp_path: Path) -> None:
    train(tmp_path / "läufe für 鳥 (1)", "name=ä ö/ü")
    assert finished(tmp_path)
