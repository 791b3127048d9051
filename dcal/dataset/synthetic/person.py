"""A synthetic pedestrian: what makes an identity, and how it is drawn from the front, the side and the back.

A person is drawn in its own frame, x to the right and y down, from the top of the head (y = 0) to the soles
(y = 1); `Stance` places it on a canvas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from dcal.dataset.synthetic.drawing import (
    Colour,
    Image,
    Points,
    ellipse,
    fill,
    paste,
    pick,
    plain,
    relief,
    shade,
    stroke,
    tint,
)

FRONT, SIDE, BACK = 0, 1, 2
CLOTHES: tuple[Colour, ...] = (
    (196, 52, 50), (54, 92, 170), (62, 132, 84), (226, 186, 68), (232, 230, 226),
    (52, 52, 60), (140, 84, 150), (228, 138, 150), (120, 170, 196), (152, 112, 80),
)  # fmt: skip
BOTTOMS: tuple[Colour, ...] = ((50, 62, 96), (46, 46, 52), (176, 160, 128), (112, 112, 116), (124, 70, 62))
HAIR: tuple[Colour, ...] = ((40, 32, 30), (104, 70, 44), (206, 168, 96), (150, 148, 146))
SKIN: tuple[Colour, ...] = ((240, 204, 178), (206, 158, 122), (138, 94, 70))
SHOES: tuple[Colour, ...] = ((40, 38, 40), (228, 226, 222), (168, 66, 56))


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that stays with a person from camera to camera."""

    top: Colour
    second: Colour
    """Colour of the pattern on the top."""
    pattern: str
    """`plain`, `hoops`, `halves` or `print` (on the chest: not to be seen from behind)."""
    sleeves: bool
    bottom: Colour
    cut: str
    """`trousers`, `shorts` or `skirt`."""
    hair: Colour
    long_hair: bool
    skin: Colour
    bag: str
    """`none`, `backpack` (seen best from behind) or `satchel`."""
    bag_colour: Colour
    shoes: Colour
    girth: float


def draw_identity(shared: np.random.Generator, own: np.random.Generator) -> Identity:
    """A random person; equal `shared` generators dress people alike, `own` gives hair, skin, bag, shoes."""
    top = int(shared.integers(len(CLOTHES)))
    second = (top + 1 + int(shared.integers(len(CLOTHES) - 1))) % len(CLOTHES)
    return Identity(
        top=CLOTHES[top],
        second=CLOTHES[second],
        pattern=("plain", "plain", "hoops", "halves", "print")[int(shared.integers(5))],
        sleeves=bool(shared.random() < 0.5),
        bottom=pick(shared, BOTTOMS),
        cut=("trousers", "trousers", "shorts", "skirt")[int(shared.integers(4))],
        girth=0.88 + 0.34 * float(shared.random()),
        skin=pick(own, SKIN),
        hair=pick(own, HAIR),
        long_hair=bool(own.random() < 0.4),
        bag=("none", "backpack", "satchel")[int(own.integers(3))],
        bag_colour=pick(own, CLOTHES),
        shoes=pick(own, SHOES),
    )


@dataclass(frozen=True, slots=True)
class Stance:
    """A person's position on the canvas and how they walk."""

    foot: Points
    """Canvas position between the feet."""
    height: float
    """Of the person in canvas pixels."""
    view: int
    facing: float
    """1 or -1: to which side a person seen from the side walks; mirrors the other views."""
    stride: float
    swing: float
    lean: float

    def place(self, points: ArrayLike) -> Points:
        """Points (n, 2) of the person's frame on the canvas."""
        p = np.atleast_2d(np.asarray(points, float))
        x = (p[:, 0] + self.lean * (1 - p[:, 1])) * self.facing
        return np.stack([self.foot[0] + x * self.height, self.foot[1] + (p[:, 1] - 1) * self.height], axis=1)


def draw_person(size: tuple[int, int], who: Identity, stance: Stance, light: float) -> tuple[Image, Image]:
    """A person on their own: colours (h, w, 3) and mask (h, w), 255 on the person; `light` in radians."""
    figure, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    side = stance.view == SIDE
    width = who.girth * (0.62 if side else 1.0)
    _Brush(figure, mask, stance).person(who, width, side)
    gain = 1 + 0.5 * relief(mask, 0.045 * stance.height, light)
    return shade(figure, np.clip(gain, 0.65, 1.3)), mask


