"""What a run is computed by, what is said when that has changed, and runs that are lost, copied or trained anew."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_command import killed, refused, run_command

import dcal.run.provenance as provenance
from dcal.run.listing import finished_runs
from dcal.run.lock import RunLocked, acquire_lock, lock_holder
from dcal.training import checkpoint
from dcal.training import trainer as engine
from dcal.utils.errors import UserError

TINY = ("experiment=tiny/fgvc", "name=made", "attention=none", "train.batch_size=8", "train.checkpoint_minutes=0")


def command(root: Path, *words: str) -> None:
    run_command("train", *TINY, f"run.root={root}", *words)


def only_run(root: Path) -> Path:
    (config,) = root.glob("made/*/seed=0/config_resolved.yaml")
    return config.parent


def history(root: Path) -> list[dict[str, Any]]:
    return provenance.read_history(only_run(root) / "history.jsonl")


def other_code(monkeypatch: pytest.MonkeyPatch, commit: str, dirty: bool = False) -> None:
    """As if the code were that of another commit, in `provenance` and where it is imported."""
    state = {"commit": commit, "dirty": dirty}
    monkeypatch.setattr(provenance, "git_state", lambda: state)
    monkeypatch.setattr("dcal.run.directory.git_state", lambda: state)
    monkeypatch.setattr(provenance, "code_digest", lambda: f"digest of {commit}")


def test_every_start_is_in_the_history(tmp_path: Path) -> None:
    killed(lambda: command(tmp_path), 3)
    command(tmp_path)
    first, second = history(tmp_path)
    assert first["commit"] == second["commit"] and first["code"] == second["code"]
    assert second["processes"] == 1 and second["versions"]["torch"] and second["time"] >= first["time"]
    assert "train.accumulate" in second["settings"] and second["host"]


def test_a_run_of_two_commits_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        other_code(patch, "a" * 40, dirty=True)
        killed(lambda: command(tmp_path), 3)
    other_code(monkeypatch, "b" * 40)
    command(tmp_path)
    git = json.loads((only_run(tmp_path) / "result.json").read_text())["git"]
    assert git == {"commit": "b" * 40, "dirty": True, "commits": ["a" * 40, "b" * 40]}
    assert "code: commit aaaaaaaa with changes, now bbbbbbbb" in capfd.readouterr().out


def test_a_finished_run_says_that_the_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path)
    capfd.readouterr()
    command(tmp_path)
    said = capfd.readouterr().out
    assert "finished before" in said and "changed" not in said
    other_code(monkeypatch, "c" * 40, dirty=True)
    command(tmp_path)
    said = capfd.readouterr().out
    assert "the code is at cccccccc with changes (changed): run.fresh=true trains anew" in said


def test_a_changed_source_of_ones_own_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "birds_of_mine.py"
    module.write_text("from dcal.task.fgvc import FGVC\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["task._target_=birds_of_mine.FGVC"]
    command(tmp_path / "runs", *words)
    assert list(history(tmp_path / "runs")[0]["own"]) == ["birds_of_mine.FGVC"]
    module.write_text("from dcal.task.fgvc import FGVC  # better\n")
    capfd.readouterr()
    command(tmp_path / "runs", *words)
    said = capfd.readouterr().out
    assert "finished before" in said and "the source of birds_of_mine.FGVC has changed since" in said


def test_a_resume_under_other_conditions_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    killed(lambda: command(tmp_path), 3)
    command(tmp_path, "train.accumulate=2", "train.workers=1")
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "other conditions" in line]
    assert "train.accumulate: 1, now 2" in line and "workers" not in line, "workers leave every bit as it is"


def test_fresh_trains_anew_and_keeps_what_was_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    run = only_run(tmp_path)
    first = (run / "result.json").read_bytes()
    command(tmp_path, "run.fresh=true")
    command(tmp_path, "run.fresh=true")
    assert len(history(tmp_path)) == 1
    assert sorted(path.name for path in run.parent.iterdir()) == ["seed=0", "seed=0.replaced-1", "seed=0.replaced-2"]
    assert (run.parent / "seed=0.replaced-1" / "result.json").read_bytes() == first
    assert finished_runs(tmp_path) == ([run], [])
    command(tmp_path)
    assert "finished before" in capfd.readouterr().out


def test_fresh_waits_for_who_works_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    held = acquire_lock(only_run(tmp_path))
    try:
        said = refused("train", *TINY, f"run.root={tmp_path}", "run.fresh=true", capfd=capfd)
    finally:
        held.release()
    assert "is being worked on by" in said and only_run(tmp_path).is_dir()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EMFILE, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_read_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    killed(lambda: command(tmp_path, "train.epochs=3"), 8)
    run = only_run(tmp_path)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    true_sha256 = checkpoint.sha256

    def broken(path: Path) -> str:
        if path.name == "model.safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return true_sha256(path)

    monkeypatch.setattr(checkpoint, "sha256", broken)
    said = refused("train", *TINY, f"run.root={tmp_path}", "train.epochs=3", capfd=capfd)
    assert "cannot be read" in said and os.strerror(number) in said and "nothing was changed" in said
    kept = ("checkpoints", "metrics.jsonl")
    assert all(path.read_bytes() == content for path, content in files.items() if set(path.parts) & set(kept))
    monkeypatch.undo()
    command(tmp_path, "train.epochs=3")
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_finished_run_keeps_no_checkpoint(tmp_path: Path) -> None:
    """Its weights are enough to give it a result that it has lost, the same one."""
    words = ["train.epochs=3", "train.ema_decay=0.5"]
    command(tmp_path, *words)
    run = only_run(tmp_path)
    assert not (run / "checkpoints").exists()
    before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "last.safetensors")}
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    (run / "result.json").unlink()
    command(tmp_path, *words)
    assert json.loads((run / "result.json").read_text())["metrics"] == metrics
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_start_that_fails_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """But what was there before; a fault of the program leaves its traceback."""
    root = tmp_path / "a" / "b"
    refused("train", *TINY, f"run.root={root}", "train.batch_size=4096", capfd=capfd)
    assert not list(tmp_path.iterdir())
    command(tmp_path)
    run = only_run(tmp_path)
    result = (run / "result.json").read_bytes()
    told = refused("train", *TINY, f"run.root={tmp_path}", "run.fresh=true", "wandb.mode=maybe", capfd=capfd)
    assert "wandb.mode" in told and (run / "result.json").read_bytes() == result
    assert [path.name for path in run.parent.iterdir()] == ["seed=0"]


def test_one_flipped_bit_in_the_weights_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    weights = only_run(tmp_path) / "last.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x10
    weights.write_bytes(content)
    said = refused("evaluate", f"run={weights.parent}", capfd=capfd)
    assert "last.safetensors is damaged" in said and "run.fresh=true" in said
    with pytest.raises(SystemExit) as ended:
        run_command("doctor", f"run={weights.parent}")
    assert ended.value.code == 1 and "last.safetensors is damaged" in capfd.readouterr().out
    command(tmp_path)
    said = capfd.readouterr().out
    assert "finished before" in said and "last.safetensors is damaged" in said and "run.fresh=true" in said


def test_outcomes_of_another_run_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    items = only_run(tmp_path) / "items.npz"
    with np.load(items) as arrays:
        others = dict(arrays)
    others["index"] = others["index"][::-1]  # as good a result, but of other images
    np.savez(items, **others)
    with pytest.raises(SystemExit):
        run_command("doctor", f"run={items.parent}")
    assert "items.npz is damaged" in capfd.readouterr().out
    run_command("results", f"runs={tmp_path}", f"out={tmp_path / 'records'}")
    assert "items.npz is damaged" in capfd.readouterr().err


def test_lost_files_are_named_with_a_remedy_that_works(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    run = only_run(tmp_path)
    weights = (run / "last.safetensors").read_bytes()
    for name in ("last.safetensors", "items.npz"):
        (run / name).unlink()
    with pytest.raises(SystemExit) as ended:
        run_command("doctor", f"run={run}")
    said = capfd.readouterr().out
    assert ended.value.code == 1 and "last.safetensors is missing" in said and "run.fresh=true" in said
    assert "run.fresh=true" in refused("evaluate", f"run={run}", capfd=capfd)
    command(tmp_path)
    assert "last.safetensors, items.npz of it is missing: run.fresh=true" in capfd.readouterr().out
    command(tmp_path, "run.fresh=true")
    assert (run / "last.safetensors").read_bytes() == weights


def test_a_torn_result_is_written_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    run = only_run(tmp_path)
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    (run / "result.json").write_text('{"status": "fini')
    with pytest.raises(SystemExit) as ended:
        run_command("doctor", f"run={run}")
    assert ended.value.code == 1 and "result.json: not JSON" in capfd.readouterr().out
    command(tmp_path)
    assert capfd.readouterr().out.count("result.json is damaged: the run goes on from what it has kept") == 1
    assert json.loads((run / "result.json").read_text())["metrics"] == metrics
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_copy_of_a_run_is_in_no_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(tmp_path)
    run = only_run(tmp_path)
    backup = run.with_name("seed=0.bak")
    shutil.copytree(run, backup)
    result = json.loads((backup / "result.json").read_text())
    (backup / "result.json").write_text(json.dumps({**result, "metrics": {**result["metrics"], "top1": 1.0}}))
    directories, problems = finished_runs(tmp_path)
    assert directories == [run] and problems == [f"{backup}: a copy of {run}, not read"]
    places = [f"{key}={tmp_path}/{key}" for key in ("out", "figures", "html")]
    run_command("results", f"runs={tmp_path}/made", *places, "pages=[]", "write=true")
    (record,) = json.loads((tmp_path / "out" / "made.json").read_text())["runs"]
    assert record["metrics"]["top1"] == round(result["metrics"]["top1"], 6)
    assert "seed=0.bak" in "".join(capfd.readouterr())

    run.rename(run.with_name("seed=0.old"))
    directories, problems = finished_runs(tmp_path)
    assert directories == [] and "copies of one run, none of them is read" in problems[0]


def test_a_closed_terminal_saves_like_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, steps = engine.update, []

    def hang_up(*args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        return update(*args)

    monkeypatch.setattr(engine, "update", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with pytest.raises(SystemExit) as stopped:
            command(tmp_path, "train.checkpoint_minutes=60")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped.value.code == 128 + signal.SIGHUP
    assert [path.name for path in (only_run(tmp_path) / "checkpoints").iterdir()] == ["00000003"]


def test_an_ignored_hangup_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        update = engine.update
        monkeypatch.setattr(engine, "update", lambda *args: (os.kill(os.getpid(), signal.SIGHUP), update(*args))[1])
        command(tmp_path)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_whose_launcher_is_gone_is_asked_to_stop() -> None:
    child = "import time; from dcal.utils.signals import stop_with_parent; import os; stop_with_parent(os.getppid()); "
    child += "print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); sys.stdin.read()"
    started = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    pid = int(started.stdout.readline())
    started.kill()
    started.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").is_file() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it works on")


def test_a_lock_is_held_once_and_not_by_forks(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    held = acquire_lock(tmp_path)
    with pytest.raises(RunLocked, match=f"is being worked on by process {os.getpid()}"):
        acquire_lock(tmp_path)
    assert str(os.getpid()) in str(lock_holder(tmp_path))
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    held.release()
    assert lock_holder(tmp_path) is None, "the fork has not inherited it"
    acquire_lock(tmp_path).release()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"knows no locks; put run\.root"):
        acquire_lock(tmp_path)


def test_a_model_is_loaded_where_there_is_no_fcntl(fgvc_run: Path) -> None:
    """As on Windows, where other modules and signals lack, too."""
    hidden = "import sys, signal; sys.modules['fcntl'] = sys.modules['resource'] = None; "
    hidden += "[delattr(signal, name) for name in ('SIGHUP', 'SIGQUIT', 'SIGUSR2') if hasattr(signal, name)]; "
    code = f"{hidden} import dcal; print(type(dcal.load({str(fgvc_run)!r})).__name__)"
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "TrainedDCAL", done.stderr


def test_a_package_inside_another_repository_has_no_commit_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where `pip install` puts it into the environment that lies in somebody's project."""
    monkeypatch.delenv("DCAL_COMMIT", raising=False)
    installed = tmp_path / ".venv" / "dcal"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "mine"], check=True)
    assert provenance.git_state() == {"commit": None, "dirty": None}
    subprocess.run([*git, "add", "."], check=True)
    assert provenance.git_state() == {"commit": provenance._git("rev-parse", "HEAD"), "dirty": True}
