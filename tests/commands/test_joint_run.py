"""A run on several data sets: what is composed, trained, kept and refused, and what every command makes of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from run_command import killed, one_thread, refused, run_command

import dcal
from dcal.api.train import composed
from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder
from dcal.run.identity import identify

PEOPLE = {"one": (8, 4, 3, 0), "two": (5, 3, 2, 1)}
"""By name: identities to train on and to test on, cameras, seed."""
KEYS = ("train_identities", "test_identities", "cameras", "seed")
RUN = [
    "backbone=test_vit",
    "dataset=joint",
    "dataset.image_size=[64,32]",
    "dataset.resize=[64,32]",
    "task.instances=2",
    "train.epochs=2",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.workers=0",
    "optimizer.schedule.warmup_epochs=0",
    "wandb.mode=disabled",
    "name=together",
]


def member(name: str) -> list[str]:
    """A few drawn people."""
    reader = dict(zip(KEYS, PEOPLE[name], strict=True)) | {"image_size": "[64,32]", "images_per_camera": 2}
    place = f"dataset.members.{name}"
    return [f"{place}.dataset=synthetic_people", *(f"{place}.reader.{key}={value}" for key, value in reader.items())]


WORDS = [*RUN, "task=reid", *member("one"), *member("two")]


def composition(*words: str) -> DictConfig:
    with composed(words) as config:
        return config


def trained(root: Path, *words: str, start: Sequence[str] = WORDS) -> Path:
    run_command("train", *start, f"run.root={root}", *words)
    (result,) = root.glob("**/result.json")
    return result.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("joint"), "dataset.batches=balanced", "task.side_information=camera")


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def pictures(root: Path, first: int, classes: Sequence[str] = ("ant", "bee")) -> Path:
    rng = np.random.default_rng(first)
    for name in classes:
        for split, count in (("train", 4), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_each_member_has_figures_and_the_primary_metric_is_over_all_queries(run: Path) -> None:
    result, items = read(run, "result.json"), np.load(run / "items.npz")
    metrics = result["metrics"]
    assert (metrics["queries"], result["primary_metric"]) == (metrics["one/queries"] + metrics["two/queries"], "mAP")
    valid = items["valid"].astype(bool)
    of = np.array([name.split("/")[0] for name in items["name"].tolist()])
    for name in ("one", "two"):
        own = items["average_precision"][valid & (of == name)]
        assert metrics[f"{name}/mAP"] == pytest.approx(own.mean(), abs=1e-6)
        assert {f"{name}/rank1", f"{name}/mAP_sa", f"{name}/gallery"} <= metrics.keys()
    assert metrics["mAP"] == pytest.approx(items["average_precision"][valid].mean(), abs=1e-6)
    assert metrics["rank1"] == pytest.approx((items["first_rank"][valid] == 1).mean())
    # no query is compared with the gallery of another member
    border = int(metrics["one/gallery"])
    assert (items["nearest"][of == "one"] < border).all() and (items["nearest"][of == "two"] >= border).all()
    assert not set(items["label"][of == "one"]) & set(items["label"][of == "two"])
    card = read(run, "model.json")
    assert card["class_names"][7:9] == ["one/" + card["class_names"][7].split("/")[1], card["class_names"][8]]
    assert len(card["class_names"]) == 13 and card["class_names"][8].startswith("two/")
    assert card["sides"] == [5, 1]


def test_every_command_knows_a_joint_run(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    run_command("evaluate", f"run={run}", f"out={tmp_path / 'all.json'}")
    said = capfd.readouterr().out
    assert re.search(r"^two/mAP .* = result.json$", said, re.MULTILINE) and "one + two" in said
    run_command("evaluate", f"run={run}", "member=two", "reliability=true", f"out={tmp_path / 'two.json'}")
    alone = read(tmp_path, "two.json")["metrics"]
    assert alone["mAP"] == read(tmp_path, "all.json")["metrics"]["two/mAP"]
    assert "not kept" in capfd.readouterr().out
    run_command("calibrate", f"run={run}", "member=one", "false_match_rate=0.9", "false_non_match_rate=0.4",
                "false_alarm_rate=0.9")  # fmt: skip
    assert (run / "thresholds.json").is_file()
    run_command("extract", f"run={run}", "split=query", f"out={tmp_path / 'q.npz'}")
    with np.load(tmp_path / "q.npz") as index:
        assert len(index["label"]) == read(run, "result.json")["metrics"]["queries"]
    run_command("export", f"run={run}", "format=safetensors", f"out={tmp_path / 'export'}")
    facts = read(tmp_path / "export", "config.json")["facts"]
    assert facts["dataset"] == "one+two" and str(run.parent) not in json.dumps(facts)
    with pytest.raises(SystemExit) as stopped:
        run_command("doctor", f"run={run}")
    assert stopped.value.code == 0
    page = document(read_folder(run))
    assert "On single data sets" in page and ">two<" in page
    run_command("results", f"list={run}")
    assert "together" in capfd.readouterr().out


def paths(index: Path) -> list[str]:
    with np.load(index) as archive:
        return list(archive["path"].tolist())


def test_what_commands_refuse_of_a_joint_run(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], reid_run: Path
) -> None:
    def says(command: str, *words: str, of: Path = run) -> str:
        return refused(command, f"run={of}", *words, capfd=capfd)

    assert "member: a threshold is for images like those it was found on; choose one of one, two" in says("calibrate")
    assert "reliability: is found on one data set; choose one with member=NAME" in says("evaluate", "reliability=true")
    assert "member='three': choose one of one, two" in says("evaluate", "member=three")
    assert "set dataset.members.NAME.root" in says("evaluate", "dataset.root=/x")
    assert "dataset.members='three'" in says("evaluate", "dataset.members.three.root=/x")
    assert "dataset.members.one='val_ids'" in says("evaluate", "dataset.members.one.val_ids=3")
    assert "dataset=joint: is for dcal-train" in says("evaluate", "dataset=joint")
    assert "datasets='joint'" in says("evaluate", "datasets=[joint]")
    assert "the run embeds the cameras that it was trained with" in says("evaluate", "datasets=[synthetic_people]")
    assert "trained on a single data set" in says("evaluate", "member=one", of=reid_run)
    assert "trained on a single data set" in says("evaluate", "dataset.members.one.root=/x", of=reid_run)


REFUSED = [
    (["task=reid", "dataset.members.market.root=/x"], "dataset.members='market': did you mean market1501"),
    (["task=reid"], "dataset.members: dataset=joint needs members, such as dataset.members.market1501.root=FOLDER"),
    (["task=reid", "dataset.members=market1501"], "dataset.members: dataset=joint needs members"),
    (["task=reid", "dataset.members.market1501=/x"], "dataset.members.market1501=/x: is a data set, and has keys"),
    (["task=reid", "dataset.members.market1501={}"], "dataset.members.market1501.root"),
    (["task=reid", "dataset.members.market1501.rot=/x"], "market1501.rot: no such key; did you mean root"),
    (
        ["task=reid", "dataset.members.msmt17.reader.versoin=V2"],
        "dataset.members.msmt17.reader.versoin: no such key; did you mean version",
    ),
    (["task=reid", "dataset.members.msmt17.val_ids=some"], "dataset.members.msmt17: Value 'some'"),
    (["task=reid", "dataset.members.msmt17.image_size=[64,64]"], "all members have the same; set dataset.image_size"),
    (["task=reid", *member("one"), "dataset.val_ids=3"], "dataset.val_ids: every member has its own"),
    (["task=reid", *member("one"), "dataset.root=/x"], "dataset.root: every member has its own"),
    (["task=reid", "dataset.members.joint.root=/x"], "dataset.members='joint'"),
    (["dataset=synthetic_birds", "dataset.batches=balanced"], "need dataset=joint"),
    (["experiment=tiny/reid", *member("one")], "dataset.reader.image_size: every member has its own"),
    (["dataset=cub", "dataset.members.cub.root=/x"], "dataset.members: of several data sets, needs dataset=joint"),
    (["task=reid", *member("one"), "dataset.members.synthetic_birds={}"], "train on sets of one task"),
    (["task=fgvc", *member("one"), *member("two")], "is judged on the split test, which one + two lacks"),
    (["task=reid", *member("one"), "dataset.members.two.dataset=people"], "dataset.members.two.dataset='people'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=lambda value: value[-60:] if isinstance(value, str) else "")
def test_refusals_name_key_and_remedy(
    words: list[str], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refused("train", *RUN, *words, f"run.root={tmp_path}", capfd=capfd)
    assert told in said
    assert not list(tmp_path.iterdir())


def test_what_the_members_have_and_what_the_first_one_gives() -> None:
    words = ["dataset=joint", "dataset.members.market1501.root=/m", "dataset.members.msmt17.reader.version=V2"]
    own: Any = OmegaConf.to_container(composition(*words, "dataset.augment.pad=3").dataset)
    assert own["image_size"] == [256, 128] and own["augment"] == {"flip": 0.5, "pad": 3, "erase": 0.5}
    assert own["members"]["market1501"]["reader"]["root"] == "/m"
    assert own["members"]["msmt17"]["reader"] | {"root": None} == {
        "_target_": "dcal.dataset.readers.reid_person.read_msmt17",
        "_partial_": True,
        "root": None,
        "version": "V2",
        "train": "train+val",
    }
    smaller = composition(*words, "dataset.image_size=[128,64]").dataset
    assert list(smaller.resize) == [128, 64]  # in the ratio of the first member's


def test_the_digest_of_each_member_is_part_of_the_id(tmp_path: Path) -> None:
    def identity(*roots: Path, words: Sequence[str] = ()) -> str:
        own = [f"dataset.members.{name}.{key}={value}" for name, root in zip("ab", roots, strict=False)
               for key, value in (("dataset", "image_folder"), ("root", root))]  # fmt: skip
        return identify(composition("dataset=joint", *own, *words)).cfg_id

    one, two, other = (pictures(tmp_path / name, number) for number, name in enumerate("xyz"))
    before = identity(one, two)
    shutil.copytree(one, tmp_path / "elsewhere")
    assert identity(tmp_path / "elsewhere", two) == before  # a place is no part of it
    assert identity(one, two, words=["dataset.members.a.val_fraction=0.0", "dataset.batches=proportional"]) == before
    changes = [
        identity(one, other),
        identity(one),
        identity(two, one),
        identity(one, two, words=["dataset.batches=balanced"]),
        identity(one, two, words=["dataset.members.b.train_fraction=0.5"]),
        identity(one, two, words=["dataset.members.b.reader.test_fraction=null", "dataset.image_size=[96,96]"]),
    ]
    assert len({before, *changes}) == 1 + len(changes)


def test_classifiers_tell_apart_the_classes_of_all_members(tmp_path: Path) -> None:
    one, two = (pictures(tmp_path / name, number) for number, name in enumerate("xy"))
    small = ["dataset.image_size=[32,32]", "dataset.resize=[32,32]", "train.epochs=1", "task.instances=1"]
    words = [f"dataset.members.{name}.{key}={value}" for name, root in (("a", one), ("b", two))
             for key, value in (("dataset", "image_folder"), ("root", root))]  # fmt: skip
    run = trained(tmp_path / "runs", *small, *words, start=[*RUN, "task=fgvc"])
    assert read(run, "model.json")["class_names"] == ["a/ant", "a/bee", "b/ant", "b/bee"]
    items, metrics = np.load(run / "items.npz"), read(run, "result.json")["metrics"]
    assert items["label"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and metrics["images"] == 8
    assert metrics["top1"] == pytest.approx((metrics["a/top1"] + metrics["b/top1"]) / 2)
    model = dcal.load(run)
    assert set(model.predict([one / "test" / "ant" / "0.png"], top=4)[0]) == {"a/ant", "a/bee", "b/ant", "b/bee"}
    moved = tmp_path / "moved"
    two.rename(moved)
    run_command("evaluate", f"run={run}", f"dataset.members.b.root={moved}", f"out={tmp_path / 'm.json'}")
    assert read(tmp_path, "m.json")["metrics"] == metrics


def test_killed_in_mid_epoch_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    slow = ["train.checkpoint_minutes=0", "dataset.batches=balanced", "train.figures=false"]
    with one_thread():
        whole = trained(tmp_path / "whole", *slow)
        killed(lambda: trained(tmp_path / "broken", *slow), step=6)
        broken = trained(tmp_path / "broken", *slow)
    assert read(broken, "result.json")["metrics"] == read(whole, "result.json")["metrics"]
    assert (broken / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_market_1501_and_drawn_people_train_together(data_root: Path, tmp_path: Path) -> None:
    market = data_root / "Market-1501-v15.09.15"
    words = [
        f"dataset.members.market1501.root={market}",
        "dataset.members.market1501.train_fraction=0.02",
        "dataset.members.synthetic_people={}",
        "dataset.batches=balanced",
        "train.epochs=1",
        "train.batch_size=128",
        "train.figures=false",
        "dataset.image_size=[32,16]",
        "dataset.resize=[32,16]",
        "attention=none",
        "task.triplet.weight=1",
    ]
    run = trained(tmp_path, *words, start=[*RUN, "task=reid"])
    metrics, data = read(run, "result.json")["metrics"], read(run, "identity.json")["data"]
    assert metrics["market1501/queries"] == 3368 and metrics["market1501/gallery"] == 19732
    assert 0 < metrics["market1501/mAP"] < 1 and 0 < metrics["synthetic_people/mAP"] < 1
    assert data["images"] == {"market1501/train": 12936, "market1501/query": 3368, "market1501/gallery": 19732}
