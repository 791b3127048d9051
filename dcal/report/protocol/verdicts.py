"""What a registered protocol says of its runs: how far they are, every contrast with its verdict, every prediction.

A protocol is a list of experiments (`dcal.run.queue`) with more keys, written down before its first run:

    contrasts:     primary and exploratory: [{of: A7, against: A0, asks: does DCAL help, read: sa}]
    predictions:   [{cells: [R0], of: A7, against: A0, verdict: undecided, reason: ...}]
    cells.R0.metric, cells.R0.margin: what is compared, and up to how many points a difference does not matter
    choice: how rates are chosen where a cell has a grid: `dcal.report.protocol.rates`

`read` names the branch that is read at test time; without it the metric is that of all branches that the run combines.
A contrast has no verdict until all its seeds are there: whoever looks earlier decides when to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from dcal.metric.statistics import PairedComparison, holm_verdicts
from dcal.report.format import difference_cells
from dcal.report.grid import markdown_rows
from dcal.report.items import outcomes
from dcal.report.records import Results, RunRecord
from dcal.report.table import minus
from dcal.run.queue import read_queue
from dcal.utils.errors import UserError, choose

COLOURS = {"better": "#3a7d44", "worse": "#b3361b", "equivalent": "#4269d0", "undecided": "#888888"}
"""Of the map, by verdict."""
NOT_COMPARED = ("backbone.checkpoint", "backbone.pretrained")
"""Where weights come from is given on the command line of the machine."""


class Planned(NamedTuple):
    """One arm of a cell, at one point of the cell's grid if it has one."""

    cell: str
    arm: str
    point: str
    config: Mapping[str, Any]
    """Flat, as in a record."""


class Contrast(NamedTuple):
    """One arm minus another in one cell."""

    cell: str
    of: str
    against: str
    read: str
    """Branch that is read at test time; empty: all that the run combines."""
    asks: str
    primary: bool
    wanted: int
    """Seeds that are registered."""
    difference: PairedComparison | None
    """Over the seeds that both arms have; None without any."""

    @property
    def label(self) -> str:
        return f"{self.of} − {self.against}" + (f", {self.read.upper()} alone" if self.read else "")

    @property
    def complete(self) -> bool:
        """Whether all seeds are there."""
        return self.difference is not None and self.difference.seeds == self.wanted

    @property
    def verdict(self) -> str | None:
        """None until all seeds are there."""
        return self.difference.verdict if self.complete and self.difference else None


Finished = Mapping[tuple[str, str, str], Sequence[RunRecord]]
"""By cell, arm and point: the records of its finished runs."""


def read_protocol(path: Path) -> dict[str, Any]:
    """The file as plain data.

    Raises:
        UserError: it is no list of experiments, lacks a key of a protocol, or predicts what is no verdict.
    """
    protocol = read_queue(path)
    for key, kind in (("contrasts", dict), ("predictions", list)):
        if not isinstance(protocol.get(key), kind):
            raise UserError(f"verdicts={path}: has no {key}; a list of experiments without them has no verdicts")
    if lacking := {"primary", "exploratory"} - set(protocol["contrasts"]):
        raise UserError(f"verdicts={path}: contrasts has no {' and no '.join(sorted(lacking))}; an empty list is fine")
    for keys, entries in (
        (("of", "against", "asks"), (*protocol["contrasts"]["primary"], *protocol["contrasts"]["exploratory"])),
        (("cells", "of", "against", "verdict", "reason"), protocol["predictions"]),
    ):
        for entry in entries:
            if missing := [key for key in keys if key not in entry]:
                raise UserError(f"verdicts={path}: {entry} does not say {' and '.join(missing)}")
            if "verdict" in keys:
                choose(f"verdicts={path}: a verdict of predictions", entry["verdict"], COLOURS)
    for name, cell in protocol["cells"].items():
        if "metric" not in cell:
            raise UserError(f"verdicts={path}: cells.{name} does not say its metric")
    return protocol


