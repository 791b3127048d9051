"""Commands as a user types them, in this process: a second import of torch would cost seconds a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from unittest import mock

import pytest
from hydra.core.global_hydra import GlobalHydra


def run_command(main: Callable[[], object], *words: str) -> None:
    """Calls an entry point with a command line."""
    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", [main.__module__, *words]):
        main()


def refused(main: Callable[[], object], *words: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Calls an entry point that must fail with a message and without a stack; returns what it said."""
    with pytest.raises(SystemExit) as stopped:
        run_command(main, *words)
    said = capfd.readouterr().err
    assert stopped.value.code == 1
    assert "Traceback" not in said
    return said
