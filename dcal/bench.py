"""`dcal-bench`: what the attention branches cost, next to the plain timm ViT and to their literal definition.

Three variants of every cell take turns: (a) the plain timm ViT, (b) DCAL, (c) `tests/reference.py`, which
materialises every map. Reported are medians, the ratios b/a and c/b, the bytes that autograd keeps for the
backward pass, and FLOPs. Time ratio over FLOP ratio is the overhead that is ours and not the method's.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dcal import measure
from dcal.attention.kernel import Trace, attention_with_trace
from dcal.attention.pairing import Partners
from dcal.attention.rollout import rollout_row
from dcal.loss import UncertaintyLoss
from dcal.model import DCAL, Output, create_dcal_model
from dcal.paths import config_dir

Config = dict[str, Any]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = (
    "backbone size precision compile attention mode plain_ms dcal_ms literal_ms b/a c/b "
    "FLOPs_b/a time/FLOPs saved_MB saved_b/a"
)


def run_cell(config: Config, device: torch.device) -> Config:
    """Measures one combination: seconds, FLOPs and saved bytes of each variant, and their ratios."""
    torch.manual_seed(0)
    height, width = config["size"]
    images = torch.randn(config["batch_size"], 3, height, width, device=device)
    labels = torch.arange(len(images), device=device) % config["num_classes"]
    models = {name: model.to(device) for name, model in build_models(config).items()}
    train = config["mode"] == "train"
    calls: dict[str, Callable[[], object]] = {}
    row: Config = dict(config, seconds={}, flops={}, saved_bytes={})
    for name, model in models.items():
        model.train(train)
        row["flops"][name] = count_flops(model, images, labels, train)
        loss = UncertaintyLoss(getattr(model, "branches", ("sa",))).to(device)
        compiled = torch.compile(model) if config["compile"] else model
        calls[name] = make_step(compiled, loss, images, labels, config)
        if train and config["memory"]:
            row["saved_bytes"][name] = measure.saved_bytes(
                make_step(model, loss, images, labels, config), model.parameters()
            )
    row["seconds"] = measure.interleaved_medians(
        calls, config["repeats"], config["min_seconds"], device, CLOCKS[config["clock"]]
    )
    for key in ("seconds", "flops", "saved_bytes"):
        for ratio, (over, under) in {"b/a": ("dcal", "plain"), "c/b": ("literal", "dcal")}.items():
            if over in row[key] and under in row[key]:
                row[f"{key} {ratio}"] = row[key][over] / row[key][under]
    row["time ratio / FLOP ratio"] = row["seconds b/a"] / row["flops b/a"]
    return row


def build_models(config: Config) -> dict[str, nn.Module]:
    """The variants that the cell compares, on the CPU; `literal` only in a checkout, without compilation."""
    size = tuple(config["size"])
    plain = timm.create_model(config["backbone"], num_classes=config["num_classes"], img_size=size)
    model = create_dcal_model(
        config["backbone"],
        config["num_classes"],
        size,
        config["top_ratio"],
        config["attention"],
        stream=config["stream"],
    )
    models: dict[str, nn.Module] = {"plain": plain, "dcal": model}
    reference = literal_reference() if config["literal"] and not config["compile"] else None
    if reference is not None:
        models["literal"] = reference(model)
        models["literal"].branches = model.branches  # type: ignore[assignment]
    return models


def literal_reference() -> Callable[[DCAL], nn.Module] | None:
    """The class of tests/reference.py, or None where dcal was installed without its tests."""
    path = Path(__file__).resolve().parent.parent / "tests" / "reference.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("dcal_literal_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiteralDCAL


def make_step(
    model: Callable[..., Any], loss: nn.Module, images: Tensor, labels: Tensor, config: Config
) -> Callable[[], object]:
    """One inference or one training step (forward, losses, backward), as a call without arguments."""
    dtype = torch.bfloat16 if config["precision"] == "bf16" else None
    partner = (torch.arange(len(images)) + 1) % len(images)
    partners = Partners(partner.to(images.device)) if config["attention"] in ("pwca", "dcal") else None
    plain = not hasattr(loss, "branches") or loss.branches == ("sa",)

    def infer() -> object:
        with torch.inference_mode(), autocast(images.device, dtype):
            return model(images)

    def train() -> object:
        model.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
        with autocast(images.device, dtype):
            out = model(images) if plain else model(images, partners=partners)
        total = total_loss(out, labels, loss)
        total.backward()
        return total

    return train if config["mode"] == "train" else infer


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type if device.type != "meta" else "cpu", dtype, enabled=dtype is not None)


def total_loss(out: Tensor | Output, labels: Tensor, loss: nn.Module) -> Tensor:
    logits = {"sa": out} if isinstance(out, Tensor) else out.logits()
    total: Tensor = loss({name: F.cross_entropy(value.float(), labels) for name, value in logits.items()})
    return total


def count_flops(model: nn.Module, images: Tensor, labels: Tensor, train: bool) -> int:
    """FLOPs of the call, two per multiply-add, matrix products and convolutions only."""
    twin = copy.deepcopy(model).to("meta")
    loss = UncertaintyLoss(getattr(model, "branches", ("sa",))).to("meta")
    config = {"precision": "fp32", "mode": "train" if train else "infer"}
    attention = {"attention": "pwca" if "pwca" in getattr(model, "branches", ()) else "none"}
    step = make_step(twin, loss, images.to("meta"), labels.to("meta"), {**config, **attention})
    return measure.flops(step)


def rollout_memory(size: int, device: torch.device) -> Config:
    """Extra bytes of one image's rollout through DeiT-Tiny's blocks, ours and by the product of matrices."""
    tokens, blocks = (size // 16) ** 2 + 1, 11
    torch.manual_seed(0)
    traces: list[Trace] = []
    for _ in range(blocks):
        q, k = (torch.randn(1, 3, tokens, 64, device=device) for _ in range(2))
        traces.append(attention_with_trace(q, k, k)[1])
    kept = sum(t.nbytes for trace in traces for t in trace if isinstance(t, Tensor))
    work = measure.peak_bytes(lambda: rollout_row(traces), device)
    row: Config = {"pixels": size, "tokens": tokens, "kept_bytes": kept, "work_bytes": work}
    row["bytes per token"] = (kept + work) / tokens
    row["literal_bytes"] = (blocks * 3 + 2) * tokens * tokens * 4  # every map, and two factors of the product
    return row


def draw_figure(rows: list[Config], path: Path, title: str) -> None:
    """Milliseconds per image against image size: plain, DCAL, literal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = {"plain": "plain ViT", "dcal": "DCAL", "literal": "literal DCAL"}
    for name, label in names.items():
        points = [
            (row["size"][0], row["seconds"][name], row["seconds"]["plain"]) for row in rows if name in row["seconds"]
        ]
        if points:
            sizes, times, plain = zip(*points, strict=True)
            left.loglog(sizes, [1e3 * value for value in times], "o-", label=label)
            right.plot(sizes, [a / b for a, b in zip(times, plain, strict=True)], "o-", label=label)
    for axes, text in ((left, "ms per image"), (right, "time relative to the plain ViT")):
        axes.set(xlabel="image side (pixels)", ylabel=text)
        axes.set_xticks([row["size"][0] for row in rows], [str(row["size"][0]) for row in rows], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows under a header, columns aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def table_row(row: Config) -> list[str]:
    def number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
        return "n/a" if value is None else f"{value * scale:.{digits}f}"

    times = [number(row["seconds"].get(name), 1e3, 1) for name in ("plain", "dcal", "literal")]
    height, width = row["size"]
    return [
        *(row["backbone"], f"{height}x{width}", row["precision"], "yes" if row["compile"] else "no"),
        *(row["attention"], row["mode"], *times, number(row["seconds b/a"]), number(row.get("seconds c/b"))),
        *(number(row["flops b/a"]), number(row["time ratio / FLOP ratio"])),
        *(number(row["saved_bytes"].get("dcal"), 1e-6, 0), number(row.get("saved_bytes b/a"))),
    ]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def cells(config: Config) -> list[Config]:
    """Every combination of the lists."""
    axes = {
        "backbone": as_list(config["backbones"]),
        "size": config["sizes"] if isinstance(config["sizes"][0], list) else [config["sizes"]],
        "compile": as_list(config["compile"]),
        "attention": as_list(config["attention"]),
        "precision": as_list(config["precisions"]),
        "mode": as_list(config["modes"]),
    }
    return [{**config, **dict(zip(axes, values, strict=True))} for values in itertools.product(*axes.values())]


def environment(device: torch.device) -> Config:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


KEPT = (
    "backbone",
    "size",
    "precision",
    "compile",
    "attention",
    "mode",
    "batch_size",
    "repeats",
    "stream",
    "top_ratio",
)


def run(config: Config) -> Config:
    """Runs every cell, the figure and the rollout table; returns what the JSON file holds."""
    wanted = config["device"]
    device = torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    report: Config = {"environment": environment(device), "cells": [], "figure": [], "rollout": []}
    print(", ".join(f"{key} {value}" for key, value in report["environment"].items()), flush=True)

    for cell in cells(config):
        row = run_cell(cell, device)
        report["cells"].append({key: value for key, value in row.items() if key in KEPT or key not in config})
        print("  ".join(table_row(row)), flush=True)
    for side in config["figure"]["sizes"]:
        choice = {
            "size": [side, side],
            "batch_size": 1,
            "mode": "infer",
            "compile": False,
            "attention": "glca",
        }
        row = run_cell({**config, **choice, **{k: config["figure"][k] for k in ("backbone", "precision")}}, device)
        report["figure"].append({key: value for key, value in row.items() if key in KEPT or key not in config})
    report["rollout"] = [rollout_memory(size, device) for size in config["rollout"]["sizes"]]
    return report


@hydra.main(config_path=str(config_dir() / "bench"), config_name="bench", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of `dcal-bench`."""
    options: Config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    report = run(options)
    print("\n" + table(COLUMNS.split(), map(table_row, report["cells"])))
    if report["rollout"]:
        print(
            "\nextra memory of the rollout, one image\n"
            + table(
                report["rollout"][0],
                ([f"{value:.0f}" for value in row.values()] for row in report["rollout"]),
            )
        )
    if report["figure"]:
        figure = options["figure"]
        draw_figure(report["figure"], out / "cost.png", f"{figure['backbone']}, {figure['precision']}, inference")
    (out / "bench.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {out / 'bench.json'}" + (f", {out / 'cost.png'}" if report["figure"] else ""))


if __name__ == "__main__":
    main()
