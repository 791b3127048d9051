"""Embeddings of loose images under a run: what is put into an index, and what is looked up there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from dcal.dataset.record import Record
from dcal.inference.images import open_images
from dcal.inference.restore import Restored, read_result
from dcal.run.digest import sha256
from dcal.task.inference import combined_features, finite, infer_batches

logger = logging.getLogger(__name__)


def embed(restored: Restored, records: Sequence[Record], first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeds batch by batch.

    The features are those of the run's evaluation: each branch's L2-normalised, concatenated, normalised again.

    Args:
        first: position of the first record in a longer list, of which these continue the computation.

    Yields:
        positions in `records` (b,) and features float32 (b, D), both on the CPU; images that cannot be read, or for
        which the model answers with NaN, are left out, with a warning.

    Raises:
        DataError: at the end, if not one of the images can be read.
        UserError: the model needs cameras that the records lack.
    """
    task, loader = restored.task, open_images(restored, records)
    for seen in infer_batches(restored.model, loader, restored.device, task.flip_test, features_only=True, first=first):
        usable = finite(seen)
        for position in seen.index[~usable].tolist():
            logger.warning("left out: %s: the model answers with NaN", records[position].path)
        yield seen.index[usable], combined_features(seen.features, task.inference)[usable]


def provenance(restored: Restored) -> dict[str, Any]:
    """What embeddings depend on besides the images, as JSON can hold it: two files with the same compare."""
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
