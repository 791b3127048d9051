"""`dcal-results report=DIR`: what stands in the page, for one run, for a sweep, and for runs that lack something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from recorded_runs import as_reid, complete, write_run

from dcal.commands.results import write_report
from dcal.report.html.charts import Point, Series, axis_text, chart, over_seeds, ticks
from dcal.report.html.document import document
from dcal.report.html.experiment import experiments, verdict
from dcal.report.html.run_files import read_folder
from dcal.utils.errors import UserError
from dcal.visualize.gallery import FILE


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed, (plain, dcal) in enumerate([(8, 4), (9, 5), (8, 6)]):
        complete(write_run(tmp_path / "runs", seed, plain, "none"))
        complete(write_run(tmp_path / "runs", seed, dcal))
    return tmp_path / "runs"


def page(root: Path) -> str:
    return document(read_folder(root))


def table(html: str, section: str) -> str:
    """The text of a section, tags removed."""
    found = re.search(rf'<section id="e1-{section}">(.*?)</section>', html, re.DOTALL)
    assert found, section
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


def test_a_sweep(sweep: Path) -> None:
    html = page(sweep)
    results = table(html, "results")
    assert "none reference 78.75 ± 1.77" not in results and "none reference 79.17 ± 1.44" in results
    assert "dcal 87.50 ± 2.50" in results and "+8.33 [" in results and "0.250 undecided: 3 seeds" in results
    assert "No configuration is demonstrably better than none" in html and 'class="verdict open"' in html
    assert "3 seeds: fewer than 6 decide nothing" in html
    settings = table(html, "settings")
    differs = settings[settings.index("What differs") : settings.index("What all share")]
    assert "attention.glca.blocks 1 0" in differs or "attention.glca.blocks 0 1" in differs
    assert "optimizer.lr" not in differs and "optimizer.lr 0.0001" in settings
    assert "dcal-train -m attention=dcal seed=0,1,2" in settings
    classes = table(html, "classes")
    assert "Ant &lt;b&gt;" in classes and "Ant <b>" not in html
    assert html.count('class="confusion"') == 2 and html.count("data:image/jpeg") > 10
    assert "gallery.npz" not in html, "nothing is missing"


def test_nothing_is_fetched(sweep: Path) -> None:
    html = page(sweep)
    assert not re.findall(r"https?://|//[a-z]+\.|@import|<link|src=\"(?!data:)", html)


def test_one_run(tmp_path: Path) -> None:
    html = page(complete(write_run(tmp_path, 0, 4)))
    assert "90.00" in html and "What differs" not in html and html.count("<details open>") == 1
    assert len(html) < 5_000_000 and "attention.glca.top_ratio" in html


def test_an_old_run_says_what_is_missing(tmp_path: Path) -> None:
    html = page(write_run(tmp_path, 0, 4))
    assert "gallery.npz" in html and "model.json" in html and "class 3" in html and "data:image/jpeg" not in html


def test_faults_are_told(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = sweep / "fgvc" / "birds"
    (runs / "id-dcal" / "seed=0" / "items.npz").write_bytes(b"torn")
    pictures = runs / "id-none" / "seed=0" / FILE
    pictures.write_bytes(pictures.read_bytes()[:100])
    (runs / "id-none" / "seed=1" / "result.json").unlink()
    write_report(sweep, OmegaConf.create({"report": str(sweep), "device": "a GPU"}))
    told, html = capsys.readouterr(), (sweep / "report.html").read_text()
    assert "left out" in told.err and "report.html: 4 runs" in told.out
    for word in ("items.npz: cannot be read", f"{FILE}: cannot be read", "Not finished", "seed=1"):
        assert word in html


@pytest.mark.parametrize("file", ["model.json", "reliability.json", "cross_domain.json"])
def test_a_torn_file_that_not_every_run_has_costs_no_run(sweep: Path, file: str) -> None:
    (sweep / "fgvc" / "birds" / "id-none" / "seed=0" / file).write_text('{"cells": ')
    folder = read_folder(sweep)
    assert len(folder.runs) == 6 and [f"seed=0/{file}: cannot be read" in problem for problem in folder.problems] == [
        True
    ]


def test_what_a_fresh_run_has_replaced_is_not_told(sweep: Path) -> None:
    run = sweep / "fgvc" / "birds" / "id-none" / "seed=0"
    (run / "result.json").unlink()
    run.rename(run.with_name("seed=0.replaced-1"))
    assert not read_folder(sweep).unfinished


def test_beside_a_run_that_was_moved_nothing_is_read(tmp_path: Path) -> None:
    """Its folder's neighbours are none of its name; and at the top of a disk there is no second folder above."""
    write_run(tmp_path, 0, 8, "none")
    write_run(tmp_path, 0, 4).rename(tmp_path / "mine")
    assert not read_folder(tmp_path / "mine").plain
    (tmp_path / "fgvc" / "birds" / "id-dcal").rmdir()
    folder = write_run(tmp_path, 0, 4)
    assert len(read_folder(folder).plain) == 1


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^report=.*no finished run"):
        read_folder(tmp_path)


