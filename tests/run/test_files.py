"""Files of a run: what is removed from its directory, and what is not."""

from __future__ import annotations

from pathlib import Path

from dcal.run.files import remove_partial


def test_only_what_was_left_half_written_is_removed(tmp_path: Path) -> None:
    half = [".last.safetensors.4711.partial", ".result.json.1.partial"]
    own = [".notes", ".gitignore", ".mine.partial", "draft.partial", "last.safetensors.4711.partial"]
    for name in (*half, *own):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*own, ".git"])
