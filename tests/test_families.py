"""The branches attach to nearly all plain Vision Transformers of timm, and each family of docs/families.md trains."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch
from tiny import FAMILIES, images_for, tiny_model

from docs.generate.families import outcomes


def test_the_branches_attach_to_nearly_all_plain_vision_transformers() -> None:
    refused = [tag for tag, reason in outcomes().items() if reason]
    print(f"{len(outcomes()) - len(refused)} of {len(outcomes())} tags attach; refused: {', '.join(refused)}")
    assert len(outcomes()) >= 430 and len(refused) <= 10


def test_every_plain_vision_transformer_belongs_to_a_family_that_is_run() -> None:
    patterns = [pattern for family in FAMILIES for pattern in family.patterns.split()]
    names = {tag.split(".")[0] for tag, reason in outcomes().items() if not reason}
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)} == set()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.member)
def test_every_listed_family_trains(family: object) -> None:
    model = tiny_model(family.member, dtype=torch.float32).train()  # type: ignore[attr-defined]
    out = model(images_for(family.member, dtype=torch.float32))  # type: ignore[attr-defined]
    sum(logits.square().mean() for logits in out.logits().values()).backward()
    assert set(out.logits()) == {"sa", "glca", "pwca"}
    # what no loss reaches would stop distributed training, and is no part of the model
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.isfinite().all()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} - reached == set()
