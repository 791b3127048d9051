"""docs/families.md lists the families that the tests of the model run, refused ones with the reason.

`python tests/test_families.py` writes it; a run of every family is `tests/test_model.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, images_for, tiny_model

from dcal.attention.support import REASONS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"


def page() -> str:
    rows = [f"| {family.title} | `{'` `'.join(family.patterns.split())}` |" for family in FAMILIES]
    refused = [f"- `{name}`: {reason}." for name, reason in REASONS.items()]
    return "\n".join(
        [
            "# Backbones",
            "",
            "`backbone.name=` takes any timm model of these families, at any input size. Every one is run by the",
            "tests, in a tiny form, against the literal definition of DCAL.",
            "",
            "| family | names in timm |",
            "|---|---|",
            *rows,
            "",
            "Refused at construction, with the reason:",
            "",
            *refused,
            "",
            "So is every other model without a class token, with other blocks than attention followed by an MLP,",
            "or with attention that is not plain softmax attention over all tokens.",
            "",
        ]
    )


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python tests/test_families.py"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.member)
def test_every_listed_family_trains(family: object) -> None:
    model = tiny_model(family.member, dtype=torch.float32).train()  # type: ignore[attr-defined]
    out = model(images_for(family.member, dtype=torch.float32))  # type: ignore[attr-defined]
    sum(logits.square().mean() for logits in out.logits().values()).backward()
    assert set(out.logits()) == {"sa", "glca", "pwca"}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
