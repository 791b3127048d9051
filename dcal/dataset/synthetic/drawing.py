"""Brushes of the synthetic data sets: smooth shapes, backgrounds and light on a supersampled canvas.

A canvas is a uint8 RGB array drawn `SUPERSAMPLE` times too large with OpenCV's integer rasteriser and shrunk
at the end: that antialiases everything alike, and gives the same pixels on every machine where floating
point agrees to a sixteenth of a canvas pixel. Points are float arrays (n, 2) of (x, y) in canvas pixels, y
down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

SUPERSAMPLE = 3
_SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
_SEGMENTS = 8

Image = NDArray[np.uint8]
Points = NDArray[np.float64]
Pair = Sequence[float] | Points
Colour = tuple[int, int, int]

_t = np.arange(_SEGMENTS) / _SEGMENTS
_CATMULL_ROM = 0.5 * np.stack(
    [-_t + 2 * _t**2 - _t**3, 2 - 5 * _t**2 + 3 * _t**3, _t + 4 * _t**2 - 3 * _t**3, -(_t**2) + _t**3], axis=1
)


def smooth(points: ArrayLike) -> Points:
    """A closed Catmull-Rom curve through `points` (n, 2), as a polygon (8 n, 2)."""
    p = np.asarray(points, float)
    windows = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)], axis=1)
    curve: Points = np.einsum("tk,nkc->ntc", _CATMULL_ROM, windows).reshape(-1, 2)
    return curve


def ellipse(centre: Pair, radii: Pair, angle: float = 0.0, corners: int = 28) -> Points:
    """An ellipse as a polygon; `angle` in radians, clockwise on the screen."""
    t = np.arange(corners) * (2 * math.pi / corners)
    x, y = radii[0] * np.cos(t), radii[1] * np.sin(t)
    c, s = math.cos(angle), math.sin(angle)
    return np.stack([centre[0] + c * x - s * y, centre[1] + s * x + c * y], axis=1)


def leaf(centre: Pair, length: float, width: float, angle: float) -> Points:
    """A pointed leaf as a polygon, its stem at the side opposite to `angle`."""
    t = np.linspace(0, math.pi, 10)
    x = -np.cos(t) * length / 2
    y = np.sin(t) ** 1.5 * width / 2
    c, s = math.cos(angle), math.sin(angle)
    x, y = np.concatenate([x, x[::-1]]), np.concatenate([y, -y[::-1]])
    return np.stack([centre[0] + c * x - s * y, centre[1] + s * x + c * y], axis=1)


def fill(canvas: Image, points: Points, colour: Colour | int) -> None:
    """Fills a polygon in place, on an RGB canvas or a one-channel mask."""
    fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
    value = colour if isinstance(colour, tuple) else (colour,)
    cv2.fillPoly(canvas, [fixed], value, cv2.LINE_8, _SHIFT)


def stroke(canvas: Image, points: Points, colour: Colour | int, width: float, closed: bool = False) -> None:
    """Draws a line through `points` in place; `width` in canvas pixels."""
    fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
    value = colour if isinstance(colour, tuple) else (colour,)
    cv2.polylines(canvas, [fixed], closed, value, max(1, round(width)), cv2.LINE_8, _SHIFT)


def plain(like: Image, colour: Colour) -> Image:
    """A canvas of the same size in one colour."""
    canvas = np.empty_like(like)
    cv2.rectangle(canvas, (0, 0), (canvas.shape[1], canvas.shape[0]), colour, cv2.FILLED)
    return canvas


def paste(canvas: Image, layer: Image, mask: Image) -> None:
    """Copies `layer` onto `canvas` in place where `mask` is not zero."""
    cv2.copyTo(layer, mask, canvas)


def tint(colour: Colour, factor: float) -> Colour:
    """The colour made lighter (factor > 1, towards white) or darker (factor < 1, towards black)."""
    if factor <= 1:
        return (round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor))
    mix = min(factor - 1, 1)
    return (
        round(colour[0] + (255 - colour[0]) * mix),
        round(colour[1] + (255 - colour[1]) * mix),
        round(colour[2] + (255 - colour[2]) * mix),
    )


def pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """One of the colours."""
    return colours[int(rng.integers(len(colours)))]


def jitter(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    """The colour with each channel moved by up to `amount` levels."""
    moved = np.clip(np.asarray(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return (int(moved[0]), int(moved[1]), int(moved[2]))


def gradient(height: int, width: int, top: Colour, bottom: Colour) -> Image:
    """A canvas that fades from one colour to another, top to bottom."""
    ramp = np.linspace(0, 1, height)[:, None] * (np.asarray(bottom, float) - top) + top
    return np.ascontiguousarray(np.broadcast_to(np.rint(ramp).astype(np.uint8)[:, None], (height, width, 3)))


def cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise in [-1, 1]: random values on a coarse grid, interpolated."""
    rows, columns = max(2, cells), max(2, round(cells * width / height))
    coarse = rng.random((rows, columns)).astype(np.float32) * 2 - 1
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def relief(mask: Image, softness: float, light: float) -> NDArray[np.float32]:
    """Shading in about [-1, 1] of a shape inflated to a cushion: positive where it faces the light.

    `softness` is the radius of the rounding in canvas pixels, `light` the direction to the light in radians.
    """
    height, width = mask.shape
    small = cv2.resize(mask, (width // 4, height // 4), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    cushion = cv2.GaussianBlur(small, (0, 0), softness / 4)
    dx = cv2.Sobel(cushion, cv2.CV_32F, 1, 0, ksize=3)
    dy = cv2.Sobel(cushion, cv2.CV_32F, 0, 1, ksize=3)
    facing = -(dx * math.cos(light) + dy * math.sin(light)) * (softness / 8)
    return cv2.resize(facing, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def shade(canvas: Image, gain: NDArray[np.float32]) -> Image:
    """The canvas with every pixel multiplied by `gain` (height, width), clipped to 0..255."""
    return cv2.multiply(canvas, cv2.merge([gain, gain, gain]), dtype=cv2.CV_8U).astype(np.uint8, copy=False)


def shrink(canvas: Image) -> Image:
    """The canvas at its final size: the mean over each SUPERSAMPLE x SUPERSAMPLE block."""
    size = (canvas.shape[1] // SUPERSAMPLE, canvas.shape[0] // SUPERSAMPLE)
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
