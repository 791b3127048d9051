"""Tables of text in every format: Markdown to read, LaTeX for a paper, CSV and JSON for programs; the same digits."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

FORMATS = ("markdown", "latex", "csv", "json")
LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
}
"""Characters that LaTeX takes for commands, or that its fonts lack."""
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?(e[+-]\d+)?", re.ASCII)
"""As tables write them; the ids `01234567` and `1234e567` are none."""


class Grid(NamedTuple):
    """One table twice: as people read it and as programs do."""

    name: str
    """Letters, digits and hyphens."""
    title: str
    header: list[str]
    rows: list[list[str]]
    note: str
    """What the numbers rest on."""
    columns: list[str]
    """For programs: one number a column, without its interval."""
    numbers: list[list[Any]]


def render(grid: Grid, kind: str) -> str:
    """The table in one of `FORMATS`, without a line break at its end."""
    if kind == "latex":
        return latex(grid)
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([grid.columns, *grid.numbers])
        return text.getvalue().rstrip("\n")
    if kind == "json":
        return json.dumps(objects(grid), indent=1, ensure_ascii=False)
    widths = [max(3, *map(len, column)) for column in zip(grid.header, *grid.rows, strict=True)]
    header, *rows = (
        [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in (grid.header, *grid.rows)
    )
    return "\n".join([*markdown_rows(header, rows), *(["", grid.note] if grid.note else [])])


def render_all(grids: Sequence[Grid], kind: str) -> str:
    """Several tables: one JSON object by name, in other formats an empty line between them."""
    if kind == "json":
        return json.dumps({grid.name: objects(grid) for grid in grids}, indent=1, ensure_ascii=False)
    return "\n\n".join(render(grid, kind) for grid in grids)


def objects(grid: Grid) -> list[dict[str, Any]]:
    """The rows for programs as JSON objects."""
    return [dict(zip(grid.columns, map(as_number, row), strict=True)) for row in grid.numbers]


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = ([cell.replace("|", r"\|") for cell in line] for line in (header, ["---"] * len(header), *rows))
    return [f"| {' | '.join(line)} |" for line in cells]


def latex(grid: Grid) -> str:
    """A floating table with the rules of the package booktabs, which a document must load."""
    kinds = "".join("r" if all(looks_numeric(row[n]) for row in grid.rows) else "l" for n in range(len(grid.header)))
    lines = [" & ".join(map(escape, row)) + r" \\" for row in (grid.header, *grid.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(grid.title)}}}",
            rf"\label{{tab:{re.sub(r'[^a-zA-Z0-9_-]+', '-', grid.name)}}}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip{{\footnotesize {escape(grid.note)}\par}}"] if grid.note else []),
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(LATEX.get(character, character) for character in text)


def looks_numeric(cell: str) -> bool:
    """Whether a cell begins as a number does, or is empty or a dash."""
    return not cell or cell[0] in "0123456789+−-–<"


def as_number(cell: Any) -> Any:
    """A text that is a number as one, anything else as it is."""
    if not isinstance(cell, str) or not NUMBER.fullmatch(cell):
        return cell
    return int(cell) if cell.lstrip("+-").isdecimal() else float(cell)
