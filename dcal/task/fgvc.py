"""Fine-grained classification: top-1 per branch and of the branches' averaged probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcal.backbone import patch_boxes
from dcal.dataset.data import Data
from dcal.dataset.keypoints import Landmarks
from dcal.distributed.collectives import rank_and_world_size
from dcal.metric.classes import class_title, examples_of, most_confused
from dcal.metric.classification import classification_metrics
from dcal.metric.decision.calibration import classifier_reliability
from dcal.metric.part_hit import selection_metrics
from dcal.model import DCAL
from dcal.task.evaluation import Evaluation
from dcal.task.inference import Inferred, combined_scores, infer
from dcal.task.options import Task
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.visualize.examples import (
    draw_examples,
    keep_gallery,
    log_classes,
    log_examples,
    pick_examples,
    rollout_and_selection,
)
from dcal.visualize.gallery import FILE

GALLERY_SHOWN = 24
CONFUSED_SHOWN = 8


@dataclass(kw_only=True)
class FGVC(Task):
    """The fine-grained classification task.

    Raises:
        UserError: an option that classification has no use for is set, or one is out of range.
    """

    name: ClassVar = "fgvc"
    primary_metric: ClassVar = "top1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rerank:
            raise UserError("task.rerank=true ranks a gallery: it needs task=reid")
        if self.metric != "cosine":
            raise UserError(f"task.metric={self.metric} ranks a gallery: it needs task=reid")
        if self.side_information != "none":
            raise UserError(f"task.side_information={self.side_information} needs cameras: it needs task=reid")

    def splits(self, split: str) -> tuple[str, ...]:
        """The splits of the data set that an evaluation of `split` reads."""
        return (split,)

    def evaluate_one(
        self,
        model: DCAL,
        data: Data,
        split: str,
        batch_size: int,
        workers: int,
        device: Device,
        reliability: bool = False,
    ) -> Evaluation:
        """Metrics of a split: of combined inference, and per branch with the branch's name appended.

        They are those of `classification_metrics`; with GLCA and annotated parts or boxes also those of
        `judge_selection`.

        Args:
            reliability: find out how far the answers can be relied on, too: of another split than `val` with the
                temperature that fits `val`, if there is one.
        """

        def inferred(part: str) -> Inferred:
            loader = data.eval_loader(part, batch_size, workers, *rank_and_world_size(), device.pins_memory)
            return infer(model, loader, device, self.flip_test)

        seen = inferred(split)
        scores = combined_scores(seen.logits, self.inference)
        metrics = classification_metrics(scores, seen.labels)
        for branch, log_probabilities in seen.logits.items():
            own = classification_metrics(log_probabilities, seen.labels)
            metrics |= {f"{key}_{branch}": value for key, value in own.items()}
        metrics |= judge_selection(model, data, split, seen)
        metrics["images"] = float(len(seen.labels))
        predictions = scores.argmax(1)
        items = {
            "index": seen.index,
            "label": seen.labels,
            "prediction": predictions,
            "confidence": scores.exp().gather(1, predictions[:, None]).squeeze(1),
            "nll": -scores.gather(1, seen.labels[:, None]).squeeze(1).clamp(min=torch.finfo(torch.float32).min),
            **{f"prediction_{branch}": scores_.argmax(1) for branch, scores_ in seen.logits.items()},
        }
        found = None
        if reliability:
            validation = None
            if split != "val" and "val" in data.catalog.splits:
                held_out = inferred("val")
                validation = combined_scores(held_out.logits, self.inference), held_out.labels
            found = classifier_reliability(scores, seen.labels, validation)
        names = data.names(split)
        return Evaluation(metrics, items, [names[position] for position in seen.index], found)

    def show(
        self,
        model: DCAL,
        data: Data,
        split: str,
        evaluation: Evaluation,
        device: Device,
        folder: Path,
        tracker: Any,
    ) -> Path:
        """Draws examples of the split, right and wrong ones, into `folder`, and logs them as a W&B table.

        Keeps pictures for reports, those of confused classes among them, and logs per-class accuracy and confusion.
        """
        items = evaluation.items
        chosen = pick_examples(items["prediction"] == items["label"])
        images = torch.stack([data.image(split, int(items["index"][row])) for row in chosen])
        rollout, selected = rollout_and_selection(model, images, device)
        names = data.catalog.class_names
        truth, guess = ([names[items[key][row]] for row in chosen] for key in ("label", "prediction"))
        right = [wanted == given for wanted, given in zip(truth, guess, strict=True)]
        captions = [
            short(given) if hit else f"{short(given)}\nis {short(wanted)}"
            for wanted, given, hit in zip(truth, guess, right, strict=True)
        ]
        path = folder / "examples.png"
        draw_examples(images, rollout, selected, captions, right, path)
        log_examples(tracker, images, rollout, {"truth": truth, "prediction": guess})
        log_classes(tracker, names, items["label"], items["prediction"])
        index = items["index"].tolist()
        wanted = [(split, index[row]) for row in gallery_rows(items["label"], items["prediction"])]
        keep_gallery(model, data, wanted, device, folder / FILE)
        return path


def judge_selection(model: DCAL, data: Data, split: str, seen: Inferred) -> dict[str, float]:
    """`part_hit`, `pointing` and their chance levels, see `selection_metrics`; nothing without GLCA or annotations."""
    landmarks = data.landmarks(split) if seen.selected is not None else {}
    if seen.selected is None or not landmarks:
        return {}
    known = [landmarks.get(index, Landmarks()) for index in seen.index.tolist()]
    return selection_metrics(
        [torch.from_numpy(item.parts) for item in known],
        torch.tensor([item.box for item in known], dtype=torch.float64),
        seen.selected,
        patch_boxes(model.vit, data.image_size).double(),
    )


def short(name: str, length: int = 22) -> str:
    """A class name that fits under a small picture: `001.Black_footed_Albatross` → `Black footed Albatross`."""
    whole = class_title(name)
    return whole if len(whole) <= length else whole[: length - 1] + "…"


def gallery_rows(label: Tensor, prediction: Tensor) -> list[int]:
    """Items whose pictures a report shows: right and wrong ones, and a pair for each of the most confused classes."""
    truth, guess = label.numpy(), prediction.numpy()
    pairs = [examples_of(pair, truth, guess) for pair in most_confused(truth, guess, CONFUSED_SHOWN)]
    examples = pick_examples(label == prediction, GALLERY_SHOWN)
    return [*examples, *(row for pair in pairs for row in pair if row is not None)]
