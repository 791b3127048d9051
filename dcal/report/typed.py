"""What was typed to make a run, and how to type it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dcal.run.label import key_of


def read_overrides(directory: Path) -> list[str]:
    """The overrides of a run; none where they are not kept, as by older versions."""
    with suppress(OSError, ValueError):
        found = json.loads((directory / "overrides.json").read_text(encoding="utf-8"))
        return [str(word) for word in found] if isinstance(found, list) else []
    return []


def without(words: Sequence[str], *keys: str) -> list[str]:
    """The overrides but those of these keys."""
    return [word for word in words if key_of(word) not in keys]


def train_command(words: Sequence[str], seeds: Sequence[int]) -> str:
    """The command that trains with these overrides under each of the seeds, ready to be pasted into a shell."""
    sweep = ["-m"] if len(seeds) > 1 else []
    return shlex.join(["dcal-train", *sweep, *without(words, "seed"), f"seed={','.join(map(str, seeds))}"])
