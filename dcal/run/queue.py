"""A list of experiments as a file: arms that are compared, in cells, over seeds; and how far each run is.

    name: when                   # runs are <run.root>/<name>/<cell>/<cfg_id>/seed=<seed>
    order: [R0, R1]              # of the cells; the first is the most valuable one
    arms:                        # what is compared
      A0: {title: plain ViT, overrides: [attention=none]}
    cells:                       # in which setting
      R0:
        title: Market-1501 in minutes
        seeds: [20, 21]
        overrides: [experiment=reid/market1501_small]
        grid: {optimizer.lr: [1e-4, 2e-4]}   # optional: every combination of these
        chosen: {A0: [optimizer.lr=2e-4]}    # optional: overrides by arm that an earlier cell decides; null until then
        arms: {A0: []}                       # arms with their overrides in this cell

Other keys are for the reader. Of two overrides of one key the later counts: the cell's, the arm's, the arm's in the
cell, `chosen`, the grid's, and last what the command line gives. Inside a cell all arms of a seed come before the next
seed, so that whatever is finished compares whole seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dcal.run.listing import STATES
from dcal.utils.arguments import typed_arguments
from dcal.utils.errors import UserError, choose, first_line


class Job(NamedTuple):
    """One run of the list."""

    cell: str
    arm: str
    point: str
    """Of the cell's grid; empty without one."""
    seed: int
    overrides: tuple[str, ...]
    """Of `dcal-train`, without the seed."""

    @property
    def words(self) -> list[str]:
        """What to give to `dcal-train`."""
        return [*self.overrides, f"seed={self.seed}"]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.cell, self.arm, self.point, f"seed {self.seed}")))


class Entry(TypedDict):
    """What the keys of a cell hold; an arm has the first two."""

    title: str
    overrides: list[str]
    seeds: list[int]
    arms: dict[str, list[str]]
    grid: dict[str, list[Any]] | None
    chosen: dict[str, list[str]] | None


def read_queue(path: Path) -> dict[str, Any]:
    """The file as plain data.

    Raises:
        UserError: it cannot be read, lacks a key, has a value of another type, or names a cell or an arm that it does
            not have.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    kinds = {"name": str, "order": list, "arms": dict, "cells": dict}
    if not isinstance(plain, dict) or not all(isinstance(plain.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{path}: a list of experiments has the keys name, order, arms and cells")
    queue: dict[str, Any] = {str(key): value for key, value in plain.items()}
    for cell in queue["order"]:
        choose(f"{path}: order", cell, queue["cells"])
    for kind, keys in (("cells", ("title", "seeds", "overrides", "arms")), ("arms", ("title", "overrides"))):
        for name, node in queue[kind].items():
            lacking = [key for key in keys if not isinstance(node, dict) or key not in node]
            if lacking:
                raise UserError(f"{path}: {kind}.{name} has no {', '.join(lacking)}")
            queue[kind][name] = typed_arguments(Entry, node, f"{path}: {kind}.{name}")
    for name, cell in queue["cells"].items():
        for arm in (*cell["arms"], *(cell.get("chosen") or ())):
            choose(f"{path}: cells.{name}", arm, queue["arms"])
    return queue


def jobs_of(
    queue: Mapping[str, Any], cells: Sequence[str] = (), common: Sequence[str] = (), arms: Sequence[str] = ()
) -> list[Job]:
    """The runs of a list in the order in which they are wanted.

    Args:
        queue: from `read_queue`.
        cells: names of the cells that are wanted; if there are none, all whose `chosen` is not open.
        common: overrides of every run, such as where the data are.
        arms: names of the arms that are wanted; if there are none, all of a cell.

    Raises:
        UserError: an unknown cell or arm, or a cell whose `chosen` is still open.
    """
    for arm in arms:
        choose("arms", arm, queue["arms"])
    for cell in cells:
        if is_open(queue, choose("cells", cell, queue["order"])):
            raise UserError(f"cells.{cell}.chosen is open: run the cells that decide it, and enter what they chose")
    wanted = [cell for cell in queue["order"] if (cell in cells if cells else not is_open(queue, cell))]
    jobs = (job for cell in wanted for job in _jobs_of_cell(queue, cell, common))
    return [job for job in jobs if not arms or job.arm in arms]


def is_open(queue: Mapping[str, Any], cell: str) -> bool:
    """Whether a cell waits for what an earlier one decides."""
    return queue["cells"][cell].get("chosen", {}) is None


def _jobs_of_cell(queue: Mapping[str, Any], name: str, common: Sequence[str]) -> Iterator[Job]:
    cell = queue["cells"][name]
    chosen: Mapping[str, Sequence[str]] = cell.get("chosen", {})
    for seed in cell["seeds"]:
        for arm, own in cell["arms"].items():
            for point in grid_points(cell.get("grid") or {}):
                overrides = (
                    *cell["overrides"],
                    *queue["arms"][arm]["overrides"],
                    *own,
                    *chosen.get(arm, ()),
                    *point,
                    f"name={queue['name']}/{name}",
                    *common,
                )
                yield Job(name, arm, " ".join(point), seed, overrides)


def grid_points(grid: Mapping[str, Sequence[Any]]) -> Iterator[list[str]]:
    """Every point of a grid as overrides; a single point without any for an empty grid."""
    for values in itertools.product(*grid.values()):
        yield [f"{key}={value}" for key, value in zip(grid, values, strict=True)]


def state_table(queue: Mapping[str, Any], states: Iterable[tuple[Job, str]]) -> str:
    """A Markdown table: how many runs of each arm are in which state, and of each cell."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for job, state in states:
        for row in ((job.cell, ""), (job.cell, job.arm)):
            found = counts.setdefault(row, dict.fromkeys(STATES, 0))
            found[state] += 1
    lines = [f"| cell | arm | {' | '.join(STATES)} |", f"|---|---|{'---|' * len(STATES)}"]
    for (cell, arm), found in counts.items():
        title = f"{arm}: {queue['arms'][arm]['title']}" if arm else queue["cells"][cell]["title"]
        cells = " | ".join(str(found[state] or "") for state in STATES)
        lines.append(f"| {'' if arm else cell} | {title} | {cells} |")
    waiting = [cell for cell in queue["order"] if is_open(queue, cell)]
    return "\n".join([*lines, *(["", f"Open until an earlier cell decides: {', '.join(waiting)}."] if waiting else [])])
