"""Pipelines: sizes, chance, independence of the steps, and that a seed decides everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest

from dcal.dataset.transform import RandomErasing, eval_transform, seed_transform, train_transform
from dcal.utils.errors import UserError

RAMP = np.stack(np.broadcast_arrays(*np.ogrid[:60, :90], 7), axis=-1).astype(np.uint8)
"""Every pixel tells its own place: (row, column, 7)."""


def run(transform: Any, image: np.ndarray, seed: int) -> np.ndarray:
    seed_transform(transform, seed)
    return transform(image=image)["image"]


@pytest.mark.parametrize("shape", [(60, 90, 3), (600, 300, 3), (48, 32, 3)])
@pytest.mark.parametrize("pad", [0, 10])
def test_sizes(shape: tuple[int, ...], pad: int) -> None:
    image = np.zeros(shape, np.uint8)
    train = train_transform([32, 16], [48, 32], {"flip": 0.5, "pad": pad, "erase": 0.5})
    for result in (run(train, image, 0), eval_transform([32, 16], [48, 32])(image=image)["image"]):
        assert result.shape == (32, 16, 3)
        assert result.dtype == np.uint8


@pytest.mark.parametrize("shape", [(375, 500), (90, 110), (60, 200), (700, 90)])
def test_resize_is_pillows(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = PIL.Image.fromarray(image).resize((160, 128), PIL.Image.Resampling.BILINEAR)
    result = eval_transform([128, 160], [128, 160])(image=image)["image"]
    assert np.abs(result - np.asarray(expected).astype(int)).max() <= 1
    assert np.array_equal(eval_transform([128, 160], [128, 160])(image=result)["image"], result)


def test_evaluation_takes_the_centre() -> None:
    result = eval_transform([20, 30], [60, 90])(image=RAMP)["image"]
    assert np.array_equal(result, RAMP[20:40, 30:60])


def test_crop_and_flip_take_all_values_with_their_probabilities() -> None:
    transform = train_transform([59, 89], [60, 90], {"flip": 0.25, "pad": 0, "erase": 0.0})
    results = [run(transform, RAMP, seed) for seed in range(600)]
    flips = np.array([image[0, 0, 1] > image[0, -1, 1] for image in results])
    corners = {(int(image[0, 0, 0]), int(image[0, :, 1].min())) for image in results}
    assert 0.19 < flips.mean() < 0.31
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_padding_is_black_and_all_sides_can_be_cropped() -> None:
    transform = train_transform([60, 90], [60, 90], {"flip": 0.0, "pad": 10, "erase": 0.0})
    image = np.full((60, 90, 3), 255, np.uint8)
    sides = np.array(
        [[result[0].any(), result[-1].any(), result[:, 0].any(), result[:, -1].any()] for result in
         (run(transform, image, seed) for seed in range(60))]
    )  # fmt: skip
    assert (~sides).any(0).all() and sides.any(0).all()
    assert set(np.unique(run(transform, image, 1))) == {0, 255}


def test_a_seed_decides_whatever_ran_before() -> None:
    one, other = (train_transform([40, 40], [60, 90], {"flip": 0.5, "pad": 4, "erase": 0.5}) for _ in range(2))
    for seed in range(20):
        run(other, RAMP, 1000 + seed)
        assert np.array_equal(run(one, RAMP, seed), run(other, RAMP, seed))


def test_flip_and_erasing_are_independent() -> None:
    """After albumentations' own `set_random_seed` all steps see the same numbers: both happen together."""
    transform = train_transform([60, 90], [60, 90], {"flip": 0.5, "pad": 0, "erase": 0.5})
    results = [run(transform, RAMP, seed) for seed in range(400)]
    # noise where the third channel is not 7 any more; the sides that no rectangle hid tell the direction
    erased = np.array([(image[..., 2] != 7).any() for image in results])
    flipped = np.array([np.median(np.diff(image[..., 1].astype(int), axis=1)) < 0 for image in results])
    both = (erased & flipped).mean()
    assert 0.19 < both < 0.31
    assert 0.43 < erased.mean() < 0.57 and 0.43 < flipped.mean() < 0.57


def test_erasing_matches_timm() -> None:
    """Area and aspect ratio are distributed as in timm's RandomErasing; noise as N(0.5, 0.5) clipped."""
    from timm.data.random_erasing import RandomErasing as TimmErasing
    from torch import zeros

    image = np.full((128, 64, 3), 7, np.uint8)
    ours = RandomErasing(p=1.0)
    theirs = TimmErasing(1.0, mode="pixel", device="cpu")
    sizes: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    noise = []
    for seed in range(400):
        ours.set_random_seed(seed)
        result = ours(image=image)["image"]
        for name, mask in (
            ("ours", (result != 7).any(-1)),
            ("theirs", (theirs(zeros(3, 128, 64)) != 0).any(0).numpy()),
        ):
            height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
            sizes[name].append((height * width / 128 / 64, np.log(height / width)))
        noise.append(result[(result != 7).any(-1)].ravel())
    assert not (image != 7).any()
    assert np.abs(np.mean(sizes["ours"], 0) - np.mean(sizes["theirs"], 0)).max() < 0.1
    assert np.abs(np.std(sizes["ours"], 0) - np.std(sizes["theirs"], 0)).max() < 0.1
    values = np.concatenate(noise)
    assert (values == 0).mean() == pytest.approx(0.159, abs=0.01)
    assert (values == 255).mean() == pytest.approx(0.159, abs=0.01)
    assert values.mean() == pytest.approx(127, abs=2)


@pytest.mark.parametrize(
    ("sizes", "augment", "message"),
    [
        (([64, 64], [60, 90]), {}, r"dataset\.image_size=\[64, 64\].*dataset\.resize=\[60, 90\]"),
        (([64], [60, 90]), {}, r"dataset\.image_size=\[64\]"),
        (([64, 64], [0, 90]), {}, r"dataset\.resize=\[0, 90\]"),
        (([32, 32], [60, 90]), {"flip": 1.5}, r"dataset\.augment\.flip=1\.5"),
        (([32, 32], [60, 90]), {"erase": -1}, r"dataset\.augment\.erase=-1"),
        (([32, 32], [60, 90]), {"pad": -1}, r"dataset\.augment\.pad=-1"),
    ],
)
def test_bad_options_are_named(sizes: Any, augment: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_transform(*sizes, {"flip": 0.5, "pad": 0, "erase": 0.0, **augment})
