"""A model that answers: what the commands on a run, `dcal.load` and an exported model have in common.

Shapes: B images, C classes, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from dcal.dataset.data import Loader
from dcal.model import DCAL
from dcal.task.inference import Inferred, Scores, combined_features, combined_scores, infer, infer_batches, infer_images
from dcal.utils.device import Device


class Guess(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Predictor:
    """A model with what it takes to use it: where it computes, how images are read, and how branches are combined."""

    model: DCAL
    device: Device
    """With the precision, the normalisation and the cameras of the model."""
    class_names: Sequence[str]
    """By label; empty for a plain backbone."""
    inference: Sequence[str]
    """Branches that are combined, of `sa` and `glca`; those that the model lacks are passed over."""
    flip_test: bool
    """Whether answers are averages over an image and its mirror image."""
    image_size: Sequence[int]
    """(height, width) of the network's input in pixels."""
    resize: Sequence[int]
    """(height, width) of an image before the crop."""

    def scores(self, images: Tensor, side: Tensor | None = None) -> Scores:
        """The answers for a batch.

        Args:
            images: normalised, (B, 3, H, W), on the device.
            side: index of each image's side embedding, if the model has one.
        """
        return infer_images(self.model, images, side, self.device, self.flip_test)

    def batches(self, loader: Loader, features_only: bool = False, first: int = 0) -> Iterator[Inferred]:
        """The answers for a loader's images, batch by batch; arguments as for `infer_batches`."""
        return infer_batches(self.model, loader, self.device, self.flip_test, features_only, first)

    def infer(self, loader: Loader, features_only: bool = False) -> Inferred:
        """The answers for all images of a loader.

        Raises:
            NotFinite: an image has a feature or score that is no finite number.
        """
        return infer(self.model, loader, self.device, self.flip_test, features_only)

    def embedding(self, seen: Inferred | Scores) -> Tensor:
        """The combined features, of length 1, float32 (B, D)."""
        return combined_features(seen.features, self.inference)

    def log_probabilities(self, seen: Inferred | Scores) -> Tensor:
        """The combined class probabilities in the log domain, float32 (B, C)."""
        return combined_scores(seen.logits, self.inference)

    def guesses(self, log_probabilities: Tensor, top: int) -> list[list[Guess]]:
        """The most probable classes of each image, most probable first.

        Args:
            log_probabilities: (B, C).
            top: how many classes; all if there are fewer.
        """
        best = log_probabilities.exp().topk(min(top, len(self.class_names)))
        return [
            [Guess(self.class_names[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """What answers depend on besides weights and images, as JSON can hold it."""
        return {
            "inference": list(self.inference),
            "flip_test": self.flip_test,
            "image_size": list(self.image_size),
            "resize": list(self.resize),
        }