def test_reid_has_cameras_and_ranked_lists(tmp_path: Path) -> None:
    html = page(as_reid(write_run(tmp_path, 0, 4)))
    cameras = table(html, "cameras")
    assert cameras.endswith("camera 0 3 75.0 camera 4 3 80.0"), "worst first; the invalid query counts nowhere"
    lists = table(html, "closeups")
    first, second = lists.index("AP 40 % · first match at 3 · camera 4"), lists.index("AP 100 % · first match at 1")
    assert first < second and html.count('<li class="right">') == 2 == html.count('<li class="wrong">')


def test_a_trained_reid_run(reid_run: Path) -> None:
    (run,) = read_folder(reid_run).runs
    assert {"camera", "nearest_mark", "inp"} <= run.items.keys()
    html = page(reid_run)
    queries = min(12, len(run.items["label"]))
    assert html.count('<li class="query">') == queries and html.count('class="look"') == queries * 11
    assert table(html, "cameras").startswith("mAP by camera") and "gallery.npz" not in html


def test_reid_without_cameras_says_so(tmp_path: Path) -> None:
    html = page(as_reid(write_run(tmp_path, 0, 4), cameras=False))
    assert 'id="e1-cameras"' not in html and 'id="e1-closeups"' not in html and "breakdown by camera" in html


def test_without_a_plain_run_the_best_is_the_reference(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed, 4)
        folder = write_run(tmp_path / "other", seed, 9)
        config = OmegaConf.load(folder / "config_resolved.yaml")
        config.attention.glca.top_ratio = 0.5
        OmegaConf.save(config, folder / "config_resolved.yaml")
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"cfg_id": "id-half"}))
    (experiment,) = experiments(read_folder(tmp_path))
    assert [(v.label, v.is_reference) for v in experiment.variants] == [("0.1", True), ("0.5", False)]
    said = verdict(experiment)
    assert said.head == "Best of 2: 0.1" and any("flattered" in line for line in said.details)


def with_settings(folder: Path, cfg_id: str, key: str, value: Any) -> Path:
    """Makes a run one of another configuration; without a value the run is from before the key existed."""
    config = OmegaConf.load(folder / "config_resolved.yaml")
    node, _, name = key.rpartition(".")
    if value is None:
        del OmegaConf.select(config, node)[name]
    else:
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config_resolved.yaml")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"cfg_id": cfg_id}))
    return folder


def test_of_configurations_that_are_alike_none_is_called_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, 0, 4, "none")
    write_run(tmp_path, 0, 4)
    html = page(tmp_path)
    assert "all 2 alike: none; dcal" in html and "best of" not in html
    other = with_settings(write_run(tmp_path / "other", 0, 6), "id-half", "attention.glca.top_ratio", 0.5)
    other.parent.rename(other.parent.with_name("id-half"))
    assert "best of 3: none; dcal, 0.1" in page(tmp_path)


def test_configurations_that_only_their_ids_tell_apart_are_compared(tmp_path: Path) -> None:
    """As with weights of one file name in two folders."""
    for seed in (0, 1):
        write_run(tmp_path, seed, 4)
        other = with_settings(
            write_run(tmp_path / "other", seed, 9), "id-else", "backbone.checkpoint", "/else/w.safetensors"
        )
    other.parent.rename(other.parent.with_name("id-else"))
    (experiment,) = experiments(read_folder(tmp_path))
    assert [(v.label, v.is_reference) for v in experiment.variants] == [("id-dcal", True), ("id-else", False)]
    difference = experiment.variants[1].row.difference
    assert difference is not None and difference.mean == pytest.approx(-5 / 40)


def test_runs_may_lack_a_key_that_others_have(tmp_path: Path) -> None:
    """As runs from before the key existed do, beside runs of today."""
    write_run(tmp_path, 0, 4)
    older = with_settings(write_run(tmp_path / "older", 0, 6), "id-older", "dataset.image_size", None)
    older.parent.rename(older.parent.with_name("id-older"))
    assert "best of 2: 224×224" in page(tmp_path)


