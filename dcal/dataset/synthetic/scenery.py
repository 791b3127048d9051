"""Surroundings for the synthetic birds: backdrops, clutter, perches and leaves in front.

Berries take the very colours that tell the species apart, so that a colour alone, found anywhere in the
image, says nothing: it counts only on the right part of the bird. Everything is drawn in place on a
supersampled canvas (see `drawing`) and depends on the generator alone, never on the species.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from dcal.dataset.synthetic.drawing import (
    Colour,
    Image,
    Points,
    cloud,
    ellipse,
    fill,
    gradient,
    jitter,
    leaf,
    pick,
    shade,
    stroke,
    tint,
)

LEAVES: tuple[Colour, ...] = (
    (86, 125, 62),
    (58, 104, 66),
    (118, 146, 70),
    (150, 152, 66),
    (176, 120, 54),
    (72, 116, 92),
)
BARK: tuple[Colour, ...] = ((112, 86, 66), (92, 76, 66), (132, 108, 86), (84, 72, 58))
BERRIES: tuple[Colour, ...] = (
    (212, 44, 40),
    (246, 190, 40),
    (244, 241, 230),
    (40, 130, 226),
    (146, 66, 186),
    (38, 36, 44),
)
SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((136, 184, 220), (222, 234, 238)),
    ((176, 202, 214), (240, 228, 206)),
    ((158, 178, 200), (216, 206, 210)),
    ((196, 216, 222), (200, 214, 176)),
)
WOODS: tuple[tuple[Colour, Colour], ...] = (
    ((150, 178, 120), (84, 122, 84)),
    ((186, 190, 130), (110, 132, 82)),
    ((214, 186, 128), (134, 120, 82)),
    ((122, 156, 140), (70, 104, 92)),
    ((204, 196, 180), (132, 132, 112)),
)


def backdrop(rng: np.random.Generator, size: int, unit: float) -> Image:
    """A fresh canvas (size, size, 3): sky or a wood out of focus, then twigs, leaves and berries."""
    small = _sky(rng, size // 3) if rng.random() < 0.35 else _wood(rng, size // 3)
    canvas = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    for _ in range(int(rng.integers(1, 4))):
        _far_twig(rng, canvas, unit)
    canvas = cv2.blur(canvas, (9, 9)).astype(np.uint8, copy=False)
    for _ in range(int(rng.integers(0, 4))):
        _near_twig(rng, canvas, unit)
    return canvas


def _sky(rng: np.random.Generator, size: int) -> Image:
    top, bottom = SKIES[int(rng.integers(len(SKIES)))]
    mist = cloud(rng, size, size, 3) + 0.6 * cloud(rng, size, size, 7)
    return shade(
        gradient(size, size, jitter(rng, top, 10), jitter(rng, bottom, 10)),
        (1 + 0.07 * mist).astype(np.float32),
    )


def _wood(rng: np.random.Generator, size: int) -> Image:
    top, bottom = WOODS[int(rng.integers(len(WOODS)))]
    canvas = gradient(size, size, jitter(rng, top, 14), jitter(rng, bottom, 14))
    for _ in range(int(rng.integers(12, 26))):
        radius = (0.04 + 0.10 * rng.random()) * size
        colour = tint(pick(rng, LEAVES), 0.8 + 0.8 * rng.random())
        disc = canvas.copy()
        fill(disc, ellipse(rng.random(2) * size, (radius, radius)), colour)
        canvas = cv2.addWeighted(canvas, 0.55, disc, 0.45, 0).astype(np.uint8, copy=False)
    return cv2.GaussianBlur(canvas, (0, 0), 2.0 + 2.5 * rng.random()).astype(np.uint8, copy=False)


def _far_twig(rng: np.random.Generator, canvas: Image, unit: float) -> None:
    size = len(canvas)
    start, angle = rng.random(2) * size, rng.random() * 2 * math.pi
    bend = (rng.random() - 0.5) * 1.6
    steps = np.linspace(0, 1, 12)
    heading = angle + bend * steps
    path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * size / 10, axis=0)
    stroke(canvas, path, tint(pick(rng, BARK), 0.9 + 0.4 * rng.random()), unit * (0.05 + 0.09 * rng.random()))


class Leaf(NamedTuple):
    """A leaf to be drawn: its outline and colour."""

    outline: Points
    colour: Colour

    def draw(self, canvas: Image) -> None:
        """Draws the leaf two-toned along its midrib."""
        half = len(self.outline) // 2
        fill(canvas, self.outline, tint(self.colour, 0.82))
        fill(canvas, self.outline[:half], tint(self.colour, 1.12))
        rib = self.outline[[0, half]]
        stroke(canvas, rib, tint(self.colour, 1.35), 0.03 * float(np.hypot(*(rib[1] - rib[0]))))


def some_leaf(rng: np.random.Generator, spot: Points, length: float, angle: float) -> Leaf:
    """A leaf of random colour and width around `spot`, pointing along `angle`."""
    colour = jitter(rng, pick(rng, LEAVES), 16)
    return Leaf(leaf(spot, length, length * (0.36 + 0.14 * rng.random()), angle), colour)


def _near_twig(rng: np.random.Generator, canvas: Image, unit: float) -> None:
    """A thin twig in focus with leaves and berries on it."""
    start, angle = rng.random(2) * len(canvas), rng.random() * 2 * math.pi
    heading = angle + (rng.random() - 0.5) * np.linspace(0, 1, 7)
    directions = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    path = start + np.cumsum(directions * unit * (0.12 + 0.1 * rng.random()), axis=0)
    stroke(canvas, path, tint(pick(rng, BARK), 0.9), unit * 0.03)
    for at, tilt in zip(path[1:], heading[1:], strict=True):
        side = tilt + (1 if rng.random() < 0.5 else -1) * (0.5 + 0.6 * rng.random())
        length, kind = unit * (0.22 + 0.2 * rng.random()), rng.random()
        reach = np.array([math.cos(side), math.sin(side)]) * length
        if kind < 0.45:
            some_leaf(rng, at + reach / 2, length, side).draw(canvas)
        elif kind < 0.6:
            stroke(canvas, np.stack([at, at + reach / 2]), (104, 92, 60), unit * 0.02)
            _berry(rng, canvas, at + reach / 2, unit * (0.06 + 0.07 * rng.random()))


def _berry(rng: np.random.Generator, canvas: Image, spot: Points, radius: float) -> None:
    """A berry in one of the tell-tale colours."""
    colour = jitter(rng, pick(rng, BERRIES), 14)
    squash, angle = 0.6 + 0.4 * rng.random(), rng.random() * math.pi
    fill(canvas, ellipse(spot, (radius, radius * squash), angle, corners=18), tint(colour, 0.8))
    fill(
        canvas,
        ellipse(spot - radius * 0.08, (radius * 0.86, radius * 0.86 * squash), angle, corners=18),
        colour,
    )
    fill(
        canvas,
        ellipse(spot - radius * 0.3, (radius * 0.25, radius * 0.2), angle, corners=8),
        tint(colour, 1.6),
    )


def perch(rng: np.random.Generator, canvas: Image, foot: Points, angle: float, unit: float) -> None:
    """A branch across the canvas that passes under `foot`, with bark, a lit upper edge and a few leaves."""
    size = len(canvas)
    colour = jitter(rng, pick(rng, BARK), 12)
    width = unit * (0.13 + 0.08 * rng.random())
    along, across = (
        np.array([math.cos(angle), math.sin(angle)]),
        np.array([-math.sin(angle), math.cos(angle)]),
    )
    t = np.linspace(-1.6, 1.6, 33)
    sway = 0.05 * size * (rng.random() - 0.5) * t**2 + 0.04 * unit * np.sin(t * 9 + 6 * rng.random())
    axis = foot + across * width * 0.5 + np.outer(t * size, along) + np.outer(sway - sway[16], across)
    for shift, breadth, factor in ((0.0, 1.0, 0.72), (-0.12, 0.72, 1.0), (-0.28, 0.25, 1.22)):
        stroke(canvas, axis + across * width * shift, tint(colour, factor), width * breadth)
    for _ in range(10):
        at = axis[int(rng.integers(8, 25))] + across * width * (rng.random() - 0.5) * 0.6
        stroke(
            canvas,
            np.stack([at, at + along * width * (0.4 + rng.random())]),
            tint(colour, 0.62),
            unit * 0.015,
        )
    for _ in range(int(rng.integers(0, 4))):
        at = axis[int(rng.integers(8, 25))]
        side = 1 if rng.random() < 0.5 else -1
        length = unit * (0.3 + 0.25 * rng.random())
        tilt = angle + side * (0.5 + 0.7 * rng.random())
        some_leaf(rng, at + length / 2 * np.array([math.cos(tilt), math.sin(tilt)]), length, tilt).draw(canvas)
