"""docs/families.md: the families of backbones that the tests of the model run, and the refused ones with the reason."""

from __future__ import annotations

from functools import cache

import timm
import torch
from tiny import FAMILIES

from dcal.attention.support import REASONS, UnsupportedBackbone, check_supported

PLAIN = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")
"""timm's modules of Vision Transformers whose blocks are in one sequence at one resolution."""


ATTEMPTS = """\
## Swin and CaiT

The paper's appendix has DCAL on CaiT, and PWCA alone on Swin. Both were tried here.

In Swin's windows PWCA can be computed by interception: with the keys of the partner's window of the same
place behind an image's own, and the position bias twice, an image that is its own partner gives SA up to
rounding, in all stages of timm's forward pass. But the rollout, the selection, figures, explanations, part
hits and the evaluation of blocks at some of their rows all read one sequence of patches at one resolution,
which Swin does not have: most of the commands would have to refuse such a run. So Swin is refused as a whole.

CaiT mixes its heads before and after the softmax in plain tensor arithmetic. Only its class-attention layers,
whose one query is the class token, call a function that can be intercepted: neither the rollout nor PWCA can
be computed without a copy of its layers' code.
"""


@cache
def outcomes() -> dict[str, str]:
    """Of every pretrained tag of those modules: why it is refused, or an empty string where the branches attach."""
    why: dict[str, str] = {}
    found = {}
    for tag in (tag for module in PLAIN for tag in timm.list_models(module=module, pretrained=True)):
        name = tag.split(".")[0]
        if name not in why:
            with torch.device("meta"):
                try:
                    vit = timm.create_model(name, num_classes=0, depth=2)
                except AssertionError:  # options given block by block
                    vit = timm.create_model(name, num_classes=0)
            try:
                check_supported(vit)
                why[name] = ""
            except UnsupportedBackbone as error:
                why[name] = str(error).split(" is not supported: ")[1].split(". Supported are")[0]
        found[tag] = why[name]
    return found


def page() -> str:
    rows = [f"| {family.title} | `{'` `'.join(family.patterns.split())}` |" for family in FAMILIES]
    refused = [f"- `{name}`: {reason}." for name, reason in REASONS.items()]
    tags: dict[str, list[str]] = {}
    for tag, reason in outcomes().items():
        tags.setdefault(reason, []).append(tag)
    attached = len(tags.pop(""))
    alone = [f"- {reason}: `{'` `'.join(names)}`" for reason, names in tags.items()]
    return "\n".join(
        [
            "# Backbones",
            "",
            "`backbone.name=` takes any timm model of these families, at any input size. Every one is run by the",
            "tests, in a tiny form, against the literal definition of DCAL.",
            "",
            "A backbone is read at its attention pool where it has one, at the class token, or at the mean of its",
            "patches where it has neither; so are GLCA and PWCA, and the rollout ranks the patches for that pool,",
            "token or mean: [concepts](concepts.md#backbones-without-a-class-token).",
            "",
            f"Of the {len(outcomes())} pretrained plain Vision Transformers of timm {timm.__version__} the branches",
            f"attach to {attached}. Refused are:",
            "",
            *alone,
            "",
            "| family | names in timm |",
            "|---|---|",
            *rows,
            "",
            "Refused at construction, with the reason:",
            "",
            *refused,
            "",
            "So is every other model that pools its tokens in another way, with other blocks than attention followed",
            "by an MLP, or with attention that is not plain softmax attention over all tokens.",
            "",
            ATTEMPTS,
        ]
    )
