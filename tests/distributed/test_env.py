"""What the environment says about other processes, and when it is not believed."""

from __future__ import annotations

import os

import pytest

from dcal.distributed.env import rank, rank_zero_only, work_alone, world_size


@pytest.fixture
def second_of_three(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    values = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_torchrun_is_believed(second_of_three: pytest.MonkeyPatch) -> None:
    assert (rank(), world_size()) == (1, 3)
    assert rank_zero_only(lambda: "written")() is None


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_a_rank_without_an_address_is_left_over(second_of_three: pytest.MonkeyPatch, missing: str) -> None:
    second_of_three.delenv(missing)
    assert (rank(), world_size()) == (0, 1)
    assert rank_zero_only(lambda: "written")() == "written"


def test_an_empty_world_size_is_one_process(second_of_three: pytest.MonkeyPatch) -> None:
    second_of_three.setenv("WORLD_SIZE", "")
    assert (rank(), world_size()) == (0, 1)


def test_a_command_that_works_alone_writes(second_of_three: pytest.MonkeyPatch) -> None:
    work_alone()
    assert "WORLD_SIZE" not in os.environ
    assert rank_zero_only(lambda: "written")() == "written"
