"""From `git clone` to a finished run on a folder of pictures: the five lines that the README shows, in a shell.

Three things differ from the page: the clone is of this checkout, the environment is the one that the tests run in, and
the run is short and begins with random weights, for nothing is fetched here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, fences
from pictures import draw_pictures

SHORT = "backbone.pretrained=false dataset.image_size=32 train.epochs=1 train.batch_size=8 train.workers=0"


def lines_of_the_page() -> list[str]:
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Your own pictures")[2]
    code = next(fences(page)).code.replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in code.splitlines()]


def test_five_commands_lead_to_a_finished_run(tmp_path: Path) -> None:
    clone, enter, setup, activate, train = lines_of_the_page()
    assert (clone, enter, setup) == ("git clone ADDRESS dcal", "cd dcal", "make setup")
    assert activate == ". .venv/bin/activate" and train.startswith("dcal-train ")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    draw_pictures(tmp_path / "pictures")
    script = "\n".join(
        [
            "set -e",
            clone.replace("ADDRESS", f"'{ROOT}'"),
            enter,
            f"{setup} --dry-run",
            train.replace("backbone.pretrained=true", SHORT),
        ]
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(tmp_path / "dcal"),
        "WANDB_MODE": "disabled",
    }
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-c constraints.txt -e '.[dev]'" in done.stdout
    (file,) = (tmp_path / "dcal" / "outputs").rglob("result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["name"] == "image_folder" and result["metrics"]["images"] == 4
