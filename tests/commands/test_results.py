"""`dcal-results`: what it keeps of a run, what it does with torn files, and that pages come out the same."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import OmegaConf
from recorded_runs import ITEMS, configure, write_queries, write_run
from run_command import refused, run_command

from dcal.commands.results import tabulate
from dcal.metric.interval import Interval, mean_interval
from dcal.metric.statistics import paired_comparison
from dcal.report.format import markdown, metric_values
from dcal.report.items import decode_groups, decode_outcomes, encode_groups, encode_outcomes
from dcal.report.pages import fill, html
from dcal.report.records import collect, load_all, load_results, parse, read_run, read_yaml
from dcal.report.table import Row, Spec, axis_range, differing, label_of, make_table, specs, with_sa
from dcal.run.lock import acquire_lock
from dcal.utils.errors import UserError
from dcal.utils.paths import experiments_dir

PAGE = "before\n<!-- results:birds -->\n<!-- /results -->\nbetween\n<!-- results:later -->\n<!-- /results -->\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, (plain, dcal) in enumerate([(8, 4), (9, 5), (8, 6)]):
        write_run(tmp_path / "runs", seed, plain, "none")
        write_run(tmp_path / "runs", seed, dcal)
    return tmp_path / "runs"


def test_older_runs_called_every_evaluation_val(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 8)
    _, today = read_run(folder)
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text().replace('"test/', '"val/'))
    assert read_run(folder)[1]["curve"] == today["curve"]
    assert today["curve"]["test/top1"] == [None, 0.9]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@given(
    st.one_of(
        arrays(bool, st.integers(1, 40)),
        arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)),
    )
)
def test_outcomes_survive_their_encoding(values: np.ndarray) -> None:
    np.testing.assert_allclose(
        decode_outcomes(encode_outcomes(values)), values, atol=0 if values.dtype == bool else 5.1e-5
    )


def test_a_record_holds_what_matters_and_no_path(runs: Path) -> None:
    found, problems = collect(runs)
    (records,) = found.values()
    assert not problems and len(records) == 6
    record = records[0]
    assert record["config"]["attention"] == "dcal" and record["config"]["dataset"] == "cub"
    assert record["config"]["optimizer.lr"] == 0.0001 and record["config"]["dataset.image_size"] == [224, 224]
    assert "secret" not in json.dumps(records) and "train.workers" not in record["config"]
    assert record["train_seconds"] == 100 / 50 + 100 / 100 and record["images_per_second"] == 75
    np.testing.assert_array_equal(decode_outcomes(record["items"]["top1"]), np.arange(ITEMS) < ITEMS - 4)  # by index
    assert len({r["items"]["digest"] for r in records}) == 1


def test_an_epoch_without_a_speed_counts_with_the_usual_one(tmp_path: Path) -> None:
    """Runs of older versions that were stopped in an evaluation have one."""
    file = write_run(tmp_path, 0, 4) / "metrics.jsonl"
    file.write_text(file.read_text().replace("50.0", "0.0"))
    ((record,),) = collect(tmp_path)[0].values()
    assert (record["train_seconds"], record["images_per_second"]) == (2 * 100 / 100, 100)
    file.write_text(file.read_text().replace("100.0", "0.0"))
    assert "images_per_second" in collect(tmp_path)[1][0]


def test_reid_items_leave_out_queries_without_a_match(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0, 0)
    result = json.loads((folder / "result.json").read_text())
    result |= {"primary_metric": "mAP", "metrics": {"mAP": 0.625, "rank1": 0.5, "mAP_sa": 0.5}}
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(
        folder / "items.npz",
        index=np.array([2, 0, 1]),
        label=np.array([7, 3, 3]),
        average_precision=np.array([0.25, 1.0, 0.0]),
        average_precision_sa=np.array([0.5, 0.5, 0.0]),
        first_rank=np.array([4, 1, 0]),
        valid=np.array([True, True, False]),
    )
    ((record,),) = collect(tmp_path)[0].values()
    assert record["items"]["count"] == 2
    assert decode_outcomes(record["items"]["mAP"]).tolist() == [1.0, 0.25]
    assert decode_outcomes(record["items"]["rank1"]).tolist() == [1.0, 0.0]
    assert decode_groups(record["items"]["group"]).tolist() == [0, 1], "identities 3 and 7, by query"


@given(st.lists(st.sampled_from([-1, 5, 2, 9]), min_size=1, max_size=30))
def test_groups_survive_their_encoding(labels: list[int]) -> None:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    assert decode_groups(encode_groups(np.array(labels))).tolist() == [numbers[label] for label in labels]


def test_queries_of_one_person_are_one_observation(tmp_path: Path) -> None:
    """Each identity has ten queries with the same outcome: the intervals are those of ten times fewer queries."""
    rng = np.random.default_rng(0)
    plain, dcal = rng.random((2, 12)).round(4)
    for attention, by_person in (("none", plain), ("dcal", dcal)):
        write_queries(tmp_path / "runs", attention, np.repeat(by_person, 10), np.repeat(np.arange(12), 10))
    tabulate(configure(tmp_path))
    results = load_all(tmp_path / "results")
    spec = Spec("people", ["*"], by=["attention"], against={"attention": "none"})
    (row, other) = make_table(spec, results).rows
    expected = paired_comparison(dcal, plain, margin=0.01)
    assert row.difference is not None and row.difference.groups == 12 and row.difference.items == 120
    assert (row.difference.low, row.difference.high) == pytest.approx((expected.low, expected.high))
    assert other.interval == pytest.approx(mean_interval(plain))
    assert "over 120 test items of 12 identities" in markdown(make_table(spec, results))
    text = (tmp_path / "results" / "reid-people.json").read_text()
    assert text.count("u32:120:") == 1, "runs judged on the same queries share them"

    (tmp_path / "results" / "reid-people.json").write_text(text.replace('"groups"', '"other"'))
    old = make_table(spec, load_all(tmp_path / "results"))
    assert [(row.interval, row.difference) for row in old.rows] == [(None, None)] * 2
    assert "identities of the queries are not recorded: collect those runs anew" in markdown(old)


def test_only_declared_comparisons_have_a_verdict_of_their_own(tmp_path: Path) -> None:
    for seed, right in enumerate([4, 5, 4, 6, 5, 4, 5, 3]):
        for attention, wrong in (
            ("none", 14 + seed % 2),
            ("glca", right),
            ("pwca", right + 1),
            ("dcal", 14 - seed % 2),
        ):
            write_run(tmp_path / "runs", seed, wrong, attention)
    tabulate(configure(tmp_path))
    results = load_all(tmp_path / "results")
    spec = Spec("birds", ["*"], by=["attention"], against={"attention": "none"}, primary=["glca", "dcal", "later"])
    lines = {line.split(" | ")[0][2:]: line for line in markdown(make_table(spec, results)).splitlines() if "|" in line}
    assert "| 0.008 | better |" in lines["glca"], "sign-flip over eight seeds: 2 / 256"
    assert "| 0.008 | better, exploratory |" in lines["pwca"] and "| undecided |" in lines["dcal"]
    note = markdown(make_table(spec, results))
    assert "Holm's correction: glca; dcal; later." in note and "within ±0.5 they count as equivalent" in note
    wide = make_table(Spec("birds", ["*"], by=["attention"], against={"attention": "none"}, margin=50.0), results)
    assert {row.difference.verdict for row in wide.rows if row.difference} == {"equivalent"}
    assert "within ±50" in markdown(wide) and "all are exploratory" in markdown(wide)


def test_a_run_in_which_no_query_has_a_match_gets_a_row_without_interval(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", 0, 0)
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(
        json.dumps(result | {"primary_metric": "mAP", "metrics": {"mAP": 0.0, "rank1": 0.0}})
    )
    nothing = {"average_precision": np.zeros(3), "first_rank": np.zeros(3), "valid": np.zeros(3, dtype=bool)}
    np.savez(folder / "items.npz", index=np.arange(3), label=np.zeros(3), **nothing)
    tabulate(configure(tmp_path))
    table = make_table(Spec("any", ["*"]), load_all(tmp_path / "results"))
    assert "| all | 0.00 | – |" in markdown(table)


@pytest.mark.parametrize("file", ["result.json", "config_resolved.yaml", "versions.json", "metrics.jsonl", "items.npz"])
@pytest.mark.parametrize("fault", ["torn", "missing"])
def test_a_faulty_run_is_named_and_left_out(runs: Path, file: str, fault: str) -> None:
    path = runs / "fgvc" / "birds" / "id-dcal" / "seed=1" / file
    if fault == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 3])
    else:
        path.unlink()
    found, problems = collect(runs)
    assert len(found["fgvc/birds"]) == 5
    if (file, fault) != ("result.json", "missing"):  # then it is not finished, which is no fault
        assert len(problems) == 1 and str(path.parent) in problems[0]


@pytest.mark.parametrize(
    ("file", "text"), [("result.json", "[]"), ("result.json", "null"), ("metrics.jsonl", "3\n"), ("versions.json", "1")]
)
def test_a_file_of_another_kind_is_named(runs: Path, file: str, text: str) -> None:
    (runs / "fgvc" / "birds" / "id-dcal" / "seed=0" / file).write_text(text)
    found, (problem,) = collect(runs)
    assert len(found["fgvc/birds"]) == 5 and "seed=0" in problem


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "null"])
def test_a_file_without_records_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"mine\.json: cannot be read"):
        load_all(tmp_path)


def test_items_of_another_run_are_noticed(runs: Path) -> None:
    folder = runs / "fgvc" / "birds"
    shutil.copy(folder / "id-none" / "seed=0" / "items.npz", folder / "id-dcal" / "seed=0")
    (problem,) = collect(runs)[1]
    assert "seed=0/items.npz" in problem and "mean top1" in problem


def test_the_whole_way(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs.parent
    page = folder / "README.md"
    page.write_text(PAGE.replace("later -->", "later -->\nold"))
    (runs / "fgvc" / "birds" / "id-none" / "seed=2" / "result.json").write_text("{")
    tabulate(configure(folder))
    told = capsys.readouterr()
    assert "left out" in told.err and "seed=2" in told.err
    text = page.read_text()
    assert text.startswith("before\n") and "between\n" in text and "No runs yet." in text and "old" not in text
    assert "| none | 78.75 ± 1.77 |" in text and "| dcal | 87.50 ± 2.50 |" in text
    assert "| +10.00 [+0.98, +19.02] | 0.031 | 0.500 | undecided: 2 seeds |" in text, "on the two seeds that both have"
    assert "5 runs" in text and "commit 01234567" in text and "2 CPU cores" in text
    assert (folder / "figures" / "birds.png").stat().st_size > 5000
    html = (folder / "html" / "birds.html").read_text()
    assert "data:image/png;base64," in html and "http" not in html

    before = contents(folder)
    tabulate(configure(folder))  # again
    tabulate(configure(folder, runs=str(folder / "nowhere")))  # from the records alone
    assert contents(folder) == before
    page.write_text(PAGE)
    tabulate(configure(folder, runs=str(folder / "nowhere")))
    assert contents(folder) == before


def test_nothing_is_written_without_being_asked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Published records of the same configuration and seed stay, and the tables are those that writing would print."""
    folder = runs.parent
    (folder / "README.md").write_text(PAGE)
    tabulate(configure(folder))
    shutil.rmtree(runs)
    write_run(runs, 0, 2)
    before = contents(folder)
    capsys.readouterr()
    tabulate(configure(folder, write=False))
    printed, told = capsys.readouterr()
    assert contents(folder) == before
    assert "| dcal | 89.17 ± 5.20 |" in printed and "Nothing was written; write=true" in told
    tabulate(configure(folder, write=True))
    (row,) = [line for line in printed.splitlines() if line.startswith("| dcal |")]
    assert row in capsys.readouterr().out and row in (folder / "README.md").read_text()


