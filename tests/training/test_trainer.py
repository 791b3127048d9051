"""When a run saves: by the clock and at its end, and nothing is lost by saving less often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_command import run_command

import dcal.training.trainer as trainer

WORDS = ("experiment=tiny/fgvc", "attention=none", "train.epochs=3", "train.checkpoint_minutes=60")


def train(root: Path) -> list[dict[str, Any]]:
    """The log of a run, without what a clock has written."""
    run_command("train", *WORDS, f"run.root={root}")
    (log,) = root.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    clock = ("train/images_per_second", "seconds")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def test_checkpoints_are_by_the_clock_and_one_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, update = trainer.save, trainer.update
    saved: list[tuple[int, int]] = []
    steps: list[float] = []

    def note(state: Any, run: Any, at: Any, meter: Any) -> None:
        saved.append((at.epoch, at.step))
        save(state, run, at, meter)

    def count(state: Any, batch: Any, progress: float) -> Any:
        steps.append(progress)
        return update(state, batch, progress)

    monkeypatch.setattr(trainer, "save", note)
    monkeypatch.setattr(trainer, "update", count)
    expected = train(tmp_path / "undisturbed")
    assert saved == [(3, len(steps))] and [line["epoch"] for line in expected] == [1, 2, 3]

    def die(state: Any, batch: Any, progress: float) -> Any:
        if progress >= 2 / 3:
            raise RuntimeError("the power is gone")
        return update(state, batch, progress)

    saved.clear()
    monkeypatch.setattr(trainer, "update", die)
    with pytest.raises(SystemExit):
        train(tmp_path / "killed")
    assert not saved, "no checkpoint was due"
    monkeypatch.setattr(trainer, "update", update)
    assert train(tmp_path / "killed") == expected
    assert saved == [(3, len(steps))]

    saved.clear()
    monkeypatch.setattr("dcal.training.meter.Meter.checkpoint_due", lambda meter: not saved)
    train(tmp_path / "due once")
    assert saved == [(0, 1), (3, len(steps))]
