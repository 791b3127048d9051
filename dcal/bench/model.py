"""What the attention branches cost, next to the plain timm ViT and to their literal definition.

Three variants of every cell take turns: (a) the plain timm ViT, (b) DCAL, (c) `tests/reference.py`, which materialises
every map. Reported are medians, the ratios b/a and c/b, the bytes that autograd keeps for the backward pass, and FLOPs.
Time ratio over FLOP ratio is the overhead that is ours and not the method's.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcal.attention.pairing import Partners
from dcal.attention.rollout import rollout_row
from dcal.attention.trace import Trace, attention_with_trace
from dcal.bench import measure
from dcal.bench.measure import number
from dcal.create import create_dcal_model
from dcal.loss import UncertaintyLoss
from dcal.model import DCAL
from dcal.output import Output
from dcal.utils.errors import UserError
from dcal.utils.memory import keep_freed_memory

Config = dict[str, Any]
KEYS = ("backbones", "sizes", "compile", "attention", "precisions", "modes")
AXES = {key: key.removesuffix("s") for key in KEYS}
"""Key of the configuration → what one of its values is called in a cell."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
MODES = ("infer", "train")
RATIOS = {"b/a": ("dcal", "plain"), "c/b": ("literal", "dcal")}
TIMED = ("seconds b/a", "seconds c/b", "time ratio / FLOP ratio")
"""Ratios of a row that are measured, and differ from process to process."""
COLUMNS = (
    "backbone size precision compile attention mode plain_ms dcal_ms literal_ms b/a c/b "
    "FLOPs_b/a time/FLOPs saved_MB saved_b/a"
)


def listed(value: Any) -> list[Any]:
    """What a key lists: a list of one needs no brackets."""
    return value if isinstance(value, list) else [value]


def image_sizes(key: str, value: Any) -> list[list[int]]:
    """The sizes that a key lists, `[height, width]` each.

    Raises:
        UserError: one is something else.
    """
    sizes = listed(value)
    sizes = sizes if any(isinstance(size, list) for size in sizes) else [sizes]
    for size in sizes:
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise UserError(f"{key}={size}: give [height, width] in pixels, or a list of these")
    return sizes


def cells(options: Config) -> list[Config]:
    """Every combination of the lists.

    Raises:
        UserError: an unknown value; the message names its key.
    """
    values = {name: listed(options[key]) for key, name in AXES.items()}
    values["size"] = image_sizes("sizes", options["sizes"])
    for key, name, known in (
        ("precisions", "precision", PRECISIONS),
        ("modes", "mode", MODES),
        ("compile", "compile", (False, True)),
    ):
        for value in values[name]:
            if value not in known:
                raise UserError(f"{key}={value!r}: choose from {', '.join(str(one).lower() for one in known)}")
    if not isinstance(options["batch_size"], dict):
        raise UserError(f"batch_size={options['batch_size']!r}: set batch_size.infer, batch_size.train or both")
    counts = {f"batch_size.{mode}": count for mode, count in options["batch_size"].items()}
    for key, count in {**counts, **{key: options[key] for key in ("repeats", "processes", "num_classes")}}.items():
        if not (isinstance(count, int) and count > 0):
            raise UserError(f"{key}={count!r}: give a whole number of at least 1")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def run_in_processes(cell: Config, options: Config, device: torch.device) -> Config:
    """The cell's row with medians over `options["processes"]` fresh processes, one after the other; 1: in this one.

    Where a process's tensors come to lie in memory is settled once, and with it how they share the caches: a cell's
    ratio can differ between processes by far more than between the repeats inside one. Medians over processes even that
    out.
    """
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


def run_cell(cell: Config, options: Config, device: torch.device) -> Config:
    """Measures one combination: seconds, FLOPs and saved bytes of each variant, and their ratios."""
    torch.manual_seed(0)
    images = torch.randn(options["batch_size"][cell["mode"]], 3, *cell["size"], device=device)
    labels = torch.arange(len(images), device=device) % options["num_classes"]
    steps: dict[str, measure.Call] = {}
    row: Config = {**cell, "batch_size": len(images), "seconds": {}, "flops": {}, "saved_bytes": {}}
    for name, model in build_models(cell, options).items():
        model.to(device).train(cell["mode"] == "train")
        meta = copy.deepcopy(model).to("meta")
        row["flops"][name] = measure.flops(make_step(meta, images.to("meta"), labels.to("meta"), cell))
        step = make_step(model, images, labels, cell)
        if model.training and options["memory"]:
            row["saved_bytes"][name] = measure.saved_bytes(step, model.parameters())
        steps[name] = make_step(model, images, labels, cell, compile=True) if cell["compile"] else step
    clock = measure.CLOCKS[options["clock"]]
    row["seconds"] = measure.interleaved_medians(steps, options["repeats"], options["min_seconds"], device, clock)
    for quantity, (ratio, (over, under)) in itertools.product(("seconds", "flops", "saved_bytes"), RATIOS.items()):
        if {over, under} <= set(row[quantity]):
            row[f"{quantity} {ratio}"] = row[quantity][over] / row[quantity][under]
    row["time ratio / FLOP ratio"] = row["seconds b/a"] / row["flops b/a"]
    return row


