"""The device of a run: where tensors go, in which precision, and the normalisation that happens there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dcal.utils.errors import UserError, choose

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GPU_ONLY = ("tf32", "fp16")


def choose_device(name: str) -> torch.device:
    """The device that `auto` (CUDA if there is one), `cpu` or `cuda` stands for.

    Raises:
        UserError: another name, or CUDA without a GPU.
    """
    choose("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU: use device=cpu or install a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Device:
    """A torch device with the autocast of a precision and the normalisation of a backbone.

    Args:
        name: `auto` (CUDA if there is one), `cpu` or `cuda`.
        precision: `fp32`; `tf32`, float32 whose products the GPU rounds to 10 bits; `bf16` or `fp16`, by autocast.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of the same pixels.
        num_cameras: with `num_views`, how camera and view make one index for the side embedding; 0: none.

    Raises:
        UserError: unknown device or precision, CUDA without a GPU, tf32 or fp16 on the CPU.
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
        self.torch = choose_device(name)
        choose("train.precision", precision, PRECISIONS)
        if precision in GPU_ONLY and self.torch.type == "cpu":
            raise UserError(f"train.precision={precision} needs a GPU: use fp32 or bf16 on the CPU")
        self.float32_products = "high" if precision == "tf32" else "highest"
        """What `torch.set_float32_matmul_precision` takes."""
        self.dtype = PRECISIONS[precision]
        self.mean = torch.tensor(mean, device=self.torch).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.torch).view(1, -1, 1, 1)
        self.num_cameras, self.num_views = num_cameras, num_views

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The run's precision inside: autocast for bf16 and fp16, and how float32 products are rounded.

        The latter is a setting of the whole process, so it is set back: a library must not change its caller's.
        """
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.float32_products)
        try:
            with torch.autocast(self.torch.type, self.dtype, enabled=self.dtype is not None):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

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
