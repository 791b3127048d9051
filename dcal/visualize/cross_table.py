"""Runs × data sets: the table of cross-domain evaluation, for the terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcal.utils.text import aligned

FILE = "cross_domain.json"
"""In a run directory: what `dcal-evaluate datasets=[...]` has found."""
Cells = Mapping[str, Mapping[str, float]]
"""By data set: `value`, and where they are known `low` and `high`, in [0, 1]."""


def shown(cell: Mapping[str, float] | None) -> str:
    """A cell in percent, with its interval."""
    if cell is None:
        return "–"
    interval = f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" if {"low", "high"} <= cell.keys() else ""
    return f"{100 * cell['value']:.1f}{interval}"


def cross_text(rows: Sequence[tuple[str, Cells]], metric: str) -> str:
    """The table in aligned columns."""
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    table = [[f"{metric} in %", *columns], *([label, *(shown(cells.get(c)) for c in columns)] for label, cells in rows)]
    return "\n".join(aligned(table))


def draw_cross_table(rows: Sequence[tuple[str, Cells]], metric: str, path: Path) -> None:
    """Draws the table, darker where the value is higher; a cell that was not evaluated is empty."""
    import numpy as np
    from matplotlib.figure import Figure  # half a second: only where a picture is asked for

    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    values: Any = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(2.2 + 1.7 * len(columns), 1.3 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, (_, cells) in enumerate(rows):
        for column, name in enumerate(columns):
            if name in cells:
                values[row, column] = cells[name]["value"]
                colour = "white" if values[row, column] > 0.6 else "black"
                words = shown(cells[name]).replace(" ", "\n", 1)
                axes.text(column, row, words, ha="center", va="center", fontsize=8, color=colour)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False, fontsize=8)
    axes.set_title(f"{metric} (%), 95 % interval", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
