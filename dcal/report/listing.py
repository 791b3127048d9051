"""All runs below a folder, a line per configuration and state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dcal.report.format import METRICS, lower_is_better, metric_values, seeds_text, split, split_metric, title_of
from dcal.report.grid import Grid
from dcal.report.records import flat, parse, read_yaml
from dcal.report.typed import read_overrides, without
from dcal.run.directory import CONFIG_FILE, FAILURE_FILE, IDENTITY_FILE, RESULT_FILE
from dcal.run.identity import MEMBER, attention_name, dataset_name, recorded_defaults
from dcal.run.listing import STATES, run_directories, state_of
from dcal.run.result import read_result
from dcal.utils.errors import UserError, choose, nearest

UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
Settings = Mapping[str, Any]


class Listed(NamedTuple):
    """A run, from its small files alone."""

    directory: Path
    seed: int | None
    """None where the folder is not named after one."""
    state: str
    primary_metric: str
    metrics: Mapping[str, float]
    """Empty for a run that is not finished."""
    changed: float
    """When it was last written to, in seconds since 1970."""

    @property
    def folder(self) -> Path:
        """Of the runs of its configuration; its own where it is not named after its seed, as a copy is."""
        return self.directory if self.seed is None else self.directory.parent


class Line(NamedTuple):
    """Runs of one configuration that are in the same state."""

    runs: Sequence[Listed]
    """By seed."""
    metric: str
    """Name of the one that is shown."""
    values: list[float]

    @property
    def changed(self) -> float:
        return max(run.changed for run in self.runs)


def list_runs(root: Path) -> Iterator[Listed]:
    """Every run below a folder.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"list={root}: no such folder; name one that holds runs")
    for directory in run_directories(root):
        state, result = state_of(directory), {}
        if state == "finished":
            with suppress(OSError, ValueError):
                result = read_result(directory) or {}
            if not isinstance(result, dict) or not {"metrics", "primary_metric"} <= set(result):
                state, result = "interrupted", {}  # torn: the run writes it anew when it is repeated
        files = [directory / name for name in (RESULT_FILE, "metrics.jsonl", CONFIG_FILE)]
        there = [file for file in files if file.is_file()] or [directory / FAILURE_FILE]
        changed = max(file.stat().st_mtime for file in there)
        seed = directory.name.removeprefix("seed=")
        number = int(seed) if seed.isdigit() else None
        yield Listed(directory, number, state, result.get("primary_metric", ""), result.get("metrics", {}), changed)


def settings_of(directory: Path) -> Settings:
    """The settings of a run in dotted keys, as tables know them: `attention`, `task` and `dataset` by their names."""
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads((directory / IDENTITY_FILE).read_text(encoding="utf-8"))["settings"]
        blocks = {"attention.glca.blocks": 0, "attention.pwca.blocks": 0}  # of branches that are off nothing is kept
        return {
            **recorded_defaults(),
            **{key: value for key, value in kept.items() if not key.endswith("_target_")},
            "attention": attention_name({**blocks, **kept}),
            "task": kept["task._target_"].rpartition(".")[2].lower(),
            "dataset": dataset_name_of(kept),
        }
    if not (directory / CONFIG_FILE).is_file():
        return {}
    return parse(directory / CONFIG_FILE, lambda text: flat(read_yaml(text)))


def dataset_name_of(settings: Mapping[str, Any]) -> str:
    """The name of a data set by the settings that `identity.json` keeps."""
    targets = {key: value for key, value in settings.items() if key.endswith(".reader._target_")}
    members = {key.split(".")[2]: None for key in targets if MEMBER.match(key)}
    return dataset_name({"members": members, "reader": {"_target_": targets.get("dataset.reader._target_", "")}})


def condition(words: Sequence[str]) -> dict[str, Any]:
    """The conditions of `where=`, by key.

    Raises:
        UserError: a word is no `key=value`, or its value is no YAML.
    """
    wanted = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"where={word}: give key=value, such as where=attention=dcal, or a list of these")
        try:
            wanted[key] = read_yaml(f"value: {value}")["value"]
        except (YAMLError, OmegaConfBaseException):
            raise UserError(f"where={word}: {value} cannot be read as YAML; put it in quotes") from None
    return wanted