@dataclass(frozen=True, slots=True)
class _Brush:
    figure: Image
    mask: Image
    stance: Stance

    def shape(self, points: ArrayLike, colour: Colour) -> None:
        on_canvas = self.stance.place(points)
        fill(self.figure, on_canvas, colour)
        fill(self.mask, on_canvas, 255)

    def blob(self, centre: tuple[float, float], radii: tuple[float, float], colour: Colour) -> None:
        self.shape(ellipse(centre, radii), colour)

    def limb(self, points: ArrayLike, width: float, colour: Colour) -> None:
        on_canvas = self.stance.place(points)
        stroke(self.figure, on_canvas, colour, width * self.stance.height)
        stroke(self.mask, on_canvas, 255, width * self.stance.height)

    def person(self, who: Identity, width: float, side: bool) -> None:
        view, back = self.stance.view, self.stance.view == BACK
        if side:
            self.arm(who, width, -1, side)
        if who.bag == "backpack" and view != BACK:
            self.backpack(who, width, view)
        self.legs(who, width, side)
        if who.long_hair and view == FRONT:
            self.blob((0.0, 0.11), (0.064, 0.1), who.hair)
        self.torso(who, width)
        self.head(who, view)
        if not side:
            self.arm(who, width, -1, side)
        self.arm(who, width, 1, side)
        if who.bag == "backpack" and back:
            self.backpack(who, width, view)
        if who.bag == "satchel":
            self.satchel(who, width)

    def arm(self, who: Identity, width: float, which: int, side: bool) -> None:
        shoulder = 0.02 * which if side else 0.113 * which * width
        spread = 0.0 if side else 0.022 * which
        swing = self.stance.swing * which * (0.14 if side else 0.03)
        elbow = (shoulder + swing * 0.6 + spread, 0.34)
        hand = (shoulder + swing * 1.3 + spread, 0.48)
        colour = tint(who.top, 0.8 if which > 0 or not side else 0.68)
        self.limb([elbow, hand], 0.042, colour if who.sleeves else tint(who.skin, 0.95))
        self.limb([(shoulder, 0.205), elbow], 0.055, colour)
        self.blob(hand, (0.022, 0.026), who.skin)

    def legs(self, who: Identity, width: float, side: bool) -> None:
        for which in (-1, 1):
            hip = 0.03 * which if side else 0.05 * which * width
            step = self.stance.stride * which * (0.15 if side else 0.025)
            knee, ankle = (hip + step * 0.55, 0.72), (hip + step - 0.02 * side * (step < 0), 0.95)
            shade_of = 1.0 if which > 0 else 0.84
            below = who.bottom if who.cut == "trousers" else who.skin
            self.limb([knee, ankle], 0.062, tint(below, shade_of))
            self.limb([(hip, 0.5), knee], 0.085, tint(who.bottom, shade_of))
            toe = 0.03 if side else 0.012 * which
            self.blob((ankle[0] + toe, 0.972), (0.052 if side else 0.036, 0.026), who.shoes)
        if who.cut == "skirt":
            flare = 0.13 * max(width, 0.8)
            self.shape([(-0.085 * width, 0.46), (0.085 * width, 0.46), (flare, 0.7), (-flare, 0.7)], who.bottom)

    def torso(self, who: Identity, width: float) -> None:
        half = [(0.045, 0.155), (0.115 * width, 0.19), (0.108 * width, 0.35), (0.1 * width, 0.52)]
        outline = [*half, *((-x, y) for x, y in reversed(half))]
        region = np.zeros_like(self.mask)
        fill(region, self.stance.place(outline), 255)
        layer = plain(self.figure, who.top)
        if who.pattern == "hoops":
            for y in (0.225, 0.315, 0.405, 0.495):
                band = [(-0.2, y - 0.022), (0.2, y - 0.022), (0.2, y + 0.022), (-0.2, y + 0.022)]
                fill(layer, self.stance.place(band), who.second)
        elif who.pattern == "halves":
            fill(layer, self.stance.place([(-0.2, 0.34), (0.2, 0.34), (0.2, 0.6), (-0.2, 0.6)]), who.second)
        elif who.pattern == "print" and self.stance.view == FRONT:
            fill(layer, self.stance.place(ellipse((0, 0.3), (0.055, 0.06))), who.second)
        paste(self.figure, layer, region)
        cv2.bitwise_or(self.mask, region, self.mask)

    def head(self, who: Identity, view: int) -> None:
        if who.long_hair and view == SIDE:
            self.blob((-0.024, 0.11), (0.046, 0.1), who.hair)
        self.shape([(-0.026, 0.11), (0.026, 0.11), (0.04, 0.175), (-0.04, 0.175)], tint(who.skin, 0.85))
        shift = 0.012 if view == SIDE else 0.0
        if who.long_hair and view == BACK:
            self.blob((0.0, 0.125), (0.058, 0.115), tint(who.hair, 0.92))
        self.blob((0.0, 0.07), (0.05, 0.068), who.hair)
        if view != BACK:
            self.blob((shift, 0.085), (0.043 if view == FRONT else 0.036, 0.055), who.skin)
            fringe = 0.045 if view == FRONT else 0.03
            self.shape(ellipse((-0.012 if view == SIDE else 0.0, 0.034), (fringe, 0.03)), who.hair)
            for x in (-0.017, 0.017) if view == FRONT else (0.032,):
                self.blob((x, 0.082), (0.006, 0.007), (40, 34, 34))

    def backpack(self, who: Identity, width: float, view: int) -> None:
        if view == BACK:
            self.shape(_box(0.0, 0.32, 0.082 * width, 0.115), who.bag_colour)
            self.shape(_box(0.0, 0.37, 0.058 * width, 0.045), tint(who.bag_colour, 0.75))
        elif view == SIDE:
            self.shape(_box(-0.105, 0.32, 0.055, 0.11), who.bag_colour)
        else:
            for x in (-0.075, 0.075):
                self.limb([(x * width, 0.16), (x * width * 1.15, 0.33)], 0.028, who.bag_colour)

    def satchel(self, who: Identity, width: float) -> None:
        mirror = -1.0 if self.stance.view == BACK else 1.0
        strap = [(-0.07 * width * mirror, 0.17), (0.11 * width * mirror, 0.47)]
        self.limb(strap, 0.014, tint(who.bag_colour, 0.8))
        self.shape(_box(0.12 * width * mirror, 0.52, 0.055, 0.055), who.bag_colour)


def _box(x: float, y: float, half_width: float, half_height: float) -> Points:
    """A rectangle with rounded corners."""
    t = np.arange(24) * (2 * math.pi / 24)
    c, s = np.cos(t), np.sin(t)
    return np.stack(
        [x + half_width * np.sign(c) * np.abs(c) ** 0.45, y + half_height * np.sign(s) * np.abs(s) ** 0.45],
        axis=1,
    )
