"""Batches are a function of (seed, epoch, batch, rank), and P × K batches keep what they promise."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dcal.dataset.sampler import Draw, IdentityBatches, ShuffleBatches
from dcal.utils.errors import UserError


class Echo(torch.utils.data.Dataset[Draw]):
    """Gives back what a loader asks it for."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


@st.composite
def identity_batches(draw: st.DrawFn) -> tuple[list[int], IdentityBatches]:
    instances = draw(st.integers(1, 4))
    identities = draw(st.integers(1, 4))
    world_size = draw(st.integers(1, 2))
    enough = identities * world_size
    sizes = draw(st.lists(st.integers(1, 23), min_size=enough, max_size=enough + 8))
    labels = np.repeat(np.arange(len(sizes)) * 7, sizes)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels).tolist()
    return labels, IdentityBatches(labels, instances * identities, instances, draw(st.integers(0, 9)), 0, world_size)


@settings(max_examples=150, deadline=None)
@given(identity_batches(), st.integers(0, 5))
def test_identity_batches_keep_their_promises(case: tuple[list[int], IdentityBatches], epoch: int) -> None:
    labels, sampler = case
    count_of, instances = Counter(labels), sampler.instances
    ranks = []
    for rank in range(sampler.world_size):
        sampler.rank = rank
        sampler.seek(epoch)
        ranks.append(list(sampler))
    assert {len(batches) for batches in ranks} == {len(sampler)}
    seen = set()
    for batches in zip(*ranks, strict=True):
        identities = []
        for batch in batches:
            assert len(batch) == sampler.batch_size
            for start in range(0, len(batch), instances):
                indices = [draw.index for draw in batch[start : start + instances]]
                (identity,) = {labels[index] for index in indices}
                assert len(set(indices)) == min(instances, count_of[identity])
                identities.append(identity)
        assert len(set(identities)) == len(identities) == sampler.identities_per_batch
        seen.update(identities)
    assert seen == set(labels)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([8, 8, 8, 8], 4),  # everything fits
        ([9, 9, 9, 11], 4),  # incomplete groups are left out
        ([4, 4, 4], 2),  # three groups of 4 do not fill two batches of 2: one is drawn once more
        ([100, 4, 4], 2),  # an identity comes once per batch, however many images it has
        ([1, 1, 1, 1], 2),
    ],
)
def test_number_of_batches(sizes: list[int], batches: int) -> None:
    assert len(IdentityBatches(np.repeat(np.arange(len(sizes)), sizes).tolist(), 8, 4, seed=0)) == batches


def test_nearly_all_images_of_a_real_distribution_are_used() -> None:
    sizes = np.random.default_rng(0).integers(2, 72, 751)  # like Market-1501
    labels = np.repeat(np.arange(751), sizes).tolist()
    sampler = IdentityBatches(labels, 64, 4, seed=0)
    used = {draw.index for batch in sampler for draw in batch}
    in_groups = int((sizes // 4 * 4)[sizes >= 4].sum() + sizes[sizes < 4].sum())
    assert 0.99 * in_groups < len(used) <= in_groups


def test_shuffle_is_a_new_order_every_epoch_without_repetition() -> None:
    sampler = ShuffleBatches(103, 10, seed=3)
    epochs = [[draw.index for batch in sampler for draw in batch] for _ in range(3)]
    assert len(sampler) == 10
    for indices in epochs:
        assert len(set(indices)) == len(indices) == 100
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("make", [
    lambda **options: ShuffleBatches(97, 8, seed=5, **options),
    lambda **options: IdentityBatches([i // 5 for i in range(97)], 8, 2, seed=5, **options),
])  # fmt: skip
class TestBoth:
    def test_seek_gives_any_batch_of_any_epoch(self, make: Any) -> None:
        straight = make()
        epochs = [list(straight) for _ in range(3)]
        sampler = make()
        sampler.seek(2, 4)
        assert list(sampler) == epochs[2][4:]
        sampler.seek(1)
        assert list(sampler) == epochs[1]
        assert list(sampler) == epochs[2]
        assert len(sampler) == len(epochs[0])

    def test_ranks_share_one_global_order(self, make: Any) -> None:
        first, second = (list(make(rank=rank, world_size=2)) for rank in range(2))
        images = [draw.index for a, b in zip(first, second, strict=True) for draw in a + b]
        seeds = [draw.seed for a, b in zip(first, second, strict=True) for draw in a + b]
        assert len(set(images)) == len(images)
        assert len(set(seeds)) == len(seeds)

    def test_one_process_sees_what_two_with_half_the_batch_see(self, make: Any) -> None:
        if isinstance(make(), ShuffleBatches):
            whole = list(ShuffleBatches(97, 16, seed=5))
        else:
            whole = list(IdentityBatches([i // 5 for i in range(97)], 16, 2, seed=5))
        halves = [list(make(rank=rank, world_size=2)) for rank in range(2)]
        assert whole == [a + b for a, b in zip(*halves, strict=True)]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_neither_skips_nor_repeats_epochs(self, make: Any, workers: int) -> None:
        # DataLoader makes two iterators of a sampler before the first epoch when its workers persist
        options = {"num_workers": workers, "persistent_workers": workers > 0, "collate_fn": list}
        loader = DataLoader(Echo(), batch_sampler=make(), **options)
        direct = make()
        assert [list(loader) for _ in range(3)] == [list(direct) for _ in range(3)]

    def test_seed_and_epoch_change_the_augmentation(self, make: Any) -> None:
        sampler = make()
        epochs = [[draw.seed for batch in sampler for draw in batch] for _ in range(2)]
        assert not set(epochs[0]) & set(epochs[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleBatches(7, 8, 0), r"train\.batch_size=8: 8 images"),
        (lambda: ShuffleBatches(15, 8, 0, 0, 2), r"train\.batch_size=8"),
        (lambda: ShuffleBatches(7, 0, 0), r"train\.batch_size=0"),
        (
            lambda: IdentityBatches([0, 1], 6, 4, 0),
            r"train\.batch_size=6: must be a multiple of task\.instances=4",
        ),
        (
            lambda: IdentityBatches([0, 0, 1], 12, 4, 0),
            r"train\.batch_size=12: a batch needs 3 identities.*has 2",
        ),
    ],
)
def test_impossible_batches_are_refused_by_key(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
