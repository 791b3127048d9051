"""Tables as text: cells, Markdown, and what the numbers rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, median, stdev

from dcal.metric.statistics import Difference, Interval
from dcal.report.records import Record
from dcal.report.table import Row, Spec, Table, show

TITLES = {
    "top1": "top-1",
    "top1_sa": "top-1, SA",
    "top1_glca": "top-1, GLCA",
    "rank1": "rank-1",
    "part_hit": "parts hit",
    "part_hit_chance": "by lot",
    "pointing": "on the bird",
    "pointing_chance": "by lot",
    "mAP_sa": "mAP, SA",
    "mAP_glca": "mAP, GLCA",
}


def cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text; metrics in percent."""
    spec = table.spec
    columns = list(table.rows[0].values)
    header = [", ".join(key.rpartition(".")[2] for key in spec.by or ["configuration"])]
    header += [key.rpartition(".")[2] for key in spec.show]
    header += [TITLES.get(columns[0], columns[0]), "95 % interval"]
    if spec.against:
        header += [f"against {', '.join(map(show, spec.against.values()))}", "p", "seeds won"]
    header += [TITLES.get(key, key) for key in columns[1:]] + ["seeds", "min/run"]
    header += ["paper"] if spec.paper else []
    return header, [row_cells(spec, row, columns) for row in table.rows]


def row_cells(spec: Spec, row: Row, columns: Sequence[str]) -> list[str]:
    texts = [row.label, *(show(row.records[0]["config"].get(key)) for key in spec.show)]
    texts += [spread(row.values[columns[0]]), "–" if row.interval is None else percents(row.interval)]
    if spec.against:
        texts += ["–"] * 3 if row.difference is None else difference_cells(row.difference)
    texts += [spread(row.values[key]) for key in columns[1:]]
    texts += [str(len(row.records)), f"{median(record['train_seconds'] for record in row.records) / 60:.1f}"]
    return texts + ([show(spec.paper.get(row.label, "–"))] if spec.paper else [])


def percents(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"


def difference_cells(difference: Difference) -> list[str]:
    """In percentage points, with interval; its p; and under how many seeds it is positive."""
    mean_, low, high, p, seeds, wins = difference
    points = f"{100 * mean_:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]".replace("-", "−")
    return [points, f"{p:.3f}" if p >= 0.001 else "< 0.001", f"{wins}/{seeds}"]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    if not values:
        return "–"
    return f"{100 * mean(values):.2f}" + (f" ± {100 * stdev(values):.2f}" if len(values) > 1 else "")


def markdown(table: Table) -> str:
    """The table and what its numbers rest on."""
    spec = table.spec
    lines = []
    if table.rows:
        header, rows = cells(table)
        lines += ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
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
    judged = " or ".join(
        f"{record['items']['count']:,} {record['split']} items".replace(",", " ")
        for record in {record["items"]["digest"]: record for record in records}.values()
    )
    plural = "s" if len(records) > 1 else ""
    text = f"{len(records)} run{plural}, {hours:.1f} h of training in all ({', '.join(where)}); commit "
    text += f"{', '.join(distinct(map(commit_of, records)))}. Intervals: 95 %, bootstrap over {judged}"
    seeds = max(row.difference.seeds if row.difference else 0 for row in table.rows)
    if seeds:
        text += "; differences in points, paired" + (", over seeds too" if seeds > 1 else "")
    if max(len(row.records) for row in table.rows) == 1:
        return text + ". One seed: how much another training would differ is not in them."
    return text + ". ±: standard deviation over seeds."


def distinct(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts))


def commit_of(record: Record) -> str:
    git = record["git"]
    return (git.get("commit") or "unknown")[:8] + (" (changed)" if git.get("dirty") else "")
