"""A run with adapters: interrupted and resumed bit for bit, and at its end plain weights that every command opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_command import killed, one_thread, refused, run_command
from safetensors.torch import load_file

import dcal
from dcal.attention.adapters import is_adapter

WORDS = [
    "experiment=tiny/fgvc",
    "backbone.lora.rank=2",
    "optimizer.new_lr_scale=10",
    "train.epochs=3",
    "train.checkpoint_minutes=0",  # a checkpoint after every step
    "train.ema_decay=0.9",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    pytest.importorskip("peft")
    return trained(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an interrupted run."""
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("interrupted")
    killed(lambda: run_command("train", *WORDS, f"run.root={root}"), step=4)
    (folder,) = root.glob("**/checkpoints")
    return max(folder.iterdir())


def trained(root: Path) -> Path:
    with one_thread():
        run_command("train", *WORDS, f"run.root={root}")
    (result,) = root.glob("**/result.json")
    return result.parent


def test_a_run_keeps_plain_weights_and_its_checkpoints_keep_the_adapters(run: Path, checkpoint: Path) -> None:
    last = load_file(run / "last.safetensors")
    apart = load_file(checkpoint / "model.safetensors")
    assert not any(is_adapter(name) or "base_layer" in name for name in last)
    assert any(is_adapter(name) for name in apart)
    assert last["vit.norm.weight"].equal(apart["vit.norm.weight"])  # what has no adapter has not moved
    name = "vit.blocks.0.attn.qkv"
    assert not last[f"{name}.weight"].equal(apart[f"{name}.base_layer.weight"])


def test_the_kept_weights_are_those_that_were_judged(run: Path, tmp_path: Path) -> None:
    expected = json.loads((run / "result.json").read_text())["metrics"]
    run_command("evaluate", f"run={run}", f"out={tmp_path / 'metrics.json'}")
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == expected


def test_a_checkpoint_opens_like_the_kept_weights(run: Path, checkpoint: Path) -> None:
    apart = load_file(checkpoint / "model.safetensors")
    name = "vit.blocks.0.attn.qkv"
    change = apart[f"{name}.lora_B.default.weight"] @ apart[f"{name}.lora_A.default.weight"]
    opened = dcal.load(run, weights=str(checkpoint / "model.safetensors"), device="cpu").state_dict()
    expected = apart[f"{name}.base_layer.weight"] + 16.0 / 2 * change
    torch.testing.assert_close(opened[f"{name}.weight"], expected)


def test_killed_in_mid_epoch_it_goes_on_as_if_it_had_not_been(run: Path, tmp_path: Path) -> None:
    killed(lambda: run_command("train", *WORDS, f"run.root={tmp_path}"), step=4)
    assert not list(tmp_path.glob("**/result.json"))
    again = trained(tmp_path)
    results = [json.loads((directory / "result.json").read_text())["metrics"] for directory in (run, again)]
    assert results[0] == results[1]
    assert (again / "last.safetensors").read_bytes() == (run / "last.safetensors").read_bytes()


def test_a_run_that_has_lost_its_result_is_evaluated_once_more(run: Path, tmp_path: Path) -> None:
    """Its checkpoints are gone, and the weights that it has kept are without adapters."""
    copied = tmp_path / run.relative_to(run.parents[3])
    shutil.copytree(run, copied)
    (copied / "result.json").unlink()
    assert trained(tmp_path) == copied
    results = [json.loads((directory / "result.json").read_text()) for directory in (run, copied)]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["sha256"] == results[1]["sha256"]


def test_a_mistake_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused("train", *WORDS, f"run.root={tmp_path}", "backbone.freeze=all", capfd=capfd)
    assert "backbone.lora.rank=2 and backbone.freeze=all" in said
