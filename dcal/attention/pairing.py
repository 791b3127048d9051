"""Who distracts whom: the partner of every image in a batch for pair-wise cross-attention.

A partner is never the image itself (except under the control `none`). `natural` is the paper's: a random
permutation of the batch without fixed points. The policies that look at classes draw for each image on its
own; an image that has no partner of the wanted kind in the batch takes any other image, and the shares that
are logged show it.

A policy of one's own is a function that is called as `Pairing` is, see `DrawPartners`: `model.pairing = function`.

Everything here runs on the CPU from the global torch generator, so the draw depends neither on the device nor
on compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcal.utils.errors import UserError, check_number, choose

POLICIES = ("natural", "different_class", "same_class", "mixed", "hardest", "easiest", "curriculum", "gaussian", "none")
NEEDS_EMBEDDINGS = ("hardest", "easiest")
NEEDS_NOTHING = ("natural", "gaussian", "none")
UNKNOWN = -1
"""Label of every image of a batch that came without labels."""


class Partners(NamedTuple):
    """The draw for one batch of B images."""

    index_B: Tensor
    """int64: position of each image's partner in the batch."""
    noise: bool = False
    """The partners are noise images that the model appends to the batch; `index_B` then counts from B."""

    def shares(self, labels_B: Tensor) -> dict[str, Tensor]:
        """The share of self-pairs (`self`) and of same-class pairs (`same_class`), each in [0, 1], for the log.

        Scalars on the device of the draw, so that a GPU is not waited for.

        Args:
            labels_B: class of each image.
        """
        if self.noise:
            return dict.fromkeys(("self", "same_class"), torch.zeros((), device=self.index_B.device))
        own_B, labels_B = torch.arange(len(self.index_B), device=self.index_B.device), labels_B.to(self.index_B.device)
        same_B = labels_B[self.index_B] == labels_B
        return {"self": (self.index_B == own_B).float().mean(), "same_class": same_B.float().mean()}


DrawPartners = Callable[[Tensor, float, Callable[[], Tensor]], Partners]
"""`draw(labels_B, progress, embed) -> Partners`, called once per training batch.

`labels_B` are int64 on the CPU (`UNKNOWN` where the batch came without), `progress` is the share of the training that
is done, in [0, 1], and `embed()` gives the batch's own features (B, D) by one more forward pass. No image may become
its own partner: `derangement` gives a random draw in which none does.
"""


def may_use_features(draw: DrawPartners, progress: float) -> bool:
    """Whether a draw may ask for the features of the batch; of a function of one's own that is not known.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    return not isinstance(draw, Pairing) or draw.at(progress) in NEEDS_EMBEDDINGS


def derangement(size: int) -> Tensor:
    """A uniformly random permutation of `range(size)` without fixed points.

    `torch.randperm` leaves one on average; drawing until there is none takes e ≈ 2.7 draws and keeps it
    uniform.

    Args:
        size: number of images B.

    Returns:
        int64 (B,), on the CPU.

    Raises:
        UserError: fewer than two items.
    """
    if size < 2:
        raise UserError(
            f"pair-wise cross-attention needs at least 2 images in a training batch, got {size}: raise "
            "train.batch_size (per process and accumulation step) or set attention.pwca.blocks=0"
        )
    positions = torch.arange(size)
    while True:
        drawn = torch.randperm(size)
        if not bool((drawn == positions).any()):
            return drawn


class Pairing:
    """Draws the partners of a batch by a named policy; a `DrawPartners`.

    Args:
        policy: one of `POLICIES`.
        ratio: under `mixed`, the share of images that get a partner of their own class.
        curriculum: under `curriculum`, the policies to go through, each for an equal share of the training.

    Raises:
        UserError: unknown policy, ratio outside [0, 1], or a curriculum of nothing or of itself.
    """

    def __init__(self, policy: str = "natural", ratio: float = 0.5, curriculum: Sequence[str] = ()) -> None:
        choose("attention.pwca.pairing", policy, POLICIES)
        check_number("attention.pwca.pairing_ratio", ratio, ge=0, le=1)
        stages = tuple(curriculum)
        if policy == "curriculum" and (not stages or any(s not in POLICIES or s == "curriculum" for s in stages)):
            raise UserError(f"attention.pwca.curriculum={list(stages)}: name one or more of the other pairing policies")
        self.policy, self.ratio, self.stages = policy, ratio, stages

    def at(self, progress: float) -> str:
        """The policy in force.

        Args:
            progress: share of the training that is done, in [0, 1].
        """
        if self.policy != "curriculum":
            return self.policy
        return self.stages[min(int(progress * len(self.stages)), len(self.stages) - 1)]

    def __call__(self, labels_B: Tensor, progress: float = 0.0, embed: Callable[[], Tensor] | None = None) -> Partners:
        """Draws the partners of one batch.

        Args:
            labels_B: class or identity of each image, on the CPU; `UNKNOWN` where the batch came without labels.
            progress: share of the training that is done, for `curriculum`.
            embed: gives the batch's own features (B, D); called only by `hardest` and `easiest`.

        Returns:
            the position of each image's partner.

        Raises:
            ValueError: fewer than two images, no labels but a policy that needs them, or a policy by similarity without
                `embed`.
        """
        size, policy = len(labels_B), self.at(progress)
        if policy not in NEEDS_NOTHING and bool((labels_B == UNKNOWN).any()):
            raise ValueError(f"attention.pwca.pairing={self.policy} needs the labels of the batch")
        if policy == "none":
            return Partners(torch.arange(size))
        if policy == "gaussian":
            return Partners(torch.arange(size) + size, noise=True)
        drawn = derangement(size)
        if policy == "natural":
            return Partners(drawn)
        same_BB = labels_B[:, None] == labels_B[None, :]
        if policy in NEEDS_EMBEDDINGS:
            if embed is None:
                raise ValueError(f"attention.pwca.pairing={policy} needs the batch's features: pass `embed`")
            return Partners(_by_similarity(embed().float().cpu(), same_BB, hardest=policy == "hardest", fallback=drawn))
        return Partners(_among(self._wanted(policy, same_BB), fallback=drawn))

    def _wanted(self, policy: str, same_BB: Tensor) -> Tensor:
        """Which pairs the policy would take, the image itself not yet left out: bool (B, B)."""
        if policy == "mixed":
            same_B = torch.rand(len(same_BB)) < self.ratio
            return torch.where(same_B[:, None], same_BB, ~same_BB)
        return same_BB if policy == "same_class" else ~same_BB


def _among(wanted_BB: Tensor, fallback: Tensor) -> Tensor:
    """One random partner per row among the wanted; rows that want nobody keep their `fallback`."""
    wanted_BB = wanted_BB & ~torch.eye(len(wanted_BB), dtype=torch.bool)
    possible_B = wanted_BB.any(1)
    weights = torch.where(possible_B[:, None], wanted_BB, torch.ones_like(wanted_BB)).float()
    return torch.where(possible_B, torch.multinomial(weights, 1).squeeze(1), fallback)


def _by_similarity(features_BD: Tensor, same_BB: Tensor, hardest: bool, fallback: Tensor) -> Tensor:
    """The most (or least) similar image of another class by cosine; a batch of one class keeps its `fallback`."""
    unit = torch.nn.functional.normalize(features_BD, dim=1)
    similarity = unit @ unit.T if hardest else -(unit @ unit.T)
    best = similarity.masked_fill(same_BB, -torch.inf).max(1)
    return torch.where(best.values > -torch.inf, best.indices, fallback)
