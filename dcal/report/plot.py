"""One figure per table: the rows with their intervals, what they cost, and how the losses were weighed."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import Any

from dcal.report.format import scale_of, title_of
from dcal.report.table import Row, Table, axis_range

HUES = {"sa": "#4269d0", "glca": "#efb118", "pwca": "#ff725c"}


def draw_table(table: Table, path: Path) -> None:
    """Draws a table that has rows, as PNG or PDF by the suffix; the same table gives the same file.

    Panels: the first metric of every row with its interval and the seeds as dots; the same against the time
    of a training image; where losses were weighed, the weights by epoch.
    """
    from matplotlib.figure import Figure  # half a second: only where figures are written

    weighed = [row for row in table.rows if weights(row)]
    panels = 2 + bool(weighed)
    height = 1.4 + 0.32 * max(5, len(table.rows))
    figure = Figure(figsize=(4.2 * panels, height), layout="constrained")
    axes = figure.subplots(1, panels)
    metric = next(iter(table.rows[0].values))
    draw_rows(axes[0], table, metric)
    draw_cost(axes[1], table, metric)
    if weighed:
        draw_weights(axes[2], weighed[-1])
    figure.suptitle(table.spec.title or table.spec.name, fontsize=10, parse_math=False)  # a `$` is no formula
    clock = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}  # nothing that differs next time
    figure.savefig(path, dpi=110, metadata=clock)


def draw_rows(axes: Any, table: Table, metric: str) -> None:
    """Mean and interval per row, from top to bottom."""
    factor = scale_of(metric)[0]
    for height, row in enumerate(table.rows):
        if row.interval is not None:
            axes.plot([factor * end for end in row.interval], [height] * 2, lw=5, color="#4269d0", alpha=0.3)
        seeds = next(iter(row.values.values()))
        axes.plot([factor * value for value in seeds], [height] * len(seeds), ".", color="#4269d0", ms=5, alpha=0.6)
        axes.plot(factor * row.primary, height, "|", color="#1d2f63", ms=14, mew=2)
    labels = [f"{row.label}  ({number})" for number, row in enumerate(table.rows, 1)]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.set_xlim(*(factor * end for end in axis_range(table.rows)))
    axes.set_xlabel(f"{axis_title(metric)}: mean, seeds, 95 % interval", fontsize=8)
    axes.grid(alpha=0.3, axis="x")


def draw_cost(axes: Any, table: Table, metric: str) -> None:
    """Mean per row, by its number, against milliseconds per training image."""
    factor = scale_of(metric)[0]
    for number, row in enumerate(table.rows, 1):
        cost = median(1000 / record["images_per_second"] for record in row.records)
        axes.plot(cost, factor * row.primary, "o", color="#4269d0", alpha=0.6)
        axes.annotate(
            f"({number})", (cost, factor * row.primary), xytext=(4, 3), textcoords="offset points", fontsize=8
        )
    axes.margins(0.1)
    axes.set_xlabel("ms per training image (median over seeds)", fontsize=8)
    axes.set_ylabel(axis_title(metric), fontsize=8)
    axes.grid(alpha=0.3)


def axis_title(metric: str) -> str:
    """The title of a metric, with its unit."""
    return title_of(metric) + (" (%)" if scale_of(metric)[0] == 100 else "")


def weights(row: Row) -> dict[str, list[float]]:
    """By branch: the weight of its loss by epoch, mean over seeds; empty where no loss was weighed."""
    curves = [record["curve"] for record in row.records]
    names = [key for key in curves[0] if key.startswith("train/weight_")]
    return {
        name.removeprefix("train/weight_"): [mean(values) for values in zip(*(c[name] for c in curves), strict=False)]
        for name in names
    }


def draw_weights(axes: Any, row: Row) -> None:
    curves = weights(row)
    for branch, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=branch, color=HUES.get(branch))
    ends = [value for values in curves.values() for value in values]
    axes.set_yscale("log" if max(ends) > 5 * min(ends) else "linear")
    axes.set_xlabel(f"epoch ({row.label})", fontsize=8, parse_math=False)
    axes.set_ylabel("weight of the loss", fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
