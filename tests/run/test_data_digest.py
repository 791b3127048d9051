"""Which runs were judged on the same images, so that their outcomes can be compared item by item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from recorded_runs import write_run

from dcal.dataset.readers.fgvc import read_image_folder
from dcal.dataset.synthetic.birds import read_synthetic_birds
from dcal.report.html.experiment import experiments, verdict
from dcal.report.html.run_files import read_folder
from dcal.report.records import collect, merge
from dcal.report.table import Spec, make_table
from dcal.run.data_digest import judged_digest


def colors(root: Path, shift: int = 0) -> Path:
    """Two classes of plain pictures, two to train on and two to test of each; `shift` makes other colors."""
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            for shade in (10, 20):
                file = root / split / name / f"{shade}.ppm"  # not compressed: every color has the same size
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * number + shade + shift, 0, 0)).save(file)
    return root


def judged(root: Path) -> str:
    return judged_digest(read_image_folder(root), ["test"])


def test_judged_on_the_same_images_wherever_they_are_and_whatever_was_trained_on(tmp_path: Path) -> None:
    first = colors(tmp_path / "first")
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    (copy / "train/ant/10.ppm").unlink()
    assert judged(first) == judged(copy)


@pytest.mark.parametrize("change", ["other pixels of the same size", "one image less", "another label"])
def test_judged_on_others(change: str, tmp_path: Path) -> None:
    first = colors(tmp_path / "first")
    other = colors(tmp_path / "other", shift=1 if change == "other pixels of the same size" else 0)
    if change == "one image less":
        (other / "test/ant/10.ppm").unlink()
    elif change == "another label":
        (other / "test/ant/10.ppm").rename(other / "test/bee/11.ppm")
    assert judged(first) != judged(other)


def test_drawn_images_go_by_what_they_are_drawn_from(tmp_path: Path) -> None:
    sets = [read_synthetic_birds(tmp_path, train_per_class=1, test_per_class=1, seed=seed) for seed in (0, 0, 1)]
    one, same, other = (judged_digest(catalog, ["test"]) for catalog in sets)
    assert one == same != other


def judge(folder: Path, images: str) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"judged": images}))


def test_runs_judged_on_different_images_are_not_paired(tmp_path: Path) -> None:
    for seed in range(8):
        judge(write_run(tmp_path, seed, 12 + seed % 2, "none"), "these")
        judge(write_run(tmp_path, seed, 2 + seed % 2, "dcal"), "others")
    (found,) = experiments(read_folder(tmp_path))
    assert all(variant.row.difference is None for variant in found.variants)
    assert "cannot be compared" in verdict(found).head
    for folder in tmp_path.glob("fgvc/birds/id-dcal/*"):
        judge(folder, "these")
    (found,) = experiments(read_folder(tmp_path))
    assert verdict(found).head == "dcal is better than none"


def test_a_run_that_is_older_than_the_digest_is_compared_as_before(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed, 12, "none")
        judge(write_run(tmp_path, seed, 2, "dcal"), "these")
    found, _ = collect(tmp_path)
    spec = Spec("birds", ["*"], by=["attention"], against={"attention": "none"})
    rows = {row.label: row for row in make_table(spec, {"birds": merge("birds", [], found["fgvc/birds"])}).rows}
    assert rows["dcal"].difference is not None


def test_seeds_of_a_row_on_different_images_have_no_common_interval(tmp_path: Path) -> None:
    for seed in (0, 1):
        judge(write_run(tmp_path, seed, 2 + seed), f"images {seed}")
    found, _ = collect(tmp_path)
    (row,) = make_table(Spec("birds", ["*"]), {"birds": merge("birds", [], found["fgvc/birds"])}).rows
    assert row.interval is None and len(row.values["top1"]) == 2