def build_models(cell: Config, options: Config) -> dict[str, nn.Module]:
    """The variants that the cell compares, on the CPU; `literal` only in a checkout, without compilation."""
    name, classes, size = cell["backbone"], options["num_classes"], tuple(cell["size"])
    dcal = create_dcal_model(name, classes, size, options["top_ratio"], cell["attention"], stream=options["stream"])
    plain = timm.create_model(name, num_classes=classes, img_size=size)
    models: dict[str, nn.Module] = {"plain": plain, "dcal": dcal}
    reference = literal_reference() if options["literal"] and not cell["compile"] else None
    if reference is not None:
        models["literal"] = reference(dcal)
    return models


def literal_reference() -> Callable[[DCAL], nn.Module] | None:
    """The class of tests/reference.py, or None where dcal was installed without its tests."""
    path = Path(__file__).resolve().parents[2] / "tests" / "reference.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("dcal_literal_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiteralDCAL


def make_step(
    model: nn.Module, images: Tensor, labels: Tensor, cell: Config, compile: bool = False
) -> Callable[[], object]:
    """One inference or one training step (forward, losses, backward), as a call without arguments."""
    device = images.device
    dtype = None if device.type == "meta" else PRECISIONS[cell["precision"]]
    kind = "cpu" if device.type == "meta" else device.type
    branches = getattr(getattr(model, "model", model), "branches", ("sa",))
    loss = UncertaintyLoss(branches).to(device)
    call = torch.compile(model) if compile else model
    options = {}
    if "pwca" in branches:
        options["partners"] = Partners(((torch.arange(len(images)) + 1) % len(images)).to(device))

    def infer() -> object:
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype is not None):
            return call(images)

    def train() -> object:
        model.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            out: Tensor | Output = call(images, **options)
        logits = {"sa": out} if isinstance(out, Tensor) else out.logits()
        total = loss({name: F.cross_entropy(value.float(), labels) for name, value in logits.items()})
        return total.backward()

    return train if cell["mode"] == "train" else infer


def rollout_memory(side: int, device: torch.device) -> Config:
    """Extra bytes of one image's rollout through DeiT-Tiny's blocks, ours and by the product of matrices."""
    tokens, blocks = (side // 16) ** 2 + 1, 11
    torch.manual_seed(0)
    traces: list[Trace] = []
    for _ in range(blocks):
        q, k = (torch.randn(1, 3, tokens, 64, device=device) for _ in range(2))
        traces.append(attention_with_trace(q, k, k)[1])
    kept = sum(t.nbytes for trace in traces for t in trace if isinstance(t, Tensor))
    work = measure.peak_bytes(lambda: rollout_row(traces), device)
    literal = (blocks * 3 + 2) * tokens * tokens * 4  # every map, and two factors of the product
    return {
        "pixels": side,
        "tokens": tokens,
        "queries_and_keys_MB": kept / 1e6,
        "working_MB": work / 1e6,
        "kB_per_token": (kept + work) / tokens / 1e3,
        "literal_MB": literal / 1e6,
    }


def draw_figure(rows: list[Config], path: Path, title: str) -> None:
    """Milliseconds per image against image size: plain, DCAL, literal."""
    from matplotlib.figure import Figure  # half a second, and in every process that measures: only where it is drawn

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in {"plain": "plain ViT", "dcal": "DCAL", "literal": "literal DCAL"}.items():
        some = [row for row in rows if name in row["seconds"]]
        sides = [row["size"][0] for row in some]
        left.loglog(sides, [1e3 * row["seconds"][name] for row in some], "o-", label=label)
        right.plot(sides, [row["seconds"][name] / row["seconds"]["plain"] for row in some], "o-")
    for axes, text in ((left, "ms per image"), (right, "time relative to the plain ViT")):
        sides = [row["size"][0] for row in rows]
        axes.set(xlabel="image side (pixels)", ylabel=text)
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def table_row(row: Config) -> list[str]:
    """The cell's entries of the table, in the order of COLUMNS."""
    height, width = row["size"]
    name = [row["backbone"], f"{height}x{width}", row["precision"], "yes" if row["compile"] else "no"]
    times = [number(row["seconds"].get(variant), 1, 1e3) for variant in ("plain", "dcal", "literal")]
    ratios = [row.get(key) for key in ("seconds c/b", "flops b/a", "time ratio / FLOP ratio")]
    over_plain, each = number(row["seconds b/a"]), row.get("seconds b/a of each")
    if each:
        over_plain += f" ({min(each):.2f}-{max(each):.2f})"
    saved = [number(row["saved_bytes"].get("dcal"), 0, 1e-6), number(row.get("saved_bytes b/a"))]
    return [*name, row["attention"], row["mode"], *times, over_plain, *map(number, ratios), *saved]
