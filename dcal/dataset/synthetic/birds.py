"""Birds drawn by the program: sixteen species in four groups that differ in one small part only.

A data set for first runs, tests and demonstrations: nothing to download, made in seconds, the same on every
machine. Within a group the species share everything but the colour of one part (bill, wing bar,
tail tip or crown), so knowing the group alone scores 1 in 4. Pose, shape, scale, light, surroundings and
leaves in front vary at random and independently of the species; `Record.parts` gives the place of the part
that tells, so that "does the selection look at it?" can be measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dcal.dataset.record import Catalog, Part, Record
from dcal.dataset.synthetic import bird, scenery
from dcal.dataset.synthetic.bird import FEET, PLACES, Group, Pose, draw_bird, draw_feet, draw_pose
from dcal.dataset.synthetic.drawing import SUPERSAMPLE, Colour, Image, Points, cloud, ellipse, fill, paste, shrink
from dcal.dataset.synthetic.store import drawn_once, recipe_hash
from dcal.utils.errors import UserError

Box = tuple[float, float, float, float]
RED, GOLD, IVORY = (212, 44, 40), (246, 190, 40), (244, 241, 230)
AZURE, VIOLET, INK = (40, 130, 226), (146, 66, 186), (38, 36, 44)

GROUPS = (
    Group(
        "finch",
        part="bill",
        back=(146, 106, 80),
        belly=(234, 210, 186),
        wing=(104, 76, 60),
        bill=IVORY,
        crown=(126, 88, 66),
        bill_size=1.0,
    ),
    Group(
        "jay",
        part="wing bar",
        back=(70, 112, 178),
        belly=(222, 226, 232),
        wing=(46, 76, 136),
        bill=(52, 52, 60),
        crown=(60, 98, 166),
        crest=0.13,
    ),
    Group(
        "flycatcher",
        part="tail tip",
        back=(118, 128, 84),
        belly=(232, 220, 150),
        wing=(86, 92, 64),
        bill=(66, 62, 58),
        crown=(104, 112, 72),
    ),
    Group(
        "tit",
        part="crown",
        back=(126, 136, 152),
        belly=(236, 228, 220),
        wing=(92, 102, 120),
        bill=(60, 60, 66),
        crown=(112, 120, 136),
    ),
)
VARIANTS: dict[str, dict[str, Colour | None]] = {
    "bill": {"Red-billed": RED, "Gold-billed": GOLD, "Azure-billed": AZURE, "Ivory-billed": IVORY},
    "wing bar": {"Red-barred": RED, "Gold-barred": GOLD, "White-barred": IVORY, "Plain-winged": None},
    "tail tip": {"Red-tailed": RED, "Gold-tailed": GOLD, "Azure-tailed": AZURE, "White-tailed": IVORY},
    "crown": {"Red-capped": RED, "Gold-capped": GOLD, "Violet-capped": VIOLET, "Black-capped": INK},
}
SPECIES = tuple((group, mark) for group in GROUPS for mark in VARIANTS[group.part].values())
CLASS_NAMES = [f"{variant} {group.name}" for group in GROUPS for variant in VARIANTS[group.part]]


def _draw_spray(
    rng: np.random.Generator, canvas: Image, pose: Pose, near: Points, keep: tuple[Points, float], bird: Image
) -> None:
    """Leaves before the bird; given up where they would hide much of it or of the part `keep`."""
    angle = rng.random() * 2 * math.pi
    leaves = []
    for _ in range(int(rng.integers(2, 6))):
        spot = near + (rng.random(2) - 0.5) * pose.unit * 0.5
        length = pose.unit * (0.3 + 0.3 * rng.random())
        leaves.append(scenery.some_leaf(rng, spot, length, angle + (rng.random() - 0.5) * 2))
    hidden, part = np.zeros_like(bird), np.zeros_like(bird)
    for one in leaves:
        fill(hidden, one.outline, 255)
    fill(part, ellipse(keep[0], (keep[1], keep[1])), 255)
    if _share(part, hidden) <= 0.25 and _share(bird, hidden) <= 0.3:
        for one in leaves:
            one.draw(canvas)


def _share(region: Image, cover: Image) -> float:
    return cv2.countNonZero(cv2.bitwise_and(region, cover)) / max(1, cv2.countNonZero(region))


def draw_image(label: int, rng: np.random.Generator, image_size: int = 96) -> tuple[Image, Part, Box]:
    """One image of species `label`: RGB (image_size, image_size, 3), the part that tells, and the bird's box.

    Part and box in pixels. The generator is used alike for every species: its state alone gives the scene.
    """
    size = image_size * SUPERSAMPLE
    group, mark = SPECIES[label]
    pose = draw_pose(rng, size)
    canvas = scenery.backdrop(rng, size, pose.unit)
    slope = math.atan2(pose.to_canvas[1, 0], pose.to_canvas[0, 0]) + (rng.random() - 0.5) * 0.5
    scenery.perch(rng, canvas, pose.place(FEET).mean(0), slope, pose.unit)
    light = -math.pi / 2 + (rng.random() - 0.5) * 2
    # Only the window around the bird is worked on: most of the time goes into whole-canvas operations.
    left, top, right, bottom = pose.window(size)
    window = canvas[top:bottom, left:right]
    local = replace(pose, to_canvas=pose.to_canvas - [[0, 0, left], [0, 0, top]])
    figure, mask = draw_bird(window.shape[:2], local, group, mark, light)
    draw_feet(window, local)
    paste(window, figure, mask)
    limb, centre, radius = PLACES[group.part]
    spot = local.place(np.array(centre), limb)[0]
    for _ in range(int(rng.integers(0, 4))):
        near = local.place(np.array([-1.2 + 2.2 * rng.random(), -0.7 + 1.4 * rng.random()]))[0]
        _draw_spray(rng, window, local, near, (spot, 0.7 * radius * pose.unit), mask)
    x, y, width, height = (v / SUPERSAMPLE for v in cv2.boundingRect(mask))
    spot = (spot + np.array([left, top])) / SUPERSAMPLE
    box = (x + left / SUPERSAMPLE, y + top / SUPERSAMPLE, width, height)
    return _light(rng, shrink(canvas)), Part(group.part, float(spot[0]), float(spot[1])), box


def _light(rng: np.random.Generator, image: Image) -> Image:
    """Exposure, warm or cold light, and soft shadows that fall across the scene."""
    size = len(image)
    exposure = 0.86 + 0.28 * rng.random()
    warmth = (rng.random() - 0.5) * 0.14
    shadow = 1 + (0.05 + 0.15 * rng.random()) * cloud(rng, size, size, 3)
    gain = cv2.merge([shadow * np.float32(g) for g in (exposure * (1 + warmth), exposure, exposure * (1 - warmth))])
    return cv2.multiply(image, gain, dtype=cv2.CV_8U).astype(np.uint8, copy=False)


def _draw_job(job: tuple[str, int, int], image_size: int, seed: int) -> tuple[Image, Record]:
    split, label, index = job
    rng = np.random.default_rng([seed, split == "test", label, index])
    image, part, box = draw_image(label, rng, image_size)
    folder = f"{label + 1:03d}.{CLASS_NAMES[label].replace(' ', '_')}"
    return image, Record(Path(split, folder, f"{index:04d}.png"), label, box=box, parts=(part,))


def read_synthetic_birds(
    root: str | Path | None,
    image_size: int = 96,
    train_per_class: int = 150,
    test_per_class: int = 40,
    seed: int = 0,
) -> Catalog:
    """The synthetic birds, drawn at the first call.

    Args:
        root: folder to keep the images under; None is `$XDG_CACHE_HOME/dcal` or `~/.cache/dcal`.
        image_size: height and width of the images in pixels, at least 48.
        train_per_class: images of each of the 16 species in `train`.
        test_per_class: the same for `test`.
        seed: another seed draws other birds.

    Raises:
        UserError: an option is out of range.
        DataError: the images cannot be kept there.
    """
    options = {"image_size": image_size, "train": train_per_class, "test": test_per_class, "seed": seed}
    if image_size < 48:
        raise UserError(f"dataset.reader.image_size={image_size}: birds need at least 48 pixels")
    if min(train_per_class, test_per_class) < 1 or seed < 0:
        raise UserError(f"dataset.reader={options}: counts must be at least 1 and the seed at least 0")
    recipe = recipe_hash(options, (__file__, bird.__file__, scenery.__file__))
    counts = {"train": train_per_class, "test": test_per_class}
    jobs = [(split, label, k) for split, n in counts.items() for label in range(len(SPECIES)) for k in range(n)]
    records = drawn_once(root, "synthetic_birds", recipe, jobs, partial(_draw_job, image_size=image_size, seed=seed))
    cut = train_per_class * len(SPECIES)
    protocol = {**options, "recipe": recipe}
    return Catalog("synthetic_birds", {"train": records[:cut], "test": records[cut:]}, CLASS_NAMES, protocol)
