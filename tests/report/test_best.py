"""`dcal-results best=DIR`: the choice, how sure it is, its warnings, and the commands that it prints."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from recorded_runs import ITEMS, write_run
from run_command import composed_command, refused, run_command

from dcal.report.best import beyond_edge, choose_best

GRID = {1e-4: (9, 10), 2e-4: (4, 3), 4e-4: (5, 4)}
"""By learning rate: wrong items under two seeds."""


def write_trial(root: Path, rate: float, seed: int, wrong: int, loss: float, split: str = "val") -> Path:
    run = write_run(root, seed, wrong, name=f"tune-{rate:g}")
    config = OmegaConf.load(run / "config_resolved.yaml")
    OmegaConf.update(config, "optimizer.lr", rate)
    OmegaConf.update(config, "dataset.val_fraction", 0.2)
    OmegaConf.save(config, run / "config_resolved.yaml")
    result = json.loads((run / "result.json").read_text())
    result |= {"split": split, "cfg_id": f"id-{rate:g}"}
    result["metrics"]["nll"] = loss
    (run / "result.json").write_text(json.dumps(result))
    words = ["experiment=tiny/fgvc", "name=tune", "dataset.val_fraction=0.2", f"optimizer.lr={rate:g}", f"seed={seed}"]
    (run / "overrides.json").write_text(json.dumps(words))
    with np.load(run / "items.npz") as items:
        np.savez(run / "items.npz", nll=np.full(ITEMS, loss), **items)
    return run


@pytest.fixture
def search(tmp_path: Path) -> Path:
    for rate, counts in GRID.items():
        for seed, wrong in enumerate(counts):
            write_trial(tmp_path, rate, seed, wrong, loss=1 + abs(rate - 4e-4) * 1000 + seed / 10)
    return tmp_path


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    run_command("results", *words)
    return capfd.readouterr().out


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    dcal-train")]


def test_the_best_is_chosen_with_its_uncertainty(search: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = said(capfd, f"best={search}")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.startswith("| 0.")]
    assert [line.split(" | ")[0] for line in lines] == ["| 0.0002", "| 0.0004", "| 0.0001"]
    assert lines[0].startswith("| 0.0002 | 91.25 ± 1.77 | ") and lines[0].endswith(" | – | – | 2 |")
    assert re.search(r"\| −2\.50 \[−\d+\.\d\d, \+\d+\.\d\d\] \|", lines[1])
    assert "Best: optimizer.lr=0.0002, by top-1." in text and "Not told apart from it: 0.0004" in text
    assert "Warning" not in text
    ((_, *words),) = commands_in(text)
    assert words == [
        "-m", "experiment=tiny/fgvc", "optimizer.lr=0.0002", "dataset.val_fraction=0", "seed=0,1,2,3,4,5",
    ]  # fmt: skip
    config = composed_command(["dcal-train", *words])
    assert config is not None and (config.optimizer.lr, config.dataset.val_fraction) == (2e-4, 0)


def test_at_the_edge_of_the_grid_it_says_how_to_go_on(search: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the loss the greatest rate is the best one."""
    text = said(capfd, f"best={search}", "metric=nll")
    assert "Best: optimizer.lr=0.0004, by nll." in text and "lower is better" in text
    assert "| 1.050 ± 0.071 |" in text and "| +0.200 [+0.200, +0.200] |" in text
    assert "Warning: optimizer.lr=0.0004 is at the edge of what was tried" in text
    further, final = commands_in(text)
    assert "optimizer.lr=0.0008" in further and "name=tune" in further and "dataset.val_fraction=0.2" in further
    assert further[-1] == "seed=0,1" and "optimizer.lr=0.0004" in final


def test_a_choice_on_test_data_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_trial(tmp_path, 1e-4, 0, 9, 1.0, split="test")
    assert "all runs were judged on the test split" in refused("results", f"best={tmp_path}", capfd=capfd)
    write_trial(tmp_path, 2e-4, 0, 9, 1.0)
    assert [one.label for one in choose_best(tmp_path).candidates] == ["all"], "the other is no candidate"
    assert "no finished run is there" in refused("results", f"best={tmp_path / 'x'}", capfd=capfd)
    assert "with where=optimizer.lr=3 is there" in refused(
        "results", f"best={tmp_path}", "where=optimizer.lr=3", capfd=capfd
    )


def test_where_nothing_was_learned_nothing_is_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for rate, loss in ((1e-4, 1.609), (2e-4, 1.7)):
        write_trial(tmp_path, rate, 0, ITEMS * 4 // 5, loss)
    text = said(capfd, f"best={tmp_path}", "metric=nll")
    assert "Warning: 0.0001 is no better than chance, 20.0 %" in text and commands_in(text) == []


def test_different_items_are_not_compared(search: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_trial(search, 8e-4, 0, 3, 1.0)
    with np.load(run / "items.npz") as items:
        np.savez(run / "items.npz", **{**items, "index": items["index"] + 1})
    assert "judged on different validation items" in refused("results", f"best={search}", capfd=capfd)


@pytest.mark.parametrize(
    ("values", "further"),
    [
        ([4.0, 1.0, 2.0], 8.0),  # the best one first
        ([1.0, 2.0, 4.0], 0.5),
        ([2.0, 1.0, 4.0], None),
        ([0.0, 0.1], None),
        ([0.2, 0.0, 0.1], 0.3),
        ([32, 16], 64),
        ([1, 2], None),  # half an epoch is none
        ([True, False], None),
        (["a", "b"], None),
    ],
)
def test_an_edge_is_of_a_grid_of_numbers(values: list[Any], further: float | None, search: Path) -> None:
    model = choose_best(search).candidates[0]
    candidates = []
    for value in values:
        trial = model.trials[0]
        record = {**trial.record, "config": {"key": value}}
        candidates.append(model._replace(trials=[trial._replace(record=record)]))
    assert beyond_edge(candidates, ["key"], "key") == (further if further is None else pytest.approx(further))
