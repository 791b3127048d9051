"""The runs of one name as a report tells them: configurations over seeds, what they are compared with, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

from dcal.metric.statistics import FEWEST_SEEDS, paired_comparison
from dcal.report.format import difference_cells, metric_values
from dcal.report.html.run_files import Folder, RunFiles, is_plain
from dcal.report.items import outcomes
from dcal.report.records import RunRecord, merge
from dcal.report.table import Row, Spec, Table, differing, label_of, make_table, margin_of, with_shared_ids
from dcal.run.identity import is_idle, recorded_defaults

ATTENTION = ("none", "glca", "pwca", "dcal")


class Variant(NamedTuple):
    """One configuration."""

    label: str
    row: Row
    runs: list[RunFiles]
    """By seed."""
    is_reference: bool

    @property
    def shown(self) -> RunFiles:
        """The run whose pictures are shown: the first seed that has some."""
        return next((run for run in self.runs if run.gallery), self.runs[0])


class Experiment(NamedTuple):
    """All runs of one name."""

    name: str
    task: str
    primary_metric: str
    table: Table
    variants: list[Variant]
    plain: list[RunFiles]
    """Runs of the plain ViT for the verdict, where there is none among the variants."""

    @property
    def reference(self) -> Variant | None:
        """What the others are compared with, where that is one configuration."""
        return next((variant for variant in self.variants if variant.is_reference), None)

    @property
    def best(self) -> Variant:
        return max(self.variants, key=lambda variant: variant.row.primary)

    @property
    def rank(self) -> str:
        """Which configurations show the best figure, and out of how many; empty where there is one."""
        total = len(self.variants)
        if total == 1:
            return ""
        figures = {own.label: metric_values(self.primary_metric, [own.row.primary]) for own in self.variants}
        leaders = [label for label, figure in figures.items() if figure == figures[self.best.label]]
        standing = f"all {total} alike" if len(leaders) == total else f"best of {total}"
        return f"{standing}: {'; '.join(leaders)}"


class Verdict(NamedTuple):
    """What the runs say, in one line and in a few."""

    kind: str
    """`good`, `bad` or `open`, for the colour."""
    head: str
    details: list[str]


def experiments(folder: Folder) -> list[Experiment]:
    """The runs of a folder by their name."""
    names: dict[str, list[RunFiles]] = {}
    for run in folder.runs:
        names.setdefault(run.name, []).append(run)
    return [experiment(name, runs, plain_for(runs, folder)) for name, runs in sorted(names.items())]


def plain_for(runs: Sequence[RunFiles], folder: Folder) -> list[RunFiles]:
    """The plain ViT's runs for the verdict on the runs of one name, if none is among them.

    Those of the same name that are next to the folder, or those in it that have another name and the same settings.
    """
    if any(is_plain(run.record) for run in runs):
        return []
    beside = [run for run in folder.plain if run.name == runs[0].name]
    others = [run for run in folder.runs if is_plain(run.record)]
    return beside or [plain for plain in others if any(same_but_attention(plain, run) for run in runs)]


def same_but_attention(plain: RunFiles, run: RunFiles) -> bool:
    """Whether a run of the plain ViT differs from another run in nothing but the branches and what they need."""
    configs = [{**recorded_defaults(), **of.record["config"]} for of in (plain, run)]
    return all(
        key.startswith("attention") or is_idle(key, configs[0]) or configs[0].get(key) == configs[1].get(key)
        for key in {**configs[0], **configs[1]}
    )


def experiment(name: str, runs: Sequence[RunFiles], plain: Sequence[RunFiles] = ()) -> Experiment:
    """Orders the runs of one name by configuration and seed, and compares them.

    Args:
        plain: runs of the plain ViT that are not among them, and that the verdict compares with.
    """
    records = with_shared_ids([run.record for run in runs])
    runs = [run._replace(record=record) for run, record in zip(runs, records, strict=True)]
    results = merge(name, [], records)
    records = results["runs"]
    primary_metric = records[0]["primary_metric"]
    by = differing(records)
    against, reference = compared_with(records, by, primary_metric)
    columns = [primary_metric, *(["rank1"] if all("rank1" in record["metrics"] for record in records) else [])]
    spec = Spec(name, [name], by=by, columns=columns, against=against, order=ordered_labels(records, by))
    table = make_table(spec, {name: results})
    files = {(run.record["cfg_id"], run.record["seed"]): run for run in runs}
    variants = [
        Variant(
            row.label if by else str(row.records[0]["config"]["attention"]),
            row,
            [files[record["cfg_id"], record["seed"]] for record in row.records],
            row.label == reference,
        )
        for row in table.rows
    ]
    return Experiment(name, results["task"], primary_metric, table, variants, list(plain))


def compared_with(
    records: Sequence[RunRecord], by: Sequence[str], primary_metric: str
) -> tuple[dict[str, Any], str | None]:
    """`Spec.against`, and the label of the reference where it is one row for all.

    The plain ViT is the reference where it is there: the only one of its kind for all rows, or each row's own (same
    values but for `attention`). Otherwise the best row is, so that the table shows which others fall short of it.
    """
    labels = {label_of(record, by): record for record in records}
    if len(labels) == 1:
        return {}, None
    plain = [label for label, record in labels.items() if is_plain(record)]
    if len(plain) > 1 and len(plain) < len(labels):
        return {"attention": "none"}, None
    values: dict[str, list[float]] = {label: [] for label in labels}
    for record in records:
        values[label_of(record, by)].append(record["metrics"][primary_metric])
    reference = plain[0] if len(plain) == 1 else max(labels, key=lambda label: mean(values[label]))
    against = {"cfg_id": labels[reference]["cfg_id"], **labels[reference]["config"]}
    return {key: against.get(key) for key in by}, reference


def ordered_labels(records: Sequence[RunRecord], by: Sequence[str]) -> list[str]:
    """Labels of rows in the order of their values: attention as the paper adds it, numbers as numbers."""
    ordered = sorted(records, key=lambda record: [sort_key(key, record["config"].get(key)) for key in by])
    return list(dict.fromkeys(label_of(record, by) for record in ordered))


def sort_key(key: str, value: Any) -> tuple[int, float, str]:
    if key == "attention" and value in ATTENTION:
        return 0, float(ATTENTION.index(value)), ""
    number = value[0] if isinstance(value, list) and value else value
    return (0, float(number), "") if isinstance(number, (int, float)) else (1, 0.0, str(value))


def verdict(found: Experiment) -> Verdict:
    """Which configurations are ahead of the plain ViT beyond chance, or of the best if nobody has trained a plain ViT.

    For a single configuration without a plain ViT: what GLCA adds to SA, which is no good news as yet.
    """
    if found.plain:
        whole = experiment(found.name, [*(run for variant in found.variants for run in variant.runs), *found.plain])
        with_plain = compared_verdict(whole)
        ids = dict.fromkeys(f"{run.name}/{run.record['cfg_id']}" for run in found.plain)
        within = single_verdict(found).details[:1] if len(found.variants) == 1 else []
        return with_plain._replace(details=[*with_plain.details, *within, f"The plain ViT: {', '.join(ids)}"])
    return single_verdict(found) if len(found.variants) == 1 else compared_verdict(found)


def compared_verdict(experiment: Experiment) -> Verdict:
    """The verdict on several configurations."""
    compared = [(own, own.row.difference) for own in experiment.variants if own.row.difference is not None]
    if not compared:
        return Verdict("open", "The configurations cannot be compared: they share no seed, or judged other items.", [])
    groups = {found: [pair for pair in compared if pair[1].verdict == found] for found in SINGLE}
    reference = experiment.reference
    left = [
        variant.label
        for variant in experiment.variants
        if variant.row.difference is None and variant is not reference and not is_plain(variant.row.records[0])
    ]
    name = reference.label if reference else "the plain ViT with the same settings"
    chosen = reference is experiment.best and not is_plain(experiment.best.row.records[0])
    if chosen:
        kind, head = "open", experiment.rank[0].upper() + experiment.rank[1:]
    elif groups["better"]:
        best, _ = max(groups["better"], key=lambda pair: pair[0].row.primary)
        kind, head = "good", f"{best.label} is better than {name}"
    elif groups["undecided"] or groups["one training only"] or left:
        kind, head = "open", f"No configuration is demonstrably better than {name}"
    else:
        kind, head = "bad", f"Nothing here is better than {name}"
    details = []
    for found, group in groups.items():
        told = [f"{variant.label} by {difference_cells(difference)[0]} points" for variant, difference in group]
        details += [f"{found.capitalize()}: {'; '.join(told)}"] if told else []
    if left:
        details.append(f"Not compared, as they share no seed or judged other items: {'; '.join(left)}")
    seeds = min(difference.seeds for _, difference in compared)
    if seeds == 1:
        details.append("One seed: how much another training would differ is not in the intervals.")
    elif seeds < FEWEST_SEEDS:
        details.append(f"{seeds} seeds: fewer than {FEWEST_SEEDS} decide nothing, however clear their interval.")
    if chosen:
        details.append("The best row was chosen on the items that judge it: its lead is flattered.")
    return Verdict(kind, head, details)


def single_verdict(experiment: Experiment) -> Verdict:
    """One configuration: whether combined inference does better than the backbone's branch alone on the same items."""
    (variant,) = experiment.variants
    metric, records = experiment.primary_metric, variant.row.records
    both, sa, glca = (outcomes(records, f"{metric}{branch}") for branch in ("", "_sa", "_glca"))
    if both is None or sa is None or glca is None:
        head = f"{variant.label}: one branch at test time, nothing to compare within the run"
        others = "other settings" if is_plain(records[0]) else "attention=none"
        return Verdict("open", head, [f"Train {others} under the same name to compare."])
    difference = paired_comparison(both.values_SN, sa.values_SN, margin_of(metric), both.groups)
    kind, head = SINGLE[difference.verdict]
    points, p, _, found = difference_cells(difference)
    details = [f"Combined minus SA: {points} points, p {p if p.startswith('<') else f'= {p}'}, {found}"]
    details.append(f"Paired over {difference.items} items, by seed.")
    details.append("Both branches were trained together: attention=none under the same name tells what DCAL is worth.")
    return Verdict(kind, head, details)


SINGLE = {
    "better": ("open", "At test time, SA and GLCA together do better than SA alone; no plain ViT to compare with"),
    "worse": ("bad", "At test time, SA alone does better than with GLCA"),
    "equivalent": ("open", "At test time, GLCA adds nothing to SA that matters"),
    "undecided": ("open", "Whether GLCA adds to SA at test time is undecided"),
    "one training only": ("open", "One training does not tell whether GLCA adds to SA at test time"),
}
"""By verdict: colour and head."""
