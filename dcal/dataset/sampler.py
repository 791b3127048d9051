"""Which images make up each training batch, as a pure function of (seed, epoch, batch, rank).

Nothing here keeps a random state: a batch can be recomputed from its coordinates alone. That is what makes a
run resume in mid-epoch (`seek`), and what makes its images independent of the number of data workers. All
ranks derive the same global order and take their slice, so one process with batch 2B sees the images of two
with batch B.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dcal.utils.errors import UserError, check_number

IntArray = NDArray[np.int64]


class Draw(NamedTuple):
    """One image of a training batch."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int
    """Seed of this image's augmentation: a pure function of (seed, epoch, position in the global order)."""


class _Batches(Sampler[list[Draw]], ABC):
    """What both samplers share; a subclass says in which order an epoch visits the images."""

    def __init__(self, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        check_number("train.batch_size", batch_size, ge=1)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size} processes")
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.seek(0)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """The next iteration gives `epoch` from batch `batch` on; the one after it, all of `epoch + 1`."""
        self.epoch = epoch
        self.batch = batch

    def __iter__(self) -> Iterator[list[Draw]]:
        # A generator, so this runs at the first `next`: a DataLoader with workers makes two iterators
        # at first and drops one. Moving on gives also those who never seek a new order every epoch.
        epoch, first = self.epoch, self.batch
        self.seek(epoch + 1)
        order_seed, draw_seed = np.random.SeedSequence((self.seed, epoch)).spawn(2)
        order = self._order(np.random.default_rng(order_seed))
        seeds = draw_seed.generate_state(order.size).reshape(order.shape)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for indices, image_seeds in zip(order[first:, mine], seeds[first:, mine], strict=True):
            yield [Draw(*pair) for pair in zip(indices.tolist(), image_seeds.tolist(), strict=True)]

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def _order(self, rng: np.random.Generator) -> IntArray:
        """Indices of the epoch, one row per global batch: (batches, batch_size · world_size)."""


