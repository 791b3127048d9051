"""Outcomes of test items as text in a JSON file."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_outcomes(values: NDArray[Any]) -> str:
    """Outcomes as text: right and wrong exactly, numbers in [0, 1] to four decimals."""
    if values.dtype == np.bool_:
        return f"bits:{len(values)}:" + base64.b64encode(np.packbits(values).tobytes()).decode()
    units = np.rint(values * 10_000).astype("<u2")
    return f"u16:{len(values)}:" + base64.b64encode(units.tobytes()).decode()


def decode_outcomes(text: str) -> NDArray[np.float64]:
    """The outcomes that `encode_outcomes` was given, as float64."""
    kind, count, code = text.split(":")
    raw = base64.b64decode(code)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=int(count)).astype(np.float64)
    return np.frombuffer(raw, dtype="<u2").astype(np.float64) / 10_000


def encode_groups(labels: NDArray[Any]) -> str:
    """Which items have the same label, as text: numbers from 0 in the order in which labels first appear."""
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[group].astype("<u4")
    return f"u32:{len(numbers)}:" + base64.b64encode(numbers.tobytes()).decode()


def decode_groups(text: str) -> NDArray[np.int64]:
    """The numbers that `encode_groups` has given to the labels."""
    return np.frombuffer(base64.b64decode(text.split(":")[2]), dtype="<u4").astype(np.int64)


def digest(index: NDArray[np.int64], group: str) -> str:
    """Eight digits that tell whether two runs judged the same items, grouped in the same way."""
    return hashlib.sha256(index.tobytes() + group.encode()).hexdigest()[:8]
