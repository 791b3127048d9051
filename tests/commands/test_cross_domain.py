"""`dcal-evaluate datasets=[...]`: every run of a folder on every data set, the table, the picture and the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_command import refused, run_command

from dcal.metric.interval import mean_interval
from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder


def strangers(root: Path) -> Path:
    """Three people under two cameras, without a split of their own."""
    for split in ("train", "query", "gallery"):
        for number, person in enumerate("abc"):
            folder = root / split / person
            folder.mkdir(parents=True)
            for index in range(3):
                picture = Image.effect_noise((30, 60), 20 + 30 * number + index).convert("RGB")
                picture.save(folder / f"{split}{index}.png")
    return root


@pytest.fixture
def runs(reid_run: Path, tmp_path: Path) -> Path:
    """A folder with a run and the same run under another seed."""
    for seed in (0, 1):
        copy = tmp_path / "runs" / reid_run.parent.name / f"seed={seed}"
        shutil.copytree(reid_run, copy)
        result = json.loads((copy / "result.json").read_text())
        (copy / "result.json").write_text(json.dumps({**result, "seed": seed}))
    return tmp_path / "runs"


def test_every_run_on_every_data_set(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    people, out, picture = strangers(tmp_path / "people"), tmp_path / "table.json", tmp_path / "table.png"
    words = [f"datasets=[identity_folder:{people},synthetic_people]", f"out={out}", f"picture={picture}"]
    small = ["train.eval_batch_size=16"]
    run_command("evaluate", f"run={runs}", *words, *small)
    table = json.loads(out.read_text())
    assert table["metric"] == "mAP" and len(table["runs"]) == 2
    for label, cells in table["runs"].items():
        assert label.endswith(("seed=0", "seed=1")) and set(cells) == {"identity_folder", "synthetic_people"}
        for cell in cells.values():
            assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
    said = capfd.readouterr().out
    assert re.search(r"^mAP in %\s+identity_folder\s+synthetic_people$", said, re.MULTILINE)
    with Image.open(picture) as image:
        assert image.format == "PNG"
    # the same as that data set alone, with the interval over identities
    alone, items = tmp_path / "alone.json", tmp_path / "alone.npz"
    run = next(runs.glob("*/seed=0"))
    own = ["dataset=identity_folder", f"dataset.root={people}", f"out={alone}", f"save_items={items}"]
    run_command("evaluate", f"run={run}", *own, *small)
    cell = next(cells for label, cells in table["runs"].items() if label.endswith("seed=0"))["identity_folder"]
    assert cell["value"] == json.loads(alone.read_text())["metrics"]["mAP"]
    with np.load(items) as arrays:
        low, high = mean_interval(arrays["average_precision"], arrays["label"])
    assert (cell["low"], cell["high"]) == (max(0.0, low), min(1.0, high))
    # kept, and in the report
    kept = json.loads((run / "cross_domain.json").read_text())
    assert kept["cells"]["identity_folder"]["value"] == cell["value"]
    html = document(read_folder(runs))
    section = re.search(r'<section id="e1-elsewhere">(.*?)</section>', html, re.DOTALL)
    assert section and section[1].count("<tr>") == 3 and f"{100 * cell['value']:.1f} [" in section[1]


def test_mistakes_are_one_sentence(reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        return refused("evaluate", f"run={reid_run}", *words, capfd=capfd)

    assert "datasets='market15': did you mean market1501" in said("datasets=[market15]")
    assert "datasets: names msmt17 twice" in said("datasets=[msmt17:a,msmt17:b]")
    assert "split=val: is for one data set" in said("datasets=[msmt17]", "split=val")
    assert "picture: draws the table of datasets" in said(f"picture={tmp_path / 'x.png'}")
    assert "picture=x.xyz: its suffix must be" in said("datasets=[msmt17]", "picture=x.xyz")
    assert "dataset.root is not set" in said("datasets=[msmt17]")
    (tmp_path / "empty").mkdir()
    none = refused("evaluate", f"run={tmp_path / 'empty'}", "datasets=[msmt17]", capfd=capfd)
    assert "no finished run is below this folder" in none
