"""A run and its directory: identity, what lies in it, and whether it is finished.

The directory is a function of the composed configuration, `<root>/<name>/<cfg_id>/seed=<seed>`, not of the clock or of
what was typed. So the same point reached alone, in a multirun or through an explicitly typed default is the same run,
and repeating a command continues it or returns its result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError

from dcal.distributed.env import rank_zero_only
from dcal.utils.signals import Interrupted

IDENTITY = ("backbone", "attention", "task", "dataset", "optimizer", "train", "deterministic")
"""What makes two runs the same but for the seed."""
NOT_IDENTITY = {
    "dataset": {"root", "cache", "on_bad_image"},
    "train": {
        "workers",
        "progress",
        "figures",
        "checkpoint_minutes",
        "eval_batch_size",
        "accumulate",
        "auto_accumulate",
        "compile",
        "activation_checkpointing",
    },
}
"""Where data lie and how fast they come: no part of what is computed."""
LOCK = "run.lock"


class RunLocked(Exception):
    """Another process works in the directory."""


class WriteError(OSError):
    """A file of the run cannot be written; the message names it and says what to do."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Failing to write `path` inside is a `WriteError`; torch and safetensors have errors of their own for it."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if "DataLoader worker" in str(error):  # torch tells its death wherever the main process happens to be
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise WriteError(
            f"{path} cannot be written ({reason}): free some space there or write elsewhere (run.root=, out=). "
            "What was complete before is kept: repeat the command to go on"
        ) from error


def config_id(config: DictConfig) -> str:
    """Eight hex digits over the identity nodes, interpolations unresolved and paths cut to their last part."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    identity = {
        key: {k: v for k, v in plain[key].items() if k not in NOT_IDENTITY.get(key, ())}
        if isinstance(plain[key], dict)
        else plain[key]
        for key in IDENTITY
    }
    checkpoint = identity["backbone"].get("checkpoint")
    if checkpoint:  # the same weights lie elsewhere on another machine
        identity["backbone"]["checkpoint"] = PurePath(checkpoint).name
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to be written inside; then it is flushed to disk and renamed.

    So `path` is whole or as it was before, whatever happens, and nothing half-written stays.

    Raises:
        WriteError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_write_errors(path):
        try:
            yield temporary
            fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Has a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@rank_zero_only
def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves the old one."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def acquire_lock(directory: Path) -> IO[str]:
    """Takes a directory for this process, until the lock is closed or the process ends.

    Raises:
        RunLocked: another process holds it; the message says which.
    """
    lock = (directory / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise RunLocked(f"{directory} is being worked on by {holder}: wait for it or stop it") from None
    # A data worker outlives a killed process by seconds, and with the descriptor it would inherit the lock.
    os.register_at_fork(after_in_child=lock.close)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    return lock


class Run:
    """One run directory, held by one process at a time: `with Run(config) as run:`.

    Raises:
        RunLocked: on entering, if another process holds it; the message says which.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.cfg_id = config_id(config)
        self.seed = int(config.seed)
        root = Path(config.run.root).expanduser().absolute()
        self.directory = root / str(config.name) / self.cfg_id / f"seed={self.seed}"
        self._lock: IO[str] | None = None
        self._code: dict[str, Any] | None = None

    def __enter__(self) -> Run:
        self._hold()
        return self

    @rank_zero_only
    def _hold(self) -> None:
        with explain_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.directory)
        self.failure_file.unlink(missing_ok=True)
        for left in self.directory.glob(".*.[0-9]*"):  # half-written by a process that was killed
            left.unlink()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            with suppress(OSError):  # a full disk may be the very reason
                write_atomically(self.failure_file, "".join(traceback.format_exception(error)))
        if self._lock is not None:
            self._lock.close()

    @property
    def failure_file(self) -> Path:
        """The traceback of the last attempt, if that failed; gone when the next one begins."""
        return self.directory / "failure.txt"

    @property
    def result_file(self) -> Path:
        return self.directory / "result.json"

    def result(self) -> dict[str, Any] | None:
        """The result if the run is finished, else None."""
        if not self.result_file.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text(encoding="utf-8"))
        return result

    def write_config(self, overrides: list[str]) -> None:
        """Leaves the resolved configuration, what was typed, and the versions in the directory."""
        self._code = git_state()  # now: who works on the code while it trains commits something else
        write_atomically(self.directory / "config_resolved.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        write_atomically(self.directory / "overrides.json", json.dumps(overrides, indent=1))
        write_atomically(self.directory / "versions.json", json.dumps(versions(), indent=1))

    @property
    def metrics_file(self) -> Path:
        return self.directory / "metrics.jsonl"

    @rank_zero_only
    def log(self, values: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        with explain_write_errors(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that counts on this line may outlive a power cut

    @rank_zero_only
    def forget_metrics_after(self, size: int) -> None:
        """Cuts `metrics.jsonl` to what it held at a checkpoint, so that a resumed run does not log twice."""
        if self.metrics_file.exists():
            os.truncate(self.metrics_file, min(size, self.metrics_file.stat().st_size))

    def metrics_size(self) -> int:
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def finish(self, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
        """Writes `result.json`, whose presence means finished, and returns it."""
        result = {
            "status": "finished",
            "name": str(self.config.name),
            "cfg_id": self.cfg_id,
            "seed": self.seed,
            "metrics": metrics,
            "git": self._code or git_state(),
            **more,
        }
        write_atomically(self.result_file, json.dumps(result, indent=1) + "\n")
        return result


def lock_holder(directory: Path) -> str | None:
    """Who works in a run directory, as it says in the lock; None if nobody does."""
    path = directory / LOCK
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return lock.read().strip() or "another process"
    return None


def git_state() -> dict[str, Any]:
    """Commit of the code that runs and whether it was changed since; None outside a checkout.

    Where code travels without its `.git` (a container, a copied folder), `DCAL_COMMIT` in the environment names it.
    """
    named = os.environ.get("DCAL_COMMIT")
    if named:
        return {"commit": named, "dirty": False}
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {
        "commit": commit,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform(), "argv": " ".join(sys.argv)}
    for package in (
        "dcal",
        "torch",
        "timm",
        "albumentations",
        "numpy",
        "opencv-python-headless",
        "hydra-core",
        "wandb",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
