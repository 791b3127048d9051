"""`dcal-bench` and what it measures with; and the work that DCAL adds, which the bench counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dcal import bench, measure
from dcal.paths import config_dir

CPU = torch.device("cpu")


def options(**changes: Any) -> dict[str, Any]:
    config = OmegaConf.load(config_dir() / "bench" / "bench.yaml")
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    small = {"backbones": "test_vit", "sizes": [64, 32], "precisions": "fp32", "repeats": 1, "min_seconds": 0.0}
    quiet = {
        "figure": {**values["figure"], "sizes": []},
        "rollout": {"sizes": []},
        "batch_size": 2,
        "threads": None,
        "device": "cpu",
    }
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
        models = bench.build_models(cell, options(stream=stream, literal=False))
        images, labels = torch.empty(2, 3, side, side), torch.zeros(2, dtype=torch.long)
    for mode, expected in (("infer", infer), ("train", train)):
        count = {
            key: measure.flops(bench.make_step(model.train(mode == "train"), images, labels, {**cell, "mode": mode}))
            for key, model in models.items()
        }
        assert count["dcal"] / count["plain"] == pytest.approx(expected, abs=0.01)


def test_a_run_measures_every_cell(tmp_path: Path) -> None:
    attention = ["none", "dcal"]
    figure = {"sizes": [32, 64], "backbone": "test_vit", "precision": "fp32"}
    report = bench.run(options(attention=attention, figure=figure, rollout={"sizes": [64, 128]}))
    measured = [(cell["attention"], cell["mode"]) for cell in report["cells"]]
    assert measured == [(name, mode) for name in attention for mode in ("infer", "train")]
    for cell in report["cells"]:
        assert set(cell["seconds"]) == set(cell["flops"]) == {"plain", "dcal", "literal"}
        assert all(value > 0 for value in cell["seconds"].values())
        assert cell["time ratio / FLOP ratio"] == pytest.approx(cell["seconds b/a"] / cell["flops b/a"])
        assert len(bench.table_row(cell)) == len(bench.COLUMNS.split())
        assert ("saved_bytes b/a" in cell) == (cell["mode"] == "train")
    bench.draw_figure(report["figure"], tmp_path / "cost.png", "title")
    assert (tmp_path / "cost.png").stat().st_size > 1000
    assert report["rollout"][1]["kB_per_token"] < 1.5 * report["rollout"][0]["kB_per_token"]
    json.dumps(report)


def test_without_the_tests_folder_the_literal_column_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "literal_reference", lambda: None)
    cell = bench.run(options(modes="infer"))["cells"][0]
    assert set(cell["seconds"]) == {"plain", "dcal"} and bench.table_row(cell)[8] == "n/a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["fast"]}, "modes='fast': choose from infer, train"),
        ({"precisions": ["fp8"]}, "precisions='fp8': choose from fp32, bf16"),
        ({"attention": ["both"]}, "attention='both'"),
        ({"clock": "sun"}, "clock='sun': choose one of wall, cpu"),
        ({"clock": "cpu", "threads": 2}, "set threads=1"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.run(options(**changes))


def test_the_command_writes_its_files_and_takes_bare_values(tmp_path: Path) -> None:
    arguments = "backbones=test_vit sizes=[32,64] precisions=fp32 modes=infer attention=glca repeats=1 min_seconds=0"
    quiet = ["figure.sizes=[]", "rollout.sizes=[]", "device=cpu", f"out={tmp_path / 'bench'}"]
    done = subprocess.run(
        [sys.executable, "-m", "dcal.bench", *arguments.split(), *quiet], capture_output=True, text=True, check=True
    )
    assert "test_vit  32x64" in done.stdout and "written" in done.stdout and not done.stderr
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["bench.json"]


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
