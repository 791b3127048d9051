"""Where stderr cannot be written, what is said there is lost and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dcal.utils.streams import OptionalStream, make_stderr_optional

PROGRAM = """
import sys
from dcal.utils.streams import make_stderr_optional
make_stderr_optional()
print("a line " * 10_000, file=sys.stderr, flush=True)
print("the result")
"""


def test_a_full_disk_behind_stderr_does_not_reach_the_exit_code() -> None:
    root = Path(__file__).resolve().parents[2]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.stdout, done.returncode) == ("the result\n", 0)


def test_what_can_be_written_is_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # put back at the end of the test
    make_stderr_optional()
    once = sys.stderr
    make_stderr_optional()
    assert sys.stderr is once and isinstance(once, OptionalStream)
    print("two words", file=sys.stderr)
    assert capsys.readouterr().err == "two words\n"
    assert not once.isatty()
