"""Re-identification from folder to result on data as people have it: odd sizes, lone images, no cameras."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from run_command import refused, run_command

from dcal.inference.images import open_data
from dcal.inference.restore import restore

TINY = ("task=reid", "optimizer=sgd", "backbone=test_vit", "dataset=identity_folder", "train.batch_size=8",
        "task.instances=2", "train.epochs=1", "train.workers=0", "train.precision=fp32", "wandb.mode=disabled",
        "dataset.image_size=[48,32]", "dataset.resize=[48,32]", "optimizer.schedule.warmup_epochs=0",
        "name=people")  # fmt: skip


def people(root: Path, train_images: int = 4, cameras: bool = True) -> Path:
    """Six people, the last of them with a single training image; every file has another size or mode."""
    for split, persons in {"train": "abcdef", "query": "gh", "gallery": "ghi"}.items():
        for number, person in enumerate(persons):
            folder = root / split / person
            folder.mkdir(parents=True)
            count = {"train": 1 if person == "f" else train_images, "query": 1, "gallery": 2}[split]
            for index in range(count):
                mode = ("RGB", "L", "RGBA")[index % 3]
                size = (20 + 7 * number + index, 45 + 11 * index)
                camera = f"_c{1 + (index + (split == 'gallery')) % 2}" if cameras else ""
                Image.effect_noise(size, 80).convert(mode).save(folder / f"{split}{index}{camera}.png")
    return root


def result(runs: Path) -> dict[str, float]:
    (file,) = runs.glob("**/result.json")
    metrics: dict[str, float] = json.loads(file.read_text())["metrics"]
    return metrics


def test_mixed_sizes_and_an_identity_with_one_image(tmp_path: Path) -> None:
    root = people(tmp_path / "people")
    run_command("train", *TINY, f"dataset.root={root}", f"run.root={tmp_path / 'runs'}",
                "dataset.reader.camera=_c(\\d)", "dataset.image_size=[48,24]",
                "backbone.patch_stride=6", "task.side_information=camera")  # fmt: skip
    metrics = result(tmp_path / "runs")
    assert metrics["queries"] == 2 and metrics["gallery"] == 6
    assert 0.0 < metrics["mAP"] <= 1.0
    # overlapping patches and the side embedding are part of the run: it is evaluated with both
    (run,) = (file.parent for file in (tmp_path / "runs").glob("**/result.json"))
    run_command("evaluate", f"run={run}", f"out={tmp_path / 'again.json'}")
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == metrics


def test_without_cameras_every_match_counts(tmp_path: Path) -> None:
    root = people(tmp_path / "people", cameras=False)
    words = [*TINY, f"dataset.root={root}", f"run.root={tmp_path / 'runs'}"]
    run_command("train", *words)
    metrics = result(tmp_path / "runs")
    assert metrics["mAP"] > 0.0
    # where the reader says that the images of a person are one track, tracks are ranked: VeRi's image to track
    (run,) = (file.parent for file in (tmp_path / "runs").glob("**/result.json"))
    restored = restore(run, device="cpu")
    data = open_data(restored)
    data.catalog.protocol["tracks"] = [0, 0, 1, 1, 2, 2]
    by_track = restored.task.evaluate(restored.model, data, "test", 8, 0, restored.device)
    gallery, pairs = data.records("gallery"), zip(by_track.items["nearest"], by_track.items["label"], strict=True)
    right = [gallery[int(found[0])].label == int(label) for found, label in pairs]  # the nearest image decides
    assert by_track.metrics["rank1"] == sum(right) / len(right)
    assert by_track.metrics["mAP"] == pytest.approx((1 / by_track.items["first_rank"].float()).mean().item())
    assert by_track.items["first_rank"].max() <= 3


def test_mistakes_are_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = people(tmp_path / "people", cameras=False)
    words = [*TINY, f"dataset.root={root}", f"run.root={tmp_path / 'runs'}"]
    assert "task.side_information=camera" in refused("train", *words, "task.side_information=camera", capfd=capfd)
    assert "task.instances" in refused("train", *words, "task.instances=3", capfd=capfd)
    assert "train.batch_size" in refused("train", *words, "train.batch_size=64", capfd=capfd)
    foreign = refused("train", *words, "experiment=tiny/reid", capfd=capfd)
    assert "unexpected keyword argument" in foreign and "experiment=...: leave that out" in foreign
    birds = refused("train", "experiment=tiny/fgvc", "task=reid", words[-1], capfd=capfd)
    assert "task=reid is judged on the split query, which synthetic_birds lacks" in birds
    assert "task.metric" in refused("train", *words, "task.metric=manhattan", capfd=capfd)


def test_cameras_that_the_model_does_not_know(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def table(folder: Path, cameras: str) -> Path:
        """Two identities for training and two for the test, whose cameras are `cameras`, four images each."""
        rows = ["path,id,camera,split"]
        for number in range(16):
            split = "train" if number < 8 else ("query", "gallery")[number % 2]
            folder.mkdir(exist_ok=True)
            Image.effect_noise((32, 48), 60 + number).convert("RGB").save(folder / f"{number}.png")
            camera = str(number % 2) if number < 8 else (cameras if split == "gallery" else "1")
            rows.append(f"{number}.png,{number // 4},{'' if camera == '-' else camera},{split}")
        (folder / "images.csv").write_text("\n".join(rows))
        return folder

    csv = [word.replace("identity_folder", "identity_csv") for word in TINY]
    words = [*csv, f"run.root={tmp_path / 'runs'}", "task.side_information=camera", "train.batch_size=4"]
    unknown = refused("train", *words, f"dataset.root={table(tmp_path / 'unknown', '-')}", capfd=capfd)
    assert "4 of 4 images of the split gallery of identity_csv have no camera" in unknown
    run_command("train", *words, f"dataset.root={table(tmp_path / 'own', '0')}")
    (run,) = (file.parent for file in (tmp_path / "runs").glob("**/result.json"))
    other = [f"run={run}", "dataset=identity_csv", f"dataset.root={table(tmp_path / 'other', '17')}"]
    refusal = refused("evaluate", *other, capfd=capfd)
    assert "task.side_information=camera: the model has learned 2 cameras" in refusal and "other" in refusal
