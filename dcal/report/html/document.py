"""One HTML file of a run, a sweep or a folder of runs: self-contained, for a browser without a server.

What the page shows is computed here and in the modules beside; how it looks is in `template/`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dcal.report.format import (
    DIFFERENCE,
    METRICS,
    ONE_BRANCH,
    VARIANTS,
    commit_of,
    difference_cells,
    distinct,
    footnote,
    metric_title,
    metric_values,
    percents,
    split_metric,
)
from dcal.report.html.charts import strips
from dcal.report.html.closeup import by_camera, by_class, closeup
from dcal.report.html.curves import LINES, charts
from dcal.report.html.experiment import Experiment, Variant, experiments, verdict
from dcal.report.html.run_files import Folder
from dcal.report.records import common
from dcal.report.table import show
from dcal.report.typed import train_command
from dcal.visualize import cross_table, reliability

CLOSEUPS = 6
"""Configurations whose pictures are shown, so that the report of a large sweep stays small."""

NOT_SETTINGS = ("seed", "name", "wandb.", "run.")
"""What names a run or says where it goes."""
WHERE = ("commit", "device", "torch", "timm", "python")
"""What is no key of the configuration; last in the tables."""


def document(folder: Folder) -> str:
    """The page."""
    views = [view(experiment, folder) for experiment in experiments(folder)]
    environment = Environment(
        loader=PackageLoader("dcal.report.html", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = views[0].name if len(views) == 1 else folder.root.resolve().name
    return environment.get_template("report.html").render(
        title=title,
        views=views,
        difference=DIFFERENCE,
        problems=folder.problems,
        unfinished=[str(path.relative_to(folder.root)) for path in folder.unfinished],
    )


def view(experiment: Experiment, folder: Folder) -> SimpleNamespace:
    """Everything about one experiment, under the names by which the template shows it."""
    best, metric, fgvc = experiment.best, experiment.primary_metric, experiment.task == "fgvc"
    branch_header, branches = branch_table(experiment)
    value, _, deviation = metric_values(metric, best.row.values[metric]).partition(" ± ")
    records = [record for row in experiment.table.rows for record in row.records]
    seeds = sorted({record["seed"] for record in records})
    plural = [f"{number} {word}{'s' * (number != 1)}" for number, word in (
        (len(experiment.variants), "configuration"), (len(seeds), "seed"), (len(records), "run"))]  # fmt: skip
    return SimpleNamespace(
        name=experiment.name,
        dataset=records[0]["config"]["dataset"],
        metric=metric_title(metric),
        value=value,
        deviation=deviation,  # over seeds; empty for one
        interval="" if best.row.interval is None else percents(best.row.interval),
        rank=experiment.rank,
        verdict=verdict(experiment),
        summary=" · ".join([*plural, f"judged on {records[0]['items']['count']} {records[0]['split']} items"]),
        keys=", ".join(key.rpartition(".")[2] for key in experiment.table.spec.by or ["attention"]),
        header=[metric_title(key) for key in best.row.values],
        rows=result_rows(experiment),
        reference=experiment.reference.label if experiment.reference else "none",
        footnote=footnote(experiment.table),
        branch_header=branch_header,
        branches=branches,
        charts=charts(experiment),
        charts_left_out=max(0, len(experiment.variants) - LINES),
        settings=settings(experiment),
        classes=by_class(experiment) if fgvc else None,
        cameras=None if fgvc else by_camera(experiment),
        reliability=reliability_of(experiment),
        elsewhere=elsewhere(experiment),
        closeups=closeups_of(experiment),
        closeups_left_out=max(0, len(experiment.variants) - CLOSEUPS),
        missing=missing(experiment),
        runs=run_rows(experiment, folder),
    )


def result_rows(experiment: Experiment) -> list[SimpleNamespace]:
    """The table of results, a row per configuration."""
    reference = experiment.reference
    marks = strips([v.row for v in experiment.variants], reference.row if reference else None)
    return [
        SimpleNamespace(
            label=variant.label,
            cells=[metric_values(*pair) for pair in variant.row.values.items()],
            interval="–" if variant.row.interval is None else percents(variant.row.interval),
            strip=strip,
            difference=None if variant.row.difference is None else difference_cells(variant.row.difference),
            verdict="" if variant.row.difference is None else variant.row.difference.verdict,
            is_reference=variant.is_reference,
        )
        for variant, strip in zip(experiment.variants, marks, strict=True)
    ]


def branch_table(experiment: Experiment) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Every metric of every branch: header, and (configuration, branch, cells), mean over seeds."""
    keys = {split_metric(key) for v in experiment.variants for key in v.row.records[0]["metrics"]}
    columns = [name for name in METRICS if any(name == key for key, _ in keys)]
    rows = []
    for variant in experiment.variants:
        metrics = [record["metrics"] for record in variant.row.records]
        titles = VARIANTS if any(f"{columns[0]}_glca" in own for own in metrics) else ONE_BRANCH
        for branch, title in titles.items():
            names = [f"{name}_{branch}" if branch else name for name in columns]
            values = [[own[key] for own in metrics if key in own] for key in names]
            if any(values):
                found = [metric_values(*pair) for pair in zip(columns, values, strict=True)]
                rows.append((variant.label, title, found))
    return [metric_title(name) for name in columns], rows


