"""The device of a run: where tensors go, in which precision, and the normalisation that happens there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dcal.utils.errors import UserError

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Device:
    """A torch device with the autocast of a precision and the normalisation of a backbone.

    Args:
        name: `auto` (CUDA if there is one), `cpu` or `cuda`.
        precision: `fp32`; `tf32`, float32 whose products the GPU rounds to 10 bits; `bf16` or `fp16`, by autocast.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        num_cameras: with `num_views`, how camera and view make one index for the side embedding; 0: none.

    Raises:
        ValueError: unknown device or precision, CUDA without a GPU, tf32 or fp16 on the CPU.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        mean: Sequence[float],
        std: Sequence[float],
        num_cameras: int = 0,
        num_views: int = 1,
    ) -> None:
        if name not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={name!r}: choose one of auto, cpu, cuda")
        if name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but torch sees no GPU: use device=cpu or install a CUDA build of torch")
        if precision not in PRECISIONS:
            raise ValueError(f"train.precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.torch = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
        if precision in ("tf32", "fp16") and self.torch.type == "cpu":
            raise ValueError(f"train.precision={precision} needs a GPU: use fp32 or bf16 on the CPU")
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        self.dtype = PRECISIONS[precision]
        self.mean = torch.tensor(mean, device=self.torch).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.torch).view(1, -1, 1, 1)
        self.num_cameras, self.num_views = num_cameras, num_views

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast in the run's precision; off for fp32."""
        return torch.autocast(self.torch.type, self.dtype, enabled=self.dtype is not None)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) from a loader → normalised float32 on the device."""
        moved = images.to(self.torch, non_blocking=True)
        return (moved.float() / 255.0 - self.mean) / self.std

    def side_index(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The side embedding's index of each image, if the model has one: camera, or camera · views + view.

        Args:
            batch: `camera` (B,), and `view` (B,) where the model embeds views.

        Raises:
            UserError: a camera or view is unknown (-1) or is none of those that the model was trained with.
        """
        if not self.num_cameras:
            return None
        camera = _embedded("camera", batch["camera"], self.num_cameras)
        index = camera
        if self.num_views > 1:
            index = camera * self.num_views + _embedded("view", batch["view"], self.num_views)
        return index.to(self.torch, non_blocking=True)


def _embedded(key: str, number: Tensor, count: int) -> Tensor:
    """The numbers as they are, if each has an embedding: an index of -1 would silently take the last one."""
    wrong = number[(number < 0) | (number >= count)]
    if len(wrong):
        found = "have none" if int(wrong[0]) < 0 else f"have {key} {int(wrong[0])}"
        raise UserError(
            f"this model embeds the {key} of each image (task.side_information) and knows {key} 0 to {count - 1}, but "
            f"{len(wrong)} images of a batch {found}: it fits only data with the {key}s that it was trained on"
        )
    return number
