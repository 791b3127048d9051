"""Images inside a page: pictures with the model's attention over them, and the confusion matrix."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcal.visualize.gallery import Gallery

RIGHT_RGB, WRONG_RGB = (66, 105, 208), (214, 69, 65)  # to be seen on light and on dark


class Picture(NamedTuple):
    """An image, and what the page needs to draw the patches of any ratio over it."""

    source: str
    """Data URI."""
    alt: str
    width: int
    height: int
    rows: int
    columns: int
    rank: str
    """Base64 of little-endian uint16, a patch each: 0 for the one with most attention."""
    attention: str
    """The attention of the image in as many shades: 65535 for the most."""


def picture(gallery: Gallery, position: int, alt: str) -> Picture:
    """A picture of a gallery."""
    attention = gallery.attention[position].ravel().astype(np.float64)
    rank = np.empty(len(attention), dtype="<u2")
    rank[np.argsort(-attention, kind="stable")] = np.arange(len(attention))
    scaled = np.rint(65535 * attention / max(attention.max(), 1e-12)).astype("<u2")
    rows, columns = gallery.attention[position].shape
    width, height = Image.open(io.BytesIO(gallery.jpeg[position])).size
    source = data_uri("jpeg", gallery.jpeg[position])
    return Picture(source, alt, width, height, rows, columns, text(rank), text(scaled))


def data_uri(kind: str, code: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(code).decode()}"


def text(values: NDArray[np.uint16]) -> str:
    return b64encode(values.tobytes()).decode()


class Matrix(NamedTuple):
    """A confusion matrix as an image of a pixel per cell, and its numbers for the pointer."""

    source: str
    size: int
    lines: list[str]
    """What it says in sum."""
    cells: str
    """JSON: `names` of the classes, `cells` [row, column, times] that are not zero, `totals` of the rows."""


def matrix(cells: NDArray[np.int64], names: Sequence[str]) -> Matrix:
    """Recognised items blue, confused ones red, stronger with their share of the class; the ground is transparent."""
    size = len(cells)
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    pixels = np.empty((size, size, 4), dtype=np.uint8)
    pixels[..., :3] = WRONG_RGB
    pixels[np.arange(size), np.arange(size), :3] = RIGHT_RGB
    pixels[..., 3] = np.rint(255 * np.sqrt(share))  # the root: a share of a tenth is to be seen
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    listed = [[int(row), int(column), int(cells[row, column])] for row, column in zip(*cells.nonzero(), strict=True)]
    told = {"names": list(names), "cells": listed, "totals": cells.sum(1).tolist()}
    right, items = int(cells.trace()), int(cells.sum())
    perfect = int(((cells.sum(1) == cells.diagonal()) & (cells.sum(1) > 0)).sum())
    lines = [f"{right} of {items} images are recognised; {perfect} of {size} classes without a mistake."]
    code = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return Matrix(data_uri("png", buffer.getvalue()), size, lines, code)