def filtered(runs: Sequence[Listed], wanted: Mapping[str, Any]) -> list[Listed]:
    """The runs whose settings, or `state` or `seed`, have these values.

    Raises:
        UserError: no run has such a key.
    """
    settings: dict[Path, Settings] = {}
    kept, known = [], {"state", "seed"}
    for run in runs:
        own: dict[str, Any] = {"state": run.state, "seed": run.seed}
        if not wanted.keys() <= own.keys():
            if not settings.get(run.folder):
                settings[run.folder] = settings_of(run.directory)
            own = {**settings[run.folder], **own}
        known |= own.keys()
        if all(key in own and own[key] == value for key, value in wanted.items()):
            kept.append(run)
    for key in wanted:
        if runs and key not in known:
            raise UserError(f"where={key}=...: no run has this key; {nearest(key, sorted(known))}")
    return kept


def listing(root: Path, where: Sequence[str] = (), sort: str = "age", metric: str | None = None) -> Grid:
    """The runs below a folder as a table.

    Args:
        root: the folder.
        where: conditions `key=value`: settings as tables have them, `state` or `seed`.
        sort: one of `ORDERS`: the newest, the best or the first in the alphabet on top.
        metric: what is shown; None for the primary metric of each run.

    Raises:
        UserError: no such folder, key, metric or order.
    """
    choose("sort", sort, ORDERS)
    runs = filtered(list(list_runs(root)), condition(where))
    measured = sorted({key for run in runs for key in run.metrics if split_metric(key)[0] in METRICS})
    if metric is not None and measured:
        choose("metric", metric, measured)
    groups: dict[tuple[Path, str], list[Listed]] = {}
    for run in sorted(runs, key=lambda run: (run.seed is None, run.seed)):
        groups.setdefault((run.folder, run.state), []).append(run)
    lines = []
    for group in groups.values():
        name = metric or group[0].primary_metric
        lines.append(Line(group, name, [run.metrics[name] for run in group if name in run.metrics]))
    lines.sort(key=ORDERS[sort])
    typed = [without(read_overrides(line.runs[0].directory), "seed", "name") for line in lines]
    common = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    states = [run.state for run in runs]
    counts = "".join(f", {states.count(state)} {state}" for state in STATES if state in states)
    rows, numbers = [], []
    for line, words in zip(lines, typed, strict=True):
        first, age = line.runs[0], time.time() - line.changed
        ends = [" ".join(word for word in words if word not in common)]
        begin = [str(first.folder), first.state, seeds_text([run.seed for run in line.runs])]
        shown = metric_values(line.metric, line.values)
        rows.append([*begin, f"{title_of(line.metric)} {shown}".strip(), age_text(age), *ends])
        numbers.append([*begin, line.metric, *split(shown, 2), round(age), *ends])
    return Grid(
        "runs",
        f"Runs in {root}",
        ["run", "state", "seeds", "metric", "age", "settings"],
        rows,
        f"{len(runs)} runs in {root}{counts}. Settings: what was typed, where it differs.",
        ["run", "state", "seeds", "metric", "value", "value_sd", "age_seconds", "settings"],
        numbers,
    )


def best_first(line: Line) -> tuple[bool, str, float]:
    """Lines without a value last, those of one metric together."""
    value = mean(line.values) if line.values else 0.0
    return not line.values, line.metric, value if lower_is_better(line.metric) else -value


ORDERS: dict[str, Callable[[Line], Any]] = {
    "age": lambda line: -line.changed,
    "metric": best_first,
    "run": lambda line: line.runs[0].directory,
    "state": lambda line: STATES.index(line.runs[0].state),
}


def age_text(seconds: float) -> str:
    """How long ago in one unit: `3 h`."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), UNITS[-1])
    return f"{max(0, int(seconds // size))} {unit}"
