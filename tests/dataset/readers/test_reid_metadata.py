"""A metadata table as a data set: which images are in which split, flanks, dates, and what is refused."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_command import run_command

from dcal.dataset.data import Data
from dcal.dataset.readers.reid_metadata import read_metadata
from dcal.dataset.record import Catalog, DataError
from dcal.utils.errors import UserError

HEADING = "image_id,identity,path,date,orientation,species,split,dataset"


def herd(root: Path) -> Path:
    """Six animals of two species, five images each, on three days; the table is not in the order of the animals."""
    lines = []
    for number in range(5):
        for animal in range(6):
            path = f"images/a{animal}/{number}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((40, 40), 10 + 7 * animal + number).convert("RGB").save(root / path)
            day = f"2020-0{1 + animal}-0{1 + number // 2} 10:00:00"
            side = ("left", "left", "right", "right", "front")[number]
            species = ("turtle", "zebra")[animal % 2]
            split = "train" if number < 3 else "test"
            lines.append(f"{len(lines)},animal {animal},{path},{day},{side},{species},{split},Herd")
    (root / "metadata.csv").write_text("\n".join([HEADING, *lines]) + "\n")
    return root


def of(catalog: Catalog, split: str) -> dict[str, list[str]]:
    """Images of a split, `animal/number`, by the number of their identity."""
    found = defaultdict(list)
    for record in catalog.splits[split]:
        found[str(record.label)].append(f"{record.path.parent.name}/{record.path.stem}")
    return dict(found)


def images(catalog: Catalog, split: str) -> set[str]:
    return {name for names in of(catalog, split).values() for name in names}


def test_the_split_of_the_table(tmp_path: Path) -> None:
    catalog = read_metadata(herd(tmp_path), flanks="together")
    assert catalog.num_classes == 6
    assert images(catalog, "train") == images(catalog, "gallery") == {f"a{a}/{n}" for a in range(6) for n in range(3)}
    assert images(catalog, "query") == {f"a{a}/{n}" for a in range(6) for n in (3, 4)}
    views = {record.path.stem: record.view for record in catalog.splits["query"]}
    assert len(set(views.values())) == 2  # right and front


def test_flanks_are_identities_of_their_own(tmp_path: Path) -> None:
    catalog = read_metadata(herd(tmp_path), split="closed", where={"species": "zebra"})
    assert set(catalog.class_names) == {f"animal {a}/{side}" for a in (1, 3, 5) for side in ("left", "right", "other")}
    for label, names in of(catalog, "query").items():
        (own,) = {name.split("/")[0] for name in names}
        assert {name.split("/")[0] for name in of(catalog, "gallery")[label]} == {own}
        sides = {name[-1] in "01" for name in names} | {name[-1] in "01" for name in of(catalog, "gallery")[label]}
        assert len(sides) == 1


def test_closed_splits_keep_something_of_everybody(tmp_path: Path) -> None:
    catalog = read_metadata(herd(tmp_path), split="closed", test_fraction=0.4, flanks="together")
    assert images(catalog, "query") == {f"a{a}/{n}" for a in range(6) for n in (3, 4)}
    timed = read_metadata(tmp_path, split="closed_by_time", test_fraction=0.4, flanks="together")
    # the last day has one image, fewer than two fifths, so the day before is taken, too; a day is never cut
    assert images(timed, "query") == {f"a{a}/{n}" for a in range(6) for n in (2, 3, 4)}
    assert of(timed, "train").keys() == of(timed, "gallery").keys() and timed.num_classes == 6


def test_open_splits_share_no_animal(tmp_path: Path) -> None:
    herd(tmp_path)
    for split in ("open", "open_by_time"):
        catalog = read_metadata(tmp_path, split=split, test_fraction=0.5)
        trained = {name.split("/")[0] for name in images(catalog, "train")}
        tested = {name.split("/")[0] for part in ("query", "gallery") for name in images(catalog, part)}
        assert len(trained) == len(tested) == 3 and not trained & tested
        assert not images(catalog, "query") & images(catalog, "gallery")
        for label in of(catalog, "query"):
            assert of(catalog, "gallery")[label]  # a match
    assert tested == {"a3", "a4", "a5"}  # first seen last


def test_matches_of_one_day_are_left_out(tmp_path: Path) -> None:
    catalog = read_metadata(herd(tmp_path), split="closed", flanks="together", camera="date")
    days = {(record.path.parent.name, int(record.path.stem) // 2): record.camera for record in catalog.splits["train"]}
    assert len(set(days.values())) == len(days)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("split,dataset", "part,dataset"), {}, "column split is missing"),
        (("orientation", "side"), {}, "column orientation is missing"),
        (("2020-01-01", "June"), {"split": "open_by_time"}, r"line 2: date='June 10:00:00' is not like 2021-06-30"),
        ((",test,", ",exam,"), {}, r"split='exam' is none of train, test"),
        (("a3/1.png", "a3/9.png"), {}, "listed images are missing"),
        (("", ""), {"where": {"species": "cow"}}, "no image with an identity with species=cow"),
        (("", ""), {"camera": "place"}, "column place is missing"),
    ],
)
def test_a_table_that_cannot_be_read(
    tmp_path: Path, change: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    table = herd(tmp_path) / "metadata.csv"
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(DataError, match=message):
        read_metadata(tmp_path, **options)


def test_options_out_of_their_range() -> None:
    for options, message in (
        ({"split": "opened"}, r"dataset\.reader\.split='opened': did you mean open"),
        ({"flanks": "both"}, r"dataset\.reader\.flanks='both'"),
        ({"test_fraction": 1.0}, r"dataset\.reader\.test_fraction=1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            read_metadata("somewhere", **options)  # type: ignore[arg-type]


def test_images_without_identity_are_told(tmp_path: Path) -> None:
    table = herd(tmp_path) / "metadata.csv"
    table.write_text(table.read_text().replace("animal 5", ""))
    data = Data(
        read_metadata(tmp_path, split="closed"), tmp_path, image_size=[32, 32], resize=[32, 32],
        augment={"flip": 0.0, "pad": 0, "erase": 0.0},
    )  # fmt: skip
    assert any("5 images of metadata.csv have no identity" in note for note in data.notes)


def test_a_run_on_animals(tmp_path: Path) -> None:
    run_command(
        "train", "task=reid", "dataset=metadata", f"dataset.root={herd(tmp_path / 'herd')}", "backbone=test_vit",
        "dataset.reader.split=open", "dataset.image_size=[32,32]", "dataset.resize=[32,32]", "optimizer=sgd",
        "optimizer.schedule.warmup_epochs=0", "train.batch_size=4", "task.instances=2", "train.epochs=1",
        "train.workers=0", "train.precision=fp32", "train.figures=false", "wandb.mode=disabled", "name=animals",
        f"run.root={tmp_path / 'runs'}", "dataset.reader.where={species:turtle}", "dataset.reader.test_fraction=0.4",
    )  # fmt: skip
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1
