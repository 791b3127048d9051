"""The choice of hyper-parameters: which configuration does best on validation data, how sure that is, what is next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from dcal.metric.interval import ALPHA, Floats, mean_interval
from dcal.metric.statistics import FEWEST_SEEDS, PairedComparison, paired_comparison
from dcal.report.format import lower_is_better, metric_values, p_text, scale_of, split, split_metric, title_of
from dcal.report.grid import Grid, render
from dcal.report.items import Items, read_items
from dcal.report.listing import condition
from dcal.report.records import RunRecord, read_run, with_defaults
from dcal.report.table import differing, label_of, matches, show, with_shared_ids
from dcal.report.typed import read_overrides, train_command, without
from dcal.run.identity import is_idle
from dcal.run.listing import finished_runs
from dcal.utils.errors import UserError, choose

HELD_OUT = ("dataset.val_fraction", "dataset.val_ids")


class Trial(NamedTuple):
    """One run of the search."""

    directory: Path
    record: RunRecord
    items: Items


class Candidate(NamedTuple):
    """One configuration over its seeds."""

    label: str
    trials: list[Trial]
    """By seed."""
    values: list[float]
    """The criterion by seed."""
    scores_SN: Floats | None
    """The criterion by seed and item, larger is better; None where items are not recorded."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.trials[0].record["config"]

    @property
    def seeds(self) -> list[int]:
        return [int(trial.record["seed"]) for trial in self.trials]


class Step(NamedTuple):
    """What to train next."""

    purpose: str
    words: list[str]
    seeds: Sequence[int]


class Choice(NamedTuple):
    """The outcome of a search."""

    criterion: str
    by: list[str]
    """Settings in which the configurations differ."""
    candidates: list[Candidate]
    """The best first."""
    behind: list[PairedComparison | None]
    """Each candidate minus the best on the seeds that both have, larger is better; None for the best itself."""
    warnings: list[str]
    steps: list[Step]
    """Empty where nothing was learned, and where older runs have not kept what was typed."""


def choose_best(root: Path, metric: str | None = None, where: Sequence[str] = ()) -> Choice:
    """Picks the best of the configurations below a folder.

    Args:
        root: folder of the runs of a search, all judged on the same held-out training data.
        metric: the criterion; None for the primary metric. `nll` is the loss, of which the least is best.
        where: conditions `key=value` on the settings.

    Raises:
        UserError: no finished run, none that was judged on validation data, or runs that cannot be compared.
    """
    trials = read_trials(root, where)
    primary_metric = trials[0].record["primary_metric"]
    shared = set.intersection(*(set(trial.record["metrics"]) for trial in trials))
    usable = [key for key in shared if key in trials[0].items.outcomes or split_metric(key)[0] == "nll"]
    criterion = primary_metric if metric is None else choose("metric", metric, sorted(usable))
    by = differing([trial.record for trial in trials])
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(label_of(trial.record, by), []).append(trial)
    candidates = [candidate(label, group, criterion) for label, group in groups.items()]
    sign = 1 if lower_is_better(criterion) else -1
    candidates.sort(key=lambda one: (sign * mean(one.values), one.label))
    behind = [None, *(compared(one, candidates[0]) for one in candidates[1:])]
    return Choice(criterion, by, candidates, behind, *advice(candidates, by, primary_metric))


def read_trials(root: Path, where: Sequence[str]) -> list[Trial]:
    """The runs of a search, by seed; those that were not judged on validation data are not read.

    Raises:
        UserError: there is none, or they were judged on different items.
    """
    directories = finished_runs(root)[0]
    found = with_shared_ids(with_defaults(read_run(directory)[1] for directory in directories))
    wanted = condition(where)
    pairs = [pair for pair in zip(directories, found, strict=True) if matches(pair[1], wanted)]
    if not pairs:
        what = f" with where={','.join(where)}" if directories and where else ""
        raise UserError(f"best={root}: no finished run{what} is there; name a folder of runs that share a search")
    judged = [(directory, record) for directory, record in pairs if record["split"] == "val"]
    if not judged:
        raise UserError(
            f"best={root}: all runs were judged on the {pairs[0][1]['split']} split, and a choice made there flatters "
            "what it chooses; hold out training data: dataset.val_fraction=0.2, or dataset.val_ids=100 for re-ID"
        )
    items = [record["items"] for _, record in judged]
    if len({(own["digest"], own.get("images")) for own in items}) > 1:
        raise UserError(f"best={root}: runs were judged on different validation items; name one search, or use where=")
    trials = [Trial(directory, record, read_items(directory / "items.npz")) for directory, record in judged]
    return sorted(trials, key=lambda trial: int(trial.record["seed"]))


def candidate(label: str, trials: list[Trial], criterion: str) -> Candidate:
    """One configuration with its values."""
    values = [float(trial.record["metrics"][criterion]) for trial in trials]
    if criterion == "nll":
        scores = [None if trial.items.losses is None else -trial.items.losses for trial in trials]
    else:
        scores = [trial.items.outcomes.get(criterion) for trial in trials]
    if any(score is None for score in scores):
        return Candidate(label, trials, values, None)
    return Candidate(label, trials, values, np.stack([np.asarray(score, dtype=np.float64) for score in scores]))


def compared(one: Candidate, other: Candidate) -> PairedComparison | None:
    """A candidate minus another on the seeds that both have; None without such, or without recorded items."""
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    if one.scores_SN is None or other.scores_SN is None or not seeds:
        return None
    rows = [[side.seeds.index(seed) for seed in seeds] for side in (one, other)]
    groups = one.trials[0].items.groups
    return paired_comparison(one.scores_SN[rows[0]], other.scores_SN[rows[1]], groups=groups)


