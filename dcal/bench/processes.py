"""A cell of the bench measured in several fresh processes, one after the other.

Where a process's tensors come to lie in memory is settled once, and with it how they share the caches: a cell's ratio
can differ between processes by far more than between the repeats inside one. Medians over processes even that out.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from dcal.bench.model import Config, run_cell
from dcal.utils.memory import keep_freed_memory

TIMED = ("seconds b/a", "seconds c/b", "time ratio / FLOP ratio")
"""Ratios of a row that are measured, and differ from process to process."""


def run_in_processes(cell: Config, options: Config, device: torch.device) -> Config:
    """The cell's row with medians over `options["processes"]` processes; 1: measured in this one."""
    if options["processes"] == 1:
        return run_cell(cell, options, device)
    rows = []
    for _ in range(options["processes"]):
        with ProcessPoolExecutor(1, get_context("spawn"), _prepare, (torch.get_num_threads(),)) as fresh:
            rows.append(fresh.submit(run_cell, cell, options, device).result())
    return combined(rows)


def combined(rows: list[Config]) -> Config:
    """One row of several of the same cell: medians of times and ratios; `"<ratio> of each"` lists them by process."""
    times = {name: statistics.median(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    row: Config = {**rows[0], "seconds": times}
    for key in TIMED:
        if key in row:
            row[key] = statistics.median(one[key] for one in rows)
            row[f"{key} of each"] = [one[key] for one in rows]
    return row


def _prepare(threads: int) -> None:
    """What `dcal-bench` does to its own process before it measures."""
    keep_freed_memory()
    torch.set_num_threads(threads)
