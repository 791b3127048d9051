"""The typed schema of the composed configuration.

Hydra merges `conf/train.yaml` and every override into these dataclasses, so an unknown key or a value of the wrong
type is an error at composition that names the key. Values live in `conf/`, where users read them: a field has a
default here only where every option of its group shares it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from dcal.attention.options import GLCAOptions, LoRAOptions, PWCAOptions
from dcal.utils.paths import experiments_dir


@dataclass
class BackboneConfig:
    _target_: str = MISSING
    _partial_: bool = True
    name: str = MISSING
    pretrained: bool = False
    checkpoint: str | None = None
    drop_path_rate: float = 0.0
    patch_stride: int | None = None
    freeze: str = "none"
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    kwargs: Any = None  # a free node: a typed one would not take a dictionary from the command line


@dataclass
class AttentionConfig:
    _target_: str = MISSING
    _partial_: bool = True
    glca: GLCAOptions = field(default_factory=GLCAOptions)
    pwca: PWCAOptions = field(default_factory=PWCAOptions)
    head_fusion: str = MISSING


@dataclass
class TripletConfig:
    weight: float = MISSING
    margin: float | None = MISSING


@dataclass
class TaskConfig:
    _target_: str = MISSING
    loss_weighting: str = MISSING
    label_smoothing: float = MISSING
    triplet: TripletConfig = field(default_factory=TripletConfig)
    bnneck: bool = MISSING
    instances: int = MISSING
    mixup: float = MISSING
    cutmix: float = MISSING
    inference: list[str] = MISSING
    flip_test: bool = MISSING
    metric: str = MISSING
    rerank: bool = MISSING
    side_information: str = MISSING


@dataclass
class AugmentConfig:
    flip: float = MISSING
    pad: int = MISSING
    erase: float = MISSING


@dataclass
class DatasetConfig:
    _target_: str = MISSING
    reader: Any = MISSING
    root: str | None = None
    image_size: list[int] = MISSING
    resize: list[int] = MISSING
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    test_fraction: float | None = None
    val_fraction: float = 0.0
    val_ids: int = 0
    train_fraction: float = 1.0
    label_noise: float = 0.0
    decode: str = "full"
    cache: str = "none"
    on_bad_image: str = "error"
    allow_mismatch: bool = False
    members: Any = None  # a free node, see BackboneConfig.kwargs
    batches: str = "proportional"


OF_MEMBERS = (
    "root",
    "reader",
    "test_fraction",
    "val_fraction",
    "val_ids",
    "train_fraction",
    "label_noise",
    "allow_mismatch",
)
"""Keys of a data set that each member of `dataset=joint` has for itself; all members share the others."""


@dataclass
class ScheduleConfig:
    warmup_epochs: float = MISSING
    warmup_lr_ratio: float = MISSING
    final_lr_ratio: float = MISSING


@dataclass
class OptimizerConfig:
    _target_: str = MISSING
    _partial_: bool = True
    opt: str = MISSING
    lr: float = MISSING
    lr_batch_size: int | None = MISSING
    weight_decay: float = MISSING
    momentum: float = MISSING
    bias_lr_scale: float = MISSING
    new_lr_scale: float = MISSING
    layer_decay: float = 1.0
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class TrainConfig:
    epochs: int = MISSING
    head_epochs: float = 0.0
    batch_size: int = MISSING
    eval_batch_size: int = MISSING
    accumulate: int = MISSING
    auto_accumulate: bool = MISSING
    precision: str = MISSING
    compile: str = MISSING
    activation_checkpointing: bool = MISSING
    clip_grad: float | None = MISSING
    ema_decay: float | None = MISSING
    eval_every: int = MISSING
    checkpoint_minutes: float = MISSING
    workers: int = MISSING
    progress: bool = MISSING
    log_every: int | None = 50
    figures: bool = MISSING


@dataclass
class LaunchConfig:
    processes: int = MISSING
    strategy: str = MISSING


@dataclass
class WandbConfig:
    mode: str = MISSING
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    artifacts: bool = MISSING
    timeout: float = MISSING


@dataclass
class RunConfig:
    root: str = MISSING
    fresh: bool = False
    debug: bool = False


@dataclass
class Config:
    name: str = MISSING
    seed: int = MISSING
    device: str = MISSING
    deterministic: bool = MISSING
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    run: RunConfig = field(default_factory=RunConfig)


def register() -> None:
    """Makes known to Hydra: the schema that `conf/train.yaml` lists first, and where experiments/ is."""
    OmegaConf.register_new_resolver("experiments_dir", lambda: str(experiments_dir()), replace=True)
    ConfigStore.instance().store(name="schema", node=Config)
