"""How much memory a process may fill, on a machine and under the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcal.utils import memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB that are available, and no control groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {8 * 2**20} kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    return tmp_path


def group(folder: Path, names: tuple[str, str], limit: object, used: int, statistics: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "stat"), (limit, used, statistics), strict=True):
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_without_limits_it_is_what_the_machine_has(system: Path) -> None:
    assert memory.available_memory() == 8 * GIB
    (system / "cgroup").write_text("0::/\n")
    assert memory.available_memory() == 8 * GIB


def test_the_tightest_group_of_version_2_counts(system: Path) -> None:
    (system / "cgroup").write_text("0::/jobs/mine\n")
    names = ("max", "current")
    group(system / "groups" / "jobs" / "mine", names, "max", GIB, "inactive_file 0")
    assert memory.available_memory() == 8 * GIB
    group(system / "groups" / "jobs", names, 4 * GIB, 3 * GIB, f"anon 7\ninactive_file {GIB // 2}")
    assert memory.available_memory() == GIB + GIB // 2
    group(system / "groups" / "jobs", names, 4 * GIB, 5 * GIB, "inactive_file 0")
    assert memory.available_memory() == 0


def test_the_memory_controller_of_version_1_counts(system: Path) -> None:
    (system / "cgroup").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    names = ("limit_in_bytes", "usage_in_bytes")
    group(system / "groups" / "memory" / "job", names, 3 * GIB, 2 * GIB, "total_inactive_file 1024")
    assert memory.available_memory() == GIB + 1024


def test_elsewhere_it_is_what_is_built_in(system: Path) -> None:
    (system / "meminfo").unlink()
    assert memory.available_memory() > GIB // 4
