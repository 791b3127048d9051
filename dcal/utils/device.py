"""The device of a run: where tensors go, in which precision, and the normalisation that happens there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dcal.utils.accelerator import find_accelerator
from dcal.utils.errors import UserError, choose, nearest

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
GPU_ONLY = ("tf32", "fp16")


def choose_device(name: str) -> torch.device:
    """The device that a name stands for.

    Args:
        name: `auto`, the accelerator that torch finds (CUDA, Apple's `mps`, Intel's `xpu`, ...) or else the CPU; `cpu`;
            the type of the accelerator, or one of several by its index, as `cuda:1`.

    Raises:
        UserError: no such device here.
    """
    found = find_accelerator()
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        names = ("auto", "cpu", found.type if found else "cuda")
        raise UserError(f"device={name!r}: {nearest(name, names)}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if found is None or device.type != found.type:
        here = "no GPU" if found is None else f"{found.type} only"
        raise UserError(f"device={name}, but torch sees {here}: use device=auto, or install a build of torch for it")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"device={name}, but torch sees {count} device(s): the last is {device.type}:{count - 1}")
    return device if count > 1 else found


class Device:
    """A torch device with the autocast of a precision and the normalisation of a backbone.

    Args:
        name: as for `choose_device`.
        precision: `fp32`; `tf32`, float32 whose products the GPU rounds to 10 bits; `bf16` or `fp16`, by autocast.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of the same pixels.
        num_cameras: with `num_views`, how camera and view make one index for the side embedding; 0: none.

    Raises:
        UserError: unknown device or precision, or the device does not compute in that precision.
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
        if not computes_in(self.torch, precision):
            others = [name for name in ("fp32", "bf16") if computes_in(self.torch, name)]
            raise UserError(
                f"train.precision={precision} needs a GPU that computes in it: use {' or '.join(others)} on "
                f"{'the CPU' if self.torch.type == 'cpu' else self.torch.type}"
            )
        self.float32_products = "high" if precision == "tf32" else "highest"
        """What `torch.set_float32_matmul_precision` takes."""
        self.dtype = PRECISIONS[precision]
        self.mean = torch.tensor(mean, device=self.torch).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.torch).view(1, -1, 1, 1)
        self.num_cameras, self.num_views = num_cameras, num_views

    @property
    def pins_memory(self) -> bool:
        """Whether copies from page-locked memory are faster; a CPU and Apple's GPU use the images where they are."""
        return self.torch.type not in ("cpu", "mps")

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
        moved = images.to(self.torch, non_blocking=self.pins_memory)
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
        return index.to(self.torch, non_blocking=self.pins_memory)


def computes_in(device: torch.device, precision: str) -> bool:
    """Whether a device has the arithmetic of a precision, found out by one product."""
    dtype = PRECISIONS[precision]
    if precision in GPU_ONLY and device.type == "cpu":
        return False
    if dtype is None:
        return precision == "fp32" or device.type == "cuda"
    try:
        one = torch.ones(1, 1, device=device)
        with torch.autocast(device.type, dtype):
            return (one @ one).dtype == dtype
    except (RuntimeError, TypeError):  # no autocast on this device, or none to this type
        return False


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
