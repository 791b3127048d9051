"""`dcal-predict`: the probabilities of the run's own evaluation, three forms, damaged files, and errors."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_command import incomplete, refused, run_command

from dcal.commands.predict import opened


@pytest.fixture(scope="module")
def evaluated(fgvc_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """Class and confidence by path of image, as the run's evaluation gave them."""
    from omegaconf import OmegaConf

    from dcal.training.build import make

    data = make(OmegaConf.load(fgvc_run / "config_resolved.yaml").dataset)
    with np.load(fgvc_run / "items.npz") as items:
        return {
            str(data.records("test")[index].path): (data.class_names[label], float(confidence))
            for index, label, confidence in zip(items["index"], items["prediction"], items["confidence"], strict=True)
        }


def predicted(run: Path, out: Path, *words: str) -> list[dict[str, object]]:
    run_command("predict", f"run={run}", f"out={out}", *words)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_probabilities_are_those_of_the_evaluation(
    fgvc_run: Path, evaluated: dict[str, tuple[str, float]], tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(evaluated))
    lines = predicted(fgvc_run, tmp_path / "all.jsonl", f"images={listed}", "top=99", "train.eval_batch_size=5")
    assert [line["path"] for line in lines] == sorted(evaluated)
    for line in lines:
        top = line["top"]
        assert isinstance(top, list)
        probabilities = [guess["probability"] for guess in top]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5) and len(top) == 16
        assert probabilities == sorted(probabilities, reverse=True)
        label, confidence = evaluated[str(line["path"])]
        assert top[0]["label"] == label
        assert top[0]["probability"] == pytest.approx(confidence, rel=1e-4)
    other = predicted(fgvc_run, tmp_path / "glca.jsonl", f"images={listed}", "task.inference=[glca]", "top=1")
    assert [line["top"] for line in other] != [line["top"][:1] for line in lines]  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (60, 50), (number * 90, 80, 40)).save(folder / "deep" / f"{number}.png")
    (folder / "deep" / "1.png").write_bytes(b"no image")
    return folder


def test_damaged_files_are_listed_and_left_out(
    fgvc_run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    incomplete("predict", f"run={fgvc_run}", f"images={folder}", "top=2", f"out={tmp_path / 'new' / 'labels.csv'}")
    assert "1 of 3 images were left out" in capfd.readouterr().err
    with (tmp_path / "new" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["path"]).stem, row["rank"]) for row in rows] == [
        *[("0", "1"), ("0", "2")],
        ("2", "1"),
        ("2", "2"),
        ("1", ""),
    ]
    assert "is no image" in rows[-1]["error"] and not rows[0]["error"]
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "labels.csv"]  # nothing temporary stays

    incomplete("predict", f"run={fgvc_run}", f"images={folder / 'deep' / '*.png'}", "top=2")
    said = capfd.readouterr()
    assert "left out" in said.err and "left out" not in said.out  # the output may be piped
    table = said.out.splitlines()
    assert len(table) == 5 and table[0].startswith(str(folder)) and table[1].startswith(" ")
    assert len({len(line) for line in table[:4]}) == 1
    assert "is no image" in table[4]

    run_command("predict", f"run={fgvc_run}", f"images={folder / 'deep' / '0.png'}", "format=jsonl")
    assert len(json.loads(capfd.readouterr().out)["top"]) == 5


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does in `dcal-predict ... | head`
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:  # of its own: pytest needs its stdout
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stopped, opened(None) as file:
            file.write("a line\n")
        assert stopped.value.code == 141
    # and closing the pipe, which writes what it still held, was no error


def test_mistakes_are_one_sentence(
    fgvc_run: Path, reid_run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str, run: Path = fgvc_run) -> str:
        return refused("predict", f"run={run}", *words, capfd=capfd)

    image = f"images={folder / 'deep' / '0.png'}"
    assert "re-identification has no classes to predict; dcal-extract" in said(image, run=reid_run)
    assert "no run directory" in said(image, run=tmp_path)
    assert "no such file or folder; give an image" in said(f"images={folder / 'none.png'}")
    assert "is no image" in said(f"images={folder / 'deep' / '1.png'}", f"out={tmp_path / 'x.csv'}")
    assert not (tmp_path / "x.csv").exists()
    assert "its suffix must be .csv or .jsonl" in said(image, "out=labels")
    assert "format='xml': choose one of" in said(image, "format=xml")
    assert "top=0: must be" in said(image, "top=0")
    assert "top=2.5: must be a whole number" in said(image, "top=2.5")
    assert "train.eval_batch_size=0: must be" in said(image, "train.eval_batch_size=0")
    assert "task.inference=['pwca']: choose from" in said(image, "task.inference=[pwca]")
    assert "did you mean images" in said("image=x")
