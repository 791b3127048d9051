"""A run directory from elsewhere describes a model, and does nothing else when it is opened."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from run_command import refused, run_command

import dcal
from dcal.inference.pretrained import TrainedDCAL
from dcal.inference.restore import restore
from dcal.inference.trust import RunError, Trust, plain_data, without_weights


def changed(run: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a run with another configuration."""
    shutil.copytree(run, target)
    config = OmegaConf.load(target / "config_resolved.yaml")
    OmegaConf.set_struct(config, False)
    change(config)
    OmegaConf.save(config, target / "config_resolved.yaml")
    return target


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system"},
        {"_target_": "dcal.training.checkpoint.os.system"},  # by way of what a module of ours imports
        {"extra": [{"deep": {"_target_": "builtins.eval", "_args_": ["1"]}}]},
        {"_target_": ["dcal.model.DCAL"]},
        {"_target_": {"_target_": "dcal.model.DCAL"}},
    ],
)
def test_other_code_is_named_and_refused(node: Any) -> None:
    with pytest.raises(RunError, match=r"^dataset\.reader\..*_target_=.*conf/"):
        Trust().check("dataset", {"_target_": "dcal.dataset.data.Data", "reader": node})
    Trust(everything=True).check("dataset", {"reader": node})


def test_targets_in_a_folder_of_the_user_count_as_named_in_conf(tmp_path: Path) -> None:
    node = {"_target_": "mine.read_moths", "root": "moths"}
    with pytest.raises(RunError, match=r"dataset.reader._target_=mine.read_moths"):
        Trust().check("dataset", {"reader": node})
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "moths.yaml").write_text("reader:\n  _target_: mine.read_moths\n", encoding="utf-8")
    Trust(folders=(tmp_path,)).check("dataset", {"reader": node})


def test_a_run_below_the_users_folder_does_not_vouch_for_itself(tmp_path: Path) -> None:
    node = {"_target_": "strange.read_moths", "root": "moths"}
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "odd.yaml").write_bytes(b"_target_: 'own.Task' # \xff\n")
    for run in (tmp_path / "downloads" / "run", tmp_path / "dataset" / "run"):
        run.mkdir(parents=True)
        (run / "config_resolved.yaml").write_text("_target_: strange.read_moths\n", encoding="utf-8")
    trust = Trust(folders=(tmp_path,))
    trust.check("task", {"_target_": "own.Task"})
    with pytest.raises(RunError, match="strange"):
        trust.check("dataset", {"reader": node})


def test_a_target_cannot_change_after_it_was_checked(fgvc_run: Path, tmp_path: Path) -> None:
    """The device is chosen by who opens the run: a target that depends on it would be checked as another one."""
    mark = tmp_path / "ran"

    def attack(config: Any) -> None:
        shell = "torch.utils.collect_env.run"
        config.device = "seemly"
        config.backbone.kwargs = {
            "names": {"seemly": "dcal.model.DCAL", "auto": shell, "cpu": shell, "cuda": shell},
            "call": {"_target_": "${backbone.kwargs.names.${device}}", "_args_": [f"touch {mark}"]},
        }

    run = changed(fgvc_run, tmp_path / "seed=0", attack)
    for opened in (lambda: restore(run, device="cpu"), lambda: dcal.load(run, device="cpu")):
        with pytest.raises(RunError, match=r"call._target_=\$\{backbone.*plain values"):
            opened()
    assert not mark.exists()


def test_the_environment_stays_where_it_is(
    fgvc_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_TOKEN", "hush-hush")

    def attack(config: Any) -> None:
        config.name = "${oc.env:API_TOKEN}"

    run = changed(fgvc_run, tmp_path / "seed=0", attack)
    said = refused("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'out'}", capfd=capfd)
    assert "name=${oc.env:API_TOKEN} refers to something outside" in said and "hush-hush" not in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunError, match=r"list\.1=a"):
        plain_data({"list": [1, "a ${b}"]}, run)


