"""Checkpoints are whole or not there, and a damaged one gives way to the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcal.training import checkpoint
from dcal.training.checkpoint import load_latest, save_checkpoint
from dcal.utils.rng import restore_rng_state, rng_state


def save(folder: Path, step: int) -> None:
    save_checkpoint(
        folder, step, {"w": torch.full((3,), float(step))}, {"position": {"step": step}, "rng": rng_state()}
    )


def test_newest_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    found = load_latest(tmp_path)
    assert found is not None and found[1]["position"]["step"] == 3
    assert found[0]["w"].tolist() == [3.0, 3.0, 3.0]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000002", "00000003"]


def test_weights_can_be_read_by_whom_the_log_can(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    checkpoint.save_weights(tmp_path / "last.safetensors", {"w": torch.ones(1)})
    assert (tmp_path / "last.safetensors").stat().st_mode == (tmp_path / "metrics.jsonl").stat().st_mode


def test_what_a_kill_leaves_is_removed_by_the_next_start(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "00000001").rename(tmp_path / ".00000001.replaced")  # between the two renames
    save(tmp_path, 1)
    assert load_latest(tmp_path) is not None
    for name in (".00000001.replaced", ".00000002.4711"):  # after the last checkpoint of a run
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert load_latest(tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_is_seen_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    victim = tmp_path / "00000002" / file
    content = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        victim.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    found = load_latest(tmp_path)
    assert found is not None and found[1]["position"]["step"] == 1


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert load_latest(tmp_path) is not None


def test_no_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing") is None


def test_random_state_survives_the_file(tmp_path: Path) -> None:
    import random

    import numpy as np

    save(tmp_path, 1)
    expected = (torch.rand(2).tolist(), np.random.rand(), random.random())
    found = load_latest(tmp_path)
    assert found is not None
    restore_rng_state(found[1]["rng"])
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected
