"""Tables as text: the names of metrics, cells, Markdown, and what the numbers rest on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import mean, median, stdev

from dcal.metric.interval import Interval
from dcal.metric.statistics import FEWEST_SEEDS, PairedComparison
from dcal.report.grid import Grid, markdown_rows
from dcal.report.items import outcomes
from dcal.report.records import RunRecord
from dcal.report.table import Row, Table, show
from dcal.run.result import COUNTS

TITLES = {
    "top1": "top-1",
    "top1_sa": "top-1, SA",
    "top1_glca": "top-1, GLCA",
    "rank1": "rank-1",
    "part_hit": "parts hit",
    "part_hit_chance": "chance",
    "pointing": "on the bird",
    "pointing_chance": "chance",
    "mAP_sa": "mAP, SA",
    "mAP_glca": "mAP, GLCA",
}
"""Columns of tables, by metric."""

BRANCHES = {"": "combined", "sa": "SA", "glca": "GLCA", "pwca": "PWCA"}
"""By suffix of a metric's name. PWCA has losses only."""

METRICS = {
    "top1": "top-1",
    "top1_macro": "top-1, mean of classes",
    "top5": "top-5",
    "nll": "NLL",
    "mAP": "mAP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "mINP": "mINP",
}
"""Metrics without their branch."""
VARIANTS = {**BRANCHES, "rerank": "re-ranked"}
ONE_BRANCH = {"": "SA", "rerank": "re-ranked"}
"""Where SA is all there is at test time."""

DIFFERENCE = ("difference", "p", "sign-flip p", "verdict")
"""Columns of a comparison."""


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text; shares in percent."""
    spec = table.spec
    columns = list(table.rows[0].values)
    header = [", ".join(key.rpartition(".")[2] for key in spec.by or ["configuration"])]
    header += [key.rpartition(".")[2] for key in spec.show]
    header += [title_of(columns[0]), "95 % interval"]
    if spec.against:
        header += [f"against {', '.join(map(show, spec.against.values()))}", *DIFFERENCE[1:]]
    header += [title_of(key) for key in columns[1:]] + ["seeds", "min/run"]
    header += ["paper"] if has_paper(table) else []
    return header, [row_cells(table, row, columns) for row in table.rows]


def has_paper(table: Table) -> bool:
    """Whether the paper has a figure for one of the rows."""
    return any(row.label in table.spec.paper for row in table.rows)


def row_cells(table: Table, row: Row, columns: Sequence[str]) -> list[str]:
    spec = table.spec
    texts = [row.label, *(show(row.records[0]["config"].get(key)) for key in spec.show)]
    texts += [
        metric_values(columns[0], row.values[columns[0]]),
        "–" if row.interval is None else percents(row.interval),
    ]
    if spec.against:
        exploratory = bool(spec.primary) and row.label not in spec.primary
        texts += ["–"] * len(DIFFERENCE) if row.difference is None else difference_cells(row.difference, exploratory)
    texts += [metric_values(key, row.values[key]) for key in columns[1:]]
    texts += [str(len(row.records)), f"{median(record['train_seconds'] for record in row.records) / 60:.1f}"]
    return texts + ([show(spec.paper.get(row.label, "–"))] if has_paper(table) else [])


def grid_of(table: Table) -> Grid:
    """A table that has rows, for every format; its numbers for programs are the digits of its cells."""
    spec, columns = table.spec, list(table.rows[0].values)
    header, rows = cells(table)
    names = [[text] for text in header[: 1 + len(spec.show)]]
    names += [[columns[0], f"{columns[0]}_sd"], ["low", "high"]]
    if spec.against:
        names += [["difference", "difference_low", "difference_high"], ["p"], ["sign_flip_p"], ["verdict"]]
    names += [[key, f"{key}_sd"] for key in columns[1:]] + [["seeds"], ["minutes_per_run"]]
    names += [["paper"]] if has_paper(table) else []
    return Grid(
        spec.name,
        spec.title or spec.name,
        header,
        rows,
        footnote(table),
        [name for own in names for name in own],
        [[text for cell, own in zip(row, names, strict=True) for text in split(cell, len(own))] for row in rows],
    )


def split(cell: str, count: int) -> list[str]:
    """The numbers of a cell, such as `87.50 ± 2.50`, one by one; empty texts for those that it lacks."""
    if count == 1:
        return ["" if cell == "–" else cell]
    found = re.findall(r"[+-]?[\d.]+", cell.replace("−", "-"))
    return [*found, *[""] * (count - len(found))]


def percents(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"


def difference_cells(difference: PairedComparison, exploratory: bool = False) -> list[str]:
    """In percentage points, with interval; p of the t test and of the sign-flip test; and the verdict."""
    mean_, low, high = (f"{100 * value:+.2f}" for value in (difference.mean, difference.low, difference.high))
    points = f"{mean_} [{low}, {high}]".replace("-", "−")
    verdict = difference.verdict
    if 1 < difference.seeds < FEWEST_SEEDS:
        verdict += f": {difference.seeds} seeds"
    if exploratory:
        verdict += ", exploratory"
    signs = "–" if difference.seeds == 1 else p_text(difference.p_sign_flip)
    return [points, p_text(difference.p), signs, verdict]


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def markdown(table: Table) -> str:
    """The table and what its numbers rest on."""
    spec = table.spec
    lines = []
    if table.rows:
        header, rows = cells(table)
        lines += markdown_rows(header, rows)
        lines += ["", footnote(table)]
    else:
        lines += ["No runs yet."]
    if spec.command:
        lines += ["", "```", spec.command.strip(), "```"]
    return "\n".join(lines)


def footnote(table: Table) -> str:
    """Number of runs, what they cost, where and with which code they ran, and what the intervals cover."""
    records = [record for row in table.rows for record in row.records]
    hours = sum(record["train_seconds"] for record in records) / 3600
    where = [*distinct(record["device"] or "device not recorded" for record in records)]
    where += [f"torch {version}" for version in distinct(record["versions"].get("torch", "?") for record in records)]
    plural = "s" if len(records) > 1 else ""
    text = f"{len(records)} run{plural}, {hours:.1f} h of training in all ({', '.join(where)}); commit "
    text += f"{', '.join(distinct(map(commit_of, records)))}. {intervals_note(table)}"
    compared = [row.difference for row in table.rows if row.difference is not None]
    if compared and table.spec.primary:
        declared = "; ".join(table.spec.primary)
        text += f" {differences_note(compared)} Declared before the runs, verdicts after Holm's correction: {declared}."
    elif compared:
        text += f" {differences_note(compared)} No comparison was declared before the runs: all are exploratory."
    return text if max(len(row.records) for row in table.rows) == 1 else text + " ±: standard deviation over seeds."


def intervals_note(table: Table) -> str:
    """Over what the intervals are, and what they leave out."""
    sets = {record["items"]["digest"]: record for row in table.rows for record in row.records}
    metric = next(iter(table.rows[0].values))
    found = [(record, outcomes([record], metric)) for record in sets.values()]
    judged = [
        f"{record['items']['count']:,} {record['split']} items".replace(",", " ")
        + ("" if own is None or own.groups is None else f" of {own.groups.max() + 1} identities")
        for record, own in found
    ]
    seeds = {len(row.records) for row in table.rows}
    several = max(seeds) > 1
    text = f"Intervals: 95 %, over {'seeds and ' if several else ''}{' or '.join(judged)}"
    if any(own is None and record["config"]["task"] == "reid" for record, own in found):
        text += "; none where the identities of the queries are not recorded: collect those runs anew"
    if not several:
        return text + ". One training each: how much another one would differ is not in them."
    return text + ("; over the items alone where there is one seed." if 1 in seeds else ".")


def differences_note(compared: Sequence[PairedComparison]) -> str:
    """How the verdicts of comparisons with one margin came about."""
    margin = compared[0].margin
    text = "Differences in points, paired by seed and item"
    text += "." if margin is None else f"; within ±{100 * margin:g} they count as equivalent."
    if any(1 < difference.seeds < FEWEST_SEEDS for difference in compared):
        text += f" With fewer than {FEWEST_SEEDS} seeds the sign-flip p cannot go below 0.05: no verdict."
    return text


def distinct(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts))


def commit_of(record: RunRecord) -> str:
    git = record["git"]
    return (git.get("commit") or "unknown")[:8] + (" (changed)" if git.get("dirty") else "")


def title_of(key: str) -> str:
    """The title of a metric's column."""
    return TITLES.get(key, key)


