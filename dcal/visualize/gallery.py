"""`gallery.npz`: small pictures that a run keeps of its test split, and where the model looked in them.

What a report shows of images must be kept when the run ends: the data set may be missing where reports are read. The
file holds plain arrays only (no pickle): `part` and `number` say which image of which split a picture is, `jpeg` is
all of them end to end, `sizes` their lengths in bytes.

Shape suffixes: K pictures, h and w patches.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcal.run.files import atomic_write
from dcal.utils.errors import UserError

FILE = "gallery.npz"
LONGEST_SIDE = 256


class Gallery(NamedTuple):
    """Pictures with the model's attention over them."""

    part: list[str]
    """The split of each picture, e.g. `test`, or `query` and `gallery`."""
    number: list[int]
    """Its position in that split."""
    jpeg: list[bytes]
    attention: NDArray[np.float32]
    """The class token's rollout (K, h, w), over the blocks before GLCA where there is GLCA."""
    selected: NDArray[np.bool_]
    """The patches that GLCA selected (K, h, w); none without GLCA."""

    def position(self, part: str, number: int) -> int | None:
        """Where the picture of an image is; None if it was not kept."""
        wanted = (part, number)
        return next((n for n, key in enumerate(zip(self.part, self.number, strict=True)) if key == wanted), None)


def encode_jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """An image as a JPEG of at most `LONGEST_SIDE` pixels."""
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def save_gallery(gallery: Gallery, path: Path) -> None:
    """Writes the file whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            part=np.array(gallery.part),
            number=np.array(gallery.number, dtype=np.int64),
            jpeg=np.frombuffer(b"".join(gallery.jpeg), dtype=np.uint8),
            sizes=np.array([len(code) for code in gallery.jpeg], dtype=np.int64),
            attention=gallery.attention,
            selected=gallery.selected,
        )


def load_gallery(path: Path) -> Gallery:
    """Reads what `save` wrote.

    Raises:
        UserError: the file is torn or damaged, or lacks an array; the message names it.
        OSError: it cannot be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Gallery(
                arrays["part"].tolist(),
                arrays["number"].tolist(),
                [code.tobytes() for code in np.split(arrays["jpeg"], np.cumsum(arrays["sizes"]))[:-1]],
                arrays["attention"].astype(np.float32),
                arrays["selected"].astype(bool),
            )
    except OSError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever they meet in damaged bytes
        raise UserError(f"{path}: cannot be read ({error})") from None
