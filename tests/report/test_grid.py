"""Tables in four formats: the same digits, LaTeX that compiles, and files that a paper takes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from recorded_runs import configure, write_run

from dcal.commands.results import tabulate
from dcal.report.format import grid_of, markdown, split
from dcal.report.grid import FORMATS, Grid, as_number, escape, render
from dcal.report.records import load_all
from dcal.report.table import Spec, Table, make_table

HARD = "50 % of A&B, a_b ^ ~ # $ {x} \\ − – ± × < > | é"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for seed, (plain, dcal) in enumerate([(8, 4), (9, 5), (8, 6)]):
        write_run(tmp_path / "runs", seed, plain, "none")
        write_run(tmp_path / "runs", seed, dcal)
    tabulate(configure(tmp_path))
    return tmp_path


def table_in(folder: Path) -> Table:
    spec = Spec("birds", ["*"], HARD, by=["attention"], columns=["top1", "nll"], against={"attention": "none"})
    return make_table(spec, load_all(folder / "results"))


def digits(text: str) -> list[str]:
    return re.findall(r"\d+\.\d+", text)


def test_all_formats_have_the_same_digits(written: Path) -> None:
    grid = grid_of(table_in(written))
    own = [digits(" ".join(row)) for row in grid.rows]
    lines = [line for line in render(grid, "latex").splitlines() if line.startswith(("none", "dcal"))]
    assert [digits(line) for line in lines] == own
    assert [digits(line) for line in markdown(table_in(written)).splitlines()[2:4]] == own
    rows = list(csv.DictReader(io.StringIO(render(grid, "csv"))))
    assert [digits(" ".join(row.values())) for row in rows] == own
    assert rows[0]["attention"] == "dcal" and (rows[0]["top1"], rows[0]["top1_sd"]) == ("87.50", "2.50")
    assert (rows[0]["difference"], rows[0]["seeds"], rows[0]["verdict"]) == ("+8.33", "3", "undecided: 3 seeds")
    assert rows[1]["difference"] == "" and set(rows[0]) == set(grid.columns)
    assert json.loads(render(grid, "json"))[0]["top1"] == 87.5


@pytest.mark.parametrize(
    ("cell", "count", "parts"),
    [
        ("87.50 ± 2.50", 2, ["87.50", "2.50"]),
        ("87.50", 2, ["87.50", ""]),
        ("−1.20 [−2.00, +0.40]", 3, ["-1.20", "-2.00", "+0.40"]),
        ("79.0 – 81.5", 2, ["79.0", "81.5"]),
        ("–", 3, ["", "", ""]),
        ("–", 1, [""]),
        ("undecided: 3 seeds", 1, ["undecided: 3 seeds"]),
    ],
)
def test_a_cell_is_split_into_its_numbers(cell: str, count: int, parts: list[str]) -> None:
    assert split(cell, count) == parts


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0", 0), ("+0.50", 0.5), ("-3", -3), ("1e-05", 1e-5), ("01234567", "01234567"), ("12e45678", "12e45678")]
    + [(text, text) for text in ("nan", "inf", "1_0", "", "0–2", "< 0.001")],
)
def test_what_is_a_number_for_programs(cell: str, value: object) -> None:
    """Not an id of eight hexadecimal digits, which would lose its zeros or be infinite."""
    assert as_number(cell) == value and type(as_number(cell)) is type(value)


def test_latex_is_written_with_booktabs() -> None:
    grid = Grid("a-b", "50 % & more", ["x_1", "y"], [["one", "1.0 ± 0.1"], ["two", "−2.0"]], "Note.", [], [])
    assert render(grid, "latex").splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50 \% \& more}",
        r"\label{tab:a-b}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"x\_1 & y \\",
        r"\midrule",
        r"one & 1.0 $\pm$ 0.1 \\",
        r"two & $-$2.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip{\footnotesize Note.\par}",
        r"\end{table}",
    ]
    assert escape("a_b ~ \\") == r"a\_b \textasciitilde{} \textbackslash{}"


def test_latex_compiles(written: Path) -> None:
    program = next(filter(None, map(shutil.which, ("pdflatex", "tectonic"))), None)
    if program is None:
        pytest.skip("no TeX is installed (pdflatex or tectonic); the text is compared above")
    text = render(grid_of(table_in(written)), "latex")
    page = f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{text}\n\\end{{document}}\n"
    (written / "page.tex").write_text(page, encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if program.endswith("pdflatex") else []
    done = subprocess.run(
        [program, *options, "page.tex"], cwd=written, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0 and (written / "page.pdf").is_file(), done.stdout[-2000:]


def test_a_paper_finds_its_files_beside_the_page(written: Path) -> None:
    files = {name: (written / "html" / name).read_bytes() for name in ("birds.tex", "birds.csv", "birds.pdf")}
    assert files["birds.pdf"].startswith(b"%PDF") and (written / "figures" / "birds.png").is_file()
    assert b"\\toprule" in files["birds.tex"] and files["birds.csv"].startswith(b"attention,top1,")
    tabulate(configure(written))
    assert {name: (written / "html" / name).read_bytes() for name in files} == files


def test_the_terminal_prints_any_format(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in FORMATS:
        capsys.readouterr()
        tabulate(configure(written, write=False, format=kind))
        printed = capsys.readouterr()
        assert "87.5" in printed.out and "Nothing was written" in printed.err
        if kind == "json":
            assert json.loads(printed.out)["birds"][0]["top1"] == 79.17
