"""A run and its directory: what lies in it, and whether it is finished.

The directory is a function of what the run is made of, `<root>/<name>/<cfg_id>/seed=<seed>`, not of the clock or of
what was typed. So the same point reached alone, in a multirun or through an explicitly typed default is the same run,
and repeating a command continues it or returns its result.
"""

from __future__ import annotations

import json
import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from dcal.distributed.env import rank_zero_only
from dcal.run.files import explain_write_errors, remove_partial, write_atomically
from dcal.run.identity import identify
from dcal.run.legacy import legacy_id
from dcal.run.lock import acquire_lock
from dcal.run.provenance import git_state, versions
from dcal.utils.signals import Interrupted

CONFIG_FILE, RESULT_FILE, IDENTITY_FILE = "config_resolved.yaml", "result.json", "identity.json"


class Run:
    """One run directory, held by one process at a time: `with Run(config) as run:`.

    Raises:
        UserError: `backbone.checkpoint` is not there; on entering, if the directory cannot be held or written.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.identity = identify(config)
        self.seed = int(config.seed)
        self.notes: list[str] = []
        """Sentences on how the directory was found, for whoever returns or continues what is in it."""
        self.directory = self._locate()
        self.cfg_id = self.directory.parent.name
        self._lock: IO[str] | None = None
        self._code: dict[str, Any] | None = None

    def _locate(self) -> Path:
        """The directory of this run: under its id, or, made before today, under the id that it had then."""
        folder = Path(self.config.run.root).expanduser().absolute() / str(self.config.name)
        seed = f"seed={self.seed}"
        today = folder / self.identity.cfg_id / seed
        if (today / IDENTITY_FILE).is_file():
            return today
        older_id = legacy_id(self.config)
        older = None if older_id is None else folder / older_id / seed
        if older is not None and self._is_older_run(older):
            return older
        if not self.identity.readable:  # a finished run is returned where its data are not
            alike = [
                file.parent
                for file in folder.glob(f"*/{seed}/{IDENTITY_FILE}")
                if _read(file).get("settings_id") == self.identity.settings_id
            ]
            finished = [directory for directory in alike if (directory / RESULT_FILE).is_file()]
            if len(finished) == 1:
                self.notes.append("its data cannot be read now: found by its settings alone")
                return finished[0]
        return today

    def _is_older_run(self, directory: Path) -> bool:
        """Whether an older run is there that knows the same classes: more of its data it did not record."""
        if (directory / IDENTITY_FILE).is_file() or not (directory / CONFIG_FILE).is_file():
            return False
        if self.identity.data is None and self.identity.weights is None:
            return True
        names = _read(directory / "model.json").get("class_names")
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
        with explain_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = acquire_lock(self.directory)
        self.failure_file.unlink(missing_ok=True)
        remove_partial(self.directory)

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
        return self.directory / RESULT_FILE

    def result(self) -> dict[str, Any] | None:
        """The result if the run is finished, else None."""
        if not self.result_file.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text(encoding="utf-8"))
        return result

    def write_config(self, overrides: list[str]) -> None:
        """Leaves in the directory: identity, resolved configuration, what was typed, and versions."""
        self._code = git_state()  # now: who works on the code while it trains commits something else
        write_atomically(self.directory / CONFIG_FILE, OmegaConf.to_yaml(self.config, resolve=True))
        if self.cfg_id == self.identity.cfg_id:  # else an older run, which cannot be given one
            write_atomically(self.directory / IDENTITY_FILE, json.dumps(self.identity.to_json(), indent=1))
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


def _read(file: Path) -> dict[str, Any]:
    """A JSON file of a run, empty if it is missing or torn."""
    with suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
    return {}
