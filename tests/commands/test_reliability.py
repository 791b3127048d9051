"""`dcal-evaluate reliability=true`: what it finds, where it keeps it, and what the report page shows of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_command import refused, run_command

from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder
from dcal.visualize.reliability import plots


def copied(run: Path, tmp_path: Path) -> Path:
    """A copy that may be written to, in a folder of the run's own id, as a report wants it."""
    target = tmp_path / run.parent.name / run.name
    shutil.copytree(run, target)
    return target


def section(html: str) -> str:
    found = re.search(r'<section id="e1-reliability">(.*?)</section>', html, re.DOTALL)
    assert found
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


def kept(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "reliability.json").read_text())
    return found


def test_pairs_of_a_run(reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, out = copied(reid_run, tmp_path), tmp_path / "metrics.json"
    run_command("evaluate", f"run={run}", "reliability=true", f"out={out}")
    said, found = capfd.readouterr().out, kept(run)
    assert json.loads(out.read_text())["reliability"].items() <= found.items()
    assert 0.1 < found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"] <= 1
    assert f"verification AUC                       {100 * found['auc']['value']:.2f} %" in said
    assert found["cameras"] and found["open_set"]["mated"] == found["open_set"]["non_mated"]
    shown = section(document(read_folder(run)))
    assert f"{100 * found['auc']['value']:.2f} %" in shown and "query camera" in shown
    assert "DIR at a false alarm rate of 0.01" in shown


def test_the_curve_of_a_single_impostor_is_a_point() -> None:
    (plot,) = plots({"roc": [[1.0, 0.5]]})
    assert plot.path == "M200.0 100.0" and plot.x_ticks == [(0.0, "1e-1"), (1.0, "1")]


def test_settings_that_are_not_the_run_s_are_not_kept(
    reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(reid_run, tmp_path)
    run_command("evaluate", f"run={run}", "reliability=true", "task.metric=euclidean")
    assert "not kept in reliability.json" in capfd.readouterr().out
    assert not (run / "reliability.json").exists()
    assert "re-identification has no classes" in refused("evaluate", f"run={run}", f"unknown={tmp_path}", capfd=capfd)


def test_a_classifier_and_images_of_no_class(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number in range(3):
        Image.effect_noise((60, 60), 80 + number).convert("RGB").save(tmp_path / f"{number}.png")
    run = copied(fgvc_run, tmp_path / "runs")
    run_command("evaluate", f"run={run}", f"unknown={tmp_path}/*.png")
    found = kept(run)
    assert "temperature" not in found["calibration"]  # the run has no validation split
    assert found["unknown"]["unknown"] == 3
    assert sum(row["count"] for row in found["calibration"]["bins"]) == found["unknown"]["known"]
    html = document(read_folder(run))
    assert "accuracy of the 80 % surest" in section(html) and "unknown classes: AUC" in section(html)
    assert html.count('class="chart"') - html.count('class="chart" data-numbers') == 2


def test_the_temperature_is_that_of_the_validation_split(tmp_path: Path) -> None:
    words = ["dataset.val_fraction=0.5", "train.figures=false", f"run.root={tmp_path}"]
    run_command("train", "experiment=tiny/fgvc", *words)
    (result,) = tmp_path.glob("**/result.json")
    run_command("evaluate", f"run={result.parent}", "split=test", "reliability=true", f"out={tmp_path / 'out.json'}")
    own = json.loads((tmp_path / "out.json").read_text())["reliability"]["calibration"]
    assert own["temperature"] > 0 and own["scaled"]["nll"] > 0
    assert not (result.parent / "reliability.json").exists()  # the run reports on its split val
