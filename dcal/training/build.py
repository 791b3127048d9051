"""From a composed configuration to the state of a run. Here `_target_`s are instantiated, and nowhere else, but for the
reader of the data, which `dcal.run.identity` calls to tell the run by its data."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from timm.data import Mixup
from timm.utils import ModelEmaV3

from dcal.attention.adapters import without_adapters
from dcal.attention.options import LoRAOptions, options_of
from dcal.backbone import normalisation
from dcal.config import Config
from dcal.dataset.data import Data
from dcal.distributed.collectives import rank_and_world_size
from dcal.model import DCAL
from dcal.run.identity import typed_reader
from dcal.task.options import Task
from dcal.training.execution.mode import compiles, execution_mode, obstacle_to_recording, record_steps
from dcal.training.parallel import STRATEGIES, replicate, shard
from dcal.training.state import TrainState
from dcal.utils.device import Device
from dcal.utils.errors import UserError, check_number, choose
from dcal.utils.rng import part_ways, seed_everything


def build(config: DictConfig) -> TrainState:
    """Data, model, loss, optimizer and device of a run, seeded.

    Raises:
        UserError, DataError, CheckpointError, UnsupportedBackbone: what the configuration asks for cannot be had; the
            message names the key.
    """
    cfg: Config = config  # type: ignore[assignment]  # a DictConfig that Hydra has checked against the schema
    check_train(cfg)
    seed_everything(cfg.seed, cfg.deterministic)
    data: Data = make(config.dataset)
    task: Task = make(config.task)
    model, device = build_model(
        config, data.num_classes, data.image_size, task.bnneck, side_sizes(task.side_information, data)
    )
    torch.set_float32_matmul_precision(device.float32_products)  # of the backward pass, too, which is under no autocast
    objective = task.objective(model.branches).to(device.torch)
    rank, processes = rank_and_world_size()
    loader = data.train_loader(
        share_of_batch(cfg.train.batch_size, task.instances, processes),
        task.instances,
        cfg.seed,
        cfg.train.workers,
        rank,
        processes,
        pin_memory=device.pins_memory,
    )
    sharded = processes > 1 and cfg.launch.strategy == "fsdp"
    ema, eval_model = None, None
    if cfg.train.ema_decay is not None:  # one tensor at a time, where some are sharded and buffers are not
        ema = ModelEmaV3(model, decay=cfg.train.ema_decay, use_warmup=True, foreach=not sharded)
    lora = options_of(LoRAOptions, OmegaConf.to_object(config.backbone.lora))
    if sharded or lora.rank:
        eval_model = copy.deepcopy(model)
        without_adapters(eval_model)
    if sharded:
        for copied in [model, *([ema.module] if ema else [])]:
            shard(copied)
    optimization = make(config.optimizer)(
        model,
        objective,
        model.new_parameters,
        total_steps=cfg.train.epochs * len(loader),
        steps_per_epoch=len(loader),
        batch_size=cfg.train.batch_size,
        head_steps=round(cfg.train.head_epochs * len(loader)),
    )
    features = model.features
    obstacle = obstacle_to_recording(cfg, device.torch, processes, optimization.optimizer)
    if compiles(cfg, device.torch, obstacle):  # parts of a batch differ in size
        features = torch.compile(features, dynamic=None if cfg.train.accumulate > 1 else False)
    if processes > 1 and not sharded:
        features = replicate(model, features)
    mixup = None
    if task.mixup or task.cutmix:
        mixup = Mixup(
            mixup_alpha=task.mixup, cutmix_alpha=task.cutmix, label_smoothing=0.0, num_classes=data.num_classes
        )
    part_ways(cfg.seed, rank)
    state = TrainState(
        task,
        data,
        loader,
        model,
        objective,
        optimization,
        device,
        cfg.train,
        torch.amp.GradScaler(device.torch.type, enabled=device.dtype == torch.float16),
        features,
        cfg.train.accumulate,
        ema,
        mixup,
        eval_model,
        lora=lora,
    )
    check_splits(state)
    record_steps(state, cfg, obstacle)
    return state


def check_splits(state: TrainState) -> None:
    """Refuses data that the task cannot be judged on, before it is trained on for hours.

    Raises:
        UserError: saying which split is missing.
    """
    catalog = state.data.catalog
    for split in state.task.splits(state.validation):
        if split not in catalog.splits:
            raise UserError(
                f"task={state.task.name} is judged on the split {split}, which {catalog.name} lacks (it has "
                f"{', '.join(catalog.splits)}): take the task that fits the data set, or hold out training data "
                "(dataset.val_fraction, dataset.val_ids)"
            )


def share_of_batch(batch_size: int, instances: int, processes: int) -> int:
    """Images that each process loads of a global batch.

    Raises:
        UserError: they would not be equally many, or not whole groups of `instances` images of one class.
    """
    if batch_size % (processes * instances) and processes > 1:
        groups = f" groups of task.instances={instances}" if instances > 1 else ""
        raise UserError(
            f"train.batch_size={batch_size} cannot be divided among {processes} processes (launch.processes)"
            f"{' in whole' + groups if groups else ''}: take a multiple of {processes * instances}"
        )
    return batch_size // processes


def build_model(
    config: DictConfig, num_classes: int, image_size: tuple[int, int], bnneck: bool, sides: tuple[int, int]
) -> tuple[DCAL, Device]:
    """The model on its device, and the device with the normalisation that its weights want.

    Args:
        sides: what `side_sizes` gave for the training data.
    """
    vit = make(config.backbone)(image_size=image_size)
    cameras, views = sides
    device = Device(config.device, config.train.precision, *normalisation(vit), cameras, views)
    model: DCAL = make(config.attention)(vit, num_classes, bnneck=bnneck, side_information=cameras * views)
    model.activation_checkpointing = config.train.activation_checkpointing
    return model.to(device.torch), device


def side_sizes(side_information: str, data: Data) -> tuple[int, int]:
    """Number of cameras (0: no side embedding) and of views per camera.

    Raises:
        UserError: the data set has no cameras or views to embed, or images without one: they would share the
            embedding of another camera.
    """
    if side_information == "none":
        return 0, 1
    keys = ("camera", "view") if side_information == "camera_view" else ("camera",)
    name, sizes = data.catalog.name, [1, 1]
    for position, key in enumerate(keys):
        for split, records in data.catalog.splits.items():
            unknown = [record for record in records if getattr(record, key) < 0]
            if unknown:
                raise UserError(
                    f"task.side_information={side_information}: {len(unknown)} of {len(records)} images of the split "
                    f"{split} of {name} have no {key}, first {unknown[0].path}; give each one, or set "
                    "task.side_information=none"
                )
            sizes[position] = max(sizes[position], 1 + max(getattr(record, key) for record in records))
    return sizes[0], sizes[1]


def check_train(cfg: Config) -> None:
    """Refuses settings that no group checks.

    Raises:
        UserError: naming the key.
    """
    execution_mode(cfg.train.compile, torch.device("cpu"))
    if not 0 <= cfg.seed < 2**63:
        raise UserError(f"seed={cfg.seed}: must be at least 0 and below 2^63, what torch takes")
    for key in ("epochs", "batch_size", "eval_batch_size", "accumulate", "eval_every", "workers"):
        check_number(f"train.{key}", getattr(cfg.train, key), ge=int(key != "workers"))
    check_number("train.log_every", cfg.train.log_every, ge=1, note="null logs epochs alone")
    check_number("train.checkpoint_minutes", cfg.train.checkpoint_minutes, ge=0, note="0 writes one after every step")
    check_number(
        "train.head_epochs", cfg.train.head_epochs, ge=0, lt=cfg.train.epochs, note="the latter is train.epochs"
    )
    check_number("train.clip_grad", cfg.train.clip_grad, gt=0, note="null clips nothing")
    check_number("train.ema_decay", cfg.train.ema_decay, gt=0, lt=1, note="null averages nothing")
    _, processes = rank_and_world_size()
    if cfg.train.accumulate * processes > cfg.train.batch_size:
        raise UserError(
            f"train.accumulate={cfg.train.accumulate}: a batch of train.batch_size={cfg.train.batch_size} images does "
            f"not have that many parts{' for each of the processes' if processes > 1 else ''}"
        )
    if (cfg.task.mixup or cfg.task.cutmix) and cfg.train.batch_size % 2:
        raise UserError(
            f"train.batch_size={cfg.train.batch_size}: task.mixup and task.cutmix blend pairs; make it even"
        )
    choose("launch.strategy", cfg.launch.strategy, STRATEGIES)
    if processes == 1:
        return
    if cfg.train.auto_accumulate:
        raise UserError("train.auto_accumulate=true works in one process only: set train.accumulate instead")
    little = cfg.train.head_epochs or cfg.backbone.freeze == "all" or cfg.backbone.lora.rank
    if cfg.launch.strategy == "fsdp" and little:
        raise UserError(
            "train.head_epochs, backbone.freeze=all and backbone.lora.rank need launch.strategy=ddp: there is little "
            "to shard"
        )
    if cfg.launch.strategy == "fsdp" and cfg.train.precision == "fp16":
        raise UserError("train.precision=fp16 needs launch.strategy=ddp, or one process: under fsdp use bf16")


def make(node: DictConfig) -> Any:
    """Instantiates a group, and gives its own error instead of Hydra's wrapping of it.

    Raises:
        UserError: a `_target_` or an option of it cannot be meant; the message names its key.
    """
    try:
        return instantiate(with_typed_readers(node) if "reader" in node else node, _convert_="all")
    except InstantiationException as error:
        cause, (text, _, key) = error.__cause__, str(error).partition("full_key: ")
        if isinstance(cause, TypeError) and "unexpected keyword" in str(cause):
            raise UserError(
                f"{cause}: an option of another choice of this group, perhaps set by experiment=...: leave that out; "
                "an option of a reader is removed by ~dataset.reader.OPTION"
            ) from None
        if text.startswith(("Error locating", "Expected a callable")):
            found = OmegaConf.select(node._get_root(), key) if key else node
            why = "; ".join(str(cause or text).splitlines()[:2])
            raise UserError(
                f"{key or node._key()}._target_={found.get('_target_')}: no function or class is there ({why}); its "
                "module must be installed, in the current folder or in PYTHONPATH"
            ) from None
        raise cause or error from None


def with_typed_readers(node: DictConfig) -> DictConfig:
    """The data set's node with the options of its reader, or those of its members, as the reader annotates them.

    Raises:
        UserError: there is no reader, or an option is of another type.
    """
    typed = copy.deepcopy(node)
    OmegaConf.set_readonly(typed, False)
    members = typed.get("members")
    nodes = {"dataset": typed} if members is None else {f"dataset.members.{name}": members[name] for name in members}
    for name, own in nodes.items():
        reader = own.get("reader")
        if not OmegaConf.is_dict(reader) or not isinstance(reader.get("_target_"), str):
            raise UserError(
                f"{name}.reader={reader}: must name in _target_ the function that reads the data set, with its "
                "arguments beside it; the options of `dataset=` do"
            )
        with suppress(InstantiationException):  # said of the whole node
            own.reader = typed_reader(reader, f"{name}.reader")
    return typed
