"""A batch in micro-batches: which images go through the model together, so that nobody's partner is missing.

Micro-batches follow one another in a process (`train.accumulate`), and each process of a run has its own.

PWCA's pairs are drawn over the whole batch. So a micro-batch needs, besides its own images, those of their partners
that are not among them: its *guests*, of which only the backbone's stream is computed, without a loss. Images are taken
along the chains of partners (an image, its partner, the partner's partner, ...); when the pairs are a permutation, a
micro-batch then meets two guests at most.

Under the stream `symmetric` an image attends to its partner's distracted stream, which attends to the next one's, and
so on: all images of the chain are then guests, and a long chain spares less memory.

Shapes: B images in the batch, b of them a micro-batch's own, s ≥ b in it with its guests; R = b times the world size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcal.attention.pairing import Partners


class MicroBatch(NamedTuple):
    """Some images of a batch and what they need to be computed as in the whole of it. Indices are int64."""

    size: int
    """b, the number of images whose loss this micro-batch computes."""
    rows: Tensor | slice
    """Positions in the batch of the images that all processes compute at this turn, (R,): their own, by rank."""
    images: Tensor | slice
    """Positions in the batch of all s images that go through the model, its own first."""
    partners: Partners | None
    """Each image's partner as a position in `images`: (b,), or (s,) where the guests carry a distracted stream too."""


def split_batch(
    size: int,
    accumulate: int,
    partners: Partners | None,
    stream: str,
    rank_and_world_size: tuple[int, int] = (0, 1),
) -> list[MicroBatch]:
    """The batch in micro-batches of (nearly) equal size; every image belongs to one of them.

    Args:
        size: B, which the number of processes divides.
        accumulate: micro-batches of each process, at most B over the number of processes.
        partners: of the whole batch; None where PWCA is off.
        stream: of PWCA; under `symmetric` guests bring their own partners along.
        rank_and_world_size: of this process, whose micro-batches are wanted.
    """
    rank, world_size = rank_and_world_size
    if accumulate * world_size == 1:
        return [MicroBatch(size, slice(None), slice(None), partners)]
    paired = None if partners is None or partners.noise else partners.index_B
    order = torch.arange(size) if paired is None else torch.tensor(along_the_chains(paired.tolist()))
    shares = [share.tensor_split(accumulate) for share in order.chunk(world_size)]
    found = []
    for own, rows in zip(shares[rank], map(torch.cat, zip(*shares, strict=True)), strict=True):
        if paired is None:
            noise = None
            if partners is not None:  # the model draws the noise and appends it to the images
                noise = Partners(torch.arange(len(own), device=partners.index_B.device) + len(own), noise=True)
            found.append(MicroBatch(len(own), rows, own, noise))
        else:
            found.append(MicroBatch(len(own), rows, *_with_guests(own.tolist(), paired, chained=stream == "symmetric")))
    return found


def _with_guests(own: list[int], partner_B: Tensor, chained: bool) -> tuple[Tensor, Partners]:
    partner: list[int] = partner_B.tolist()
    images = dict.fromkeys(own)  # a set that keeps its order
    missing: Iterable[int] = own
    while missing := [guest for guest in dict.fromkeys(partner[i] for i in missing) if guest not in images]:
        images.update(dict.fromkeys(missing))
        if not chained:
            break
    position = {image: number for number, image in enumerate(images)}
    paired = images if chained else own
    index = torch.tensor([position[partner[image]] for image in paired], device=partner_B.device)
    return torch.tensor(list(images)), Partners(index)


def along_the_chains(partner: Sequence[int]) -> list[int]:
    """All positions in an order in which an image is followed by its partner where that one is still to come.

    Chains begin at images that are nobody's partner; what is left after them are cycles.
    """
    chosen = set(partner)
    order: dict[int, None] = {}
    for start in sorted(range(len(partner)), key=lambda image: image in chosen):
        image = start
        while image not in order:
            order[image] = None
            image = partner[image]
    return list(order)
