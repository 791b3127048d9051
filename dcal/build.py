"""From a composed configuration to what a training needs. The only module that instantiates `_target_`s."""

from __future__ import annotations

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from timm.data import Mixup
from timm.utils import ModelEmaV3

from dcal.backbone import normalisation
from dcal.config import Config
from dcal.dataset.loader import Data
from dcal.device import Device
from dcal.model import DCAL
from dcal.rng import seed_everything
from dcal.setup import Setup, Task


def build(config: DictConfig) -> Setup:
    """Data, model, loss, optimizer and device of a run, seeded.

    Raises:
        ValueError, DataError, CheckpointError, UnsupportedBackbone: what the configuration asks for cannot be had; the
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
    objective = task.objective(model.branches).to(device.torch)
    loader = data.train_loader(
        cfg.train.batch_size,
        task.instances,
        cfg.seed,
        cfg.train.workers,
        pin_memory=device.torch.type == "cuda",
    )
    optimization = make(config.optimizer)(
        model,
        objective,
        model.new_parameters,
        total_steps=cfg.train.epochs * len(loader),
        steps_per_epoch=len(loader),
        batch_size=cfg.train.batch_size,
    )
    features = model.features
    if cfg.train.compile:  # parts of a batch differ in size
        features = torch.compile(features, dynamic=None if cfg.train.accumulate > 1 else False)
    return Setup(
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
        None if cfg.train.ema_decay is None else ModelEmaV3(model, decay=cfg.train.ema_decay, use_warmup=True),
        build_mixup(task, data.num_classes),
    )


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
        ValueError: the data set has no cameras or views to embed.
    """
    if side_information == "none":
        return 0, 1
    records = [record for split in data.catalog.splits.values() for record in split]
    cameras = 1 + max(record.camera for record in records)
    views = 1 + max(record.view for record in records) if side_information == "camera_view" else 1
    if cameras < 1 or views < 1:
        raise ValueError(f"task.side_information={side_information}: {data.catalog.name} has no such labels")
    return cameras, views


def build_mixup(task: Task, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix, if either is on."""
    if not (task.mixup or task.cutmix):
        return None
    return Mixup(mixup_alpha=task.mixup, cutmix_alpha=task.cutmix, label_smoothing=0.0, num_classes=num_classes)


def check_train(cfg: Config) -> None:
    """Refuses settings that no group checks.

    Raises:
        ValueError: naming the key.
    """
    for key in ("epochs", "batch_size", "eval_batch_size", "accumulate"):
        if getattr(cfg.train, key) < 1:
            raise ValueError(f"train.{key}={getattr(cfg.train, key)}: must be at least 1")
    if cfg.train.accumulate > cfg.train.batch_size:
        raise ValueError(
            f"train.accumulate={cfg.train.accumulate}: a batch of train.batch_size={cfg.train.batch_size} images does "
            "not have that many parts"
        )


def make(node: DictConfig) -> Any:
    """Instantiates a group, and gives its own error instead of Hydra's wrapping of it."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        raise
