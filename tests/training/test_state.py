"""Which split a run is judged on while it trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dcal.dataset.record import Catalog, Record
from dcal.task.fgvc import FGVC
from dcal.task.reid import ReID
from dcal.training.state import TrainState


@pytest.mark.parametrize(
    ("task", "splits", "expected"),
    [
        (FGVC, "train test", "test"),
        (FGVC, "train val test", "val"),
        (FGVC, "train validation test", "test"),
        (FGVC, "train val_old test", "test"),
        (ReID, "train query gallery", "test"),
        (ReID, "train query gallery val_query val_gallery", "val"),
        (ReID, "train query gallery val_query", "test"),
        (ReID, "train query gallery validation", "test"),
    ],
)
def test_only_the_splits_that_the_task_reads_make_a_validation(task: Any, splits: str, expected: str) -> None:
    catalog = Catalog("own", {split: [Record(Path("a.png"), 0)] for split in splits.split()}, ["a"])
    names = SimpleNamespace(splits=lambda split: task.splits(cast(Any, None), split))
    state = SimpleNamespace(task=names, data=SimpleNamespace(catalog=catalog))
    assert cast(Any, TrainState.validation).fget(state) == expected
