"""What the selected patches of an evaluated split look at, where parts or boxes are annotated."""

from __future__ import annotations

import torch

from dcal.backbone import patch_boxes
from dcal.dataset.data import Data
from dcal.dataset.keypoints import Landmarks
from dcal.metric.part_hit import selection_metrics
from dcal.model import DCAL
from dcal.task.inference import Inferred

NOTHING = Landmarks()


def judge_selection(model: DCAL, data: Data, split: str, seen: Inferred) -> dict[str, float]:
    """`part_hit`, `pointing` and their chance levels, see `selection_metrics`; nothing without GLCA or annotations."""
    landmarks = data.landmarks(split) if seen.selected is not None else {}
    if seen.selected is None or not landmarks:
        return {}
    known = [landmarks.get(index, NOTHING) for index in seen.index.tolist()]
    return selection_metrics(
        [torch.from_numpy(item.parts) for item in known],
        torch.tensor([item.box for item in known], dtype=torch.float64),
        seen.selected,
        patch_boxes(model.vit, data.image_size).double(),
    )
