"""From an image file to pixels, as the field's loaders see it, with damage detected instead of painted over.

OpenCV decodes, because it is the fastest; where it is known to differ from Pillow, which the field's loaders
use (CMYK, palettes, alpha, 16 bits), or where the file does not end as it should, Pillow does. Depending on
its version, OpenCV returns a truncated JPEG as an image with a grey rest and says nothing. So a file whose
end marker is missing goes to Pillow, which refuses it when pixels are missing, and lets it pass when
something merely follows the marker.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dcal.dataset.record import DataError

Pixels = NDArray[np.uint8]

_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PN": b"IEND\xaeB`\x82"}
"""End of a whole file by the first three bytes: JPEG and PNG."""


def read_image(path: Path) -> Pixels:
    """Decodes an image file.

    An orientation in the EXIF data is ignored, as torchvision's and timm's loaders do: annotations refer to
    the stored pixels. Alpha is dropped.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DataError: the file is missing, unreadable, truncated or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            if image.mode in ("RGB", "L") and data.endswith(_ENDS.get(data[:3], b"no end")):
                flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
                if pixels is not None:
                    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is no image, or one of an unknown kind") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is damaged ({error})") from error
