"""`dcal-extract` and `dcal-query`: the evaluation's features, the same bytes after a kill, and what is nearest."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from run_command import incomplete, refused, run_command

from dcal.commands import extract
from dcal.dataset.record import Record
from dcal.inference.images import open_images
from dcal.inference.index import read_index
from dcal.metric.retrieval import evaluate_retrieval, nearest
from dcal.run.lock import acquire_lock
from dcal.utils.errors import UserError


def extracted(run: Path, out: Path, *words: str) -> Path:
    run_command("extract", f"run={run}", f"out={out}", *words)
    return out


@pytest.fixture(scope="module")
def splits(reid_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("splits")
    return {split: extracted(reid_run, folder / f"{split}.npz", f"split={split}") for split in ("query", "gallery")}


@pytest.fixture(scope="module")
def people(splits: dict[str, Path]) -> list[str]:
    """Files of the gallery; their names hold identity and camera."""
    return read_index(splits["gallery"], "index").columns.path


def test_features_are_those_of_the_evaluation(reid_run: Path, splits: dict[str, Path]) -> None:
    arguments = []
    for file in splits.values():
        with np.load(file, allow_pickle=False) as archive:
            assert archive["features"].dtype == np.float32 and archive["path"].dtype.kind == "U"
            arguments += [torch.from_numpy(archive[key]) for key in ("features", "label", "camera")]
            assert json.loads(str(archive["settings"]))["inference"] == ["sa", "glca"]
    result = json.loads((reid_run / "result.json").read_text())["metrics"]
    for key, value in evaluate_retrieval(*arguments).items():
        assert result[key] == value


class Killed(BaseException):
    pass


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_killed_and_repeated_it_gives_the_same_bytes(
    suffix: str, reid_run: Path, people: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="the extra [parquet]")
    paths = [*people, str(tmp_path / "missing.png"), str(tmp_path / "~last, missing too.png")]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(paths))
    words = [f"images={listed}", "train.eval_batch_size=4", "fp16=true", r"label=^(\d+)", r"camera=c(\d+)"]
    incomplete("extract", f"run={reid_run}", f"out={tmp_path / f'whole{suffix}'}", *words)
    whole, killed = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"

    original = extract.joined

    def stop_after(writes: int) -> None:
        left = iter(range(writes))

        def counting(*arguments: Any) -> dict[str, Any]:
            if next(left, None) is None:
                raise Killed
            return original(*arguments)

        monkeypatch.setattr(extract, "joined", counting)

    monkeypatch.setattr(extract, "PART_SECONDS", 0)
    for writes in (2, 1):
        stop_after(writes)
        with pytest.raises(Killed):
            extracted(reid_run, killed, *words)
        assert not killed.exists()
    stop_after(len(people) // 4 - 3 + 1)  # what is left: nothing is computed twice
    incomplete("extract", f"run={reid_run}", f"out={killed}", *words)
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([killed.name, whole.name, "list.txt"])
    index = read_index(killed, "index")
    assert index.features.dtype == np.float16 and list(index.columns.path) == sorted(people)
    monkeypatch.setattr(extract, "compute", None)  # finished: nothing is computed once more
    incomplete("extract", f"run={reid_run}", f"out={killed}", *words)


def test_what_belongs_to_other_settings_is_not_touched(
    reid_run: Path,
    people: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = [f"run={reid_run}", f"images={people[0]}", f"out={tmp_path / 'index.npz'}"]
    run_command("extract", *words)
    before = (tmp_path / "index.npz").read_bytes()
    said = refused("extract", *words, "task.inference=[sa]", capfd=capfd)
    assert "exists, made with other settings (inference ['sa', 'glca'], now ['sa'])" in said
    assert (tmp_path / "index.npz").read_bytes() == before
    (tmp_path / "index.npz").unlink()
    monkeypatch.setattr(extract, "joined", lambda *arguments: exec("raise Killed", {"Killed": Killed}))
    with pytest.raises(Killed):
        run_command("extract", *words)
    said = refused("extract", *words, f"images=[{people[0]},{people[1]}]", capfd=capfd)
    assert "index.npz.parts: begun with other settings (images 1, now 2" in said
    with acquire_lock(tmp_path / "index.npz.parts"):  # parts of two processes would leave gaps
        assert "is being worked on by process" in refused("extract", *words, capfd=capfd)


def test_mistakes_are_one_sentence(
    reid_run: Path,
    people: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def said(*words: str) -> str:
        return refused("extract", f"run={reid_run}", *words, capfd=capfd)

    out, image = f"out={tmp_path / 'x.npz'}", f"images={people[0]}"
    assert "its suffix must be .npz or .parquet" in said(image, f"out={tmp_path / 'x'}")
    assert "images, split: give one of the two" in said(out)
    assert "images, split: give one of the two" in said(out, image, "split=query")
    assert "no split 'quer': synthetic_people has" in said(out, "split=quer")
    assert "dataset.root=B: has no effect on images=" in said(out, image, "dataset.root=B")
    assert "camera: goes with images" in said(out, "split=query", r"camera=c(\d)")
    assert "found in none of 1 paths" in said(out, image, r"camera=k(\d)")
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert "bad.png: is no image" in said(out, f"images={tmp_path / 'bad.png'}")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "needs pyarrow: pip install 'dcal[parquet]'" in said(image, f"out={tmp_path / 'x.parquet'}")


def test_the_nearest_are_found_and_judged(
    reid_run: Path, splits: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, index = (read_index(file, "index") for file in splits.values())
    similarity_QG = asked.features @ index.features.T
    words = [f"run={reid_run}", f"index={splits['gallery']}", "top=6", f"picture={tmp_path / 'found.png'}"]
    labels, cameras = np.array(index.columns.label), np.array(index.columns.camera)

    for row in (0, 5):
        label, camera = asked.columns.label[row], asked.columns.camera[row]  # type: ignore[index]
        given = [f"image={asked.columns.path[row]}", f"label={label}", f"camera={camera}"]
        order = np.argsort(-similarity_QG[row])
        marks = np.where(labels == label, np.where(cameras == camera, "same camera", "right"), "wrong")
        marks[labels < 0] = "junk"
        left_out = np.isin(marks, ["same camera", "junk"])
        for policy, expected in (("mark", order[:6]), ("drop", order[~left_out[order]][:6])):
            run_command("query", *words, *given, f"same_camera={policy}")
            title, head, *lines = capfd.readouterr().out.splitlines()[:8]
            assert title.endswith(f"camera {camera}  label {label}")
            assert head.split() == ["rank", "similarity", "camera", "label", "mark", "image"]
            assert [line.split()[-1] for line in lines] == [index.columns.path[at] for at in expected]
            assert [float(line.split()[1]) for line in lines] == pytest.approx(similarity_QG[row, expected], abs=2e-4)
            assert [" ".join(line.split()[4:-1]) for line in lines] == marks[expected].tolist()
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 3 * picture.height


def test_a_query_of_unknown_identity(
    reid_run: Path, people: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = extracted(reid_run, tmp_path / "i.npz", f"images=[{','.join(people)}]", r"camera=_c(\d+)_", "fp16=true")
    capfd.readouterr()
    words = [f"run={reid_run}", f"index={out}", f"image={people[0]}", "picture=null", "top=99"]
    run_command("query", *words)
    _, head, first, *_ = capfd.readouterr().out.splitlines()
    assert head.split() == ["rank", "similarity", "camera", "mark", "image"]
    assert first.split()[1] == "1.0000" and first.split()[-1] == people[0] and "same camera" in first
    camera = first.split()[2]
    run_command("query", *words, "same_camera=drop")
    kept = [line.split()[2] for line in capfd.readouterr().out.splitlines()[2:] if line.startswith(" ")]
    assert 0 < len(kept) < len(people) and camera not in kept
    assert list(tmp_path.iterdir()) == [out]


def test_an_index_of_another_model_is_refused(
    reid_run: Path,
    fgvc_run: Path,
    splits: dict[str, Path],
    people: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def said(run: Path, index: Path, *words: str) -> str:
        return refused("query", f"run={run}", f"index={index}", f"image={people[0]}", *words, capfd=capfd)

    assert "made by another model, tiny/reid/" in said(fgvc_run, splits["gallery"])
    assert "no such file; make it with dcal-extract" in said(reid_run, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    assert "no index of dcal-extract" in said(reid_run, tmp_path / "text.npz")
    (tmp_path / "half.npz").write_bytes(splits["gallery"].read_bytes()[:-100])
    assert "no index of dcal-extract" in said(reid_run, tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", features=np.zeros((2, 3)))
    assert "no index of dcal-extract" in said(reid_run, tmp_path / "other.npz")
    assert "same_camera='dorp': did you mean drop?" in said(reid_run, splits["gallery"], "same_camera=dorp")
    assert "top=0: must be" in said(reid_run, splits["gallery"], "top=0")
    assert "picture=x.xyz: its suffix must be" in said(reid_run, splits["gallery"], "picture=x.xyz")
    assert "camera='1.5': needs one group" in said(reid_run, splits["gallery"], "camera=1.5")


def test_a_model_with_camera_embedding_wants_cameras() -> None:
    device = SimpleNamespace(num_cameras=3, num_views=1, torch=torch.device("cpu"), pins_memory=False)
    config = OmegaConf.create(
        {
            "dataset": {"image_size": [8, 8], "resize": [8, 8], "decode": "full"},
            "train": {"eval_batch_size": 2, "workers": 0},
        }
    )
    restored: Any = SimpleNamespace(device=device, config=config, task=SimpleNamespace(side_information="camera"))
    for image in (Path("a.png"), Record(Path("a.png"), 0, camera=3)):
        with pytest.raises(UserError, match=r"^task.side_information=camera: .*3 cameras.* not so for a.png"):
            open_images(restored, [image])
    assert len(open_images(restored, [Record(Path("a.png"), 0, camera=2)])) == 1


def test_a_changed_image_is_computed_anew(
    reid_run: Path, people: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, person in enumerate(people[:7]):
        shutil.copy(person, folder / f"{number}.png")
    words = [f"images={folder}", "train.eval_batch_size=3"]
    out = extracted(reid_run, tmp_path / "a.npz", *words)
    before = read_index(out, "out")
    shutil.copy(people[8], folder / "4.png")
    capfd.readouterr()
    extracted(reid_run, out, *words)
    assert "1 of 7 images changed or could not be read: computed anew" in capfd.readouterr().out
    changed = (read_index(out, "out").features != before.features).any(1)
    assert changed.tolist() == [number == 4 for number in range(7)]
    assert out.read_bytes() == extracted(reid_run, tmp_path / "b.npz", *words).read_bytes()
    capfd.readouterr()
    extracted(reid_run, out, *words)
    assert "finished before" in capfd.readouterr().out


def test_random_selection_repeats(fgvc_run: Path, people: list[str], tmp_path: Path) -> None:
    run = tmp_path / "seed=0"
    shutil.copytree(fgvc_run, run)
    config = OmegaConf.load(run / "config_resolved.yaml")
    config.attention.glca.selection = "random"
    OmegaConf.save(config, run / "config_resolved.yaml")
    first, second = (extracted(run, tmp_path / f"{name}.npz", f"images={people[0]}") for name in "ab")
    torch.manual_seed(7)
    assert first.read_bytes() == second.read_bytes()
    assert extracted(run, tmp_path / "c.npz", f"images={people[0]}").read_bytes() == first.read_bytes()


def test_nothing_is_near_to_nan() -> None:
    gallery = torch.eye(3)
    gallery[0] = torch.nan
    similarity, rows = nearest(torch.tensor([[0.0, 0.6, 0.8]]), gallery, 3)
    assert rows.tolist() == [[2, 1, 0]] and similarity[0, 2] == -torch.inf
