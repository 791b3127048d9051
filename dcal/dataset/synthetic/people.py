"""Pedestrians drawn by the program: identities seen by several cameras, for Re-ID runs without a download.

An identity is clothing, build, hair, skin, bag and shoes, drawn from small palettes; two people each wear the
same clothes, so that the smaller things must tell them apart. A camera has its own light, surroundings,
distance and usual viewpoint, and may have things standing in the way; a print on the chest does not show from
behind nor a backpack from the front. Laid out as Market-1501: training and test identities are disjoint, one
query per test identity and camera, and a gallery with distractors (0) and junk (-1) besides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from dcal.dataset.record import Catalog, Record
from dcal.dataset.synthetic import person, street
from dcal.dataset.synthetic.drawing import SUPERSAMPLE, Image, ellipse, fill, paste, shrink, tint
from dcal.dataset.synthetic.person import Identity, Stance, draw_identity, draw_person
from dcal.dataset.synthetic.store import drawn_once, recipe_hash
from dcal.dataset.synthetic.street import Camera, draw_camera
from dcal.utils.errors import UserError

DRESSED_ALIKE = 2  # people of consecutive numbers that wear the same
Box = tuple[float, float, float, float]


def draw_image(
    who: Identity | None,
    camera: Camera,
    rng: np.random.Generator,
    image_size: tuple[int, int],
    off: bool = False,
) -> tuple[Image, int, Box]:
    """One image of a person, RGB (height, width, 3), with the viewpoint and the person's box in pixels.

    None draws a place without a person (a distractor); `off` a badly cropped one (junk).
    """
    height, width = image_size[0] * SUPERSAMPLE, image_size[1] * SUPERSAMPLE
    canvas = street.backdrop(rng, camera, height, width)
    view = int(np.searchsorted(np.cumsum(camera.views), rng.random() * 0.999))
    tall = height * camera.scale * (0.94 + 0.1 * rng.random())
    foot = np.array([width * (0.5 + 0.14 * (rng.random() - 0.5)), height * (0.96 + 0.02 * rng.random())])
    if off:
        aside = 0.42 if rng.random() < 0.5 else -0.42
        foot = foot + np.array([width * aside, height * (rng.random() - 0.3) * 0.9])
    facing = -1.0 if rng.random() < 0.5 else 1.0
    stride, swing, lean = (rng.random(3) - 0.5) * np.array([2, 2, 0.06])
    stance = Stance(foot, tall, view, facing, float(stride), float(swing), float(lean))
    box = (0.0, 0.0, float(image_size[1]), float(image_size[0]))
    light = -math.pi / 2 + (rng.random() - 0.5) * 2
    if who is not None:
        fill(canvas, ellipse(foot, (0.17 * tall, 0.022 * tall)), tint(camera.ground, 0.66))
        figure, mask = draw_person((height, width), who, stance, light)
        paste(canvas, figure, mask)
        x, y, w, h = cv2.boundingRect(mask)
        box = (x / SUPERSAMPLE, y / SUPERSAMPLE, w / SUPERSAMPLE, h / SUPERSAMPLE)
    if rng.random() < 0.45:
        street.obstruct(rng, canvas, camera)
    return street.develop(rng, shrink(canvas), camera), view, box


@dataclass(frozen=True, slots=True)
class _Job:
    split: str
    person: int
    """-1 junk, 0 a distractor, from 1 on an identity."""
    camera: int
    number: int


def _draw_job(job: _Job, image_size: tuple[int, int], seed: int) -> tuple[Image, Record]:
    split = ("train", "query", "gallery").index(job.split)
    rng = np.random.default_rng([seed, 2, split, job.person + 1, job.camera, job.number])
    camera = draw_camera(np.random.default_rng([seed, 3, job.camera]), job.camera)
    who = None
    if job.person > 0:
        household = np.random.default_rng([seed, 0, (job.person - 1) // DRESSED_ALIKE])
        who = draw_identity(household, np.random.default_rng([seed, 1, job.person]))
    elif job.person == -1 or rng.random() < 0.6:
        who = draw_identity(rng, rng)
    image, view, box = draw_image(who, camera, rng, image_size, off=job.person == -1)
    label = job.person - 1 if job.split == "train" else job.person
    path = Path(job.split, f"{job.person:04d}_c{job.camera + 1}_{job.number:02d}.png")
    return image, Record(path, label, camera=job.camera, view=view, box=box)


def read_synthetic_people(
    root: str | Path | None,
    image_size: Sequence[int] = (128, 64),
    train_identities: int = 100,
    test_identities: int = 50,
    cameras: int = 6,
    images_per_camera: int = 3,
    seed: int = 0,
) -> Catalog:
    """The synthetic people, drawn at the first call.

    Args:
        root: folder to keep the images under; None is `$XDG_CACHE_HOME/dcal` or `~/.cache/dcal`.
        image_size: height and width of the images in pixels, multiples of 4 and at least 32.
        train_identities: people in `train`; their labels are 0 to train_identities - 1.
        test_identities: other people, in `query` and `gallery`; labelled from train_identities + 1 on.
        cameras: each person is seen by between half of them and all.
        images_per_camera: images of a person by one camera; in the test set one of them is the query.
        seed: another seed draws other people and cameras.

    Raises:
        UserError: an option is out of range.
        DataError: the images cannot be kept there.
    """
    options = {
        "image_size": list(image_size),
        "train_identities": train_identities,
        "test_identities": test_identities,
        "cameras": cameras,
        "images_per_camera": images_per_camera,
        "seed": seed,
    }
    if len(image_size) != 2 or min(image_size) < 32 or any(side % 4 for side in image_size):
        raise UserError(f"dataset.reader.image_size={image_size}: two multiples of 4, each at least 32")
    if train_identities < 2 or test_identities < 1 or cameras < 2 or images_per_camera < 2 or seed < 0:
        raise UserError(
            f"dataset.reader={options}: needs at least 2 training identities, 1 test identity, 2 cameras, "
            "2 images per camera and seed 0"
        )
    recipe = recipe_hash(options, (__file__, person.__file__, street.__file__))
    jobs = _plan(train_identities, test_identities, cameras, images_per_camera, seed)
    draw = partial(_draw_job, image_size=(image_size[0], image_size[1]), seed=seed)
    splits: dict[str, list[Record]] = {"train": [], "query": [], "gallery": []}
    for job, record in zip(jobs, drawn_once(root, "synthetic_people", recipe, jobs, draw), strict=True):
        splits[job.split].append(record)
    names = [f"person {k:04d}" for k in range(1, train_identities + 1)]
    return Catalog("synthetic_people", splits, names, {**options, "recipe": recipe, "junk": "-1 in the gallery"})


def _plan(train: int, test: int, cameras: int, images: int, seed: int) -> list[_Job]:
    """All images to be drawn, ordered by split, person and camera."""
    jobs = []
    for who in range(1, train + test + 1):
        rng = np.random.default_rng([seed, 4, who])
        count = int(rng.integers(max(2, cameras // 2), cameras + 1))
        seen_by = sorted(rng.permutation(cameras)[:count].tolist())
        for camera, number in product(seen_by, range(images)):
            split = "train" if who <= train else ("gallery" if number else "query")
            jobs.append(_Job(split, who, camera, number))
    extra = [(0, max(2, test // 5)), (-1, max(2, test // 8))]
    jobs += [_Job("gallery", who, c, k) for who, count in extra for c in range(cameras) for k in range(count)]
    return jobs
