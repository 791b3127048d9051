"""Fine-grained classification: top-1 per branch and of the branches' averaged probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcal.dataset.loader import Data
from dcal.device import Device
from dcal.distributed import place
from dcal.figure import draw_examples, keep_gallery, log_classes, log_examples, look, pick_examples
from dcal.metric.classification import classification_metrics
from dcal.model import DCAL
from dcal.report.classes import examples_of, most_confused
from dcal.report.gallery import FILE
from dcal.task.evaluation import Evaluation, check_inference
from dcal.task.inference import combined_scores, infer
from dcal.task.objective import Objective

GALLERY_SHOWN = 24
CONFUSED_SHOWN = 8


class FGVC:
    """The fine-grained classification task.

    Args: the keys of the group, see `conf/task/fgvc.yaml`.

    Raises:
        ValueError: an option that classification has no use for is set, or one is out of range.
    """

    name = "fgvc"
    headline = "top1"
    test_split = "test"

    def __init__(
        self,
        *,
        loss_weighting: str,
        label_smoothing: float,
        triplet: Mapping[str, Any],
        bnneck: bool,
        instances: int,
        mixup: float,
        cutmix: float,
        inference: Sequence[str],
        flip_test: bool,
        metric: str,
        rerank: bool,
        side_information: str,
    ) -> None:
        if rerank:
            raise ValueError("task.rerank=true ranks a gallery: it needs task=reid")
        if side_information != "none":
            raise ValueError(f"task.side_information={side_information} needs cameras: it needs task=reid")
        if triplet["weight"] and instances < 2:
            raise ValueError("task.triplet.weight needs pairs of one class in a batch: set task.instances=2 or more")
        self.loss_weighting, self.label_smoothing, self.triplet = loss_weighting, label_smoothing, triplet
        self.bnneck, self.instances, self.mixup, self.cutmix = bnneck, instances, mixup, cutmix
        self.inference, self.flip_test = check_inference(inference), flip_test
        self.side_information = side_information

    def objective(self, branches: Sequence[str]) -> Objective:
        """The loss of a training batch for a model with these branches."""
        return Objective(
            branches,
            self.loss_weighting,
            self.label_smoothing,
            self.triplet["weight"],
            self.triplet["margin"],
        )

    def evaluate(
        self, model: DCAL, data: Data, split: str, batch_size: int, workers: int, device: Device
    ) -> Evaluation:
        """Metrics of a split: of combined inference, and per branch with the branch's name appended.

        They are those of `classification_metrics`.
        """
        seen = infer(model, data.eval_loader(split, batch_size, workers, *place()), device, self.flip_test)
        scores = combined_scores(seen.logits, self.inference)
        metrics = classification_metrics(scores, seen.labels)
        for branch, log_probabilities in seen.logits.items():
            own = classification_metrics(log_probabilities, seen.labels)
            metrics |= {f"{key}_{branch}": value for key, value in own.items()}
        metrics["images"] = float(len(seen.labels))
        predictions = scores.argmax(1)
        items = {
            "index": seen.index,
            "label": seen.labels,
            "prediction": predictions,
            "confidence": scores.exp().gather(1, predictions[:, None]).squeeze(1),
            **{f"prediction_{branch}": scores_.argmax(1) for branch, scores_ in seen.logits.items()},
        }
        return Evaluation(metrics, items)

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
        rollout, selected = look(model, images, device)
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


def short(name: str, length: int = 22) -> str:
    """A class name that fits under a small picture: `001.Black_footed_Albatross` → `Black footed Albatross`."""
    plain = name.split(".", 1)[-1].replace("_", " ")
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def gallery_rows(label: Tensor, prediction: Tensor) -> list[int]:
    """Items whose pictures a report shows: right and wrong ones, and a pair for each of the most confused classes."""
    truth, guess = label.numpy(), prediction.numpy()
    pairs = [examples_of(pair, truth, guess) for pair in most_confused(truth, guess, CONFUSED_SHOWN)]
    examples = pick_examples(label == prediction, GALLERY_SHOWN)
    return [*examples, *(row for pair in pairs for row in pair if row is not None)]