def sort_records(planned: Sequence[Planned], results: Mapping[str, Results], name: str) -> tuple[Finished, list[str]]:
    """Which records belong to which arm.

    Args:
        planned: the arms of every cell.
        results: records by file.
        name: of the protocol; its runs are called `<name>/<cell>`.

    Returns:
        the records, and a sentence for each run that does not count: of no arm, or a second one of the same seed.
    """
    finished: dict[tuple[str, str, str], list[RunRecord]] = {one[:3]: [] for one in planned}
    strangers = []
    for found in results.values():
        cell = str(found["name"]).removeprefix(f"{name}/")
        arms = [one for one in planned if one.cell == cell]
        if not arms or cell == found["name"]:
            continue
        for record in found["runs"]:
            own = [one for one in arms if not any(differing(one.config, record["config"]))]
            if own:
                runs = finished[own[0][:3]]
                if any(record["seed"] == other["seed"] for other in runs):
                    strangers.append(f"{found['name']} {record['cfg_id']} seed {record['seed']}: run twice")
                else:
                    runs.append(record)
            else:
                near = min((list(differing(one.config, record["config"])) for one in arms), key=len)
                strangers.append(f"{found['name']} {record['cfg_id']}: no arm of the protocol ({', '.join(near)})")
    return finished, list(dict.fromkeys(strangers))