def test_two_commands_do_not_write_into_one_place(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = runs.parent / "records"
    places = (f"out={out}", f"figures={out}", f"html={out}", "pages=[]")
    out.mkdir()
    with acquire_lock(out):
        said = refused("results", f"runs={runs}", "write=true", *places, capfd=capfd)
        assert "is being worked on by process" in said and not list(out.glob("*.json"))
    run_command("results", f"runs={runs}", "write=true", *places)
    assert [file.name for file in out.glob("*.json")] == ["fgvc-birds.json"]


def test_without_published_records_the_tables_are_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs.parent)
    config = configure(runs.parent, write=False, out=str(runs.parent / "none yet"))
    tabulate(config)
    assert "| dcal | 87.50 ± 2.50 |" in capsys.readouterr().out
    assert contents(runs.parent) == {**before, "tables.yaml": (runs.parent / "tables.yaml").read_bytes()}
    tabulate(configure(runs.parent, write=False, runs=str(runs.parent / "nowhere")))
    assert "no finished run was read" in capsys.readouterr().err


def test_a_key_of_written_files_needs_write(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("results", f"runs={runs}", "figures=pictures")
    assert "figures=pictures: has no effect unless files are written; add write=true" in capsys.readouterr().err


def test_a_renamed_copy_alone_is_left_out(runs: Path) -> None:
    own = runs / "fgvc" / "birds" / "id-dcal" / "seed=0"
    backup = own.rename(own.with_name("seed=0.bak"))
    found, (problem,) = collect(runs)
    assert len(found["fgvc/birds"]) == 5
    assert problem.startswith(f"{backup}: a copy of a run, not read; its own folder is id-dcal/seed=0")


def test_configurations_may_lack_a_key_that_others_have() -> None:
    configs: list[dict[str, Any]] = [{"attention": "none"}, {"attention": "dcal", "attention.glca.blocks": 1}]
    records = [{"config": config, "cfg_id": config["attention"]} for config in configs]
    assert differing(records) == ["attention"]


def test_runs_are_merged_by_configuration_and_seed(runs: Path) -> None:
    folder = runs.parent
    tabulate(configure(folder))
    first = load_results(folder / "results" / "fgvc-birds.json")
    shutil.rmtree(runs)
    write_run(runs, 0, 2)
    write_run(runs, 7, 3)
    tabulate(configure(folder))
    second = load_results(folder / "results" / "fgvc-birds.json")
    assert len(second["runs"]) == len(first["runs"]) + 1
    ((again,),) = [[r for r in second["runs"] if (r["cfg_id"], r["seed"]) == ("id-dcal", 0)]]
    assert again["metrics"]["top1"] == 0.95
    assert [r for r in second["runs"] if r["seed"] in (1, 2)] == [r for r in first["runs"] if r["seed"] in (1, 2)]


def test_without_a_description_rows_are_what_differs(runs: Path) -> None:
    tabulate(configure(runs.parent))
    table = make_table(Spec("any", ["*"]), load_all(runs.parent / "results"))
    assert [row.label for row in table.rows] == ["dcal", "none"]
    assert "95 % interval" in markdown(table)


@pytest.mark.parametrize(
    ("attention", "label"),
    [
        ("none", "none"),
        ("pwca", "pwca, clean, equal"),
        ("glca", "glca, cls, equal"),
        ("dcal", "dcal, cls, clean, equal"),
    ],
)
def test_options_of_a_branch_that_is_off_are_no_part_of_a_label(attention: str, label: str) -> None:
    options = {
        "attention.glca.readout": "cls",
        "attention.pwca.stream": "clean",
        "task.loss_weighting": "equal",
    }
    record = {"config": {"attention": attention, **options}, "cfg_id": "any"}
    assert label_of(record, ["attention", *options]) == label


@pytest.mark.parametrize(("attention", "metrics"), [("none", {"mAP": 0.5, "mAP_sa": 0.5}), ("dcal", {"mAP": 0.5})])
def test_where_sa_is_alone_its_figures_are_the_primary_metric(attention: str, metrics: dict[str, float]) -> None:
    record = {
        "config": {"attention": attention},
        "primary_metric": "mAP",
        "metrics": {"mAP": 0.5},
        "items": {"count": 0},
    }
    assert with_sa(record) == {**record, "metrics": metrics}


def test_a_row_of_different_configurations_is_refused(runs: Path) -> None:
    tabulate(configure(runs.parent))
    with pytest.raises(UserError, match="differ in attention: name them in `by`"):
        make_table(Spec("mixed", ["*"], by=["dataset"]), load_all(runs.parent / "results"))


def test_runs_that_a_table_does_not_foresee_spoil_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As when somebody tries a key on a recipe whose table knows nothing of it."""
    folder = runs.parent
    (folder / "README.md").write_text(PAGE)
    tabulate(configure(folder))
    before = (folder / "README.md").read_text()
    other = write_run(runs / "more", 0, 3)
    config = (other / "config_resolved.yaml").read_text().replace("top_ratio: 0.1", "top_ratio: 0.5")
    (other / "config_resolved.yaml").write_text(config)
    (other / "result.json").write_text((other / "result.json").read_text().replace("id-dcal", "id-half"))
    other.parent.rename(other.parent.with_name("id-half"))
    capsys.readouterr()
    tabulate(configure(folder))
    told = capsys.readouterr()
    assert "left as it is: tables.yaml, birds: the row 'dcal' mixes runs that differ in attention.glca.top" in told.err
    assert (folder / "README.md").read_text() == before
    assert "| dcal, 0.5 |" in told.out and "| none |" in told.out
    assert (folder / "html" / "fgvc-birds.html").is_file()


def test_the_papers_figures_are_a_column_only_where_it_has_some(runs: Path) -> None:
    tabulate(configure(runs.parent))
    results = load_all(runs.parent / "results")
    spec = Spec("any", ["*"], by=["attention"])
    assert "paper" not in markdown(make_table(replace(spec, paper={"glca": 83.1}), results))
    text = markdown(make_table(replace(spec, paper={"dcal": 84.6}), results))
    assert " | paper |" in text and text.count(" | 84.6 |") == 1


def test_losses_and_counts_are_no_percentages(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs.parent
    for result in runs.rglob("result.json"):
        found = json.loads(result.read_text())
        found["metrics"]["images"] = ITEMS
        result.write_text(json.dumps(found))
    entry = {"runs": "fgvc-birds", "by": ["attention"], "columns": ["nll", "images", "top1"]}
    config = configure(folder)
    (folder / "tables.yaml").write_text(OmegaConf.to_yaml({"birds": entry}))
    tabulate(config)
    assert "| none | 0.500 ± 0.000 | – | 40 ± 0 | 79.17 ± 1.44 | 3 |" in capsys.readouterr().out
    html = (folder / "html" / "birds.html").read_text()
    assert "<td>0.500</td><td>40</td>" in html and "<td>50.00</td>" not in html


def test_a_run_that_lacks_a_metric_does_not_get_that_of_another_seed(runs: Path) -> None:
    tabulate(configure(runs.parent))
    results = load_all(runs.parent / "results")
    (found,) = results.values()
    for record in found["runs"]:
        record["metrics"]["nll"] = float(record["seed"])
        if record["seed"] == 0:
            del record["metrics"]["nll"]
    table = html(make_table(Spec("any", ["*"], by=["attention"], columns=["top1", "nll"]), results), None)
    shown = [re.findall(r"<td>(.*?)</td>", row) for row in table.partition("<h2>Runs")[2].split("<tr>")[2:]]
    assert [(cells[2], cells[6]) for cells in shown] == [("0", "–"), ("1", "1.000"), ("2", "2.000")] * 2


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("nll", "0.500"), ("nll_sa", "0.500"), ("zoo/nll", "0.500"), ("zoo/queries", "0"), ("zoo/top1_sa", "50.00")],
)
def test_a_figure_of_one_data_set_is_shown_as_that_of_all(metric: str, shown: str) -> None:
    assert metric_values(metric, [0.5]) == shown


def test_an_axis_shows_all_seeds_and_cuts_a_long_interval() -> None:
    short = Row("a", [], {"top1": [0.80, 0.82]}, Interval(0.79, 0.83), None)
    long = Row("b", [], {"top1": [0.81, 0.84]}, Interval(0.40, 1.00), None)
    assert axis_range([short]) == pytest.approx((0.7884, 0.8316))
    low, high = axis_range([short, long])
    assert 0.75 < low < 0.79 and 0.84 < high < 0.89


@pytest.mark.parametrize("page", ["README.md", "experiments/README.md"])
def test_committed_pages_are_those_of_the_committed_records(page: str) -> None:
    root = experiments_dir().parent
    if not (root / page).is_file():
        pytest.skip("no checkout")
    results = load_all(experiments_dir() / "results")
    described = specs(parse(experiments_dir() / "tables.yaml", read_yaml))
    text = (root / page).read_text(encoding="utf-8")
    wanted = [spec for spec in described if f"results:{spec.name} -->" in text]
    assert fill(text, {spec.name: markdown(make_table(spec, results)) for spec in wanted}) == text


def test_wrong_descriptions_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"birds: unknown \['agianst'\]"):
        specs({"birds": {"runs": "x", "agianst": {}}})
    with pytest.raises(UserError, match="birds: primary names comparisons, and against is missing"):
        specs({"birds": {"runs": "x", "primary": ["dcal"]}})
    for entries, message in (
        ({"birds": None}, "birds: give the keys of a table, such as runs"),
        (["birds"], "tables.yaml: give each table a name"),
    ):
        with pytest.raises(UserError, match=message):
            specs(entries)
    (spec,) = specs({"birds": {"runs": "x", "columns": "top1", "by": None, "where": {"attention": "dcal"}}})
    assert (spec.runs, spec.columns, spec.by) == (["x"], ["top1"], None)
    with pytest.raises(UserError, match=r"tables=.*tabels\.yaml: no such file"):
        tabulate(configure(tmp_path, tables=str(tmp_path / "tabels.yaml")))
    with pytest.raises(UserError, match=r"results:brids .*tables.yaml has birds"):
        fill("<!-- results:brids -->\n<!-- /results -->", {"birds": ""})
