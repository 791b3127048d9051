"""A process without a home directory, and what others have left in its environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcal.utils.paths import cache_home, ensure_home, tidy_wandb_environment


def test_without_a_home_a_temporary_one_is_made_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def home() -> Path:
        if "HOME" in os.environ:
            return Path(os.environ["HOME"])
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "deleted below, and put back at the end of the test")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    ensure_home()
    made = Path(os.environ["HOME"])
    assert "HOME is not set" in capsys.readouterr().err
    assert cache_home().is_relative_to(made) and made.is_dir()
    made.rmdir()


def test_a_home_that_is_there_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.environ.get("HOME")
    ensure_home()
    assert os.environ.get("HOME") == before and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "read"), [("", None), ("dryrun", "offline"), ("run", "online"), ("offlin", "offlin")]
)
def test_what_is_left_of_wandb_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: str, read: str | None
) -> None:
    monkeypatch.setenv("WANDB_MODE", given)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "")
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    tidy_wandb_environment()
    assert os.environ.get("WANDB_MODE") == read and "WANDB_PROJECT" not in os.environ


@pytest.mark.parametrize(
    ("given", "read"), [("true", "disabled"), ("1", "disabled"), ("False", "online"), ("", "online")]
)
def test_wandb_disabled_counts_before_its_mode(monkeypatch: pytest.MonkeyPatch, given: str, read: str) -> None:
    monkeypatch.setenv("WANDB_DISABLED", given)
    monkeypatch.setenv("WANDB_MODE", "online")
    tidy_wandb_environment()
    assert os.environ["WANDB_MODE"] == read
