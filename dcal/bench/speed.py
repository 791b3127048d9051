"""How fast a device trains and infers, by `dcal-train`'s own step: kernel by kernel, compiled, and as a CUDA graph.

The plain ViT and DCAL take turns. Besides the time of a step: *busy*, the sum of the times of its kernels, and the
share in which the device waited for the host; *MFU*, the model's FLOPs per second (those of its kernels without what is
computed twice) relative to a product of two large matrices on the same device in the same precision; and the most
memory that was held, weights and optimizer included. What a device does not tell is missing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dcal.attention.pairing import Partners
from dcal.backbone import normalisation
from dcal.bench import measure
from dcal.bench.measure import number
from dcal.bench.model import MODES, Config, image_sizes, listed, make_step
from dcal.config import TrainConfig
from dcal.create import create_dcal_model
from dcal.model import DCAL
from dcal.optimizer import create_optimization
from dcal.task.fgvc import FGVC
from dcal.task.inference import infer_images
from dcal.training.execution.graph import WARM_UP, GraphStep, record
from dcal.training.state import TrainState
from dcal.training.step import Batch, take_step
from dcal.utils.accelerator import peak_bytes, synchronize
from dcal.utils.device import PRECISIONS, Device
from dcal.utils.errors import UserError, choose
from dcal.utils.memory import is_out_of_memory

EXECUTIONS = ("eager", "compiled", "captured")
MODELS = {"plain": "none", "dcal": "dcal"}
"""Name → `attention`; plain is the ViT with one classifier."""
COLUMNS = "backbone size mode execution model ms images/s over_plain busy_ms host MFU peak_GB"
LARGE = {"cpu": 1024}
"""Side of the matrices of the largest speed, by the type of the device; elsewhere ELSEWHERE."""
ELSEWHERE = 8192
TASK: Mapping[str, Any] = {
    "loss_weighting": "uncertainty", "label_smoothing": 0.0, "triplet": {"weight": 0.0, "margin": None},
    "bnneck": False, "instances": 1, "mixup": 0.0, "cutmix": 0.0, "inference": ("sa", "glca"), "flip_test": False,
    "metric": "cosine", "rerank": False, "side_information": "none",
}  # fmt: skip
OPTIMIZER: Mapping[str, Any] = {
    "opt": "adamw", "lr": 1e-4, "lr_batch_size": None, "weight_decay": 0.05, "momentum": 0.9, "bias_lr_scale": 1.0,
    "new_lr_scale": 1.0, "schedule": {"warmup_epochs": 0, "warmup_lr_ratio": 1.0, "final_lr_ratio": 1.0},
}  # fmt: skip
CLIP = 1.0


class Cell(NamedTuple):
    """One comparison of the plain ViT with DCAL."""

    backbone: str
    size: tuple[int, int]
    mode: str
    execution: str


def speed_cells(options: Config, device: torch.device) -> list[Cell]:
    """Every combination of the lists of the node `speed`.

    Raises:
        UserError: an unknown value, or a graph without CUDA; the message names its key.
    """
    executions = listed(options["executions"] or list(EXECUTIONS if device.type == "cuda" else EXECUTIONS[:1]))
    modes = listed(options["modes"])
    for key, values, known in (("executions", executions, EXECUTIONS), ("modes", modes, MODES)):
        for value in values:
            choose(f"speed.{key}", value, known)
    if "captured" in executions and device.type != "cuda":
        raise UserError(f"speed.executions=captured needs device=cuda, this is {device.type}")
    sizes = [(height, width) for height, width in image_sizes("speed.sizes", options["sizes"])]
    return list(itertools.starmap(Cell, itertools.product(listed(options["backbones"]), sizes, modes, executions)))


def measure_speed(options: Config, device: str) -> Iterator[Config]:
    """A row for each model of each cell, as soon as it is measured.

    Args:
        options: of `dcal-bench`.
        device: as for `choose_device`.
    """
    own = options["speed"]
    choose("speed.precision", own["precision"], PRECISIONS)
    where = Device(device, own["precision"], (0.0,), (1.0,))
    cells, best = speed_cells(own, where.torch), largest_speed(where, options)
    for cell in cells:
        rows: dict[str, Config] = {}

        def run(cell: Cell = cell, rows: dict[str, Config] = rows) -> None:
            rows |= measure_cell(cell, options, device)

        try:
            peak = peak_bytes(run, where.torch)
            if peak is None:
                run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            yield {**cell._asdict(), "error": "out of memory"}
            continue
        for name, row in rows.items():
            row["peak_GB"] = None if peak is None else peak / 1e9
            row["over_plain"] = row["seconds"] / rows["plain"]["seconds"]
            row["MFU"] = row["flops"] / row["seconds"] / best
            yield {**cell._asdict(), "model": name, **row}


def measure_cell(cell: Cell, options: Config, device: str) -> dict[str, Config]:
    """Seconds, busy seconds and FLOPs of each model."""
    own = options["speed"]
    torch.manual_seed(0)
    calls, flops = {}, {}
    for name, attention in MODELS.items():
        state = make_state(cell, attention, options, device)
        batch = make_batch(state, cell, options)
        calls[name] = make_call(state, batch, cell)
        meta = copy.deepcopy(state.model).to("meta")
        images = torch.empty(own["batch_size"], 3, *cell.size, device="meta")
        described = {"precision": "fp32", "mode": cell.mode}
        flops[name] = measure.flops(make_step(meta, images, batch.labels.to("meta"), described))
    where = state.device.torch
    for call, _ in itertools.product(calls.values(), range(WARM_UP + 1)):
        call()
    seconds = measure.interleaved_medians(calls, options["repeats"], options["min_seconds"], where)
    return {
        name: {"seconds": seconds[name], "busy": busy_seconds(call, where), "flops": flops[name],
               "images/s": own["batch_size"] / seconds[name]}
        for name, call in calls.items()
    }  # fmt: skip


def make_state(cell: Cell, attention: str, options: Config, device: str) -> TrainState:
    """What a training step needs, with fresh weights and without data."""
    own = options["speed"]
    model = create_dcal_model(
        cell.backbone, options["num_classes"], cell.size, options["top_ratio"], attention, stream=options["stream"]
    )
    where = Device(device, own["precision"], *normalisation(model.vit))
    model.to(where.torch).train(cell.mode == "train")
    task = FGVC(**TASK)
    objective = task.objective(model.branches).to(where.torch)
    optimization = create_optimization(
        model, objective, set(), total_steps=2, steps_per_epoch=1, batch_size=own["batch_size"], **OPTIMIZER
    )
    train = TrainConfig(epochs=1, auto_accumulate=False, clip_grad=CLIP)
    scaler = torch.amp.GradScaler(where.torch.type, enabled=where.dtype == torch.float16)
    nothing = cast(Any, None)  # no data: a batch is given
    return TrainState(task, nothing, nothing, model, objective, optimization, where, train, scaler, model.features, 1)


def make_batch(state: TrainState, cell: Cell, options: Config) -> Batch:
    """Images of noise, each with the next one as its partner."""
    count, where = options["speed"]["batch_size"], state.device.torch
    images = torch.randint(0, 256, (count, 3, *cell.size), dtype=torch.uint8).to(where)
    labels = (torch.arange(count) % options["num_classes"]).to(where)
    partners = Partners(((torch.arange(count) + 1) % count).to(where)) if state.model.pwca_blocks else None
    return Batch(images, labels, labels, None, partners)


def make_call(state: TrainState, batch: Batch, cell: Cell) -> Callable[[], object]:
    """One step or one inference, from uint8 images on the device on."""
    compiled = cell.execution != "eager"
    if cell.mode == "train":
        if compiled:
            state.features = torch.compile(state.model.features, dynamic=False)
        if cell.execution == "captured":
            optimizer = state.optimization.optimizer
            return partial(
                GraphStep(partial(take_step, state), optimizer, state.device.torch, len(batch.labels)), batch
            )
        return partial(take_step, state, batch)
    model = cast(DCAL, torch.compile(state.model, dynamic=False)) if compiled else state.model

    def infer() -> object:
        return infer_images(model, state.device.normalise(batch.images), None, state.device, flip=False)

    if cell.execution != "captured":
        return infer
    for _ in range(WARM_UP):
        infer()
    graph = record(infer, state.device.torch)[0]

    def replay(read: object = infer) -> None:
        """Holds on to `infer`: the graph reads the weights and images that it has."""
        graph.replay()

    return replay


def busy_seconds(call: measure.Call, device: torch.device) -> float | None:
    """The sum of the times of a call's kernels; None for a CPU, whose operations are what the host does."""
    activity = None if device.type == "cpu" else getattr(ProfilerActivity, device.type.upper(), None)
    if activity is None:
        return None
    with profile(activities=[ProfilerActivity.CPU, activity]) as seen:
        call()
        synchronize(device)
    # an annotation, such as that of the optimizer's step, lasts as long as the kernels in it
    kernels = [row for row in seen.key_averages() if row.device_type.name != "CPU" and not row.is_user_annotation]
    return sum(row.self_device_time_total for row in kernels) / 1e6


def largest_speed(where: Device, options: Config) -> float:
    """FLOPs per second of a product of two large matrices."""
    side = LARGE.get(where.torch.type, ELSEWHERE)
    one = torch.randn(side, side, device=where.torch)

    def product() -> Tensor:
        with where.autocast():
            return one @ one

    if where.dtype is not None:
        one = one.to(where.dtype)
    times = measure.interleaved_medians({"product": product}, options["repeats"], options["min_seconds"], where.torch)
    return 2 * side**3 / times["product"]


def table_row(row: Config) -> list[str]:
    """The entries of COLUMNS."""
    name = [row["backbone"], "x".join(map(str, row["size"])), row["mode"], row["execution"]]
    if "error" in row:
        return [*name, row["error"], *["n/a"] * (len(COLUMNS.split()) - len(name) - 1)]
    seconds, busy = row["seconds"], row["busy"]
    waits = None if busy is None else f"{max(0.0, 1 - busy / seconds):.0%}"
    speeds = [number(seconds, 2, 1e3), number(row["images/s"], 0), number(row["over_plain"])]
    busy_ms = number(busy, 2, 1e3)
    return [*name, row["model"], *speeds, busy_ms, waits or "n/a", f"{row['MFU']:.0%}", number(row["peak_GB"])]
