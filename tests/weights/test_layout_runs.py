"""DeiT-Tiny's weights, written in every layout that holds a plain ViT, train to the same result on real photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from run_command import one_thread, run_command
from safetensors.torch import load_file
from weight_files import FILES, WeightFile, write

PLAIN_FILES = [file for file in FILES if file.plain and not file.refused]


class Result(NamedTuple):
    metrics: dict[str, float]
    weights: bytes


def trained(checkpoint: Path, data: Path, root: Path) -> Result:
    """A short run on a part of cub10, both branches on, small images: a few seconds."""
    words = [
        "experiment=fgvc/cub10_deit_tiny",
        f"backbone.checkpoint={checkpoint}",
        f"dataset.root={data / 'cub10' / 'CUB_200_2011'}",
        "dataset.image_size=[64,64]",
        "dataset.resize=[64,64]",
        "dataset.train_fraction=0.2",
        "train.epochs=1",
        "train.batch_size=16",
        "train.precision=fp32",
        "train.workers=0",
        "train.figures=false",
        "train.progress=false",
        "optimizer.schedule.warmup_epochs=0",
        "wandb.mode=disabled",
        f"run.root={root}",
    ]
    with one_thread():
        run_command("train", *words)
    (result,) = root.glob("**/result.json")
    return Result(json.loads(result.read_text())["metrics"], (result.parent / "last.safetensors").read_bytes())


@pytest.fixture(scope="module")
def reference(deit_tiny: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run from timm's own file."""
    return trained(deit_tiny, data_root, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("file", PLAIN_FILES, ids=lambda file: file.title)
def test_a_run_from_any_layout_has_the_same_accuracy_to_the_last_digit(
    file: WeightFile, reference: Result, deit_tiny: Path, data_root: Path, tmp_path: Path
) -> None:
    state = {name: value for name, value in load_file(deit_tiny).items() if not name.startswith("head.")}
    found = trained(write(file, state, tmp_path), data_root, tmp_path / "runs")
    assert found.metrics == reference.metrics
    assert found.weights == reference.weights
