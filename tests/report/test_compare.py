"""`dcal-results compare=[A,B]`: the same digits from runs and from CSV, and what forbids to compare."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import ITEMS, write_queries, write_run
from run_command import refused, run_command

from dcal.metric.statistics import paired_comparison
from dcal.report.compare.pair import compare_sides
from dcal.report.compare.predictions import read_predictions
from dcal.report.compare.sides import read_side
from dcal.utils.errors import UserError

WRONG = {"none": (14, 15, 13, 16, 14, 15), "dcal": (4, 6, 5, 4, 3, 6)}
"""By attention: wrong items under each seed."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for attention, wrong in WRONG.items():
        for seed, count in enumerate(wrong):
            write_run(tmp_path / "runs", seed, count, attention)
    return tmp_path / "runs" / "fgvc" / "birds"


Row = dict[str, Any]


def rows_of(group: Path) -> list[Row]:
    """What the runs of a configuration have predicted."""
    rows = []
    for folder in sorted(group.iterdir()):
        with np.load(folder / "items.npz") as items:
            for name, label, prediction in zip(items["name"], items["label"], items["prediction"], strict=True):
                rows.append({"item": name, "label": label, "prediction": prediction, "seed": folder.name[5:]})
    return rows


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def said(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    capfd.readouterr()
    run_command("results", *map(str, words))
    return capfd.readouterr().out


def test_runs_and_a_permuted_csv_give_the_same_digits(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Classes have names in the CSV and numbers in the runs."""
    files = []
    for group in ("id-dcal", "id-none"):
        named = [row | {key: f"bird {row[key]}" for key in ("label", "prediction")} for row in rows_of(runs / group)]
        random.Random(0).shuffle(named)
        files.append(write_csv(runs / f"{group}.csv", named))
    by_runs = said(capfd, f"compare=[{runs / 'id-dcal'},{runs / 'id-none'}]", "format=json")
    by_files = said(capfd, f"compare=[{files[0]},{files[1]}]", "format=json")
    mixed = said(capfd, f"compare=[{runs}/id-dcal/seed=*,{files[1]}]", "format=json")
    (one,), (other,), (third,) = map(json.loads, (by_runs, by_files, mixed))
    for row in (one, other, third):
        del row["first"], row["second"]
    assert one == other == third
    right = [np.arange(ITEMS)[None] < ITEMS - np.array(WRONG[name])[:, None] for name in ("dcal", "none")]
    expected = paired_comparison(right[0], right[1], margin=0.005)
    assert (one["verdict"], one["seeds"], one["items"]) == ("better", 6, ITEMS)
    assert [one["difference"], one["low"], one["high"], one["p"]] == pytest.approx(
        [100 * expected.mean, 100 * expected.low, 100 * expected.high, expected.p]
    )


def test_the_text_says_the_verdict_and_what_differs(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = said(capfd, f"compare=[{runs / 'id-none'},{runs / 'id-dcal'}]", "power=20")
    assert re.search(
        r"^A is worse than B: A minus B is −\d+\.\d\d \[−\d+\.\d\d, −\d+\.\d\d\] points of top-1\.$", text, re.M
    )
    assert "Settings that differ, A / B: attention: none / dcal" in text and "Seeds: 0–5." in text
    pair = compare_sides(read_side(str(runs / "id-none")), read_side(str(runs / "id-dcal")))
    seeds = pair.comparison.seeds_needed(0.2)
    assert seeds is not None and f"{seeds} seeds find a true difference of 20 points in 80" in text


def test_one_training_each_has_no_verdict(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pair = f"compare=[{runs / 'id-dcal' / 'seed=0'},{runs / 'id-none' / 'seed=3' / 'items.npz'}]"
    text = said(capfd, pair)
    assert "One training each does not tell which method is better: A minus B is +30.00 [" in text
    assert "power=1: one seed shows no spread" in refused("results", pair, "power=1", capfd=capfd)


def test_seeds_of_one_side_are_left_out_aloud(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in rows_of(runs / "id-none") if row["seed"] in "123"]
    text = said(capfd, f"compare=[{runs / 'id-dcal'},{write_csv(runs / 'none.csv', rows)}]")
    assert "undecided: 3 seeds" in text and "Seeds: 1–3. Seeds of A alone, left out: 0, 4–5." in text


def test_scores_are_predictions_and_a_group_is_one_observation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(2, 30, 3)), rng.integers(0, 3, 30)
    sides = []
    for number, own in enumerate(scores):
        cells = [
            {"item": f"{i:02}", "label": "abc"[label], "group": i // 3, **dict(zip("abc", own[i], strict=True))}
            for i, label in enumerate(labels)
        ]
        sides.append(read_side(str(write_csv(tmp_path / f"{number}.csv", cells))))
    right = scores.argmax(-1) == labels
    pair = compare_sides(sides[0], sides[1])
    expected = paired_comparison(right[0], right[1], 0.005, np.arange(30) // 3)
    assert pair.comparison == expected and expected.groups == 10


def test_queries_come_with_their_identity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 5)
    for attention in ("none", "dcal"):
        write_queries(tmp_path, attention, rng.random(40), labels)
    folder = tmp_path / "reid" / "people"
    by_runs = compare_sides(read_side(str(folder / "id-dcal")), read_side(str(folder / "id-none")))
    sides = []
    for attention in ("dcal", "none"):
        with np.load(folder / f"id-{attention}" / "seed=0" / "items.npz") as items:
            rows = [
                {"item": name, "label": f"person {label}", "average_precision": value.item(), "seed": 0}
                for name, label, value in zip(items["name"], items["label"], items["average_precision"], strict=True)
            ]
        sides.append(read_side(str(write_csv(tmp_path / f"{attention}.csv", rows[::-1]))))
    by_files = compare_sides(*sides)
    assert by_files.comparison == by_runs.comparison and by_runs.comparison.groups == 8


Change = Callable[[list[Row]], list[Row]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], r"other items: bird/\d+\.jpg not in .*theirs\.csv"),
        (lambda rows: [rows[0] | {"item": "bird/x.jpg"}, *rows[1:]], r"other items: .* not in"),
        (lambda rows: [rows[0], *rows], "is there twice"),
        (lambda rows: [rows[0] | {"label": (rows[0]["label"] + 1) % 5}, *rows[1:]], "another label: item bird/"),
        (lambda rows: [row | {"seed": 9} for row in rows], "no seed in common"),
    ],
)
def test_other_items_labels_and_seeds_are_refused(
    change: Change, message: str, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = change([row for row in rows_of(runs / "id-none") if row["seed"] == "0"])
    theirs = write_csv(runs / "theirs.csv", rows)
    told = refused("results", f"compare=[{runs / 'id-dcal'},{theirs}]", capfd=capfd)
    assert re.search(message, told), told


def edit(folder: Path, file: str, old: str, new: str) -> None:
    for run in folder.iterdir():
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("result.json", '"split": "test"', '"split": "val"', "another split: test in .*id-dcal, val in .*id-none"),
        ("config_resolved.yaml", "read_cub", "read_dogs", "another data set: cub in .*, dogs in"),
        (
            "config_resolved.yaml",
            "reader:\n",
            "reader:\n    version: V2\n",
            "protocol: dataset.reader.version=None",
        ),
        ("result.json", '"split"', '"judged": "0123456789abcdef", "split"', "another set of images: digest f"),
    ],
)
def test_another_split_data_set_protocol_or_set_of_images_is_refused(
    file: str, old: str, new: str, message: str, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit(runs / "id-dcal", "result.json", '"split"', '"judged": "fedcba9876543210", "split"')
    edit(runs / "id-none", file, old, new)
    told = refused("results", f"compare=[{runs / 'id-dcal'},{runs / 'id-none'}]", capfd=capfd)
    assert re.search(message, told), told


def test_other_mistakes_are_one_sentence(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dcal = runs / "id-dcal"

    def told(*words: str) -> str:
        return refused("results", *words, capfd=capfd)

    assert "2 configurations; name one of" in told(f"compare=[{dcal},{runs}]")
    assert "no such file or folder; give a run directory" in told(f"compare=[{dcal},{runs / 'nowhere'}]")
    assert "give two, compare=[A,B]" in told(f"compare={dcal}")
    assert "metric='top7': did you mean top1" in told(f"compare=[{dcal},{dcal}]", "metric=top7")
    assert "sort=age: has no effect on compare=" in told(f"compare=[{dcal},{dcal}]", "sort=age")
    assert "list=, compare=: give one of" in told(f"compare=[{dcal},{dcal}]", "list=outputs")
    assert "margin=-1: must be more than 0; in points" in told(f"compare=[{dcal},{dcal}]", "margin=-1")
    assert "power=much: must be a number" in told(f"compare=[{dcal},{dcal}]", "power=much")
    assert "margin=1: has no effect on the tables" in told("margin=1")
    (runs / "a.csv").write_text("item,label,prediction\na,1,1\n")
    (runs / "b.csv").write_text("item,label,prediction\na,1,1\n")
    assert "does not say of which seed it is" in told(f"compare=[{dcal},{runs}/?.csv]")
    old = dcal / "seed=0" / "items.npz"
    with np.load(old) as items:
        np.savez(old, **{key: items[key] for key in items if key != "name"})
    assert "without the names of its items; dcal-evaluate" in told(f"compare=[{dcal / 'seed=0'},{runs / 'a.csv'}]")


def test_an_option_that_decides_nothing_makes_no_second_configuration(runs: Path) -> None:
    """As in tables: older versions gave such runs another id."""
    plain = runs / "id-none"
    other = plain.with_name("id-idle")
    other.mkdir()
    (plain / "seed=5").rename(other / "seed=5")
    edit(other, "result.json", '"id-none"', '"id-idle"')
    edit(other, "config_resolved.yaml", "top_ratio: 0.1", "top_ratio: 0.5")
    assert list(read_side(f"{runs}/id-[in][do]*").runs) == list(range(6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item;label;prediction\na;1;1\n", "no column item; its columns are item;label;prediction"),
        ("item,label\na,1\n", "needs a column prediction, a column for each class, or average_precision"),
        ("item,label,prediction\na,1\n", "line 2: 2 cells in 3 columns"),
        ("item,label,prediction\n", "no line below its header"),
        ("item,label,prediction, label\na,1,1,2\n", "two columns have the same name"),
        ("item,label,x,y\na,z,0.1,0.2\n", "line 2: there is no column of scores for its label z"),
        ("item,label,x,y\na,x,0.1,\n", "line 2: y is empty, and must be a number"),
        ("item,label,average_precision\na,1,83\n", "line 2: average_precision must be between 0 and 1"),
        ("item,label,prediction,seed\na,1,1,one\n", "line 2: seed is one, and must be a whole number"),
    ],
)
def test_a_faulty_csv_is_named_by_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_predictions(file)


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_evaluate_writes_the_csv_of_a_run(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was trained, evaluated to a CSV, is the run itself: the difference is 0 on every item."""
    run, file = request.getfixturevalue(f"{task}_run"), tmp_path / "items.csv"
    assert "its suffix must be .npz or .csv" in refused("evaluate", f"run={run}", "save_items=items.txt", capfd=capfd)
    run_command("evaluate", f"run={run}", f"save_items={file}")
    pair = compare_sides(read_side(str(run)), read_side(str(file)))
    assert pair.comparison.mean == pair.comparison.low == pair.comparison.high == 0
    assert pair.values[0] == pair.values[1]
