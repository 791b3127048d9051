"""`dcal-bench` and what it measures with; and the work that DCAL adds, which the bench counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulated_graph import emulate_cuda_graphs
from omegaconf import OmegaConf
from PIL import Image

from dcal.bench import measure, model, pipeline, speed
from dcal.commands import bench
from dcal.dataset.record import DataError
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir

CPU = torch.device("cpu")
# torchvision's decoders, which we measure, not use
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


SPEED = {"backbones": ["test_vit"], "sizes": [[32, 64]], "modes": ["train", "infer"], "executions": None}
SPEED |= {"precision": "fp32", "batch_size": 2}


def options(**changes: Any) -> dict[str, Any]:
    config = OmegaConf.load(config_dir() / "bench" / "bench.yaml")
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    small = {"backbones": "test_vit", "sizes": [64, 32], "precisions": "fp32", "repeats": 1, "min_seconds": 0.0}
    quiet = {"measure": "cells", "batch_size": {"infer": 2, "train": 2}, "threads": None, "device": "cpu"}
    return {**values, **small, **quiet, **changes}


@pytest.mark.parametrize(
    ("name", "side", "stream", "infer", "train"),
    [
        ("deit_tiny_patch16_224", 224, "clean", 1.01, 2.02),
        ("deit_tiny_patch16_224", 448, "clean", 1.11, 2.28),
        ("deit_tiny_patch16_224", 448, "figure", 1.11, 2.28),
        ("deit_small_patch16_224", 448, "clean", 1.05, 2.13),
    ],
)
def test_work_relative_to_the_plain_backbone(name: str, side: int, stream: str, infer: float, train: float) -> None:
    """The floors of the design: one extra stream, the last block at the rows that are read, rollout as a vector."""
    cell = {"backbone": name, "size": [side, side], "attention": "dcal", "compile": False, "precision": "fp32"}
    with torch.device("meta"):
        models = model.build_models(cell, options(stream=stream, literal=False))
        images, labels = torch.empty(2, 3, side, side), torch.zeros(2, dtype=torch.long)
    for mode, expected in (("infer", infer), ("train", train)):
        count = {
            key: measure.flops(model.make_step(one.train(mode == "train"), images, labels, {**cell, "mode": mode}))
            for key, one in models.items()
        }
        assert count["dcal"] / count["plain"] == pytest.approx(expected, abs=0.01)


def test_a_run_measures_every_cell(tmp_path: Path) -> None:
    attention = ["none", "dcal"]
    figure = {"sizes": 64, "backbone": "test_vit", "precision": "fp32"}
    parts = ["cells", "figure", "rollout"]
    report = bench.run(options(measure=parts, attention=attention, figure=figure, rollout={"sizes": [64, 128]}))
    measured = [(cell["attention"], cell["mode"]) for cell in report["cells"]]
    assert measured == [(name, mode) for name in attention for mode in ("infer", "train")]
    for cell in report["cells"]:
        assert set(cell["seconds"]) == set(cell["flops"]) == {"plain", "dcal", "literal"}
        assert all(value > 0 for value in cell["seconds"].values())
        assert cell["time ratio / FLOP ratio"] == pytest.approx(cell["seconds b/a"] / cell["flops b/a"])
        assert len(model.table_row(cell)) == len(model.COLUMNS.split())
        assert ("saved_bytes b/a" in cell) == (cell["mode"] == "train")
    model.draw_figure(report["figure"], tmp_path / "cost.png", "title")
    assert (tmp_path / "cost.png").stat().st_size > 1000
    assert report["rollout"][1]["kB_per_token"] < 1.5 * report["rollout"][0]["kB_per_token"]
    json.dumps(report)


def test_without_the_tests_folder_the_literal_column_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "literal_reference", lambda: None)
    cell = bench.run(options(modes="infer"))["cells"][0]
    assert set(cell["seconds"]) == {"plain", "dcal"} and model.table_row(cell)[8] == "n/a"


def test_a_cell_in_several_processes_is_the_median_over_them() -> None:
    cell = bench.run(options(modes="infer", processes=3, literal=False))["cells"][0]
    each = cell["seconds b/a of each"]
    assert len(each) == len(set(each)) == 3 and cell["seconds b/a"] == sorted(each)[1]
    assert cell["time ratio / FLOP ratio"] == pytest.approx(cell["seconds b/a"] / cell["flops b/a"])
    assert "seconds c/b" not in cell and "seconds c/b of each" not in cell
    column = model.COLUMNS.split().index("b/a")
    assert model.table_row(cell)[column] == f"{sorted(each)[1]:.2f} ({min(each):.2f}-{max(each):.2f})"


def test_an_error_in_a_fresh_process_reaches_the_user() -> None:
    with pytest.raises(UserError, match="'vit_unknown' is not a timm model"):
        bench.run(options(backbones="vit_unknown", processes=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": "quality"}, "measure='quality': choose from cells, figure, rollout, pipeline, speed"),
        ({"modes": ["fast"]}, "modes='fast': choose from infer, train"),
        ({"precisions": ["fp8"]}, "precisions='fp8': choose from fp32, bf16"),
        ({"attention": ["both"]}, "attention='both'"),
        ({"measure": "speed", "speed": {**SPEED, "modes": ["fly"]}}, r"speed\.modes='fly': choose one of infer, train"),
        ({"measure": "speed", "speed": {**SPEED, "precision": "fp8"}}, r"speed\.precision='fp8'"),
        ({"measure": "speed", "speed": {**SPEED, "modes": "fly"}}, r"speed\.modes='fly'"),
        ({"measure": "speed", "speed": {**SPEED, "sizes": 224}}, r"speed\.sizes=\[224\]: give \[height, width\]"),
        (
            {"measure": "speed", "speed": {**SPEED, "executions": ["captured"]}},
            r"captured needs device=cuda, this is cpu",
        ),
        ({"clock": "sun"}, "clock='sun': choose one of wall, cpu"),
        ({"clock": "cpu", "threads": 2}, "set threads=1"),
        ({"device": "gpu"}, "device='gpu': did you mean cpu"),
        ({"sizes": 224}, r"sizes=\[224\]: give \[height, width\]"),
        ({"sizes": [[64, 64], 32]}, r"sizes=32: give \[height, width\]"),
        ({"compile": "maybe"}, "compile='maybe': choose from false, true"),
        ({"repeats": 0}, "repeats=0: give a whole number"),
        ({"processes": 0}, "processes=0: give a whole number"),
        ({"batch_size": 8}, "batch_size=8: set batch_size.infer"),
        ({"backbones": "vit_unknown"}, "'vit_unknown' is not a timm model"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.run(options(**changes))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Five JPEGs, in folders of folders, and a file that is none."""
    for number in range(5):
        path = tmp_path / "photographs" / f"{number % 2}" / "deep" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((800, 600), Image.Resampling.BICUBIC).save(path, quality=95)
    (tmp_path / "photographs" / "notes.txt").touch()
    return tmp_path / "photographs"


