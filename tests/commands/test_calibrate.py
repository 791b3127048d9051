"""`dcal-calibrate`: what it keeps, what dcal-query, dcal-predict and dcal-export make of it, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_command import refused, run_command

import dcal
from dcal.inference.thresholds import same_or_different

LOOSE = ["false_match_rate=0.6", "false_non_match_rate=0.2", "false_alarm_rate=0.5"]


def copied(run: Path, tmp_path: Path) -> Path:
    target = tmp_path / "runs" / run.parent.name / run.name
    shutil.copytree(run, target)
    return target


def kept(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "thresholds.json").read_text())
    return found


def test_a_calibrated_run_answers(reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, index = copied(reid_run, tmp_path), tmp_path / "gallery.npz"
    run_command("calibrate", f"run={run}", *LOOSE)
    said, found = capfd.readouterr().out, kept(run)
    assert (found["split"], found["task"], len(found["weights"])) == ("test", "reid", 64)
    assert f"similarity of at least {found['same']['threshold']:.4f}" in said
    run_command("extract", f"run={run}", "split=gallery", f"out={index}")
    with_index = [f"run={run}", f"index={index}", "top=3", "picture=null"]
    image = paths_of(index)[0]
    run_command("query", f"image={image}", *with_index)
    lines = capfd.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.strip().startswith("1 "))
    assert row[1] == "1.0000" and "same" in row  # the image itself
    assert "what the answers promise:" in lines
    assert "not in the gallery" not in lines[0]
    stricter = {**found, "known": {**found["known"], "threshold": 2.0}}
    (run / "thresholds.json").write_text(json.dumps(stricter))
    run_command("query", f"image={image}", *with_index)
    assert "not in the gallery" in capfd.readouterr().out
    (run / "thresholds.json").write_text(json.dumps({**found, "weights": "0" * 64}))
    run_command("query", f"image={image}", *with_index)
    assert "promise" not in capfd.readouterr().out  # of other weights


def paths_of(index: Path) -> list[str]:
    import numpy as np

    with np.load(index) as archive:
        paths: list[str] = archive["path"].tolist()
    return paths


def test_three_answers() -> None:
    def answer(similarity: float, same: float, different: float) -> str:
        return same_or_different(similarity, {"same": {"threshold": same}, "different": {"threshold": different}})

    assert [answer(s, 0.8, 0.5) for s in (0.9, 0.8, 0.6, 0.5, 0.4)] == ["same", "same", "unsure", "unsure", "different"]
    assert [answer(s, 0.5, 0.8) for s in (0.9, 0.6, 0.4)] == ["same", "same", "different"]  # nothing is unsure


def test_a_classifier_refuses(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    picture, out = tmp_path / "noise.png", tmp_path / "labels.csv"
    Image.effect_noise((60, 60), 80).convert("RGB").save(picture)
    run = copied(fgvc_run, tmp_path)
    run_command("calibrate", f"run={run}", "refused_rate=0.2")
    found = kept(run)
    assert 0 < found["class"]["threshold"] < 1 and found["class"]["observed"] <= 0.2
    assert "none of these classes: confidence below" in capfd.readouterr().out
    for threshold, answers in ((1.1, {"none of these classes"}), (0.0, {"the first label"})):
        (run / "thresholds.json").write_text(json.dumps({**found, "class": {**found["class"], "threshold": threshold}}))
        run_command("predict", f"run={run}", f"images={picture}", f"out={out}", "top=2")
        rows = list(csv.DictReader(out.open()))
        assert {row["answer"] for row in rows} == (answers if threshold else {rows[0]["label"]})
    run_command("predict", f"run={run}", f"images={picture}")
    assert "none of these" not in capfd.readouterr().out
    (run / "thresholds.json").write_text(json.dumps(found))
    run_command("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'export'}", "limit=2")
    assert dcal.load(tmp_path / "export").facts["thresholds"] == found
    assert "## Thresholds" in (tmp_path / "export" / "README.md").read_text()


def test_mistakes_are_one_sentence(
    reid_run: Path, fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copied(reid_run, tmp_path)
    assert "false_match_rate=0.01: the identities of this split are too few" in refused(
        "calibrate", f"run={run}", capfd=capfd
    )
    assert "refused_rate: is promised by a run of task=fgvc" in refused(
        "calibrate", f"run={run}", "refused_rate=0.1", capfd=capfd
    )
    assert "false_match_rate=1.5: must be more than 0" in refused(
        "calibrate", f"run={run}", "false_match_rate=1.5", capfd=capfd
    )
    assert not (run / "thresholds.json").exists()
    (run / "thresholds.json").write_text("no JSON")
    said = refused("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'export'}", capfd=capfd)
    assert "not the thresholds of a run" in said and "repeat dcal-calibrate" in said