def advice(candidates: Sequence[Candidate], by: Sequence[str], primary_metric: str) -> tuple[list[str], list[Step]]:
    """What to beware of, and what to do next."""
    best = candidates[0]
    if chance := reach_of_chance(best, primary_metric):
        return [
            f"{best.label} is no better than chance, {100 * chance:.1f} %: nothing was learned that could choose"
        ], []
    words = read_overrides(best.trials[0].directory)
    warnings, steps = [], []
    for key in by:
        if (edge := beyond_edge(candidates, by, key)) is not None:
            warnings.append(f"{key}={show(best.config[key])} is at the edge of what was tried: go on beyond it first")
            steps.append(Step(f"beyond the edge of {key}", [*without(words, key), f"{key}={show(edge)}"], best.seeds))
    if len({tuple(one.seeds) for one in candidates}) > 1:
        warnings.append("not all configurations have the same seeds: their means are not quite comparable")
    held_out = [f"{key}=0" for key in HELD_OUT if best.config.get(key)]
    final = [*without(words, "name", *HELD_OUT), *held_out]
    steps.append(Step("the choice on all training data, judged on the test split", final, range(FEWEST_SEEDS)))
    return warnings, steps if words else []


def reach_of_chance(best: Candidate, primary_metric: str) -> float | None:
    """In classification the accuracy of guessing, if a candidate's may be no more than that; else None."""
    items = best.trials[0].items
    if items.task != "fgvc":
        return None
    right_SN = np.stack([trial.items.values(primary_metric) for trial in best.trials])
    chance = 1 / len(np.unique(items.labels))
    return chance if mean_interval(right_SN).low <= chance else None


def beyond_edge(candidates: Sequence[Candidate], by: Sequence[str], key: str) -> float | None:
    """The next value of a numeric setting of which the best candidate has the least or the greatest; else None.

    The grid is that of the candidates that differ in nothing else, if there are some. It goes on by its last ratio, or
    by its last step where values are not positive. 0 switches something off: nothing is beyond it.
    """
    best = candidates[0].config
    others = [one.config for one in candidates if all(one.config.get(k) == best.get(k) for k in by if k != key)]
    values = sorted({value for config in others if (value := number_of(config.get(key))) is not None})
    own = number_of(best.get(key))
    if own not in values[:1] + values[-1:] or len(values) < 2 or not own:
        return None
    last, before = (values[-1], values[-2]) if own == values[-1] else (values[0], values[1])
    further = last * last / before if values[0] > 0 else 2 * last - before
    return (round(further) if isinstance(last, int) else further) or None


def number_of(value: Any) -> float | None:
    """The value of a setting if it is a number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def grid_of(choice: Choice) -> Grid:
    """The candidates as a table, the best first; differences are in the criterion's own direction."""
    criterion, title = choice.criterion, title_of(choice.criterion)
    lower = lower_is_better(criterion)
    rows = []
    for one, difference in zip(choice.candidates, choice.behind, strict=True):
        interval = gap = p = "–"
        if one.scores_SN is not None:
            low, high = ends(criterion, *mean_interval(one.scores_SN, one.trials[0].items.groups))
            low, high = (low, high) if lower else (max(low, 0.0), min(high, 1.0))
            interval = f"{number(criterion, low)} – {number(criterion, high)}"
        if difference is not None:
            gaps = (-difference.mean if lower else difference.mean, *ends(criterion, difference.low, difference.high))
            texts = [number(criterion, value, "+") for value in gaps]
            gap, p = f"{texts[0]} [{texts[1]}, {texts[2]}]".replace("-", "−"), p_text(difference.p)
        rows.append([one.label, metric_values(criterion, one.values), interval, gap, p, str(len(one.trials))])
    items = len(choice.candidates[0].trials[0].items.labels)
    return Grid(
        "best",
        f"Choice by {title}",
        [", ".join(choice.by) or "configuration", title, "95 % interval", "from the best", "p", "seeds"],
        rows,
        f"Judged on {items} held-out training items; {'lower' if lower else 'higher'} is better.",
        f"configuration {criterion} {criterion}_sd low high difference difference_low difference_high p seeds".split(),
        [[text for cell, count in zip(row, PARTS, strict=True) for text in split(cell, count)] for row in rows],
    )


PARTS = (1, 2, 2, 3, 1, 1)
"""Numbers in each cell of a row."""


def ends(metric: str, low: float, high: float) -> tuple[float, float]:
    """The ends of an interval of scores, of which larger are better, in the direction of their metric."""
    return (-high, -low) if lower_is_better(metric) else (low, high)


def number(metric: str, value: float, sign: str = "") -> str:
    """A value or a difference of a metric as its tables show it."""
    factor, decimals = scale_of(metric)
    return f"{factor * value:{sign}.{decimals}f}"


def text_of(choice: Choice) -> str:
    """The choice for a reader."""
    best = choice.candidates[0].config
    settings = " ".join(f"{key}={show(best.get(key))}" for key in choice.by if not is_idle(key, best))
    alike = [
        one.label
        for one, difference in zip(choice.candidates, choice.behind, strict=True)
        if difference is not None and difference.p > ALPHA
    ]
    lines = [
        render(grid_of(choice), "markdown"),
        "",
        f"Best: {settings or 'all'}, by {title_of(choice.criterion)}.",
    ]
    if alike:
        lines.append(f"Not told apart from it: {'; '.join(alike)}.")
    lines += [f"Warning: {warning}." for warning in choice.warnings]
    for step in choice.steps:
        lines += ["", f"Next, {step.purpose}:", "", f"    {train_command(step.words, step.seeds)}"]
    return "\n".join(lines)