def test_the_card_names_no_folder_of_this_machine(fgvc_run: Path, tmp_path: Path) -> None:
    def own(config: Any) -> None:
        config.dataset.root = "/home/somebody/birds"
        config.backbone.checkpoint = "/home/somebody/start.safetensors"
        config.wandb.entity = "/home/somebody"

    run = changed(fgvc_run, tmp_path / "seed=0", own)
    run_command("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'out'}", "limit=1")
    for name in ("README.md", "config.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "start.safetensors" in text and "somebody" not in text


def test_only_the_architecture_of_a_backbone_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = {"url": "http://127.0.0.1:9/weights", "source": "url", "mean": [0.1] * 3, "std": [0.2] * 3}
    node = {"name": "test_vit", "pretrained": True, "checkpoint": "a.pth", "kwargs": {"pretrained_cfg": overlay,
            "checkpoint_path": "b.pth", "pretrained_cfg_overlay": overlay, "depth": 2}}  # fmt: skip
    built = without_weights(node)
    assert built["pretrained"] is False and built["checkpoint"] is None
    assert built["kwargs"] == {"depth": 2, "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
    for name in ("hf-hub:someone/model", "local-dir:/etc", "no_such_vit", None):
        with pytest.raises(RunError, match="not in timm's registry"):
            without_weights({"name": name})
    assert without_weights({"name": "hf-hub:someone/model"}, trusted=True)["name"] == "hf-hub:someone/model"
    import socket

    monkeypatch.setattr(socket.socket, "connect", None)  # nothing may be fetched
    model = TrainedDCAL(
        node, {"glca": {"blocks": 0}, "pwca": {"blocks": 0}}, "fgvc", ["a", "b"], [32, 32], [32, 32], ["sa"]
    )
    assert model.mean.flatten().tolist() == pytest.approx([0.1] * 3) and len(model.vit.blocks) == 2  # type: ignore[arg-type]
    with pytest.raises(RunError, match="not in timm's registry"):
        TrainedDCAL({"name": "hf-hub:someone/model"}, {}, "fgvc", ["a"], [32, 32], [32, 32], ["sa"])


OWN = """
from dcal.dataset.readers.fgvc import read_image_folder
def read_moths(root):
    return read_image_folder(root)
"""


@pytest.fixture
def own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A folder of pictures, and the words that train on it with a reader of one's own."""
    from PIL import Image

    for split in ("train", "test"):
        for number, name in enumerate(("elm", "oak")):
            (tmp_path / "moths" / split / name).mkdir(parents=True)
            for index in range(4):
                picture = Image.effect_noise((40, 40), 40 + 50 * number + index + 7 * (split == "test"))
                picture.convert("RGB").save(tmp_path / "moths" / split / name / f"{index}.png")
    (tmp_path / "mothlib.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # where it is found, behind all that is installed
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "moths.yaml").write_text(
        "defaults: [/_dataset, _self_]\nreader: {_target_: mothlib.read_moths}\nimage_size: [32, 32]\n"
        "resize: [32, 32]\n",
        encoding="utf-8",
    )
    words = [f"--config-dir={tmp_path / 'conf'}", "dataset=moths", f"dataset.root={tmp_path / 'moths'}",
             "backbone=test_vit", "train.epochs=1", "train.batch_size=4", "train.precision=fp32", "train.workers=0",
             "train.figures=false", "optimizer.schedule.warmup_epochs=0", "wandb.mode=disabled",
             f"run.root={tmp_path / 'runs'}"]  # fmt: skip
    run_command("train", *words)
    sys.modules.pop("mothlib", None)
    (result,) = (tmp_path / "runs").glob("**/result.json")
    return result.parent, [f"--config-dir={tmp_path / 'conf'}"]


def test_a_run_on_ones_own_reader(
    own_reader: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, config_dir = own_reader
    image = next((tmp_path / "moths" / "test").rglob("*.png"))
    run_command("predict", f"run={run}", f"images={image}")  # needs no reader, so no trust
    run_command("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'out'}", "limit=1")
    assert dcal.load(run, device="cpu").class_names == ["elm", "oak"]
    capfd.readouterr()
    said = refused("evaluate", f"run={run}", capfd=capfd)
    assert "dataset.reader._target_=mothlib.read_moths" in said
    assert "--config-dir" in said and "trust=true" in said
    assert "must be true or false" in refused("evaluate", f"run={run}", "trust=no", capfd=capfd)
    assert "x=1: has no effect on run=" in refused("doctor", f"run={run}", "x=1", capfd=capfd)
    for words, level in (([], "WARN"), (config_dir, ""), (["trust=true"], "")):
        with pytest.raises(SystemExit):
            run_command("doctor", f"run={run}", *words)
        assert (level or "no warning") in capfd.readouterr().out + "no warning"
    for word in (*config_dir, "trust=true"):
        run_command("evaluate", f"run={run}", word)
        assert "= result.json" in capfd.readouterr().out
        sys.modules.pop("mothlib")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    said = refused("evaluate", f"run={run}", "trust=true", capfd=capfd)
    assert "mothlib" in said and "must be installed, in the current folder or in PYTHONPATH" in said


def test_a_model_of_ones_own_code_is_not_exported(
    fgvc_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ownmodel.py").write_text("from dcal.model import DCAL\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def own(config: Any) -> None:
        config.attention._target_ = "ownmodel.DCAL"

    run = changed(fgvc_run, tmp_path / "seed=0", own)
    with pytest.raises(RunError, match=r"attention\._target_=ownmodel\.DCAL"):
        restore(run, device="cpu")
    trusted = restore(run, device="cpu", trust=Trust(everything=True))
    original = restore(fgvc_run, device="cpu").model.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in trusted.model.state_dict().items())
    with pytest.raises(RunError, match="is your own code"):
        dcal.load(run, device="cpu", trust=True)
