"""The hub of community models: whether it can be reached, found out once and not by half a minute of tries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""


@contextmanager
def cache_without_internet() -> Iterator[None]:
    """Inside, a hub that cannot be reached is not asked: what was fetched before is found, all else fails at once."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # of requests or httpx, by the version of the hub's client
        return False
    return True