PIPELINE = {"images": 5, "image_size": [64, 48], "resize": [64, 48], "batch_size": 5}


def test_all_pipelines_make_the_same_batches(photographs: Path, tmp_path: Path) -> None:
    """With no room for chance but the mirror, every pipeline gives every image, equal but for rounding."""
    files = pipeline.find_images(photographs)
    assert [path.stem for path in pipeline.spread(files, 3)] == ["0", "4", "3"]  # of 0, 1, 2, 3, 4 by their names
    results = {}
    for name, loader in pipeline.make_loaders(files, PIPELINE, tmp_path).items():
        (batch,) = list(loader)
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        assert images.dtype == torch.uint8 and images.shape == (5, 3, 64, 48)
        upright = [min((one, one.flip(-1)), key=lambda image: image[..., :24].sum()) for one in images.int()]
        results[name] = torch.stack(sorted(upright, key=lambda image: int(image.sum())))
    assert list(results) == [*pipeline.OTHERS, *pipeline.OURS]
    for name, images in results.items():
        assert (images - results["timm"]).abs().float().mean() < (3 if "scaled" in name else 1), name


def test_the_pipeline_is_measured_on_drawn_birds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "DRAWN", (72, 96))
    report = bench.run(options(measure="pipeline", pipeline={**PIPELINE, "root": None}))["pipeline"]
    assert report["files"]["count"] == 64 and report["files"]["median longer side"] == 96
    assert [row["pipeline"] for row in report["rows"]] == [*pipeline.OTHERS, *pipeline.OURS]
    assert max(row["over_the_faster_other"] for row in report["rows"][:2]) == 1.0
    assert torch.get_num_threads() > 1 or os.cpu_count() == 1 or "OMP_NUM_THREADS" in os.environ


