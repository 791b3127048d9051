"""Training killed at random moments ends as if it had not been: a few kills here, many by `make kill-test`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kill_harness import same


def test_killed_runs_equal_one_in_peace() -> None:
    # in a process of its own: it forks, which a process with threads must not
    harness = Path(__file__).with_name("kill_harness.py")
    seed = str(int.from_bytes(os.urandom(2), "big"))  # other moments every time
    words = [sys.executable, str(harness), "--kills", "4", "--seed", seed, "quick", "deterministic=true"]
    environment = {**os.environ, "PYTHONPATH": str(harness.parents[1])}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, f"--seed {seed}: {done.stderr}"
    assert "4 kills" in done.stdout and "all equal" in done.stdout


def test_the_comparison_sees_a_difference() -> None:
    same({"a": [1.0], "seconds": 1}, {"a": [1.0], "seconds": 2}, "")
    for other in ({"a": [1.5]}, {"a": [1.0, 2.0]}, {"b": [1.0]}):
        try:
            same({"a": [1.0]}, other, "")
        except AssertionError:
            continue
        raise AssertionError(f"no difference seen to {other}")
