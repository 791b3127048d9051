"""What makes a run another one, what does not, and what is said: the rows of docs/identity.md, and runs made before."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compose import settings_id
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from run_command import refused, run_command
from safetensors.numpy import load_file, save_file

import dcal.run.identity as identity
from dcal.config import register
from dcal.report.records import load_all
from dcal.report.table import make_table, specs
from dcal.run.directory import Run
from dcal.run.identity import attention_name, flatten, identify, settings
from dcal.run.legacy import legacy_id
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir, experiments_dir

TESTS = Path(__file__).resolve().parents[1]
OLD_RUN = TESTS / "old_run"
OLD_WORDS = [
    "experiment=tiny/fgvc",
    "name=old",
    "train.epochs=2",
    *(f"+backbone.kwargs.{key}={value}" for key, value in {"embed_dim": 8, "depth": 2, "num_heads": 2}.items()),
]
TINY = [
    "backbone=test_vit",
    "dataset=image_folder",
    "dataset.image_size=[32,32]",
    "dataset.resize=[32,32]",
    "train.epochs=1",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.workers=0",
    "train.figures=false",
    "optimizer.schedule.warmup_epochs=0",
    "wandb.mode=disabled",
    "name=own",
]


def composed(*words: str) -> DictConfig:
    register()
    search = f"hydra.searchpath=['file://{experiments_dir()}']"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["name=test", search, *words])


def pictures(root: Path, names: tuple[str, ...] = ("ant", "bee"), first: int = 0) -> Path:
    """A folder of 32 × 32 pictures, 4 to train on and 2 to test of each class; other `first`, other pixels."""
    rng = np.random.default_rng(first)
    for name in names:
        for split, count in (("train", 4), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def own(root: Path, *words: str) -> str:
    """The id of a run on an image folder."""
    return identify(composed("dataset=image_folder", f"dataset.root='{root}'", *words)).cfg_id


SAME = [
    ["seed=3"],
    ["name=other"],
    ["device=cpu", "launch.processes=2", "launch.strategy=fsdp"],
    ["dataset.root=/elsewhere", "dataset.cache=none", "dataset.on_bad_image=skip"],
    ["train.workers=0", "train.eval_batch_size=7", "train.progress=false", "train.figures=false"],
    ["train.accumulate=4", "train.auto_accumulate=true", "train.compile=true", "train.activation_checkpointing=true"],
    ["train.compile=graph"],
    ["train.checkpoint_minutes=1", "run.root=elsewhere", "run.debug=true", "wandb.mode=disabled"],
    ["attention=dcal", "optimizer.opt=adamw", "train.epochs=40"],  # what is the default already
    ["attention.pwca.pairing_ratio=0.3", "attention.pwca.curriculum=[easiest]", "task.triplet.margin=0.3"],  # idle
    ["backbone.lora.alpha=8", "backbone.lora.layers=attention"],  # of adapters that are off
]
OTHER = [
    ["attention=glca"],
    ["attention.glca.top_ratio=0.3"],
    ["attention.pwca.pairing=mixed"],
    ["backbone=deit_tiny"],
    ["backbone.pretrained=true"],
    ["backbone.lora.rank=2"],
    ["backbone.lora.rank=2", "backbone.lora.alpha=8"],
    ["+backbone.kwargs.qkv_bias=false"],
    ["dataset.image_size=[64,64]"],
    ["dataset.reader.seed=1"],
    ["dataset.val_fraction=0.1"],
    ["dataset.label_noise=0.1"],
    ["optimizer.lr=1e-4"],
    ["optimizer=sgd"],
    ["task.mixup=0.2"],
    ["train.precision=fp32"],
    ["train.batch_size=16"],
    ["train.epochs=7"],
    ["deterministic=true"],
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_what_leaves_the_id(words: list[str]) -> None:
    assert identify(composed(*words)).cfg_id == identify(composed()).cfg_id


def test_what_changes_the_id() -> None:
    ids = [identify(composed(*words)).cfg_id for words in ([], *OTHER)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("none", ["attention.glca.top_ratio=0.5", "attention.pwca.stream=symmetric", "task.loss_weighting=fixed"]),
        ("none", ["attention.head_fusion=max"]),
        ("glca", ["attention.pwca.pairing=hardest"]),
        ("pwca", ["attention.glca.readout=mean"]),
    ],
)
def test_options_of_a_branch_that_is_off_leave_the_id(attention: str, words: list[str]) -> None:
    chosen = f"attention={attention}"
    assert settings_id(composed(chosen, *words)) == settings_id(composed(chosen))
    assert attention_name(dict(flatten({"attention": composed(chosen).attention}))) == attention
    assert settings_id(composed(*words)) != settings_id(composed()), "with both branches on they count"


def test_a_new_key_at_its_default_leaves_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create(OmegaConf.to_container(composed(), resolve=True))  # without the schema's types
    before = settings_id(config)
    config.task.new_option = 0.0
    assert settings_id(config) != before, "a key without a default in the schema counts"
    defaults = {**identity.schema_defaults(), "task.new_option": 0.0}
    monkeypatch.setattr(identity, "schema_defaults", lambda: defaults)
    assert settings_id(config) == before
    config.task.new_option = 0.5
    assert settings_id(config) != before


def test_a_moved_module_leaves_the_id() -> None:
    config = composed()
    before = settings_id(config)
    config.task._target_ = "dcal.elsewhere.classification.FGVC"
    assert settings_id(config) == before
    config.task._target_ = "mine.FGVC"
    assert settings_id(config) != before, "one's own class of the same name is another one"


def test_ids_of_today_stay() -> None:
    """If this fails, every run of a user gets a new directory. A new key needs its neutral value in the schema."""
    kept = json.loads((OLD_RUN / "ids_today.json").read_text())
    assert {words: settings_id(composed(*words.split())) for words in kept} == kept


def test_ids_of_older_runs_are_known() -> None:
    """If this fails, runs made before are lost. A new key needs a default in the schema, a moved target `MOVED`."""
    kept = json.loads((OLD_RUN / "ids.json").read_text())
    assert {words: legacy_id(composed(*words.split())) for words in kept} == kept


def test_weights_count_by_their_content(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        (tmp_path / name).mkdir()
        save_file({"weight": np.full(3, value)}, tmp_path / name / "last.safetensors")
    ids = [settings_id(composed(f"backbone.checkpoint='{tmp_path}/{name}/last.safetensors'")) for name in "abc"]
    assert ids[0] == ids[2] != ids[1] != settings_id(composed())
    save_file({"weight": np.full(3, 2.0)}, tmp_path / "a" / "last.safetensors")  # same path, same size
    assert settings_id(composed(f"backbone.checkpoint='{tmp_path}/a/last.safetensors'")) not in ids


def test_weights_that_are_not_there_are_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^backbone.checkpoint=.*: no such file"):
        settings_id(composed(f"backbone.checkpoint='{tmp_path}/none.pth'"))
    said = refused(
        "train", *OLD_WORDS, f"backbone.checkpoint='{tmp_path}/none.pth'", f"run.root={tmp_path}", capfd=capfd
    )
    assert "no such file" in said and not list(tmp_path.iterdir())


def test_the_same_data_elsewhere_are_the_same_run(tmp_path: Path) -> None:
    first = pictures(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copied ü")
    assert own(first) == own(tmp_path / "copied ü")
    assert own(first) == own(Path(os.path.relpath(first)))


def test_other_data_are_another_run(tmp_path: Path) -> None:
    first = own(pictures(tmp_path / "first"))
    others = {
        "other classes": pictures(tmp_path / "classes", ("ant", "cow")),
        "other pictures": pictures(tmp_path / "pictures", first=1),
        "one picture less": pictures(tmp_path / "less"),
        "classes swapped": pictures(tmp_path / "swapped"),
    }
    (others["one picture less"] / "train/ant/0.png").unlink()
    swapped = others["classes swapped"]
    for split in ("train", "test"):
        (swapped / split / "ant").rename(swapped / split / "x")
        (swapped / split / "bee").rename(swapped / split / "ant")
        (swapped / split / "x").rename(swapped / split / "bee")
    assert len({first, *map(own, others.values())}) == 5


def test_a_corrected_table_is_another_run(tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [
        f"{split}/{name}/{n}.png,{name},{split}"
        for split in ("train", "test")
        for name in ("ant", "bee")
        for n in (0, 1)
    ]
    words = ["dataset=csv", f"dataset.root='{tmp_path}'"]
    ids = set()
    for table in (rows, [rows[0].replace(",ant,", ",bee,"), *rows[1:]], rows[:-1]):
        (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *table]))
        ids.add(identify(composed(*words)).cfg_id)
    assert len(ids) == 3


def test_two_data_sets_are_two_runs_and_each_is_returned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    roots = [pictures(tmp_path / "a"), pictures(tmp_path / "b", ("cow", "dog", "eel"))]
    for root in (*roots, *roots):
        run_command("train", *TINY, f"dataset.root='{root}'", f"run.root={tmp_path}/runs")
    said = capfd.readouterr().out
    assert said.count("finished before") == 2
    found = [json.loads(file.read_text()) for file in tmp_path.glob("runs/own/*/seed=0/identity.json")]
    assert sorted(entry["data"]["classes"] for entry in found) == [2, 3]
    assert all(
        entry["data"]["images"] == {"train": 4 * n, "test": 2 * n}
        for entry in found
        for n in [entry["data"]["classes"]]
    )

    shutil.rmtree(roots[0])  # a finished run is returned where its data are no more, if there is one such run only
    shutil.rmtree(
        next(
            file.parents[1]
            for file in tmp_path.glob("runs/own/*/seed=0/identity.json")
            if '"classes": 3' in file.read_text()
        )
    )
    run_command("train", *TINY, f"dataset.root='{roots[0]}'", f"run.root={tmp_path}/runs")
    said = capfd.readouterr().out
    assert "finished before" in said and "its data cannot be read now" in said


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run directory as it was made by commit bdef929."""
    shutil.copytree(OLD_RUN / "old", tmp_path / "old")
    return tmp_path / "old" / "e7968a00" / "seed=0"


