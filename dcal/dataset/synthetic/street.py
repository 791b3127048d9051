"""Streets for the synthetic people: what belongs to a camera (place, light, sharpness) and street furniture.

Panels on the walls take the colours of the clothing, so that a colour counts only on the person. Everything
is drawn in place on a supersampled canvas (see `drawing`) and depends on camera and generator alone, never on
who is in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dcal.dataset.synthetic.drawing import (
    Colour,
    Image,
    cloud,
    ellipse,
    fill,
    gradient,
    jitter,
    pick,
    stroke,
    tint,
)
from dcal.dataset.synthetic.person import BACK, CLOTHES, FRONT, SIDE

GROUND: tuple[Colour, ...] = (
    (150, 148, 144), (120, 122, 118), (168, 158, 140), (130, 140, 112), (112, 108, 116),
)  # fmt: skip
WALLS: tuple[Colour, ...] = (
    (188, 180, 166), (152, 164, 174), (164, 128, 110), (132, 152, 122), (196, 196, 200),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Camera:
    """What all images of one camera have in common."""

    ground: Colour
    wall: Colour
    horizon: float
    gains: tuple[float, float, float]
    """Of red, green and blue."""
    scale: float
    """Height of a person relative to the image's."""
    views: tuple[float, float, float]
    """How often a person is seen from the front, the side and the back."""
    obstacle: str
    """`none`, `pole`, `bench` or `hedge`."""
    blur: float


def draw_camera(rng: np.random.Generator, number: int) -> Camera:
    """A random camera; its number (from 0) decides on the usual viewpoint and the obstacle: all occur."""
    views = [0.2, 0.2, 0.2]
    views[(FRONT, BACK, SIDE)[number % 3]] += 0.4
    exposure, warmth = 0.78 + 0.4 * rng.random(), (rng.random() - 0.5) * 0.3
    return Camera(
        ground=jitter(rng, pick(rng, GROUND), 16),
        wall=jitter(rng, pick(rng, WALLS), 16),
        horizon=0.3 + 0.3 * rng.random(),
        gains=(exposure * (1 + warmth), exposure, exposure * (1 - warmth)),
        scale=0.84 + 0.1 * rng.random(),
        views=(views[0], views[1], views[2]),
        obstacle=("none", "pole", "bench", "hedge")[number % 4],
        blur=0.7 * rng.random(),
    )


def backdrop(rng: np.random.Generator, camera: Camera, height: int, width: int) -> Image:
    """A fresh canvas (height, width, 3): the camera's ground and wall with panels and lines, out of focus."""
    horizon = int(height * (camera.horizon + 0.08 * (rng.random() - 0.5)))
    canvas = gradient(height, width, tint(camera.ground, 0.9), tint(camera.ground, 1.12))
    canvas[:horizon] = gradient(horizon, width, tint(camera.wall, 1.1), tint(camera.wall, 0.88))
    for _ in range(int(rng.integers(1, 5))):
        left, top = (rng.random() * 1.2 - 0.2) * width, rng.random() * horizon * 0.8
        right, bottom = left + (0.1 + 0.3 * rng.random()) * width, top + (0.2 + 0.5 * rng.random()) * horizon
        bottom = min(bottom, horizon)
        panel = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        colour = jitter(rng, pick(rng, (camera.wall, *CLOTHES[:6])), 20)
        fill(canvas, panel, tint(colour, 0.75 + 0.5 * rng.random()))
    for _ in range(int(rng.integers(1, 4))):
        y = horizon + rng.random() * (height - horizon)
        line = np.array([(-1.0, y), (width + 1.0, y + (rng.random() - 0.5) * 0.3 * width)])
        stroke(canvas, line, tint(camera.ground, 0.75 + 0.5 * rng.random()), 2 + 0.02 * height * rng.random())
    return cv2.blur(canvas, (11, 11)).astype(np.uint8, copy=False)


def obstruct(rng: np.random.Generator, canvas: Image, camera: Camera) -> None:
    """The camera's obstacle, in front of the person: it hides up to about a third of them."""
    height, width = canvas.shape[:2]
    if camera.obstacle == "pole":
        x = width * (0.2 + 0.6 * rng.random())
        stroke(canvas, np.array([(x, -9.0), (x, height + 9.0)]), (96, 98, 104), 0.07 * width)
        stroke(canvas, np.array([(x, -9.0), (x, height + 9.0)]), (136, 138, 142), 0.03 * width)
    elif camera.obstacle == "bench":
        y = height * (0.72 + 0.1 * rng.random())
        for k in range(3):
            end = (width * (0.3 + 0.7 * rng.random()), y + k * 0.055 * height)
            stroke(canvas, np.array([(-9.0, end[1]), end]), (132, 96, 64), 0.035 * height)
    elif camera.obstacle == "hedge":
        base = height * (0.84 + 0.1 * rng.random())
        for _ in range(40):
            spot = np.array([rng.random() * width, base + rng.random() * (height - base)])
            bush = ellipse(spot, (0.06 * height, 0.035 * height), rng.random() * 3)
            fill(canvas, bush, jitter(rng, (74, 112, 64), 22))


def develop(rng: np.random.Generator, image: Image, camera: Camera) -> Image:
    """What the camera makes of the scene: exposure, colour of the light, shadows, lack of sharpness."""
    height, width = image.shape[:2]
    exposure = 0.9 + 0.2 * rng.random()
    shadow = exposure * (1 + 0.1 * cloud(rng, height, width, 3))
    gain = cv2.merge([(shadow * g).astype(np.float32) for g in camera.gains])
    lit = cv2.multiply(image, gain, dtype=cv2.CV_8U)
    return cv2.GaussianBlur(lit, (5, 5), 0.3 + camera.blur * rng.random()).astype(np.uint8, copy=False)
