"""The options of the two branches and of adapters, declared once: the schema of `attention.glca`, `attention.pwca` and
`backbone.lora`, and the arguments of `DCAL` and `create_backbone`.

Their values are checked where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from dcal.utils.errors import UserError, nearest


@dataclass
class GLCAOptions:
    """Global-local cross-attention."""

    blocks: int = 1
    """Transformer blocks of the branch's own; 0 for off."""
    top_ratio: float = 0.1
    """Share of the patches that are selected; the paper has 0.1 for FGVC and 0.3 for Re-ID."""
    selection: str = "rollout"
    """`rollout`, `last`, `random` or `all`."""
    readout: str = "cls_mean"
    """`cls`, `mean` or `cls_mean`."""
    init: str = "copy"
    """`copy` of the backbone's last blocks, or `fresh`."""
    warmup_epochs: float = 0.0
    """In so many of the first epochs gradients of the branch's loss stay in the branch; clipping counts them still."""


@dataclass
class PWCAOptions:
    """Pair-wise cross-attention."""

    blocks: Any = None  # int, list of int or None: OmegaConf has no such union
    """The last that many of the backbone, or a list of block numbers from 1; None for all, 0 for off."""
    probability: float = 1.0
    """Probability that a training step includes the branch; the other steps have no PWCA loss."""
    final_probability: float | None = None
    """That probability at the end of the training, reached along a line; None for the same throughout."""
    stream: str = "clean"
    """`clean`, `symmetric` or `figure`."""
    pairing: str = "natural"
    """One of `dcal.attention.pairing.POLICIES`."""
    pairing_ratio: float = 0.5
    """Under `mixed`: share of partners of the same class."""
    curriculum: list[str] = field(default_factory=list)
    """Under `curriculum`: policies, each for an equal share of the training."""


@dataclass
class LoRAOptions:
    """Low-rank adapters on the backbone."""

    rank: int = 0
    """Of the adapters' matrices; 0 for no adapters."""
    alpha: float = 16.0
    """What an adapter adds is scaled by `alpha / rank`."""
    layers: str = "all"
    """`attention`, the projections of attention; or `all`, those of the MLPs too."""


KEYS: dict[type, tuple[str, str]] = {
    GLCAOptions: ("glca", "blocks"),
    PWCAOptions: ("pwca", "blocks"),
    LoRAOptions: ("backbone.lora", "rank"),
}
"""How messages name the options, and the one that is 0 for off."""

Options = TypeVar("Options", GLCAOptions, PWCAOptions, LoRAOptions)


def options_of(kind: type[Options], given: Options | Mapping[str, Any] | None) -> Options:
    """The options of a branch or of adapters, those that are not given at their defaults.

    Args:
        kind: of which.
        given: as they are, or by their names; None for what is off.

    Raises:
        UserError: a name that is no option, of which the message has the nearest one; or no names at all.
    """
    key, size = KEYS[kind]
    given = {size: 0} if given is None else given
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{key}={given!r}: must be options by their names")
    names = [option.name for option in fields(kind)]
    for name in given:
        if name not in names:
            raise UserError(f"{key} has no option {name!r}: {nearest(str(name), names)}")
    return kind(**given)
