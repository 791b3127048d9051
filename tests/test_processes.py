"""Several processes do what one does: the same step, the same evaluation; and what happens when one of them dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CASES

HERE = Path(__file__).resolve().parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each process of `ranks.py` found, by `<processes>-<rank>`."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run([sys.executable, HERE / "ranks.py", folder], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return {file.stem: torch.load(file, weights_only=False) for file in folder.glob("*.pt")}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(results: dict[str, dict[str, Any]], case: str, strategy: str) -> None:
    alone = results["1-0"][f"{case}, alone"]
    for place in ("2-0", "2-1"):
        found = results[place][f"{case}, {strategy}"]
        assert found["metrics"] == alone["metrics"]  # before the first step: exactly
        for name, column in alone["items"].items():
            assert torch.equal(found["items"][name], column), name
        for ours, theirs in zip(found["losses"], alone["losses"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)
        for part in ("weights", "evaluated", "objective", "optimizer"):
            torch.testing.assert_close(found[part], alone[part], rtol=1e-5, atol=1e-6)


def test_ranking_is_shared_and_equal_in_every_bit(results: dict[str, dict[str, Any]]) -> None:
    alone, *others = (results[place]["ranking"] for place in ("1-0", "2-0", "2-1"))
    for found in others:
        assert {key: found[key] for key in found if key != "per_query"} == {
            key: alone[key] for key in alone if key != "per_query"
        }
        assert all(torch.equal(a, b) for a, b in zip(found["per_query"], alone["per_query"], strict=True))
