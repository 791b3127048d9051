"""`thresholds.json`: what `dcal-calibrate` leaves beside a run's weights, and who may use it.

A threshold belongs to weights, branches and data: another one of these, and it promises nothing. So the file has the
digest of the weights and of the data, and is used with the very same weights and settings only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcal.inference.restore import Restored
from dcal.inference.trust import RunError
from dcal.run.digest import sha256
from dcal.run.files import write_json

logger = logging.getLogger(__name__)
FILE = "thresholds.json"
SAME, DIFFERENT, UNSURE = "same", "different", "unsure"
NOBODY, NO_CLASS = "not in the gallery", "none of these classes"


def write_thresholds(restored: Restored, split: str, data_sha256: str, images: int, found: Mapping[str, Any]) -> Path:
    """Leaves the thresholds of a run.

    Args:
        split: of the data set that was calibrated on.
        data_sha256: digest of that data set.
        images: number of images of the split.
        found: `same`, `different`, `known` and `identities`, or `class`; each threshold with `rate`, `threshold` and
            `observed`.
    """
    file = restored.directory / FILE
    content = {**_settings(restored), "data": data_sha256, "split": split, "images": images, **found}
    write_json(file, content)
    return file


def read_thresholds(restored: Restored) -> dict[str, Any] | None:
    """The thresholds of a run, if it has some for these weights and settings.

    Raises:
        RunError: the file cannot be read.
    """
    file = restored.directory / FILE
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        fits = all(content[key] == value for key, value in _settings(restored).items())
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not the thresholds of a run ({error!r}); repeat dcal-calibrate") from None
    if not fits:
        logger.warning("%s: is of other weights or settings, and not used; repeat dcal-calibrate with these", file)
    return content if fits else None


def same_or_different(similarity: float, thresholds: Mapping[str, Any]) -> str:
    """The answer for a pair of images with this cosine."""
    if similarity >= thresholds["same"]["threshold"]:
        return SAME
    return DIFFERENT if similarity < thresholds["different"]["threshold"] else UNSURE


def promises(thresholds: Mapping[str, Any]) -> list[str]:
    """What each threshold promises, a sentence each."""
    if "class" in thresholds:
        own, count = thresholds["class"], f"of {thresholds['images']} images here"
        return [
            f"{NO_CLASS}: confidence below {own['threshold']:.4f}; so are of new images of the classes at most "
            f"{_percent(own['rate'])} ({count} {_percent(own['observed'])})"
        ]
    same, different, known = (thresholds[key] for key in ("same", "different", "known"))
    identities = thresholds["identities"]
    count = f"of {identities} identities here"
    return [
        f"{SAME}: similarity of at least {same['threshold']:.4f}; so are of image pairs of two new identities at most "
        f"{_percent(same['rate'])} ({count} {_percent(same['observed'])})",
        f"{DIFFERENT}: not the same and below {different['threshold']:.4f}; so are of image pairs of one new identity "
        f"at most {_percent(different['rate'])} ({count} {_percent(different['observed'])})",
        f"{NOBODY}: nothing of at least {known['threshold']:.4f}; of searches for a new identity that is not there, in "
        f"a gallery of up to {identities - 1} identities, at most {_percent(known['rate'])} find something "
        f"({count} {_percent(known['observed'])})",
    ]


def _settings(restored: Restored) -> dict[str, Any]:
    """What the scores depend on besides the images."""
    return {"task": restored.task.name, "weights": sha256(restored.weights), **restored.predictor.settings()}


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