def metric_title(key: str) -> str:
    """The title of a metric without a branch."""
    return METRICS.get(key, key)


def split_metric(key: str) -> tuple[str, str]:
    """A metric's name and its branch: `top1_macro_sa` is (`top1_macro`, `sa`)."""
    name, _, last = key.rpartition("_")
    return (name, last) if name and last in VARIANTS else (key, "")


def seeds_text(seeds: Sequence[int | None]) -> str:
    """Seeds in few words: `0–2, 5`."""
    known = sorted(seed for seed in seeds if seed is not None)
    starts = [seed for seed in known if seed - 1 not in known]
    ends = [seed for seed in known if seed + 1 not in known]
    ranges = [f"{low}–{high}" if low < high else str(low) for low, high in zip(starts, ends, strict=True)]
    return ", ".join(ranges) or "not recorded"


def base_name(metric: str) -> str:
    """A metric without its branch and without the data set of several that it is of: `nll` of `zoo/nll_sa`."""
    return split_metric(metric.rpartition("/")[2])[0]


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss."""
    return base_name(metric) == "nll"


def scale_of(metric: str) -> tuple[float, int]:
    """The factor by which a table shows a metric, and the decimals: of shares in percent."""
    if base_name(metric) in COUNTS:
        return 1.0, 0
    return (1.0, 3) if lower_is_better(metric) else (100.0, 2)


def metric_values(metric: str, values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds as a table shows them; a dash if there are none."""
    if not values:
        return "–"
    factor, decimals = scale_of(metric)
    spread = f" ± {factor * stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{factor * mean(values):.{decimals}f}{spread}"