class ShuffleBatches(_Batches):
    """Every image at most once per epoch in a new order; the last short batch is dropped.

    Args:
        num_items: size of the training split.
        batch_size: images per batch *of one rank*.
        seed: of the run.
        rank, world_size: this process among all.

    Raises:
        UserError: the split is smaller than one global batch.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        self.num_items = num_items
        if len(self) == 0:
            raise UserError(
                f"train.batch_size={batch_size}: {batch_size} images × {world_size} process(es) per batch, "
                f"but only {num_items} training images"
            )

    def __len__(self) -> int:
        return self.num_items // (self.batch_size * self.world_size)

    def _order(self, rng: np.random.Generator) -> IntArray:
        return rng.permutation(self.num_items)[: len(self) * self.batch_size * self.world_size].reshape(len(self), -1)


class IdentityBatches(_Batches):
    """P identities × K images per batch, with a length that is exact and the same in every epoch.

    As in the samplers of TransReID and fast-reid, an identity's shuffled images are cut into groups of K, and
    a batch takes one group each of P different identities. Those samplers stop when fewer than P identities
    have groups left, so their epochs differ in length and may miss identities. Here the number of batches L
    is computed beforehand, as the largest for which P different identities per batch exist, and at least
    enough for every identity to appear; what does not fit is left out evenly, what is missing is drawn once
    more.

    Properties (tested): every batch has P identities with K images each; every identity appears in every
    epoch; `len` batches per epoch; inside a group an image repeats only where its identity has fewer than K
    images; a rank gets whole identities, and the global batch of `world_size` ranks has `P · world_size`
    different ones.

    Args:
        labels: identity of each image of the training split.
        batch_size: images per batch of one rank, a multiple of `instances`.
        instances: K.
        seed: of the run.
        rank, world_size: this process among all.

    Raises:
        UserError: `batch_size` is no multiple of `instances`, or there are too few identities for a batch.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        instances: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        if instances < 1 or batch_size % instances:
            raise UserError(f"train.batch_size={batch_size}: must be a multiple of task.instances={instances}")
        self.instances = instances
        self.identities_per_batch = batch_size // instances * world_size
        values, inverse = np.unique(np.asarray(labels), return_inverse=True)
        self._images = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        if len(values) < self.identities_per_batch:
            raise UserError(
                f"train.batch_size={batch_size}: a batch needs {self.identities_per_batch} identities "
                f"({batch_size} / task.instances={instances} × {world_size} process(es)), the set has "
                f"{len(values)}"
            )
        self._groups = np.array([max(1, len(images) // instances) for images in self._images])
        self._length = _number_of_batches(self._groups, self.identities_per_batch)

    def __len__(self) -> int:
        return self._length

    def _order(self, rng: np.random.Generator) -> IntArray:
        counts = _settle(self._groups, self._length, self.identities_per_batch, rng)
        groups = [
            iter(_cut(images, int(count), self.instances, rng))
            for images, count in zip(self._images, counts, strict=True)
        ]
        batches = _arrange(counts, self._length, self.identities_per_batch, rng)
        order = [[next(groups[identity]) for identity in batch] for batch in batches]
        return np.array(order).reshape(self._length, -1)


class BalancedBatches(_Batches):
    """Batches with as many images, or identities, of each of several data sets; a set's images follow the others'.

    An epoch has as many batches as one over all images together. A small set is gone through several times in it, a
    large one in part, another part in each epoch.

    Args:
        labels: of the training images of each set.
        batch_size: images per batch *of one rank*.
        instances: images per identity in a batch; 1 for plain shuffling.
        seed: of the run.
        rank, world_size: this process among all.

    Raises:
        UserError: a batch cannot be divided among the sets, or a set has too few images or identities for its share.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[int]],
        batch_size: int,
        instances: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        whole, sets = batch_size * world_size, len(labels)
        if whole % (instances * sets):
            each = f"groups of task.instances={instances} images" if instances > 1 else "images"
            raise UserError(
                f"train.batch_size={whole}: dataset.batches=balanced divides its {each} among the {sets} members of "
                f"dataset.members equally; take a multiple of {instances * sets}, or dataset.batches=proportional"
            )
        need, what = whole // sets // instances, "identities" if instances > 1 else "training images"
        least = min(len(set(own)) if instances > 1 else len(own) for own in labels)
        if least < need:
            raise UserError(
                f"train.batch_size={whole}: dataset.batches=balanced takes {need} {what} of each member, and one has "
                f"{least}; take a smaller batch, or dataset.batches=proportional"
            )
        self._instances = instances
        self._length = len(random_batches([label for own in labels for label in own], whole, instances, seed))
        self._sets = [random_batches(own, whole // sets, instances, seed) for own in labels]
        self._starts = np.cumsum([0, *(len(own) for own in labels[:-1])])

    def __len__(self) -> int:
        return self._length

    def _order(self, rng: np.random.Generator) -> IntArray:
        columns = [self._rows(own, rng) + start for own, start in zip(self._sets, self._starts.tolist(), strict=True)]
        order = np.concatenate(columns, axis=1)
        groups = order.reshape(self._length, -1, self._instances)
        # in another order in each batch: else a rank would have the images of one set alone
        positions = rng.permuted(np.tile(np.arange(groups.shape[1]), (self._length, 1)), axis=1)
        return np.take_along_axis(groups, positions[:, :, None], axis=1).reshape(order.shape)

    def _rows(self, own: _Batches, rng: np.random.Generator) -> IntArray:
        """A set's share of every batch: its own epochs, one after the other, as far as they are needed."""
        epochs = [own._order(rng) for _ in range(-(-self._length // len(own)))]
        return np.concatenate(epochs)[: self._length]


def random_batches(
    labels: Sequence[int], batch_size: int, instances: int, seed: int, rank: int = 0, world_size: int = 1
) -> ShuffleBatches | IdentityBatches:
    """The batches of one data set: shuffled images, or groups of images of one identity; see the two classes."""
    if instances > 1:
        return IdentityBatches(labels, batch_size, instances, seed, rank, world_size)
    return ShuffleBatches(len(labels), batch_size, seed, rank, world_size)


def _number_of_batches(groups: IntArray, per_batch: int) -> int:
    """Largest L for which L batches of different identities exist, but enough for every identity to appear.

    They exist if Σ min(groups, L) ≥ L · per_batch. The difference of the two sides is concave in L and 0 at
    L = 0, so bisection finds its last sign change.
    """
    low, high = 0, int(groups.sum()) // per_batch
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * per_batch:
            low = middle
        else:
            high = middle - 1
    return max(low, -(-len(groups) // per_batch))


def _settle(groups: IntArray, length: int, per_batch: int, rng: np.random.Generator) -> IntArray:
    """How many groups each identity gives: between 1 and `length`, in sum exactly `length · per_batch`."""
    counts = np.minimum(groups, length)
    surplus = int(counts.sum()) - length * per_batch
    room = counts - 1 if surplus > 0 else length - counts
    changed = rng.choice(np.repeat(np.arange(len(counts)), room), abs(surplus), replace=False)
    counts -= np.sign(surplus) * np.bincount(changed, minlength=len(counts))
    return counts


def _arrange(counts: IntArray, length: int, per_batch: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Identities of each batch, all different within one, identity i in `counts[i]` of them.

    With r batches to go, an identity that has r groups left must be in all of them; the others are drawn in
    proportion to what they have left. The two conditions left ≤ r and Σ left = r · per_batch hold at the
    start and after each step, and imply that neither are too many forced nor too few available: it never gets
    stuck.
    """
    left = counts.copy()
    for remaining in range(length, 0, -1):
        # exponential keys divided by the weight: the smallest are a weighted sample without replacement
        with np.errstate(divide="ignore"):
            keys = np.where(left == remaining, -1.0, rng.exponential(size=len(left)) / left)
        batch = rng.permutation(np.argpartition(keys, per_batch - 1)[:per_batch])
        left[batch] -= 1
        yield batch


def _cut(images: IntArray, count: int, size: int, rng: np.random.Generator) -> list[IntArray]:
    """`count` groups of `size` images of one identity, each image once before any comes again."""
    groups: list[IntArray] = []
    while len(groups) < count:
        shuffled = rng.permutation(images)
        if len(images) < size:
            shuffled = np.concatenate([shuffled, rng.choice(images, size - len(images))])
        groups += [shuffled[start : start + size] for start in range(0, len(shuffled) - size + 1, size)]
    return groups[:count]