def test_an_option_that_decides_nothing_makes_no_second_plain_vit(tmp_path: Path) -> None:
    """`attention.glca.top_ratio` of a run without GLCA: runs of older versions are of two ids for it."""
    write_run(tmp_path, 0, 8, "none")
    other = with_settings(write_run(tmp_path / "other", 1, 9, "none"), "id-idle", "attention.glca.top_ratio", 0.5)
    other.parent.rename(other.parent.with_name("id-idle"))
    write_run(tmp_path, 0, 4)
    (experiment,) = experiments(read_folder(tmp_path))
    assert [(v.label, len(v.runs), v.is_reference) for v in experiment.variants] == [
        ("none", 2, True),
        ("dcal", 1, False),
    ]
    assert experiment.variants[1].row.difference is not None


def judge_branches(folder: Path, wrong_sa: int, wrong_glca: int) -> None:
    """Gives a run the outcomes of its branches, of which the last so many items are wrong."""
    with np.load(folder / "items.npz") as arrays:
        items = dict(arrays)
    result = json.loads((folder / "result.json").read_text())
    for branch, wrong in (("sa", wrong_sa), ("glca", wrong_glca)):
        items[f"prediction_{branch}"] = np.where(items["index"] >= 40 - wrong, items["label"] + 1, items["label"])
        result["metrics"][f"top1_{branch}"] = 1 - wrong / 40
    np.savez(folder / "items.npz", **items)
    (folder / "result.json").write_text(json.dumps(result))


def test_a_branch_that_beats_the_other_is_no_good_news_behind_the_plain_vit(tmp_path: Path) -> None:
    dcal = [write_run(tmp_path, seed, 10) for seed in range(8)]
    for seed, folder in enumerate(dcal):
        judge_branches(folder, wrong_sa=18 - seed % 2, wrong_glca=20)
    (alone,) = experiments(read_folder(dcal[0].parent))
    said = verdict(alone)
    assert said.kind == "open" and "no plain ViT to compare with" in said.head
    assert any("attention=none" in line for line in said.details)

    for seed in range(8):
        write_run(tmp_path, seed, 2 + seed % 2, "none")
    for root in (tmp_path, dcal[0].parent):  # all of them, and the report of DCAL's runs alone
        (found,) = experiments(read_folder(root))
        said = verdict(found)
        assert (said.kind, said.head) == ("bad", "Nothing here is better than none")
        assert any(line.startswith("Worse: dcal by") for line in said.details)
    assert any(line.startswith("Combined minus SA: +") for line in said.details)
    assert said.details[-1] == "The plain ViT: fgvc/birds/id-none" and "do better" not in page(dcal[0].parent)


def test_a_plain_vit_of_another_name_counts_if_it_has_the_same_settings(tmp_path: Path) -> None:
    for seed in range(8):
        judge_branches(write_run(tmp_path, seed, 8 + seed % 2, name="mine"), 16, 20)
        write_run(tmp_path, seed, 2, "none", name="plain")
    found = {experiment.name: experiment for experiment in experiments(read_folder(tmp_path))}
    assert verdict(found["mine"]).head == "Nothing here is better than none"
    assert len(found["mine"].variants) == 1, "the table is still of one name"
    for config in tmp_path.glob("plain/*/*/config_resolved.yaml"):
        config.write_text(config.read_text().replace("lr: 0.0001", "lr: 0.1"))
    found = {experiment.name: experiment for experiment in experiments(read_folder(tmp_path))}
    assert "no plain ViT" in verdict(found["mine"]).head


def test_charts_cover_their_values() -> None:
    points = over_seeds([{1: 2.0, 2: 1.0, 3: 0.5}, {1: 4.0, 2: 1.0}])
    assert points == [Point(1, 3.0, 2.0, 4.0), Point(2, 1.0, 1.0, 1.0)]
    drawn = chart("loss", [Series("sa", points, 0), Series("none", [], 1)])
    assert drawn is not None and len(drawn.lines) == 1 and drawn.lines[0].band
    assert json.loads(drawn.numbers)["values"] == {"sa": ["3", "1"]}
    assert chart("nothing", [Series("sa", [], 0)]) is None
    for low, high in ((0.0, 1.0), (0.93, 0.94), (-3.0, 250.0), (5.0, 5.0)):
        marks = ticks(low, high, 5)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00015, "1.5e-4"), (0.0002, "2e-4"), (5e-5, "5e-5"), (0.4985, "0.4985"), (0.0, "0"), (200000.0, "2e5")],
)
def test_numbers_of_an_axis_fit_its_margin(value: float, text: str) -> None:
    assert axis_text(value) == text
