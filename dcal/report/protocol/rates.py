"""How a protocol tunes its rates: the grid of each search by family, what is chosen of it, and choices at an edge.

A search is a cell with a `grid`. The protocol says how a choice is made, before the runs:

    choice:
      searches: {T3: {by: nll, for: [R3, R4]}}      # the criterion, and the cells whose `chosen` it decides
      within: 5                                     # points from the family's best primary metric
      families: {A0: [A1, A8], A3: []}              # an arm that was searched, and the arms that take its choice

The point with the best mean of the criterion is chosen, among those whose mean primary metric is within reach of the
family's best: so that a run that has learned nothing is not chosen for a loss that is small because it is unsure. Where
the protocol says nothing, the criterion is the cell's metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from dcal.report.format import lower_is_better, metric_title, metric_values
from dcal.report.grid import markdown_rows
from dcal.report.protocol.verdicts import Finished
from dcal.report.records import RunRecord
from dcal.run.queue import grid_points
from dcal.utils.errors import UserError


class Search(NamedTuple):
    """The grid of one family in one cell."""

    cell: str
    family: str
    criterion: str
    metric: str
    """The primary metric of the cell."""
    points: Mapping[str, Sequence[RunRecord]]
    """Every point of the grid, as its overrides, with its finished runs."""
    complete: bool
    """Whether all seeds of all points are finished; nothing is chosen before."""
    within: float
    """Reach of the guard, in points."""

    @property
    def metrics(self) -> list[str]:
        """What the table shows of a point: the criterion and the primary metric, or the one that is both."""
        return list(dict.fromkeys((self.criterion, self.metric)))

    @property
    def chosen(self) -> str | None:
        """The point; None until the search is complete."""
        if not self.complete:
            return None
        reach = max(self.average(self.metric, point) for point in self.points) - self.within / 100
        sign = 1 if lower_is_better(self.criterion) else -1
        learned = [point for point in self.points if self.average(self.metric, point) >= reach]
        return min(learned, key=lambda point: sign * self.average(self.criterion, point))

    def values(self, metric: str, point: str) -> list[float]:
        """A metric by seed."""
        return [record["metrics"][metric] for record in self.points[point]]

    def average(self, metric: str, point: str) -> float:
        """The mean of a metric over the seeds."""
        return mean(self.values(metric, point))

    def cell_of(self, point: str) -> str:
        """The metrics of a point as the table shows them, empty without a run; the chosen point in bold."""
        if not self.points[point]:
            return ""
        text = ", ".join(metric_values(metric, self.values(metric, point)) for metric in self.metrics)
        return f"**{text}**" if point == self.chosen else text


def choice_of(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """How the protocol chooses, with what it does not say."""
    return {"searches": {}, "within": 100, "families": {}, **protocol.get("choice", {})}


def searches(protocol: Mapping[str, Any], finished: Finished) -> list[Search]:
    """Every family of every search, in the order of the protocol."""
    found, choice = [], choice_of(protocol)
    for cell in protocol["order"]:
        plan = protocol["cells"][cell]
        if not plan.get("grid"):
            continue
        for arm in plan["arms"]:
            points = {
                point: [one for one in finished.get((cell, arm, point), ()) if one["seed"] in plan["seeds"]]
                for point in map(" ".join, grid_points(plan["grid"]))
            }
            complete = all(len(records) == len(plan["seeds"]) for records in points.values())
            criterion = choice["searches"].get(cell, {}).get("by", plan["metric"])
            found.append(Search(cell, arm, criterion, plan["metric"], points, complete, choice["within"]))
    return found


def edges(protocol: Mapping[str, Any], search: Search) -> list[str]:
    """The overrides of the choice that are the least or the greatest of three values or more: the grid ends there."""
    grid: Mapping[str, Sequence[float]] = protocol["cells"][search.cell]["grid"]
    ends = [f"{key}={end}" for key, values in grid.items() if len(values) > 2 for end in (min(values), max(values))]
    return [word for word in (search.chosen or "").split() if word in ends]


def rates_text(protocol: Mapping[str, Any], finished: Finished) -> str:
    """A Markdown table for every search that has a run, and below it the choice as the protocol takes it."""
    texts = []
    found = searches(protocol, finished)
    for cell in dict.fromkeys(one.cell for one in found):
        families = [one for one in found if one.cell == cell]
        first = families[0]
        if any(records for one in families for records in one.points.values()):
            header = [f"{cell}: {', '.join(map(metric_title, first.metrics))}", *(one.family for one in families)]
            rows = [[point, *(one.cell_of(point) for one in families)] for point in first.points]
            texts.append("\n".join([*markdown_rows(header, rows), "", choice_text(protocol, families)]))
    return "\n\n".join(texts) if texts else "No runs yet."


def choice_text(protocol: Mapping[str, Any], families: Sequence[Search]) -> str:
    """What a search has chosen, for the cells that take it; or what it lacks.

    Raises:
        UserError: an arm of those cells takes no choice.
    """
    cell, choice = families[0].cell, choice_of(protocol)
    missing = [one.family for one in families if not one.complete]
    if missing:
        return f"{cell} is not complete ({', '.join(missing)}): nothing is chosen yet."
    chosen = {
        arm: one.chosen.split()
        for one in families
        if one.chosen
        for arm in (one.family, *choice["families"].get(one.family, ()))
    }
    takers = choice["searches"].get(cell, {}).get("for", ())
    for name in takers:
        if lacking := [arm for arm in protocol["cells"][name]["arms"] if arm not in chosen]:
            raise UserError(f"choice.families: {', '.join(lacking)} of {name} take no choice of {cell}")
    at_edge = [f"{one.family} at {' '.join(words)}" for one in families if (words := edges(protocol, one))]
    if at_edge:
        return f"At an edge of the grid, which goes on one step further: {'; '.join(at_edge)}."
    own = ", ".join(f"{arm}: [{', '.join(words)}]" for arm, words in chosen.items())
    return f"For {', '.join(takers) or 'the cells that wait for it'}: `chosen: {{{own}}}`"
