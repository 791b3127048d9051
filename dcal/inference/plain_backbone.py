"""A plain backbone, ready for inference without a run: its features to search with, its rollout to look at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from dcal.attention.options import PWCAOptions
from dcal.backbone import evaluation_input
from dcal.config import Config
from dcal.inference.restore import Opened
from dcal.inference.trust import DCAL_TARGET, TIMM_VIT, Trust
from dcal.task.options import Task
from dcal.training.build import build_model, check_train, make
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir


@dataclass(frozen=True)
class PlainBackbone(Opened):
    """A backbone without a run: no branch, no classifier. Its feature is that of its attention pool, of its class token
    or the mean of its patches, the first of these that it has."""

    @property
    def title(self) -> str:
        return f"backbone {self.config.backbone.name}"

    def weights_digest(self) -> str:
        """Of names and values: the same weights in files of two layouts have the same digest."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.vit.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def open_backbone(
    backbone: Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> PlainBackbone:
    """A backbone without a run.

    PWCA is attached to all of its blocks: it has no weights, and shows what another image would draw.

    Args:
        backbone: arguments of `dcal.backbone.create_backbone` by their names, and perhaps `resize`, (height, width) to
            which images are resized before `image_size` is cropped from the centre. Without sizes, those that the
            model's own weights were evaluated at.
        task: `inference` and `flip_test`.
        train: `precision`, `eval_batch_size` and `workers`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: no weights, both kinds of weights, or a size or name that does not fit.
        CheckpointError: weights that cannot be fetched, read or matched.
    """
    options = dict(backbone)
    asked, resize = options.pop("image_size", None), options.pop("resize", None)
    name = options["name"]
    if not options.get("checkpoint") and not options.get("pretrained"):
        raise UserError(
            f"backbone.name={name}: without weights its features say nothing; give backbone.checkpoint=FILE, or "
            "backbone.pretrained=true to fetch those of timm"
        )
    own, crop = evaluation_input(name, options.get("kwargs"))
    image_size = _sides(asked or own)
    resize = _sides(resize or [round(side / crop) for side in image_size])
    today: Any = OmegaConf.load(config_dir() / "train.yaml")
    keys: Any = OmegaConf.load(config_dir() / "_task.yaml")
    read_alone = {"_target_": "dcal.task.reid.ReID", "inference": ["sa"]}  # features, and no classes
    config: Any = OmegaConf.merge(
        OmegaConf.structured(Config),
        OmegaConf.masked_copy(today, ["train", "launch"]),
        {
            "name": name,
            "seed": 0,
            "device": device,
            "backbone": {"_target_": TIMM_VIT, **options},
            "attention": {
                "_target_": DCAL_TARGET, "glca": {"blocks": 0}, "pwca": PWCAOptions(), "head_fusion": "mean"
            },
            "task": OmegaConf.merge(keys, read_alone, dict(task or {})),
            "dataset": {"image_size": image_size, "resize": resize},
            "train": {"precision": "fp32", **(train or {})},
        },
    )  # fmt: skip
    check_train(config)
    made: Task = make(config.task)
    # one class, for a classifier that nobody asks
    model, where = build_model(config, 1, (image_size[0], image_size[1]), bnneck=False, sides=(0, 1))
    return PlainBackbone(config, [], made, model.eval(), where, Trust())


def _sides(size: Any) -> list[int]:
    """[height, width] of a size that may be one number for both."""
    return [size, size] if isinstance(size, int) else list(size)
