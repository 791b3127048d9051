"""A user's first session, command by command, with what each must print: from a mistake to a listed, used run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import draw_pictures
from run_command import refused, run_command

TRAIN = [
    *("dataset=image_folder", "dataset.root=pictures", "backbone=test_vit", "attention=none", "wandb.mode=disabled"),
    *("dataset.image_size=32", "train.epochs=2", "train.batch_size=8", "train.workers=0", "train.figures=false"),
    *("device=cpu", "train.precision=fp32"),
]


def test_a_first_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    draw_pictures(Path("pictures"))

    def says(name: str, *words: str) -> str:
        run_command(name, *words)
        said = capfd.readouterr()
        return said.out + said.err

    # one flat folder of classes has no test set: the sentence says how to make one
    assert "dataset.test_fraction=" in refused("train", *TRAIN, capfd=capfd)
    assert not list(Path().glob("outputs/**/seed=0")), "a start that failed leaves a directory"

    # the run says what it does
    words = [*TRAIN, "dataset.test_fraction=0.2"]
    said = says("train", *words)
    (result,) = Path("outputs").glob("**/result.json")
    run = result.parent.resolve()
    for line in (
        "dataset.resize=[39,39]",  # follows the image size
        "optimizer.schedule.warmup_epochs=5 is not below the 2 epochs",
        f"directory  {run}",
        "2 classes",
        "20 of 20 listed images are here",
        "test_vit at 32×32, attention none",
        "weights    random",
        "random weights: the backbone learns from nothing",
        "epochs     2 of 2 batches of 8 images; evaluated on test",
        "wandb      disabled",
        "epoch 2/2",
    ):
        assert line in said, f"{line!r} is missing in:\n{said}"
    assert (run / "train.log").is_file()

    # repeated it is not trained again, and it is found by short names
    assert "finished before" in says("train", *words)
    table = says("results", "list=outputs")
    assert "finished" in table and run.parent.name in table
    before = sorted(Path().rglob("*"))
    assert "top-1" in says("results")
    assert sorted(Path().rglob("*")) == before, "a table writes nothing unless asked"

    # and used
    answers = says("predict", "run=last", "images=pictures/red")
    assert all(f"pictures/red/{number}.png" in answers for number in range(10)) and "blue" in answers
    assert "images=" in refused("predict", "run=last", capfd=capfd)
