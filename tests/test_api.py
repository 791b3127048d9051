"""What a user of Python meets first: `dcal.train`, models from plain arguments, errors in the words of Python."""

from __future__ import annotations

import json
import pydoc
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from run_command import run_command

import dcal
from dcal.backbone import create_backbone
from dcal.output import Branches

NAME, CLASSES = "test_vit", 3


def test_train_is_the_run_of_the_command(tmp_path: Path) -> None:
    """The same directory and the same numbers, so that the command finds it finished; and the model can be loaded."""
    words = ["experiment=tiny/fgvc", "train.figures=false", f"run.root={tmp_path}"]
    run = dcal.train(words)
    result = json.loads((run.directory / "result.json").read_text(encoding="utf-8"))
    assert run.metrics == result["metrics"] and run.value == result["metrics"]["top1"]
    before = (run.directory / "result.json").stat().st_mtime_ns
    run_command("train", *words)
    assert dcal.train(words) == run
    assert (run.directory / "result.json").stat().st_mtime_ns == before and len(
        list(tmp_path.glob("**/result.json"))
    ) == 1
    assert dcal.load(run.directory, device="cpu").class_names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seed=1", "overrides='seed=1': give a list of words"),
        (["train.epohcs=2"], "train.epohcs: no such key; did you mean train.epochs"),
        (["train.epochs=two"], "Value 'two'"),
        (["dataset=cub"], "dataset.root"),
        (["seed=0,1"], "seed=0,1: this is a sweep, and dcal.train is one run"),
        (["ablation=readout"], "this is a sweep, and dcal.train is one run"),
        (["experiment=tiny/fgvc", "attention.glca.top_ratio=2"], "attention.glca.top_ratio=2"),
    ],
)
def test_train_refuses_in_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    words = words if isinstance(words, str) else [*words, f"run.root={tmp_path}"]
    with pytest.raises(dcal.UserError) as refused:
        dcal.train(words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_train_leaves_hydra_as_it_was(tmp_path: Path) -> None:
    GlobalHydra.instance().clear()
    before = HydraConfig.instance().cfg
    with pytest.raises(dcal.UserError):
        dcal.train(["dataset=cub", f"run.root={tmp_path}"])
    assert HydraConfig.instance().cfg is before and not GlobalHydra.instance().is_initialized()


def test_one_number_is_both_sides() -> None:
    square = dcal.create_dcal_model(NAME, CLASSES, image_size=96)
    assert square.vit.patch_embed.img_size == (96, 96)
    assert create_backbone(NAME, 96).patch_embed.img_size == (96, 96)  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [True, False])
def test_images_of_integers_are_refused(training: bool) -> None:
    model = dcal.create_dcal_model(NAME, CLASSES, image_size=64).train(training)
    with pytest.raises(dcal.UserError, match=r"images are torch.uint8: the model takes normalised float images"):
        model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_ratio": 1.5}, "top_ratio=1.5: "),
        ({"stream": "clear"}, "stream='clear': "),
        ({"pairing": "naturel"}, "pairing='naturel': did you mean natural"),
        ({"head_fusion": "median"}, "head_fusion='median': "),
        ({"top_ration": 0.1}, "create_dcal_model has no option 'top_ration': did you mean top_ratio"),
        ({"glca_blocks": 99}, "glca_blocks=99: this backbone allows 0 to"),
        ({"pwca_blocks": "all"}, "pwca_blocks='all': a number of blocks (the last ones), None for all"),
        ({"image_size": 65}, "image_size=[65,65] is not a multiple of the"),
        ({"pretrained": True, "checkpoint_path": "w.safetensors"}, "pretrained=True and checkpoint_path are both set"),
        ({"checkpoint_path": "no.safetensors"}, "checkpoint_path=no.safetensors"),
        ({"freeze": "head"}, "freeze=head: "),
    ],
)
def test_errors_name_the_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(dcal.UserError) as refused:
        dcal.create_dcal_model(NAME, CLASSES, **{"image_size": 64, **options})  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)
    assert "attention." not in str(refused.value) and "backbone." not in str(refused.value)


def test_an_output_prints_as_its_shapes() -> None:
    text = repr(dcal.create_dcal_model(NAME, CLASSES, image_size=64).eval()(torch.zeros(2, 3, 64, 64)))
    assert text.startswith(
        "Output(sa=(2, 3) float32, glca=(2, 3) float32, pwca=None, features=Branches(sa=(2, 64) float32"
    )
    assert text.endswith("selected=(2, 1) int64)")
    assert repr(Branches(torch.zeros(1))) == "Branches(sa=(1,) float32, glca=None, pwca=None)"


def test_help_begins_with_an_example() -> None:
    text = pydoc.plain(pydoc.render_doc(dcal))
    description = text.partition("DESCRIPTION")[2].strip()
    assert description.startswith("import dcal\n") and 'dcal.train(["experiment=smoke/fgvc"])' in description


def test_a_reader_is_public(tmp_path: Path) -> None:
    catalog = dcal.read_synthetic_birds(tmp_path, image_size=48, train_per_class=1, test_per_class=1)
    assert isinstance(catalog, dcal.Catalog) and isinstance(catalog.splits["train"][0], dcal.Record)