def closeups_of(experiment: Experiment) -> list[SimpleNamespace]:
    """The best configuration and the first others, those with something to show; the best one opened."""
    others = [variant for variant in experiment.variants if variant is not experiment.best]
    chosen = [id(variant) for variant in [experiment.best, *others][:CLOSEUPS]]
    found = [closeup(v, experiment.task, v is experiment.best) for v in experiment.variants if id(v) in chosen]
    return [entry for entry in found if entry.matrix or entry.lists]


def reliability_of(experiment: Experiment) -> list[SimpleNamespace]:
    """The first run of each of the first configurations that was asked (`dcal-evaluate reliability=true`)."""
    asked = [[run for run in variant.runs if run.reliability] for variant in experiment.variants]
    return [
        SimpleNamespace(
            label=variant.label,
            seed=runs[0].record["seed"],
            rows=reliability.reliability_rows(runs[0].reliability),
            plots=reliability.plots(runs[0].reliability),
            cameras=reliability.cameras(runs[0].reliability),
        )
        for variant, runs in zip(experiment.variants, asked, strict=True)
        if runs
    ][:CLOSEUPS]


def elsewhere(experiment: Experiment) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The table of `dcal-evaluate datasets=[...]`."""
    runs = [(f"{v.label}, seed {r.record['seed']}", r.elsewhere) for v in experiment.variants for r in v.runs]
    names = list(dict.fromkeys(name for _, cells in runs for name in cells))
    return names, [(label, [cross_table.shown(cells.get(name)) for name in names]) for label, cells in runs if cells]


def settings(experiment: Experiment) -> SimpleNamespace:
    """Two tables, what differs and what all runs share: configuration, code and hardware; and the commands."""
    nodes = [all_of(variant) for variant in experiment.variants]
    same = common(nodes)
    keys = sorted({key for node in nodes for key in node} - set(same), key=lambda key: (key in WHERE, key))
    return SimpleNamespace(
        labels=[variant.label for variant in experiment.variants],
        differing=[(key, [shown(node.get(key)) for node in nodes]) for key in keys],
        shared=[(key, shown(value)) for key, value in same.items()],
        commands=[  # what was typed for the first seed, with the seeds of all runs
            (v.label, train_command(v.runs[0].overrides, [record["seed"] for record in v.row.records]))
            for v in experiment.variants
            if v.runs[0].overrides
        ],
    )


def all_of(variant: Variant) -> dict[str, Any]:
    """Everything that is set, of the first seed; code and hardware over all seeds."""
    found = {key: value for key, value in variant.runs[0].config.items() if not key.startswith(NOT_SETTINGS)}
    records = variant.row.records
    found["commit"] = " + ".join(distinct(map(commit_of, records)))
    found["device"] = " + ".join(distinct(record["device"] or "not recorded" for record in records))
    for package in ("torch", "timm", "python"):
        found[package] = " + ".join(distinct(record["versions"].get(package, "?") for record in records))
    return found


def shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else show(value)


def missing(experiment: Experiment) -> list[str]:
    """What the runs do not keep, and what follows for the report."""
    runs, notes = [run for variant in experiment.variants for run in variant.runs], []
    blind = sum(run.gallery is None for run in runs)
    if blind:
        which = "The runs keep" if blind == len(runs) else f"{blind} of {len(runs)} runs keep"
        notes.append(f"{which} no pictures (gallery.npz): trained with train.figures=false, or by an older version.")
    if experiment.task == "fgvc" and not any(run.class_names for run in runs):
        notes.append("The runs do not keep the names of the classes (model.json): they are numbered.")
    if experiment.task == "reid" and not all("camera" in run.items for run in runs):
        notes.append("Runs of an older version do not keep the camera of each query: they have no breakdown by camera.")
    if any("device" in record and record["device"] is None for v in experiment.variants for record in v.row.records):
        notes.append("Some runs do not say on which hardware they ran: device=NAME names it.")
    return notes


def run_rows(experiment: Experiment, folder: Folder) -> list[list[str]]:
    """Every run with its cost: configuration, seed, metric, minutes, speed, device, commit, folder."""
    rows = []
    for variant in experiment.variants:
        for run, value in zip(variant.runs, next(iter(variant.row.values.values())), strict=True):
            record = run.record
            rows.append(
                [
                    variant.label,
                    str(record["seed"]),
                    f"{100 * value:.2f}",
                    f"{record['train_seconds'] / 60:.1f}",
                    f"{record['images_per_second']:.0f}",
                    record["device"] or "–",
                    commit_of(record),
                    str(run.directory.relative_to(folder.root)),
                ]
            )
    return rows
