"""`run=` names a run by its directory, as the last one, or by its id."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dcal.run.directory import CONFIG_FILE, LABEL_FILE
from dcal.run.listing import find_run
from dcal.utils.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("birds/aaaa1111/seed=0", "birds/aaaa1111/seed=1", "cats/bbbb2222/seed=0")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / CONFIG_FILE).touch()
        os.utime(tmp_path / name / CONFIG_FILE, (number, number))
    return tmp_path


def test_by_directory_by_id_and_the_last(root: Path) -> None:
    assert find_run(root / "birds/aaaa1111/seed=1", "nowhere") == root / "birds/aaaa1111/seed=1"
    assert find_run("bbbb2222", root) == root / "cats/bbbb2222/seed=0"
    assert find_run("aaaa1111/seed=1", root) == root / "birds/aaaa1111/seed=1"
    assert find_run("last", root) == root / "cats/bbbb2222/seed=0"
    (root / "birds/aaaa1111/seed=0/result.json").touch()  # finished since
    assert find_run("last", root) == root / "birds/aaaa1111/seed=0"


def test_a_copy_is_meant_only_where_it_is_named(root: Path) -> None:
    run = root / "cats/bbbb2222/seed=0"
    for name in ("seed=0.bak", "seed=0.replaced-1", "copy of seed=0"):
        shutil.copytree(run, run.with_name(name))
    assert find_run("bbbb2222", root) == find_run("last", root) == run
    assert find_run(run.with_name("seed=0.bak"), root) == run.with_name("seed=0.bak")


def test_by_words_of_its_label(root: Path) -> None:
    labels = {"birds/aaaa1111/seed=0": "dcal bird_vit lr=0.1", "birds/aaaa1111/seed=1": "dcal bird_vit lr=0.1"}
    for name, label in {**labels, "cats/bbbb2222/seed=0": "glca bird_vit lr=0.1"}.items():
        (root / name / LABEL_FILE).write_text(f"{label}\n")
    assert find_run("glca", root) == find_run("lr=0.1 glca", root) == root / "cats/bbbb2222/seed=0"
    assert find_run("dcal seed=1", root) == root / "birds/aaaa1111/seed=1"
    with pytest.raises(UserError, match=r"^run=dcal: 2 runs, .*seed=0 \(dcal bird_vit lr=0.1\), "):
        find_run("dcal", root)


def test_mistakes_say_what_there_is(root: Path) -> None:
    with pytest.raises(UserError, match=r"^run=aaaa1111: 2 runs, .*seed=0.*seed=1"):
        find_run("aaaa1111", root)
    with pytest.raises(UserError, match=r"^run=.*birds: no run directory.*did you mean .*seed=0"):
        find_run(root / "birds", root)
    with pytest.raises(UserError, match=r"^run=cccc3333: no run directory.*an id or words of a label below root="):
        find_run("cccc3333", root)
    with pytest.raises(UserError, match=r"^run=last: no run below root="):
        find_run("last", root / "birds" / "aaaa1111" / "seed=0")
