"""Small pictures that can be told apart, in a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_pictures(folder: Path) -> None:
    """Two classes of ten pictures, told apart by their colour."""
    noise = np.random.default_rng(0)
    for name, color in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.array(color) + noise.integers(-40, 40, (40, 60, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
