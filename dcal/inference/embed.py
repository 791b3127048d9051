"""Embeddings of loose images under a run: what is put into an index, and what is looked up there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from dcal.dataset.record import Record
from dcal.inference.restore import Restored, open_images, read_result
from dcal.run.digest import sha256
from dcal.task.inference import combined_features, infer_batches


def embed(restored: Restored, records: Sequence[Record]) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeds batch by batch.

    The features are those of the run's evaluation: each branch's L2-normalised, concatenated, normalised again.

    Yields:
        positions in `records` (b,) and features float32 (b, D), both on the CPU; images that cannot be read are left
        out, with a warning.

    Raises:
        DataError: at the end, if not one of the images can be read.
        ValueError: the model needs cameras that the records lack.
    """
    task, loader = restored.task, open_images(restored, records)
    for seen in infer_batches(restored.model, loader, restored.device, task.flip_test, features_only=True):
        yield seen.index, combined_features(seen.features, task.inference)


def provenance(restored: Restored) -> dict[str, Any]:
    """What embeddings depend on beside the images, as JSON can hold it: two files with the same compare."""
    own, result = restored.config, read_result(restored.directory)
    cfg_id = result["cfg_id"] if result else restored.directory.absolute().parent.name
    return {
        "run": f"{own.name}/{cfg_id}/seed={own.seed}",
        "weights": sha256(restored.weights),
        "inference": list(restored.task.inference),
        "flip_test": restored.task.flip_test,
        "image_size": list(own.dataset.image_size),
        "resize": list(own.dataset.resize),
    }
