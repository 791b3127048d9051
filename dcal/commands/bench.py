"""`dcal-bench`: what DCAL costs, measured on this machine.

The parts: `cells`, `figure` and `rollout` compare the model with the plain backbone, see `dcal.bench.model`; `pipeline`
compares the way from image files to batches with those of timm and torchvision, see `dcal.bench.pipeline`; `speed` is
for a GPU, see `dcal.bench.speed`.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from omegaconf import DictConfig, OmegaConf

from dcal.bench import model, pipeline, speed
from dcal.bench.measure import CLOCKS
from dcal.bench.model import Config, listed
from dcal.utils.accelerator import device_name
from dcal.utils.device import Device
from dcal.utils.errors import UserError, choose
from dcal.utils.text import aligned

PARTS = ("cells", "figure", "rollout", "pipeline", "speed")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows under a header, columns aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    return "\n".join(aligned(lines, right=range(len(lines[0]))))


def environment(device: torch.device) -> Config:
    """What the numbers were measured with."""
    return {
        "device": cpu_name() if device.type == "cpu" else device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def choose_device(options: Config) -> torch.device:
    """The device, with the number of CPU threads set.

    Raises:
        UserError: no such clock or device, or the clock of one thread for several.
    """
    choose("clock", options["clock"], CLOCKS)
    if options["clock"] == "cpu" and options["threads"] != 1:
        raise UserError("clock=cpu adds up the time of all threads: set threads=1 with it")
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    return Device(options["device"], "fp32", (0.0,), (1.0,)).torch


def run(options: Config) -> Config:
    """Measures the wanted parts; returns what the JSON file holds.

    Raises:
        UserError: an option has no valid value; the message names its key.
    """
    wanted = listed(options["measure"])
    for part in wanted:
        if part not in PARTS:
            raise UserError(f"measure={part!r}: choose from {', '.join(PARTS)}")
    chosen, device, figure = model.cells(options), choose_device(options), options["figure"]
    report: Config = {"environment": environment(device), "options": options, **{part: [] for part in PARTS}}
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items()), flush=True)
    for cell in chosen if "cells" in wanted else ():
        report["cells"].append(model.run_in_processes(cell, options, device))
        print("  ".join(model.table_row(report["cells"][-1])), flush=True)
    if "figure" in wanted:
        common = {"backbone": figure["backbone"], "precision": figure["precision"], "mode": "infer", "compile": False}
        report["figure"] = [
            model.run_cell(
                {**common, "attention": "glca", "size": [side, side]}, {**options, "batch_size": {"infer": 1}}, device
            )
            for side in listed(figure["sizes"])
        ]
    if "rollout" in wanted:
        report["rollout"] = [model.rollout_memory(side, device) for side in listed(options["rollout"]["sizes"])]
    for row in speed.measure_speed(options, options["device"]) if "speed" in wanted else ():
        report["speed"].append(row)
        print("  ".join(speed.table_row(row)), flush=True)
    if "pipeline" in wanted:
        report["pipeline"] = pipeline.measure_pipeline(
            options["pipeline"], options["repeats"], CLOCKS[options["clock"]]
        )
    return report


def bench(config: DictConfig) -> None:
    """Measures, prints the tables, writes the JSON file and the figure."""
    options: Config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    report = run(options)
    if report["cells"]:
        print("\n" + table(model.COLUMNS.split(), map(model.table_row, report["cells"])))
    if report["rollout"]:
        rows = [[f"{value:.0f}" for value in row.values()] for row in report["rollout"]]
        print("\nextra memory of the rollout, one image\n" + table(report["rollout"][0], rows))
    if report["pipeline"]:
        files = ", ".join(f"{key} {value}" for key, value in report["pipeline"]["files"].items())
        print(f"\nfrom image files ({files}) to batches, one core")
        print(table(pipeline.COLUMNS.split(), pipeline.table_rows(report["pipeline"])))
    if report["speed"]:
        print("\n" + table(speed.COLUMNS.split(), map(speed.table_row, report["speed"])))
    if report["figure"]:
        figure = options["figure"]
        model.draw_figure(report["figure"], out / "cost.png", f"{figure['backbone']}, {figure['precision']}, inference")
    (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {out / 'bench.json'}" + (f", {out / 'cost.png'}" if report["figure"] else ""))
