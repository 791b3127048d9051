"""Embeddings of loose images under a model: what is put into an index, and what is looked up there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from dcal.dataset.record import DataError, Record
from dcal.inference.images import open_images
from dcal.inference.restore import Opened
from dcal.task.inference import finite

logger = logging.getLogger(__name__)


def embed_images(opened: Opened, records: Sequence[Record], first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeds batch by batch.

    The features are those of a run's evaluation: each branch's L2-normalised, concatenated, normalised again. Those of
    a plain backbone are L2-normalised, see `PlainBackbone`.

    Args:
        first: position of the first record in a longer list, of which these continue the computation.

    Yields:
        positions in `records` (b,) and features float32 (b, D), both on the CPU; images that cannot be read, or for
        which the model answers with NaN, are left out, with a warning.

    Raises:
        DataError: at the end, if not one of the images can be read, or the model answers with NaN for all.
        UserError: the model needs cameras that the records lack.
    """
    predictor, any_usable = opened.predictor, False
    for seen in predictor.batches(open_images(opened, records), features_only=True, first=first):
        usable = finite(seen)
        for position in seen.index[~usable].tolist():
            logger.warning("left out: %s: the model answers with NaN", records[position].path)
        if usable.any():
            any_usable = True
            yield seen.index[usable], predictor.embedding(seen)[usable]
    if not any_usable:
        raise DataError("the model answers with NaN for every image: its weights are of no use")


def provenance(opened: Opened) -> dict[str, Any]:
    """What embeddings depend on besides the images, as JSON can hold it: two files with the same compare."""
    return {"run": opened.title, "weights": opened.weights_digest(), **opened.predictor.settings()}
