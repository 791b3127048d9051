"""The anatomy of a synthetic bird: its shape, its pose, and how it is drawn.

The bird is defined in its own frame, x forward and y down, the trunk about 1.4 units long; a `Pose` places
it on a canvas. Parts that move (head, tail, wing) turn about their joint before that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from dcal.dataset.synthetic.drawing import (
    SUPERSAMPLE,
    Colour,
    Image,
    Points,
    ellipse,
    fill,
    paste,
    plain,
    relief,
    shade,
    smooth,
    stroke,
    tint,
)

# fmt: off
SILHOUETTE = np.array([
    (0.86, -0.52), (0.74, -0.72), (0.54, -0.79), (0.33, -0.69), (0.13, -0.39), (-0.18, -0.19), (-0.55, 0.0),
    (-0.64, 0.12), (-0.42, 0.29), (-0.05, 0.43), (0.29, 0.38), (0.56, 0.14), (0.73, -0.12), (0.85, -0.33),
])
BELLY = np.array([
    (-0.62, 0.16), (-0.2, 0.2), (0.2, 0.1), (0.5, -0.12), (0.76, -0.27), (1.0, 0.1), (0.4, 0.6), (-0.4, 0.6),
])
WING = np.array([
    (0.35, -0.15), (0.08, -0.23), (-0.3, -0.09), (-0.84, 0.2), (-0.42, 0.25), (-0.05, 0.27), (0.26, 0.16),
])
COVERTS = np.array([(0.42, -0.3), (0.0, -0.3), (-0.14, 0.0), (-0.05, 0.34), (0.42, 0.34)])
BAR = np.array([(0.17, -0.3), (0.07, -0.02), (0.17, 0.36), (-0.06, 0.36), (-0.16, -0.02), (-0.06, -0.3)])
TAIL = np.array([
    (-0.45, -0.04), (-0.85, 0.06), (-1.24, 0.15), (-1.29, 0.28), (-1.2, 0.42), (-0.85, 0.29), (-0.5, 0.21),
])
TAIL_TIP = np.array([(-0.86, -0.1), (-1.4, 0.0), (-1.4, 0.6), (-0.9, 0.5)])
BILL = np.array([(0.78, -0.64), (0.99, -0.59), (1.26, -0.38), (1.01, -0.27), (0.78, -0.25)])
GAPE = np.array([(0.84, -0.44), (1.21, -0.39)])
CROWN = np.array([
    (0.90, -0.55), (0.66, -0.585), (0.42, -0.56), (0.24, -0.52), (0.20, -0.68), (0.45, -1.0), (0.85, -0.9),
])
EXTENT = np.array([(1.27, -0.45), (0.6, -0.86), (0.13, -0.80), (-1.29, 0.46), (0.1, 0.75), (-1.29, 0.05)])
# fmt: on
BILL_BASE = np.array([0.80, -0.44])
EYE = np.array([0.67, -0.47])
FEET = np.array([(0.02, 0.66), (0.17, 0.66)])
JOINTS = {"head": np.array([0.45, -0.32]), "tail": np.array([-0.5, 0.1]), "wing": np.array([0.3, 0.0])}
PLACES: dict[str, tuple[str, tuple[float, float], float]] = {
    "bill": ("head", (1.0, -0.44), 0.30),
    "wing bar": ("wing", (0.0, 0.02), 0.32),
    "tail tip": ("tail", (-1.07, 0.26), 0.29),
    "crown": ("head", (0.53, -0.68), 0.36),
}
"""Limb, centre and a radius that holds all of a part that can tell species apart, in units."""


@dataclass(frozen=True, slots=True)
class Group:
    """What the species of a group have in common."""

    name: str
    part: str
    back: Colour
    belly: Colour
    wing: Colour
    bill: Colour
    crown: Colour
    crest: float = 0.0
    bill_size: float = 0.75


@dataclass(frozen=True, slots=True)
class Pose:
    """Everything random about the bird's body; the same for every species."""

    unit: float
    """Canvas pixels per unit of the bird's frame."""
    to_canvas: Points
    """(2, 3): bird's frame to canvas."""
    turns: dict[str, float]
    """By how much each limb is turned, in radians."""
    head_shift: Points
    plump: float

    def place(self, points: Points, limb: str = "trunk") -> Points:
        """Points (n, 2) of the bird's frame on the canvas, moved with the limb they belong to."""
        p = np.atleast_2d(points).astype(float)
        if limb in JOINTS:
            p = _turn(p, JOINTS[limb], self.turns[limb])
        if limb == "head":
            p = p + self.head_shift
        on_canvas: Points = p @ self.to_canvas[:, :2].T + self.to_canvas[:, 2]
        return on_canvas

    def window(self, size: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the window of the canvas that holds the bird."""
        corners = self.place(EXTENT)
        low = np.maximum(np.floor((corners.min(0) - 0.25 * self.unit) / SUPERSAMPLE), 0) * SUPERSAMPLE
        high = np.minimum(np.ceil((corners.max(0) + 0.25 * self.unit) / SUPERSAMPLE) * SUPERSAMPLE, size)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def silhouette(self, crest: float) -> Points:
        """The outline of trunk and head, the head's points moved with the head and the belly plumped."""
        p = SILHOUETTE.copy()
        p[3] += (-crest, -crest)
        p[8:12, 1] *= self.plump
        weight = np.clip((-p[:, 1] + 0.05) / 0.35, 0, 1)[:, None] * (p[:, :1] > 0.1)
        moved = _turn(p, JOINTS["head"], self.turns["head"]) + self.head_shift
        return self.place(p + weight * (moved - p))


def _turn(points: Points, pivot: Points, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    turned: Points = (points - pivot) @ np.array([[c, s], [-s, c]]) + pivot
    return turned


def draw_pose(rng: np.random.Generator, size: int) -> Pose:
    """A random pose whose bird is inside a square canvas of `size` pixels."""
    span = size * (0.76 + 0.18 * rng.random())
    unit = span / 2.5
    angle = (rng.random() - 0.5) * 0.44
    flip = -1.0 if rng.random() < 0.5 else 1.0
    c, s = math.cos(angle), math.sin(angle)
    linear = unit * np.array([[c * flip, -s], [s * flip, c]])
    corners = EXTENT @ linear.T
    low, high = 0.03 * size - corners.min(0), 0.97 * size - corners.max(0)
    shift = low + (high - low) * rng.random(2)
    spread = rng.random(6) - 0.5
    return Pose(
        unit=unit,
        to_canvas=np.column_stack([linear, shift]),
        turns={"head": 0.5 * spread[0], "tail": 0.5 * spread[4], "wing": 0.2 * spread[5]},
        head_shift=np.array([0.10, 0.08]) * spread[1:3],
        plump=1 + 0.24 * spread[3],
    )


def draw_bird(
    size: tuple[int, ...], pose: Pose, group: Group, mark: Colour | None, light: float
) -> tuple[Image, Image]:
    """The bird on its own: colours (h, w, 3) and mask (h, w), 255 on the bird."""
    bird, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    part = {group.part: mark}
    trunk = smooth(pose.silhouette(group.crest))
    _draw_tail(bird, mask, pose, group, part.get("tail tip"))
    bill = part.get("bill") or group.bill
    outline = pose.place(BILL_BASE + group.bill_size * (BILL - BILL_BASE), "head")
    fill(mask, outline, 255)
    fill(bird, outline, bill)
    fill(bird, outline[[0, 1, 2]], tint(bill, 1.2))
    gape = pose.place(BILL_BASE + group.bill_size * (GAPE - BILL_BASE), "head")
    stroke(bird, gape, tint(bill, 0.62), pose.unit * 0.02)
    body = np.zeros_like(mask)
    fill(body, trunk, 255)
    _draw_trunk(bird, body, pose, group, part.get("crown") or group.crown)
    cv2.bitwise_or(mask, body, mask)
    _draw_wing(bird, mask, pose, group, part.get("wing bar"))
    gain = 1 + 0.55 * relief(body, 0.30 * pose.unit, light)
    return shade(bird, np.clip(gain, 0.6, 1.35)), mask


def _draw_tail(bird: Image, mask: Image, pose: Pose, group: Group, tip: Colour | None) -> None:
    tail = smooth(pose.place(TAIL, "tail"))
    region = np.zeros_like(mask)
    fill(region, tail, 255)
    layer = plain(bird, tint(group.wing, 0.9))
    if tip is not None:
        fill(layer, pose.place(TAIL_TIP, "tail"), tip)
    for end in ((-1.24, 0.25), (-1.22, 0.33)):
        line = pose.place(np.array([(-0.6, 0.08), end]), "tail")
        stroke(layer, line, tint(group.wing, 0.66), pose.unit * 0.02)
    paste(bird, layer, region)
    cv2.bitwise_or(mask, region, mask)


def _draw_trunk(bird: Image, body: Image, pose: Pose, group: Group, crown: Colour) -> None:
    layer = plain(bird, group.back)
    fill(layer, smooth(pose.place(BELLY)), group.belly)
    cv2.blur(layer, (2 * round(0.05 * pose.unit) + 1,) * 2, dst=layer)
    fill(layer, smooth(pose.place(CROWN, "head")), crown)
    paste(bird, layer, body)
    eye = pose.place(EYE, "head")[0]
    for radius, colour in ((0.095, tint(group.back, 0.7)), (0.075, (24, 20, 22))):
        fill(bird, ellipse(eye, (radius * pose.unit,) * 2), colour)
    fill(bird, ellipse(eye - 0.022 * pose.unit, (0.02 * pose.unit,) * 2, corners=10), (250, 250, 250))


def _draw_wing(bird: Image, mask: Image, pose: Pose, group: Group, bar: Colour | None) -> None:
    wing = smooth(pose.place(WING, "wing"))
    region = np.zeros_like(mask)
    fill(region, wing, 255)
    layer = plain(bird, group.wing)
    fill(layer, smooth(pose.place(COVERTS, "wing")), tint(group.wing, 1.16))
    for k in range(5):
        end = np.array([(-0.12, 0.22 - 0.075 * k), (-0.45, 0.26 - 0.05 * k), (-0.86, 0.21)])
        stroke(layer, pose.place(end, "wing"), tint(group.wing, 0.72), pose.unit * 0.022)
    if bar is not None:
        fill(layer, pose.place(BAR, "wing"), bar)
    stroke(layer, wing, tint(group.wing, 0.66), pose.unit * 0.03, closed=True)
    paste(bird, layer, region)
    cv2.bitwise_or(mask, region, mask)


def draw_feet(canvas: Image, pose: Pose) -> None:
    """Draws legs and toes in place, down to where the perch is."""
    for foot in FEET:
        stroke(canvas, pose.place(np.array([(foot[0] - 0.02, 0.34), foot])), (96, 74, 62), pose.unit * 0.045)
        for toe in (-0.07, 0.0, 0.08):
            stroke(
                canvas,
                pose.place(np.array([foot, (foot[0] + toe, foot[1] + 0.05)])),
                (84, 64, 54),
                pose.unit * 0.035,
            )
