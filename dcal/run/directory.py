"""A run and its directory: what is in it, and whether it is finished.

The directory is a function of what the run is made of, `<root>/<name>/<cfg_id>/seed=<seed>`, not of the clock or of
what was typed. So the same point reached alone, in a multirun or through an explicitly typed default is the same run,
and repeating a command continues it or returns its result.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from filelock import BaseFileLock
from omegaconf import DictConfig, OmegaConf

from dcal.distributed.env import rank_zero_only
from dcal.run.digest import damaged_files, sha256
from dcal.run.files import (
    explain_write_errors,
    first_missing,
    fsync,
    read_if_whole,
    remove_made,
    remove_partial,
    write_atomically,
    write_json,
)
from dcal.run.identity import Identity, identify
from dcal.run.label import label
from dcal.run.legacy import legacy_id, renamed_keys
from dcal.run.lock import acquire_lock
from dcal.run.provenance import (
    changed_conditions,
    code_change,
    git_diff,
    git_state,
    read_history,
    start_record,
    trained_by,
    versions,
)
from dcal.utils.errors import UserError, is_for_user
from dcal.utils.signals import Interrupted

log = logging.getLogger(__name__)
CONFIG_FILE, RESULT_FILE, IDENTITY_FILE = "config_resolved.yaml", "result.json", "identity.json"
HISTORY_FILE, LABEL_FILE, DIFF_FILE = "history.jsonl", "label.txt", "code.diff"
LAST_WEIGHTS, FAILURE_FILE = "last.safetensors", "failure.txt"
REPLACED = ".replaced-"
"""In the name of a folder that `run.fresh=true` has set aside."""
CHECKED = (LAST_WEIGHTS, "best.safetensors", "items.npz")
"""Files of which the result keeps a checksum."""
WHOLE = (LAST_WEIGHTS, "items.npz", "model.json", "metrics.jsonl")
"""What every finished run has."""


class Run:
    """One run directory, held by one process at a time: `with Run(config) as run:`.

    Args:
        config: composed.
        identity: of that configuration, if it is known already: to find it reads the lists of the data set.

    Raises:
        UserError: `backbone.checkpoint` is not there, or `name` leads out of `run.root`; on entering, if the directory
            cannot be held or written.
    """

    def __init__(self, config: DictConfig, identity: Identity | None = None) -> None:
        self.config = config
        self.identity = identify(config) if identity is None else identity
        self.seed = int(config.seed)
        self.notes: list[str] = []
        """Sentences on how the directory was found, for whoever returns or continues what is in it."""
        self.fresh = bool(config.run.fresh)
        """Whether what was trained before is set aside and forgotten."""
        self._today, self._found = self._locate()
        self.directory = self._today if self.fresh else self._found
        self.cfg_id = self.directory.parent.name
        self._lock: BaseFileLock | None = None
        self._made: Path | None = None
        """The topmost folder that this process has made for the run."""
        self._aside: list[tuple[Path, Path]] = []
        """What was trained before: where it was, and where it is now."""
        self._code: dict[str, Any] | None = None

    def _locate(self) -> tuple[Path, Path]:
        """The directory that a new run has, and the one of this run, which may be under the id that it had once."""
        name = PurePath(self.config.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"name={name}: is a path below run.root, so without a beginning of / and without ..")
        folder = Path(self.config.run.root).expanduser().absolute() / name
        seed = f"seed={self.seed}"
        today = folder / self.identity.cfg_id / seed
        if (today / IDENTITY_FILE).is_file():
            return today, today
        older_id = legacy_id(self.config)
        older = None if older_id is None else folder / older_id / seed
        if older is not None and self._is_older_run(older):
            return today, older
        if not self.identity.readable:  # a finished run is returned where its data are not
            alike = [
                file.parent
                for file in folder.glob(f"*/{seed}/{IDENTITY_FILE}")
                if read_if_whole(file).get("settings_id") == self.identity.settings_id
            ]
            finished = [directory for directory in alike if (directory / RESULT_FILE).is_file()]
            if len(finished) == 1:
                self.notes.append("its data cannot be read now: found by its settings alone")
                return today, finished[0]
        return today, today

    def _is_older_run(self, directory: Path) -> bool:
        """Whether an older run is there that knows the same classes: more of its data it did not record."""
        if (directory / IDENTITY_FILE).is_file() or not (directory / CONFIG_FILE).is_file():
            return False
        if self.identity.data is None and self.identity.weights is None:
            return True
        names = read_if_whole(directory / "model.json").get("class_names")
        if self.identity.data is not None and names is not None and names != self.identity.data.class_names:
            return False
        self.notes.append(
            "made by an older version, which kept no digest of data and weights: that they were the same is assumed "
            "(run.fresh=true trains anew)"
        )
        return True

    def __enter__(self) -> Run:
        self._hold()
        return self

    @rank_zero_only
    def _hold(self) -> None:
        if self.fresh:
            self._set_aside()
        with explain_write_errors(self.directory):
            self._made = first_missing(self.directory)
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.directory)
        self.failure_file.unlink(missing_ok=True)
        remove_partial(self.directory)

    def _set_aside(self) -> None:
        """Renames what was trained before to `seed=0.replaced-1` (2, 3, ...), which no table reads.

        Raises:
            RunLocked: another process works in it.
        """
        for before in {self._today, self._found}:
            if before.is_dir() and (before / CONFIG_FILE).is_file():
                acquire_lock(before).release()
                numbers = (before.with_name(f"{before.name}{REPLACED}{n}") for n in range(1, 10_000))
                aside = next(path for path in numbers if not path.exists())
                before.rename(aside)
                self._aside.append((before, aside))
                log.info("run.fresh=true: what was trained before is now %s", aside)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # a start that failed leaves nothing behind, but for a fault of the program, whose traceback is kept
        explained = error is not None and (is_for_user(error) or isinstance(error, Interrupted | KeyboardInterrupt))
        if explained and self._made is not None and not (self.directory / HISTORY_FILE).is_file():
            remove_made(self.directory, self._made)
            for before, aside in self._aside:
                aside.rename(before)
        elif isinstance(error, Exception):
            with suppress(OSError):  # a full disk may be the very reason
                write_atomically(self.failure_file, "".join(traceback.format_exception(error)))
        if self._lock is not None:
            self._lock.release()

    @property
    def failure_file(self) -> Path:
        """The traceback of the last attempt, if that failed; gone when the next one begins."""
        return self.directory / FAILURE_FILE

    @property
    def result_file(self) -> Path:
        return self.directory / RESULT_FILE

    def result(self) -> dict[str, Any] | None:
        """The result if the run is finished, else None; of a file that was cut short a warning says that it is none."""
        if self.fresh or not self.result_file.is_file():
            return None
        try:
            result: dict[str, Any] = renamed_keys(json.loads(self.result_file.read_text(encoding="utf-8")))
            result["metrics"], result["primary_metric"]
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged: the run goes on from what it has kept, and writes it anew", self.result_file)
            with suppress(OSError):  # another process may have done it
                self.result_file.replace(self.result_file.with_name("result.damaged.json"))
            return None
        return result

    def remarks(self, result: dict[str, Any]) -> list[str]:
        """What somebody should know to whom the finished run is returned: what has changed or is lost since."""
        changed = code_change(self.history(), result.get("git"), self.config)
        lost = [name for name in WHOLE if not (self.directory / name).is_file()]
        gone = f"{', '.join(lost)} of it is missing: run.fresh=true trains anew" if lost else None
        damaged = [str(error) for error in damaged_files(self.directory, CHECKED)]
        return [*self.notes, *(remark for remark in (changed, gone) if remark is not None), *damaged]

    def history(self) -> list[dict[str, Any]]:
        """The starts of this run, oldest first."""
        return read_history(self.directory / HISTORY_FILE)

    @rank_zero_only
    def note_start(self, device: str) -> None:
        """Adds this start to the history, and says what is other than when the run was last worked on.

        Args:
            device: what the run computes on, in words.
        """
        for note in self.notes:
            log.warning("%s", note)
        now = start_record(self.config, device, self._code or git_state())
        before = self.history()
        if before and (told := changed_conditions(before[-1], now)):
            log.warning("going on under other conditions, so that digits may differ (%s)", "; ".join(told))
        self._append(self.directory / HISTORY_FILE, now)

    def write_config(self, overrides: list[str]) -> None:
        """Leaves in the directory: identity, configuration, label, what was typed, versions, changes of the code."""
        self._code = git_state()  # now: who works on the code while it trains commits something else
        if self._code["dirty"] and (diff := git_diff()):
            write_atomically(self.directory / DIFF_FILE, diff + "\n")
        write_atomically(self.directory / CONFIG_FILE, OmegaConf.to_yaml(self.config, resolve=True))
        if self.cfg_id == self.identity.cfg_id:  # else an older run, which cannot be given one
            write_json(self.directory / IDENTITY_FILE, self.identity.to_json())
        write_atomically(self.directory / LABEL_FILE, label(self.config) + "\n")
        write_json(self.directory / "overrides.json", overrides)
        write_json(self.directory / "versions.json", versions())

    @property
    def metrics_file(self) -> Path:
        return self.directory / "metrics.jsonl"

    @rank_zero_only
    def log(self, values: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`."""
        self._append(self.metrics_file, values)

    def _append(self, path: Path, values: dict[str, Any]) -> None:
        with explain_write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that counts on this line may outlive a power cut

    @rank_zero_only
    def forget_metrics_after(self, size: int) -> None:
        """Cuts `metrics.jsonl` to what it held at a checkpoint, so that a resumed run does not log twice."""
        if self.metrics_file.exists():
            os.truncate(self.metrics_file, min(size, self.metrics_file.stat().st_size))

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, by epoch; empty before the end of the first one."""
        text = self.metrics_file.read_text(encoding="utf-8") if self.metrics_file.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

    def metrics_size(self) -> int:
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def prepare_result(self, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
        """Writes the result under another name, and returns it; `finish` makes it count."""
        history = self.history()
        result = {
            "status": "finished",
            "name": str(self.config.name),
            "cfg_id": self.cfg_id,
            "label": label(self.config),
            "seed": self.seed,
            "metrics": metrics,
            "git": trained_by(history) if history else self._code or git_state(),
            "sha256": {name: sha256(self.directory / name) for name in CHECKED if (self.directory / name).is_file()},
            **more,
        }
        write_json(self.prepared_file, result)
        return result

    @property
    def prepared_file(self) -> Path:
        """The result of a run whose log is still open."""
        return self.directory / "result.prepared.json"

    @rank_zero_only
    def finish(self) -> None:
        """Gives the result its name, `result.json`, whose presence means finished."""
        with explain_write_errors(self.result_file):
            self.prepared_file.replace(self.result_file)
            fsync(self.directory)