def differing(planned: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[str]:
    """The keys of the plan that a record has with another value."""
    return (
        f"{key}={recorded.get(key)}, planned {value}"
        for key, value in planned.items()
        if key not in NOT_COMPARED and recorded.get(key) != value
    )


def contrasts(protocol: Mapping[str, Any], finished: Finished) -> list[Contrast]:
    """Every contrast in every cell that has both of its arms; primary ones of a cell after Holm's correction.

    Raises:
        UserError: a contrast names an arm or a branch that there is not.
    """
    found: list[Contrast] = []
    for cell in protocol["order"]:
        if protocol["cells"][cell].get("grid"):  # rates are chosen there, not compared
            continue
        primary = _of_cell(protocol, cell, finished, "primary")
        found += _corrected(primary) + _of_cell(protocol, cell, finished, "exploratory")
    return found


def _of_cell(protocol: Mapping[str, Any], cell: str, finished: Finished, kind: str) -> list[Contrast]:
    plan = protocol["cells"][cell]
    rows = []
    for entry in protocol["contrasts"][kind]:
        for arm in (entry["of"], entry["against"]):
            if arm not in protocol["arms"]:
                raise UserError(f"contrasts.{kind}: {arm} is none of the arms ({', '.join(protocol['arms'])})")
        if {entry["of"], entry["against"]} <= set(plan["arms"]):
            read = choose(f"contrasts.{kind}: read", entry.get("read", ""), ("", "sa", "glca"))
            first, second = (
                [record for record in finished.get((cell, arm, ""), ()) if record["seed"] in plan["seeds"]]
                for arm in (entry["of"], entry["against"])
            )
            difference = compare(first, second, plan["metric"], read, plan.get("margin"))
            names = (cell, entry["of"], entry["against"], read, entry["asks"])
            rows.append(Contrast(*names, kind == "primary", len(plan["seeds"]), difference))
    return rows


def _corrected(primary: Sequence[Contrast]) -> list[Contrast]:
    """By Holm; those without all seeds count as if they had shown nothing, so that no verdict is lost later."""
    differences = [one.difference for one in primary if one.complete and one.difference]
    corrected = iter(holm_verdicts(differences, declared=len(primary)))
    return [one._replace(difference=next(corrected)) if one.complete else one for one in primary]


def compare(
    first: Sequence[RunRecord], second: Sequence[RunRecord], metric: str, read: str, margin: float | None
) -> PairedComparison | None:
    """The first arm minus the second, over the seeds that both have; None without any.

    Args:
        first, second: their runs by seed.
        metric: of all branches that a run combines.
        read: branch that is read instead, where the run has several.
        margin: in points.
    """
    if not first or not second:
        return None
    sides = []
    for records in (first, second):
        name = f"{metric}_{read}" if read and f"{metric}_{read}" in records[0]["items"] else metric
        sides.append(outcomes(records, name))
    one, other = sides
    if one is None or other is None or not one.same_items(other):
        raise UserError(f"{metric}: the runs of two arms judged other items, or do not say which: collect them anew")
    return minus(one, other, None if margin is None else margin / 100)


def state_text(protocol: Mapping[str, Any], finished: Finished) -> str:
    """A Markdown table: the finished runs of each cell."""
    rows = []
    for cell in protocol["order"]:
        plan = protocol["cells"][cell]
        of_cell = (record for key, own in finished.items() if key[0] == cell for record in own)
        records = [record for record in of_cell if record["seed"] in plan["seeds"]]
        points = prod(len(values) for values in (plan.get("grid") or {}).values())
        wanted = len(plan["arms"]) * len(plan["seeds"]) * points
        state = "done" if len(records) >= wanted else "in part" if records else "not yet"
        if plan.get("chosen", {}) is None:
            state = "waits for the rates that an earlier cell chooses"
        hours = sum(record["train_seconds"] for record in records) / 3600
        cost = f"{hours:.1f}" if records else ""
        rows.append([cell, plan["title"], str(wanted), str(len(records) or ""), state, cost])
    return "\n".join(markdown_rows(["cell", "setting", "runs", "finished", "state", "training, hours"], rows))


def contrasts_text(found: Iterable[Contrast], confirm: bool = False) -> str:
    """A Markdown table: every contrast that has a run.

    Args:
        confirm: primary verdicts of better and worse are to be repeated on other seeds before they are findings.
    """
    header = ["cell", "contrast", "asks", "seeds", "difference, points", "p", "sign-flip p", "verdict"]
    rows = []
    for one in found:
        if one.difference is None:
            continue
        points, p, signs, _ = difference_cells(one.difference)
        verdict = one.verdict or "not all seeds yet"
        verdict += ", to be confirmed" if confirm and one.primary and one.verdict in ("better", "worse") else ""
        verdict += "" if one.primary else ", exploratory"
        seeds = f"{one.difference.seeds} of {one.wanted}"
        rows.append([one.cell, one.label, f"{one.asks}?", seeds, points, p, signs, verdict])
    return "\n".join(markdown_rows(header, rows)) if rows else "No runs yet."


def predictions_text(protocol: Mapping[str, Any], found: Sequence[Contrast]) -> str:
    """A Markdown table: every prediction beside the verdict; `right`, `wrong` or `open`."""
    rows = []
    for entry in protocol["predictions"]:
        for cell in entry["cells"]:
            wanted = (cell, entry["of"], entry["against"], entry.get("read", ""))
            contrast = next((one for one in found if one[:4] == wanted), None)
            if contrast is None:
                raise UserError(f"predictions: {cell} has no contrast {' '.join(wanted[1:])}")
            verdict = contrast.verdict
            if verdict == "undecided" and contrast.primary:  # Holm may yet decide it
                others = (one for one in found if one.cell == cell and one.primary)
                verdict = verdict if all(one.complete for one in others) else None
            mark = "open" if verdict is None else "right" if verdict == entry["verdict"] else "**wrong**"
            rows.append([cell, contrast.label, entry["verdict"], verdict or "", mark, entry["reason"]])
    return "\n".join(markdown_rows(["cell", "contrast", "predicted", "found", "prediction", "its reason"], rows))


def draw_map(protocol: Mapping[str, Any], found: Sequence[Contrast], path: Path) -> None:
    """One panel for each primary contrast, a row for each cell: difference, 95 % interval, margin and verdict.

    Hollow marks have not all their seeds. The same contrasts give the same file.
    """
    from matplotlib.figure import Figure

    primary = [one for one in found if one.primary]
    labels = list(dict.fromkeys(one.label for one in primary))
    if not labels:
        return
    cells = [cell for cell in protocol["order"] if any(one.cell == cell for one in primary)]
    figure = Figure(figsize=(2.6 * len(labels) + 1, 1.2 + 0.32 * len(cells)), layout="constrained")
    axes = figure.subplots(1, len(labels), sharey=True, squeeze=False)
    for panel, label in zip(axes[0], labels, strict=True):
        panel.axvline(0, color="#444444", lw=0.8)
        for one in (one for one in primary if one.label == label):
            height, margin = cells.index(one.cell), protocol["cells"][one.cell].get("margin")
            if margin:
                panel.plot([-margin, margin], [height] * 2, color="#dddddd", lw=9, solid_capstyle="butt", zorder=0)
            if (difference := one.difference) is None:
                continue
            colour = COLOURS.get(one.verdict or "", "#888888")
            low, high, middle = (100 * end for end in (difference.low, difference.high, difference.mean))
            panel.plot([low, high], [height] * 2, color=colour, lw=1.5)
            panel.plot(middle, height, "o", color=colour, mfc=colour if one.verdict else "white", ms=6)
        asks = next(one.asks for one in primary if one.label == label)
        panel.set_title(f"{label}\n{asks}?", fontsize=8, parse_math=False)
        panel.set_xlabel("points", fontsize=8)
        panel.grid(alpha=0.3, axis="x")
    axes[0][0].set_yticks(range(len(cells)), cells, parse_math=False)
    axes[0][0].set_ylim(len(cells) - 0.5, -0.5)
    figure.savefig(path, dpi=110, metadata={"Software": None})
