"""`dcal-export format=` for other runtimes and for trackers: loaded by their own code, and equal to the run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_command import refused, run_command

import dcal

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'dcal[export]'")
PARITY = 1e-3


def exported(run: Path, format: str, out: Path, *words: str) -> Path:
    run_command("export", f"run={run}", f"format={format}", f"out={out}", "limit=2", *words)
    return out


@torch.no_grad()
def answer(model: dcal.TrainedDCAL, images: torch.Tensor) -> torch.Tensor:
    return model.embedding(model(model.normalise(images)))


def frame() -> np.ndarray:
    """A picture of a street, BGR as trackers have it."""
    return np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def cut_out(model: dcal.TrainedDCAL, corners: np.ndarray) -> torch.Tensor:
    """The boxes of that frame that are of the model's size already, so that no resizing differs: RGB in [0, 1]."""
    rows = [frame()[y1:y2, x1:x2, ::-1] for x1, y1, x2, y2 in corners.tolist()]
    return torch.from_numpy(np.stack(rows).copy()).permute(0, 3, 1, 2).float() / 255


def boxes(model: dcal.TrainedDCAL, count: int) -> np.ndarray:
    height, width = model.image_size
    left, top = np.arange(count) * 7, np.arange(count) * 3
    return np.stack([left, top, left + width, top + height], axis=1)


@pytest.mark.parametrize("count", [1, 5])
def test_boxmot_loads_it(reid_run: Path, tmp_path: Path, count: int) -> None:
    runtime = pytest.importorskip("boxmot.reid.core", reason="pip install boxmot")
    folder = exported(reid_run, "boxmot", tmp_path / "boxmot")
    model = dcal.load(reid_run, device="cpu")
    corners = boxes(model, count)
    reid = runtime.ReID(folder / "model.onnx")
    assert reid.model.input_shape == tuple(model.image_size)  # read from the graph, whatever the file is called
    found = reid(frame(), corners.astype(np.float32))
    expected = answer(model, cut_out(model, corners))
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < PARITY


@pytest.mark.parametrize("count", [1, 5])
def test_ultralytics_loads_it(reid_run: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    module = pytest.importorskip("ultralytics.trackers.utils.reid", reason="pip install ultralytics")
    folder = exported(reid_run, "ultralytics", tmp_path / "ultralytics")
    model = dcal.load(reid_run, device="cpu")
    encoder = module.ReID(str(folder / "model.onnx"), device="cpu")
    assert encoder.imgsz == tuple(model.image_size) and encoder.batch_size is None
    corners = boxes(model, count)
    centred = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    seen: list[torch.Tensor] = []
    prepare = encoder._crops_to_tensor
    encoder._crops_to_tensor = lambda crops: seen.append(prepare(crops)) or seen[-1]
    found = torch.from_numpy(np.stack(encoder(frame(), centred.astype(np.float32))))
    # its crops are a little wider than the boxes, so what it has fed is compared
    expected = answer(model, seen[0])
    assert seen[0].shape == (count, 3, *model.image_size) and seen[0].min() >= 0 and seen[0].max() <= 1
    torch.testing.assert_close(F.normalize(found, dim=1), expected, atol=PARITY, rtol=0)


def test_openvino_loads_it(reid_run: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="pip install 'dcal[openvino]'")
    folder = exported(reid_run, "openvino", tmp_path / "openvino", "batch_sizes=[1,3]")
    model = dcal.load(reid_run, device="cpu")
    compiled = openvino.compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 4):
        images = torch.rand(batch, 3, *model.image_size)
        found = compiled({"images": images.numpy()})
        assert np.abs(found["embedding"] - answer(model, images).numpy()).max() < PARITY
        assert found["selected"].shape[0] == batch


def test_eight_bits_are_smaller_and_say_what_they_cost(
    reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["format=[onnx,onnx_int8]", "split=query", "limit=12", "batch_sizes=[4]", f"out={tmp_path / 'both'}"]
    run_command("export", f"run={reid_run}", *words)
    said = capfd.readouterr().out
    assert "Quantization" not in said and "Ignore MatMul" not in said  # onnxruntime's notes on each layer
    sizes = [(tmp_path / "both" / name / "model.onnx").stat().st_size for name in ("onnx", "onnx_int8")]
    assert sizes[1] < 0.61 * sizes[0]  # of so small a ViT the patch embedding, which stays, is a sixth
    head, *rows = (
        said[said.rindex("\n  ", 0, said.index("largest difference  of these")) :].strip("\n").splitlines()[:4]
    )
    assert re.findall(r"MB|ms/image, batch \d|largest difference|of these images", head) == [
        "MB", "ms/image, batch 1", "ms/image, batch 8", "largest difference", "of these images"
    ]  # fmt: skip
    cells = {row.split()[0]: row.split()[1:] for row in rows}
    assert list(cells) == ["PyTorch", "onnx", "onnx_int8"]
    assert float(cells["onnx_int8"][0]) == pytest.approx(sizes[1] / 1e6, abs=0.1)
    assert all(float(time) > 0 for row in cells.values() for time in row[-6:-4] if "." in time)
    assert float(cells["onnx"][3]) < 1e-4 < float(cells["onnx_int8"][3]) < 0.5
    assert {row[-3] for row in cells.values()} == {"mAP"} and cells["onnx"][-2] == cells["PyTorch"][-2]


def test_a_tracker_has_no_use_for_these(
    fgvc_run: Path, reid_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def says(run: Path, *words: str) -> str:
        return refused("export", f"run={run}", f"out={tmp_path / 'x'}", *words, capfd=capfd)

    assert "trackers re-identify, and this run has task=fgvc; take format=onnx" in says(fgvc_run, "format=boxmot")
    assert "format='tracker'" in says(reid_run, "format=tracker")
    assert "name one format or several, each once" in says(reid_run, "format=[onnx,onnx]")
    assert "repo=me/x is pushed to under format=hub only" in says(reid_run, "format=[onnx,hub]", "repo=me/x")
    assert not os.path.exists(tmp_path / "x")