def test_an_older_run_is_found_and_returned(old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (old / "result.json").read_bytes()
    run_command("train", *OLD_WORDS, f"run.root={tmp_path}")
    assert "finished before: old  e7968a00" in capfd.readouterr().out
    assert (old / "result.json").read_bytes() == before
    assert [path.name for path in tmp_path.glob("old/*")] == ["e7968a00"]


def test_an_older_interrupted_run_goes_on(old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = load_file(old / "last.safetensors")
    lines = (old / "metrics.jsonl").read_text().splitlines()
    for name in ("result.json", "last.safetensors", "items.npz"):
        (old / name).unlink()
    shutil.rmtree(old / "checkpoints" / "00000004")
    run_command("train", *OLD_WORDS, f"run.root={tmp_path}")
    assert [path.name for path in tmp_path.glob("old/*")] == ["e7968a00"]
    again = (old / "metrics.jsonl").read_text().splitlines()
    assert again[0] == lines[0] and len(again) == 2, "it went on after the first epoch"
    found = load_file(old / "last.safetensors")
    assert found.keys() == weights.keys()
    assert all(np.allclose(found[key], weights[key], atol=1e-4) for key in weights)
    assert json.loads((old / "result.json").read_text())["cfg_id"] == "e7968a00"


def test_an_older_run_is_opened_and_evaluated(old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_command("evaluate", f"run={old}")
    assert "0.0625" in capfd.readouterr().out
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(tmp_path / "a.png")
    run_command("predict", f"run={old}", f"images={tmp_path}/a.png")
    with pytest.raises(SystemExit) as ended:
        run_command("doctor", f"run={old}")
    assert ended.value.code == 0


def test_an_older_run_is_tabulated(old: Path, tmp_path: Path) -> None:
    run_command(
        "results",
        f"runs={old.parents[1]}",
        f"out={tmp_path}/records",
        "pages=[]",
        f"figures={tmp_path}",
        f"html={tmp_path}",
        "write=true",
    )
    records = load_all(tmp_path / "records")
    (spec,) = specs({"old": {"runs": "old", "by": ["attention"], "where": {"dataset.label_noise": 0.0}}})
    (row,) = make_table(spec, records).rows
    assert row.label == "dcal" and [record["cfg_id"] for record in row.records] == ["e7968a00"]


def test_an_older_run_on_other_classes_is_not_this_run(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    config = composed(*TINY, f"dataset.root='{root}'", f"run.root={tmp_path}")
    older = tmp_path / "own" / str(legacy_id(config)) / "seed=0"
    older.mkdir(parents=True)
    (older / "config_resolved.yaml").touch()
    for names, found in ((["ant", "bee"], True), (["cat", "dog"], False)):
        (older / "model.json").write_text(json.dumps({"class_names": names}))
        run = Run(config)
        assert (run.directory == older) is found
        assert bool(run.notes) is found, "that the data are the same is assumed, and said"


def test_returning_a_finished_run_needs_no_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = pictures(tmp_path / "data")
    words = [*TINY, f"dataset.root='{root}'", f"run.root={tmp_path}/runs"]
    run_command("train", *words)
    hidden = "import sys; sys.modules['torch'] = None; sys.modules['wandb'] = None"
    code = f"{hidden}; sys.argv[1:] = {words!r}; from dcal.commands.app import run; run('train')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "finished before" in done.stdout, done.stderr


def rows() -> Iterator[tuple[str, str]]:
    """Beginning of each row of the page's tables, and the test that it names."""
    text = (TESTS.parent / "docs" / "identity.md").read_text(encoding="utf-8")
    yield from re.findall(r"^\| (.+?) \|.*`(test_\w+(?:\.py::test_\w+)?)` \|$", text, re.MULTILINE)


def test_every_row_of_the_page_has_its_test() -> None:
    found = list(rows())
    assert len(found) > 15
    here: dict[str, Any] = globals()
    for what, name in found:
        file, _, test = name.rpartition("::")
        text = next(TESTS.rglob(file)).read_text(encoding="utf-8") if file else ""
        assert f"def {test}(" in text if file else test in here, what


def test_settings_are_readable() -> None:
    """What identity.json keeps is the recipe: plain keys and values, no path of this machine."""
    found = settings(composed("optimizer.lr=1e-4", "dataset.root=/secret/place"))
    assert found["optimizer.lr"] == 1e-4 and found["task._target_"] == "FGVC"
    assert "secret" not in json.dumps(found)
