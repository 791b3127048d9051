"""A readable name for a run, beside the hash in its path: what was chosen, and what was set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dcal.run.identity import IDENTITY, MEMBER, NOT_IDENTITY, attention_name, dataset_name, flatten

GROUPS = ("attention", "backbone", "dataset", "task", "optimizer")
FILES = ("experiment", "variant", "ablation")
"""Groups of `experiments/`, of which nothing may be chosen."""
ELSEWHERE = {"dataset.root", "backbone.checkpoint"}
"""Keys whose values are too long for a name."""


def choices(config: DictConfig) -> dict[str, str]:
    """What was chosen of each group: `{"attention": "dcal", "backbone": "deit_tiny", ...}`.

    The attention is named by the branches that it has, for keys may switch them. Without Hydra, which knows the names
    of the options, a backbone is named as in timm, and the other groups after what they build.
    """
    known = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    found = {group: str(known[group]) for group in (*FILES, *GROUPS) if known.get(group) not in (None, "null")}
    built = {
        "backbone": str(config.backbone.name),
        "dataset": dataset_name(config.dataset) or "dataset",
        "task": str(config.task._target_).rpartition(".")[2].lower(),
        "optimizer": str(config.optimizer.opt),
    }
    attention = OmegaConf.to_container(config.attention, resolve=True)
    return {**built, **found, "attention": attention_name(dict(flatten({"attention": attention})))}


def label(config: DictConfig) -> str:
    """For example `dcal deit_tiny lr=0.001 top_ratio=0.2`: attention, backbone, and the keys that were typed.

    Only keys that decide the numbers count, by the values that they have got.
    """
    chosen = choices(config)
    typed = dict.fromkeys(key for word, key in typed_overrides() if not word.startswith("~"))
    keys = [key for key in typed if decides(key) and OmegaConf.select(config, key) is not None]
    last = [key.rpartition(".")[2] for key in keys]
    names = [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]
    values = [f"{name}={compact(OmegaConf.select(config, key))}" for name, key in zip(names, keys, strict=True)]
    return " ".join([chosen["attention"], chosen["backbone"], *values])


def typed_overrides() -> Iterator[tuple[str, str]]:
    """The overrides of `typed_words`: each as it was typed, and its key."""
    for word in typed_words():
        yield word, key_of(word)


def key_of(word: str) -> str:
    """The key of an override as it is typed."""
    return word.lstrip("+~").partition("=")[0]


def typed_words() -> list[str]:
    """The overrides on the command line, of a sweep those of its point; none without Hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def decides(key: str) -> bool:
    """Whether a dotted key decides the numbers of a run, and has a value that fits into a name."""
    key = MEMBER.sub("dataset.", key)
    node, _, rest = key.partition(".")
    return node in IDENTITY and bool(rest) and rest not in NOT_IDENTITY.get(node, ()) and key not in ELSEWHERE


def compact(value: Any) -> str:
    """A value without spaces."""
    plain_value: Any = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if isinstance(plain_value, list):
        return ",".join(map(compact, plain_value))
    if isinstance(plain_value, dict):
        return ",".join(f"{key}:{compact(entry)}" for key, entry in plain_value.items())
    return f"{plain_value:g}" if isinstance(plain_value, float) else str(plain_value).replace(" ", "_")