def test_no_images_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"pipeline\.root={tmp_path}: no image"):
        bench.run(options(measure="pipeline", pipeline={**PIPELINE, "root": str(tmp_path)}))


def test_the_command_writes_its_files_and_takes_bare_values(tmp_path: Path, photographs: Path) -> None:
    out = tmp_path / "bench"
    arguments = "backbones=test_vit sizes=[32,64] precisions=fp32 modes=infer attention=glca repeats=1 min_seconds=0"
    arguments += f" device=cpu measure=[cells,pipeline] pipeline.root={photographs} pipeline.batch_size=2 out={out}"
    words = [sys.executable, "-m", "dcal", "bench", *arguments.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert all(text in done.stdout for text in ("test_vit  32x64", "dcal cache=ram", "written"))
    assert [path.name for path in out.iterdir()] == ["bench.json"]


def test_medians_are_of_calls_that_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    medians = measure.interleaved_medians(calls, 3, 0.0, CPU)
    assert order == ["a", "b"] * 5 and set(medians) == {"a", "b"}
    ticks = iter(range(100))
    assert measure.seconds(lambda: None, 4, CPU, lambda: float(next(ticks))) == 0.25


def test_saved_bytes_count_each_storage_once_and_no_parameters() -> None:
    layer, x = torch.nn.Linear(10, 20), torch.randn(5, 10)
    assert measure.saved_bytes(lambda: layer(x), layer.parameters()) == 5 * 10 * 4
    assert measure.saved_bytes(lambda: layer(x) + layer(x), layer.parameters()) == 5 * 10 * 4


def test_peak_bytes_follow_the_life_of_tensors() -> None:
    x = torch.zeros(1000)

    def two_at_a_time() -> None:
        for _ in range(10):
            y = x + 1
            z = y * 2
            del y, z

    assert measure.peak_bytes(two_at_a_time, CPU) == 8000
    assert measure.peak_bytes(lambda: x.add_(1).view(10, 100), CPU) == 0


def test_the_speed_of_steps_and_inference_with_what_a_cpu_can_tell() -> None:
    rows = bench.run(options(measure="speed", speed=SPEED))["speed"]
    assert [(row["mode"], row["execution"], row["model"]) for row in rows] == [
        (mode, "eager", name) for mode in ("train", "infer") for name in ("plain", "dcal")
    ]
    for row in rows:
        assert row["images/s"] == pytest.approx(2 / row["seconds"]) and 0 < row["MFU"] < 1
        assert row["busy"] is None and row["peak_GB"] is None
        entries = dict(zip(speed.COLUMNS.split(), speed.table_row(row), strict=True))
        assert entries["size"] == "32x64" and entries["busy_ms"] == entries["host"] == entries["peak_GB"] == "n/a"
    assert rows[0]["over_plain"] == 1.0 and rows[1]["over_plain"] == rows[1]["seconds"] / rows[0]["seconds"]
    assert rows[0]["flops"] > 2 * rows[2]["flops"] > 0
    json.dumps(rows)


def test_a_cell_that_is_too_large_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = speed.measure_cell

    def full(cell: speed.Cell, *args: Any) -> Any:
        if cell.mode == "train":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measured(cell, *args)

    monkeypatch.setattr(speed, "measure_cell", full)
    rows = bench.run(options(measure="speed", speed=SPEED))["speed"]
    assert [row.get("error", row.get("model")) for row in rows] == ["out of memory", "plain", "dcal"]
    assert "out of memory" in speed.table_row(rows[0]) and len({len(speed.table_row(row)) for row in rows}) == 1


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_captured_calls_compute_what_eager_ones_do(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = emulate_cuda_graphs(monkeypatch)
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    results = []
    for execution in ("eager", "captured"):
        torch.manual_seed(0)
        cell = speed.Cell("test_vit", (32, 32), mode, execution)
        state = speed.make_state(cell, "dcal", options(speed=SPEED), "cpu")
        call = speed.make_call(state, speed.make_batch(state, cell, options(speed=SPEED)), cell)
        for _ in range(speed.WARM_UP + 3):
            call()
        results.append(state.model.state_dict())
    assert len(graphs) == len(compiled) == 1 and graphs[0].replays >= 3
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
