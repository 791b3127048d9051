"""`dcal-results list=DIR`: states, filters, order, and its time on ten thousand runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from recorded_runs import write_run
from run_command import refused, run_command

from dcal.report.listing import age_text, list_runs, listing, settings_of
from dcal.run.lock import acquire_lock


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of `dcal`: finished, finished, failed; of `none`: running, interrupted, torn."""
    for attention in ("dcal", "none"):
        for seed in range(3):
            run = write_run(tmp_path, seed, 4 + seed, attention, "birds")
            (run / "overrides.json").write_text(
                json.dumps([f"attention={attention}", f"seed={seed}", "train.epochs=2"])
            )
    dcal, none = tmp_path / "birds" / "id-dcal", tmp_path / "birds" / "id-none"
    for run in (dcal / "seed=2", none / "seed=0", none / "seed=1"):
        (run / "result.json").unlink()
    (dcal / "seed=2" / "failure.txt").write_text("a traceback")
    (none / "seed=2" / "result.json").write_text('{"metr')
    os.utime(dcal / "seed=2" / "metrics.jsonl", (0, 0))
    os.utime(dcal / "seed=2" / "config_resolved.yaml", (0, 0))
    write_run(tmp_path, 7, 4).rename(dcal / "seed=7.replaced-1")
    return tmp_path


def test_every_state_has_its_line(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lock = acquire_lock(runs / "birds" / "id-none" / "seed=0")
    run_command("results", f"list={runs}", "sort=state")
    lock.release()
    text = capfd.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines() if str(runs) in line and line[0] == "|"]
    dcal, none = f"| {runs}/birds/id-dcal |", f"| {runs}/birds/id-none |"
    assert lines[0].startswith(f"{dcal} finished | 0–1 | top-1 88.75 ± 1.77 |")
    assert lines[1].startswith(f"{none} running | 0 | – |") and lines[1].endswith("| attention=none |")
    assert lines[2].startswith(f"{dcal} failed | 2 | – |") and " d |" in lines[2]
    assert lines[3].startswith(f"{none} interrupted | 1–2 | – |")
    assert f"6 runs in {runs}, 2 finished, 1 running, 1 failed, 2 interrupted." in text


def test_filter_order_and_formats(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def rows(*words: str) -> list[dict[str, object]]:
        capfd.readouterr()
        run_command("results", f"list={runs}", "format=json", *words)
        found: list[dict[str, object]] = json.loads(capfd.readouterr().out)
        return found

    assert {row["run"] for row in rows("where=attention=none")} == {f"{runs}/birds/id-none"}
    (row,) = rows("where=[optimizer.lr=1e-4,state=finished]")
    assert (row["metric"], row["value"], row["value_sd"], row["seeds"]) == ("top1", 88.75, 1.77, "0–1")
    assert rows("where=optimizer.lr=2e-4") == []
    assert rows("where=dataset.image_size=[224,224]", "sort=metric")[0]["state"] == "finished"
    assert rows("sort=age")[-1]["state"] == "failed", "written to in 1970"
    assert rows("metric=nll", "sort=metric")[0]["value"] == 0.5


def test_mistakes_are_one_sentence(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["where=optimzer.lr=1"], "where=optimzer.lr=...: no run has this key; did you mean optimizer.lr"),
        (["where=dcal"], "where=dcal: give key=value"),
        (["where='name=a: b'"], "where=name=a: b: a: b cannot be read as YAML"),
        (["sort=top1"], "sort='top1': choose one of age, metric, run, state"),
        (["metric=top2"], "metric='top2': did you mean top1"),
        (["format=html"], "format='html'"),
        (["write=true"], "write=true: has no effect on list="),
    ):
        assert message in refused("results", f"list={runs}", *words, capfd=capfd)
    assert "no such folder" in refused("results", f"list={runs / 'nowhere'}", capfd=capfd)


def test_copies_in_one_folder_are_lines_of_their_own(tmp_path: Path) -> None:
    for attention, wrong in (("dcal", 4), ("none", 8)):
        write_run(tmp_path, 0, wrong, attention).rename(tmp_path / attention)
    assert [row[:4:3] for row in listing(tmp_path, sort="run").rows] == [
        [f"{tmp_path}/dcal", "top-1 90.00"],
        [f"{tmp_path}/none", "top-1 80.00"],
    ]
    assert [row[0] for row in listing(tmp_path, ["attention=none"]).rows] == [f"{tmp_path}/none"]


def test_settings_are_those_of_the_tables(fgvc_run: Path) -> None:
    """From `identity.json`, and of an older run from its configuration, which takes ten times as long."""
    by_identity = settings_of(fgvc_run)
    (fgvc_run / "identity.json").rename(fgvc_run / "hidden.json")
    try:
        by_config = settings_of(fgvc_run)
    finally:
        (fgvc_run / "hidden.json").rename(fgvc_run / "identity.json")
    for key in ("attention", "task", "dataset", "optimizer.lr", "train.epochs", "dataset.image_size"):
        assert by_identity[key] == by_config[key]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (2e5, "2 d")])
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_ten_thousand_runs_are_listed_in_ten_seconds(tmp_path: Path) -> None:
    """2 000 of them in a fifth of it, in seconds of this process alone, whatever else the machine does."""
    for number in range(2000):
        run = tmp_path / "name" / f"{number // 4:08x}" / f"seed={number % 4}"
        run.mkdir(parents=True)
        for name in ("config_resolved.yaml", "run.lock", "metrics.jsonl"):
            (run / name).touch()
        if number % 4:
            (run / "result.json").write_text(json.dumps({"primary_metric": "top1", "metrics": {"top1": 0.5}}))
    start = time.process_time()
    grid = listing(tmp_path, sort="metric")
    seconds = time.process_time() - start
    assert len(grid.rows) == 1000 and len(list(list_runs(tmp_path))) == 2000
    assert seconds < 2, seconds
