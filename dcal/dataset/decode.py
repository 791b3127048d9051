"""From an image file to pixels, as the field's loaders see it, with damage detected instead of painted over.

OpenCV decodes, because it is the fastest; where it is known to differ from Pillow, which the field's loaders
use (CMYK, palettes, alpha), or where the file does not end as it should, Pillow does. Depending on its version,
OpenCV returns a truncated JPEG as an image with a grey rest and says nothing. So a file whose end marker is
missing goes to Pillow, which refuses it when pixels are missing, and lets it pass when something merely follows
the marker.

A JPEG holds its image as 8 x 8 blocks of frequencies, so it can be decoded at 1/2, 1/4 or 1/8 of its size for a
fraction of the cost. Averaging in the frequency domain is not the bilinear filter that follows, so pixels differ by a
few grey levels from those of the whole image, and where its size is no multiple of the divisor the content shifts by a
fraction of a decoded pixel towards one edge: a choice (`dataset.decode`) that training and evaluation share, and that
makes another run.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dcal.dataset.record import DataError

Pixels = NDArray[np.uint8]
DECODES = ("full", "scaled")
DECODER = (
    f"cv2 {cv2.__version__}, Pillow {PIL.__version__}, {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
)
"""What turns a file into pixels: those of another decoder are not taken from a cache."""

_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}
"""End of a whole file by the first three bytes: JPEG and PNG."""
_FLAGS = {
    divisor: reduced | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    for divisor, reduced in (
        (1, 0),
        # the name of each bit on its own: with IMREAD_COLOR_RGB it means the size only
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    )
}


def read_image(path: Path, cover: tuple[int, int] | None = None) -> Pixels:
    """Decodes an image file.

    An orientation in the EXIF data is ignored, as torchvision's and timm's loaders do: annotations refer to
    the stored pixels. Alpha is dropped, and of 16 bits the lower 8.

    Args:
        cover: (height, width) in pixels that suffice: a JPEG that is twice as large or more, in both directions,
            is decoded at the smallest of 1/2, 1/4 and 1/8 of its size that still covers this. None: whole.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DataError: the file is missing, unreadable, truncated, no image, or has 32 bits per pixel.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading it may never end
            raise DataError(f"{path}: is a folder, a device or a pipe and no image file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError for a name with a null byte, which no file has
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            if image.mode in ("RGB", "L") and data.endswith(_ENDS.get(data[:3], b"no end")):
                divisor = _divisor(image, cover) if cover else 1
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[divisor])
                if pixels is not None:
                    return pixels  # type: ignore[return-value]
            return rgb_pixels(image, path)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is no image, or one of an unknown kind") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged bytes raise whatever they meet: RuntimeError, struct.error, ...
        raise DataError(f"{path}: is damaged ({error or type(error).__name__})") from error


def rgb_pixels(image: Image.Image, name: object) -> Pixels:
    """A Pillow image of any mode as uint8 RGB (H, W, 3).

    Of a grey image of 16 bits the upper 8 are taken; Pillow's own conversion turns everything above 255 white.

    Args:
        image: whole or not yet read.
        name: of the image, for messages.

    Raises:
        DataError: it has 32 bits per pixel.
    """
    if image.mode[0] not in "IF":
        return np.array(image.convert("RGB"))
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise DataError(f"{name}: has 32 bits per pixel, of which the range is not known; convert it to 8 or 16 bits")
    return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _divisor(image: Image.Image, cover: tuple[int, int]) -> int:
    """The largest divisor at which a JPEG of this size still covers `cover`; 1 for other formats."""
    if image.format != "JPEG":
        return 1
    room = min(image.height // cover[0], image.width // cover[1])
    return max(divisor for divisor in _FLAGS if divisor <= max(1, room))
