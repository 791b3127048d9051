"""What makes two runs the same: the configuration but for the seed, and nothing that only decides speed or place."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath

from omegaconf import DictConfig, OmegaConf

IDENTITY = ("backbone", "attention", "task", "dataset", "optimizer", "train", "deterministic")
"""What makes two runs the same but for the seed."""
NOT_IDENTITY = {
    "dataset": {"root", "cache", "on_bad_image"},
    "train": {
        "workers",
        "progress",
        "figures",
        "checkpoint_minutes",
        "eval_batch_size",
        "accumulate",
        "auto_accumulate",
        "compile",
        "activation_checkpointing",
    },
}
"""Where data lie and how fast they come: no part of what is computed."""


def config_id(config: DictConfig) -> str:
    """Eight hex digits over the identity nodes, interpolations unresolved and paths cut to their last part."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    identity = {
        key: {k: v for k, v in plain[key].items() if k not in NOT_IDENTITY.get(key, ())}
        if isinstance(plain[key], dict)
        else plain[key]
        for key in IDENTITY
    }
    checkpoint = identity["backbone"].get("checkpoint")
    if checkpoint:  # the same weights lie elsewhere on another machine
        identity["backbone"]["checkpoint"] = PurePath(checkpoint).name
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
