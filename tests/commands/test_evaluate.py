"""`dcal-evaluate`: the same numbers to the last digit, other settings, other data, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from run_command import incomplete, refused, run_command

import dcal
from dcal.commands.evaluate import metric_lines
from dcal.task.inference import NotFinite


def evaluated(run: Path, out: Path, *words: str) -> dict[str, float]:
    run_command("evaluate", f"run={run}", f"out={out}", *words)
    metrics: dict[str, float] = json.loads(out.read_text())["metrics"]
    return metrics


def result(run: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((run / "result.json").read_text())["metrics"]
    return metrics


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_gives_the_numbers_of_the_run(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = request.getfixturevalue(f"{task}_run")
    items = tmp_path / "new" / "items.npz"
    assert evaluated(run, tmp_path / "new" / "metrics.json", f"save_items={items}") == result(run)
    with np.load(items) as again, np.load(run / "items.npz") as before:
        assert set(again) == set(before)
        for key in before:
            np.testing.assert_array_equal(again[key], before[key])


def test_a_difference_is_told_even_where_it_is_not_among_the_digits_shown() -> None:
    lines = metric_lines({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, {"a": 0.5, "b": 0.25, "c": 0.5 - 3e-8}).splitlines()
    told = [line.removeprefix(f"{name}      0.500000") for name, line in zip("abcd", lines, strict=True)]
    assert told == ["  = result.json", "  result.json: 0.250000", "  result.json: 0.500000 (+3e-08)", ""]


def test_one_branch_is_what_the_run_says_of_it(fgvc_run: Path, tmp_path: Path) -> None:
    metrics = evaluated(fgvc_run, tmp_path / "metrics.json", "task.inference=[glca]", "weights=last")
    assert metrics["nll"] == result(fgvc_run)["nll_glca"] != result(fgvc_run)["nll"]


def test_mirror_images_and_reranking_can_be_added(reid_run: Path, tmp_path: Path) -> None:
    metrics = evaluated(reid_run, tmp_path / "metrics.json", "task.flip_test=true", "task.rerank=true")
    assert "mAP_rerank" in metrics
    assert metrics["mAP"] != result(reid_run)["mAP"]


def test_another_data_set_is_seen_at_the_size_of_the_run(reid_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("query", "gallery"):
        for person in ("ann", "bob"):
            folder = tmp_path / "people" / split / person
            folder.mkdir(parents=True)
            for camera in (1, 2):
                Image.new("RGB", (70, 90), (camera * 90, 40, 10)).save(folder / f"c{camera}_{split}.png")
    shutil.copytree(tmp_path / "people" / "gallery", tmp_path / "people" / "train")
    words = ["dataset=identity_folder", f"dataset.root={tmp_path / 'people'}"]
    assert evaluated(reid_run, tmp_path / "metrics.json", *words)["queries"] == 4


def test_mistakes_are_one_sentence(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert f"did you mean {fgvc_run}" in refused("evaluate", f"run={fgvc_run.parent.parent}", capfd=capfd)
    assert "kept only with a validation split" in refused("evaluate", f"run={fgvc_run}", "weights=best", capfd=capfd)
    assert "did you mean weights" in refused("evaluate", f"run={fgvc_run}", "wights=best", capfd=capfd)
    assert "no split 'val'" in refused("evaluate", f"run={fgvc_run}", "split=val", capfd=capfd)
    other = [f"run={fgvc_run}", "dataset=synthetic_birds", "dataset.image_size=[64,64]"]
    assert "dataset.image_size=[64,64]: images are seen as in the run" in refused("evaluate", *other, capfd=capfd)
    broken = tmp_path / "seed=0"
    shutil.copytree(fgvc_run, broken)
    (broken / "last.safetensors").write_bytes(b"no weights")
    assert "is damaged: its checksum" in refused("evaluate", f"run={broken}", capfd=capfd)
    (broken / "other.safetensors").write_bytes(b"no weights")
    words = [f"run={broken}", f"weights={broken / 'other.safetensors'}"]
    assert "not the weights" in refused("evaluate", *words, capfd=capfd)
    (broken / "config_resolved.yaml").write_text("train: {epochs: many}")
    assert "not the configuration of a run" in refused("evaluate", f"run={broken}", capfd=capfd)


def test_help_is_the_configuration_file(capfd: pytest.CaptureFixture[str]) -> None:
    run_command("evaluate", "--help")
    told = capfd.readouterr().out
    assert "dcal-evaluate run=DIR weights=best" in told  # an example
    assert "flip_test: null # average over" in told  # a key with its comment
    assert "market1501" in told  # a group's options
    assert "\ndefaults" not in told and "hydra:" not in told


def test_classes_must_be_those_of_the_run(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (50, 50)).save(tmp_path / split / name / "0.png")
    said = refused("evaluate", f"run={fgvc_run}", "dataset=image_folder", f"dataset.root={tmp_path}", capfd=capfd)
    assert "are not the 16 that the run was trained on" in said


def test_a_run_may_be_older_than_a_key(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "seed=0"
    shutil.copytree(fgvc_run, old)
    config = OmegaConf.load(old / "config_resolved.yaml")
    del config["launch"]
    OmegaConf.save(config, old / "config_resolved.yaml")
    assert evaluated(old, tmp_path / "metrics.json") == result(fgvc_run)
    del config["task"]["bnneck"]
    OmegaConf.save(config, old / "config_resolved.yaml")
    assert "has no task.bnneck" in refused("evaluate", f"run={old}", capfd=capfd)


def pictures(root: Path, test_images: int) -> Path:
    from PIL import Image

    for split, count in (("train", 4), ("test", test_images)):
        for number, name in enumerate(("fir", "yew")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture = Image.effect_noise((40, 40), 30 + 60 * number + index + 9 * (split == "test"))
                picture.convert("RGB").save(root / split / name / f"{index}.png")
    return root


def test_the_root_that_is_asked_for_is_evaluated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old, other = pictures(tmp_path / "old", 2), pictures(tmp_path / "other", 3)
    words = ["dataset=image_folder", f"dataset.root={old}", "dataset.image_size=[32,32]", "dataset.resize=[32,32]",
             "backbone=test_vit", "train.epochs=1", "train.batch_size=4", "train.precision=fp32", "train.workers=0",
             "train.figures=false", "optimizer.schedule.warmup_epochs=0", "wandb.mode=disabled",
             f"run.root={tmp_path / 'runs'}"]  # fmt: skip
    run_command("train", *words)
    (run,) = (file.parent for file in (tmp_path / "runs").glob("**/result.json"))
    capfd.readouterr()

    def said(*more: str) -> str:
        run_command("evaluate", f"run={run}", *more)
        return capfd.readouterr().out

    text = said(f"dataset.root={other}")
    assert f"in {other}, split test, 6 images" in text and "= result.json" not in text
    assert "result.json is about other images" in text
    moved = old.rename(tmp_path / "moved")
    assert "no such folder" in refused("evaluate", f"run={run}", capfd=capfd)
    text = said(f"dataset.root={moved}")  # the same images elsewhere
    assert f"in {moved}, split test, 4 images" in text and text.count("= result.json") == len(result(run))
    nowhere = refused("evaluate", f"run={run}", f"dataset.root={tmp_path / 'nowhere'}", capfd=capfd)
    assert "nowhere" in nowhere
    assert "dataset.root" in refused("evaluate", f"run={run}", "dataset=cub", capfd=capfd)


def test_a_drawn_set_is_evaluated_under_another_run(reid_run: Path, tmp_path: Path) -> None:
    words = ["dataset=synthetic_people", "dataset.reader.train_identities=4", "dataset.reader.test_identities=4"]
    assert evaluated(reid_run, tmp_path / "metrics.json", *words)["queries"] > 0


def test_scores_that_are_nan_are_no_accuracy(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(fgvc_run / "last.safetensors")
    weights["head.classifier.weight"][3] = float("nan")
    file = tmp_path / "nan.safetensors"
    save_file(weights, file)
    run = [f"run={fgvc_run}", f"weights={file}"]
    said = refused("evaluate", *run, capfd=capfd)
    assert "images are not finite, and cannot be ranked or counted" in said
    image = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (40, 40), (90, 20, 60)).save(image)
    incomplete("predict", *run, f"images={image}", "format=jsonl")
    assert json.loads(capfd.readouterr().out)["error"] == "the model answers with NaN"
    with pytest.raises(NotFinite, match="NaN for 1 of 1"):
        dcal.load(fgvc_run, str(file), "cpu").predict(image)
