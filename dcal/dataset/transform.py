"""Image pipelines: albumentations on uint8 RGB (H, W, 3), from the decoded file to the network's input size.

Images stay uint8. Normalisation depends on the backbone's weights and is a matter of the device, four times
cheaper to move there this way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dcal.utils.errors import UserError, check_number

Image = NDArray[np.uint8]


class Resize(A.Resize):
    """Pillow's bilinear resize, with which the field's baselines were trained, to within one grey level.

    When an image grows that is OpenCV's bilinear, the fastest. When it shrinks that one aliases; torch's is
    Pillow's algorithm, and four times faster than OpenCV's area averaging.
    """

    def apply(self, img: Image, **params: Any) -> Image:
        height, width = img.shape[:2]
        if height <= self.height and width <= self.width:
            enlarged: Image = super().apply(img, **params)
            return enlarged
        # this order makes it a channels-last batch to torch, and the result needs no copy either
        pixels_1CHW = torch.from_numpy(img)[None].permute(0, 3, 1, 2)
        size = (self.height, self.width)
        shrunk = F.interpolate(pixels_1CHW, size, mode="bilinear", antialias=True, align_corners=False)
        return np.ascontiguousarray(shrunk[0].permute(1, 2, 0).numpy())


class RandomErasing(A.ImageOnlyTransform):
    """Random erasing (Zhong et al. 2017) as TransReID runs it: timm's, mode 'pixel', before normalisation.

    A rectangle of 2 to 33 % of the area, aspect ratio log-uniform in [0.3, 1/0.3], filled with noise. The
    original draws N(0, 1) per value after normalisation with mean = std = 0.5; in uint8 that is N(127.5,
    127.5), clipped.
    """

    def apply(self, img: Image, box: tuple[int, int, int, int] | None = None, **params: Any) -> Image:
        if box is None:
            return img
        top, left, height, width = box
        noise = self.random_generator.standard_normal((height, width, img.shape[2]), dtype=np.float32)
        erased: Image = img.copy()
        erased[top : top + height, left : left + width] = np.clip(noise * 127.5 + 127.5, 0, 255).astype(np.uint8)
        return erased

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        image_height, image_width = params["shape"][:2]
        for _ in range(10):  # as the original: give up when no rectangle of the wanted shape fits
            area = self.py_random.uniform(0.02, 1 / 3) * image_height * image_width
            aspect = math.exp(self.py_random.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < image_height and width < image_width:
                top = self.py_random.randint(0, image_height - height)
                left = self.py_random.randint(0, image_width - width)
                return {"box": (top, left, height, width)}
        return {"box": None}


def train_transform(image_size: Sequence[int], resize: Sequence[int], augment: Mapping[str, Any]) -> A.Compose:
    """Resize → pad (black) → random crop → horizontal flip → random erasing.

    Args:
        image_size: (height, width) of the result.
        resize: (height, width) before the crop; the aspect ratio is not kept, as in the field.
        augment: `flip` and `erase`, probabilities; `pad`, pixels on each side.

    Raises:
        UserError: the crop is larger than the padded image, or a probability is none.
    """
    pad = augment["pad"]
    check_number("dataset.augment.pad", pad, ge=0)
    for key in ("flip", "erase"):
        check_number(f"dataset.augment.{key}", augment[key], ge=0, le=1)
    _check_crop(image_size, [side + 2 * pad for side in resize], resize)
    steps = [
        Resize(*resize),
        A.Pad(padding=pad, fill=0) if pad else None,
        None if list(image_size) == list(resize) and not pad else A.RandomCrop(*image_size),
        A.HorizontalFlip(p=augment["flip"]) if augment["flip"] else None,
        RandomErasing(p=augment["erase"]) if augment["erase"] else None,
    ]
    return A.Compose([step for step in steps if step is not None])


def eval_transform(image_size: Sequence[int], resize: Sequence[int]) -> A.Compose:
    """Resize → centre crop. Arguments and errors as in `train_transform`."""
    _check_crop(image_size, resize, resize)
    return A.Compose([Resize(*resize), A.CenterCrop(*image_size)])


def seed_transform(transform: A.Compose, seed: int) -> None:
    """Makes the next call of `transform` a function of the image and `seed` alone.

    Not `Compose.set_random_seed`: that gives every step a generator of its own with the *same* seed, so that
    all of them see the same numbers and, at equal probability, erasing would happen exactly when flipping
    does.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _check_crop(image_size: Sequence[int], available: Sequence[int], resize: Sequence[int]) -> None:
    for key, size in (("image_size", image_size), ("resize", resize)):
        if len(size) != 2 or min(size) < 1:
            raise UserError(f"dataset.{key}={list(size)}: must be [height, width] in pixels")
    if image_size[0] > available[0] or image_size[1] > available[1]:
        raise UserError(
            f"dataset.image_size={list(image_size)}: larger than dataset.resize={list(resize)} with its pad"
        )
