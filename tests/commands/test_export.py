"""`dcal-export` and `dcal.load`: what comes back equals the run, in every format, and says what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from run_command import refused, run_command
from torch import Tensor

import dcal
from dcal.inference.export_formats import FORMATS, Format
from dcal.inference.export_graph import Graph, compare, parts
from dcal.inference.images import open_data
from dcal.inference.pretrained import of_run
from dcal.inference.restore import restore
from dcal.utils.errors import UserError


def exported(run: Path, format: str, out: Path, *words: str) -> Path:
    run_command("export", f"run={run}", f"format={format}", f"out={out}", "limit=2", *words)
    return out


def images_for(model: dcal.TrainedDCAL, batch: int) -> Tensor:
    return torch.rand(batch, 3, *model.image_size, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def answer(model: dcal.TrainedDCAL, images: Tensor) -> Tensor:
    output = model(model.normalise(images))
    return model.probabilities(output) if model.task == "fgvc" else model.embedding(output)


def test_a_run_comes_back_in_one_line(fgvc_run: Path) -> None:
    model = dcal.load(fgvc_run, device="cpu")
    restored = restore(fgvc_run, device="cpu")
    records = open_data(restored).records("test")
    assert not model.training and isinstance(model, dcal.DCAL)
    assert model.state_dict().keys() == restored.model.state_dict().keys()
    with np.load(fgvc_run / "items.npz") as items:
        for row, found in enumerate(model.predict([record.path for record in records], top=3)):
            (name, probability), *_ = found.items()
            assert name == model.class_names[items["prediction"][row]]
            assert probability == pytest.approx(items["confidence"][row], abs=1e-6)
            assert len(found) == 3 and list(found.values()) == sorted(found.values(), reverse=True)


def test_pictures_may_be_files_images_or_arrays(reid_run: Path, tmp_path: Path) -> None:
    model = dcal.load(reid_run, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (90, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels]
    features = model.embed(given)
    torch.testing.assert_close(
        features, features[:1].expand(4, -1), rtol=0, atol=1e-6
    )  # rows of a product may round apart
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(model.embed(pixels), features[:1])
    for other in (pixels / np.float32(255), pixels[..., 0], pixels[None]):
        with pytest.raises(UserError, match=r"arrays are uint8 RGB \(H, W, 3\), not"):
            model.preprocess(other)
    with pytest.raises(UserError, match="re-identifies"):
        model.predict(pixels)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_a_folder_comes_back_equal(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run: Path = request.getfixturevalue(f"{task}_run")
    folder = exported(run, "hub", tmp_path / "hub", "license=cc-by-4.0")
    first = dcal.load(run, device="cpu")
    images = images_for(first, 3)
    for again in (dcal.load(folder, device="cpu"), dcal.TrainedDCAL.from_pretrained(folder)):
        assert torch.equal(answer(again, images), answer(first, images))
        assert again.class_names == first.class_names and again.task == task
    again.save_pretrained(tmp_path / "copy")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_weights_that_lack_something_are_refused(fgvc_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = exported(fgvc_run, "safetensors", tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    del weights["head.classifier.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"head\.classifier\.weight"):
        dcal.TrainedDCAL.from_pretrained(folder)
    with pytest.raises(Exception, match="are not those of a trained model"):
        dcal.load(folder)


def test_torch_export_takes_any_batch(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = exported(fgvc_run, "torch_export", tmp_path / "graph", "limit=8", "batch_sizes=[1,7]")
    said = capfd.readouterr().out
    assert "8 images in batches of 1, 7" in said and "the same in 8 of 8" in said
    graph = torch.export.load(folder / "model.pt2").module()
    model = dcal.load(fgvc_run, device="cpu")
    for batch in (1, 4):
        probabilities, _, _, selected = graph(images_for(model, batch))
        torch.testing.assert_close(probabilities, answer(model, images_for(model, batch)), atol=1e-6, rtol=0)
        assert (selected.diff(dim=1) > 0).all()


def test_cameras_are_an_input(tmp_path: Path) -> None:
    model = dcal.TrainedDCAL(
        backbone={"name": "eva02_tiny_patch14_224", "kwargs": {"depth": 2, "embed_dim": 32, "num_heads": 2}},
        attention={"glca": {"blocks": 1, "top_ratio": 0.3}, "head_fusion": "max"},
        task="reid",
        class_names=["ann", "bob"],
        image_size=[56, 28],
        resize=[56, 28],
        inference=["sa", "glca"],
        bnneck=True,
        sides=[3, 2],
    )
    torch.nn.init.normal_(model.get_parameter("side"))
    graph = Graph(model)
    images, side = torch.rand(3, 3, 56, 28), torch.tensor([0, 3, 5])
    runner = FORMATS["torch_export"].save(graph, tmp_path)
    assert compare(graph, runner, [(images, side), (images[:1], side[:1])]).differences["embedding"] < 1e-6
    assert not torch.equal(runner(images, side)[0], runner(images, side.flip(0))[0])
    with pytest.raises(UserError, match="embeds cameras"):
        model.embed(np.zeros((56, 28, 3), np.uint8))


def test_onnx_takes_any_batch(reid_run: Path, tmp_path: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'dcal[export]'")
    import onnxruntime

    folder = exported(reid_run, "onnx", tmp_path / "onnx", "split=query", "limit=8", "batch_sizes=[1,7]")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    model = dcal.load(reid_run, device="cpu")
    for batch in (1, 7):
        images = images_for(model, batch)
        embedding, *_, selected = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(embedding), answer(model, images), atol=1e-5, rtol=0)
        assert selected.shape[0] == batch


def test_the_card_tells_what_the_model_is(fgvc_run: Path, tmp_path: Path) -> None:
    folder = exported(fgvc_run, "safetensors", tmp_path / "folder", "license=apache-2.0")
    card = (folder / "README.md").read_text()
    result = json.loads((fgvc_run / "result.json").read_text())
    assert card.startswith("---\n") and "license: apache-2.0" in card
    assert f"| nll | {result['metrics']['nll']:.4f} |" in card and f"`{result['cfg_id']}`" in card
    assert "`synthetic_birds`" in card and "top_ratio: 0.1" in card and "dcal.load(" in card
    for file in folder.glob("*.*"):
        assert str(fgvc_run.parent.parent).encode() not in file.read_bytes(), "a path of this machine"


def test_a_push_uploads_the_folder(fgvc_run: Path, tmp_path: Path) -> None:
    uploaded: list[str] = []

    def upload(folder_path: Path, **_: object) -> str:
        uploaded.extend(sorted(file.name for file in folder_path.iterdir()))
        return "done"

    with mock.patch("huggingface_hub.hub_mixin.HfApi") as api:
        api().create_repo().repo_id = "me/birds"
        api().upload_folder.side_effect = upload
        exported(fgvc_run, "hub", tmp_path / "hub", "repo=me/birds")
    assert uploaded == ["README.md", "config.json", "model.safetensors"]


def test_what_differs_does_not_appear(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(graph: Graph, folder: Path) -> object:
        def run(images: Tensor) -> list[Tensor]:
            probabilities, *rest = graph(images)
            return [probabilities + 0.25, *rest[:-1], rest[-1].flip(0)]

        return run

    graph = Graph(of_run(restore(fgvc_run, device="cpu")))
    runner: object = broken(graph, tmp_path)
    parity = compare(graph, runner, [graph.example(2), graph.example(1)])  # type: ignore[arg-type]
    assert (parity.images, parity.batch_sizes, parity.same_top1) == (3, [2, 1], 3)
    assert parity.differences == {"probabilities": pytest.approx(0.25), "logits_sa": 0.0, "logits_glca": 0.0}

    with mock.patch.dict(FORMATS, safetensors=Format(broken)):
        words = [f"run={fgvc_run}", "format=safetensors", f"out={tmp_path / 'never'}"]
        assert "differs from PyTorch by more than tolerance=0.0001" in refused("export", *words, capfd=capfd)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "sizes", "expected"), [(10, [1, 7], [1, 7, 1, 1]), (2, [32], [2])])
def test_batches_of_all_sizes_hold_everything_once(count: int, sizes: Sequence[int], expected: Sequence[int]) -> None:
    cut = parts(count, sizes)
    assert [part.stop - part.start for part in cut] == expected
    assert [index for part in cut for index in range(count)[part]] == list(range(count))


def test_mistakes_are_one_sentence(fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        return refused("export", f"run={fgvc_run}", *words, capfd=capfd)

    assert "choose one of onnx, onnx_int8" in told("format=tflite")
    assert "limit=2.5: must be a whole number" in told("format=onnx", "limit=2.5")
    assert "under format=hub only" in told("format=onnx", "repo=me/birds")
    assert "no split 'val'" in told("format=safetensors", "split=val", f"out={tmp_path / 'x'}")
    assert "dataset.root=B: has no effect on noise" in told("format=safetensors", "dataset.root=B")
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    assert "no earlier export" in told("format=safetensors", f"out={tmp_path}")
    with pytest.raises(Exception, match="no run directory"):
        dcal.load(tmp_path / "nowhere")
    with mock.patch.dict("sys.modules", onnxruntime=None):
        assert "pip install 'dcal[export]'" in told("format=onnx", f"out={tmp_path / 'onnx'}")


def test_what_the_user_put_beside_an_export_stays(
    fgvc_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = exported(fgvc_run, "safetensors", tmp_path / "out")
    (out / ".git").mkdir()
    (out / "LICENSE").write_text("mine")
    (out / "README.md").write_text("an edited card")
    (out / "model.safetensors").write_bytes(b"torn")
    capfd.readouterr()
    exported(fgvc_run, "safetensors", out)
    assert "README.md: edited since it was written, and kept" in capfd.readouterr().out
    assert (out / ".git").is_dir() and (out / "LICENSE").read_text() == "mine"
    assert (out / "README.md").read_text() == "an edited card"
    dcal.load(out, device="cpu")
    exported(fgvc_run, "torch_export", out)  # of the earlier export nothing is left that it alone had
    assert {file.name for file in out.iterdir()} == {
        *(".git", "LICENSE", "README.md", "config.json", "export.json", "model.pt2")
    }
