"""What the branches of a trained model attend to, image by image: the maps behind `dcal-explain`.

Shapes: B images, N tokens (prefix first), P patches on a grid of h × w, M keys, R rows of GLCA, L blocks with PWCA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dcal.attention.pairing import Partners
from dcal.attention.timm_blocks import Attend
from dcal.attention.trace import Trace, attention_rows, attention_with_trace, without_autocast
from dcal.model import DCAL
from dcal.utils.device import Device
from dcal.utils.errors import UserError
from dcal.visualize.examples import rollout_and_selection


class Maps(NamedTuple):
    """Where a batch was looked at, on the CPU; of a single image without the first axis."""

    rollout: Tensor
    """The self-attention rollout of the class token or pooled feature over the blocks before GLCA, (B, h, w)."""
    glca: Tensor | None
    """Attention of the rows that GLCA's readout reads, (B, h, w); None without GLCA."""
    selected: Tensor | None
    """The patches that GLCA selected, bool (B, h, w)."""

    def of(self, row: int) -> Maps:
        """Those of one image of the batch."""
        glca, selected = (None if part is None else part[row] for part in self[1:])
        return Maps(self.rollout[row], glca, selected)


class Distraction(NamedTuple):
    """The attention that an image pays to another under PWCA, mean over heads, on the CPU."""

    class_token: Tensor
    """Share of the class token's attention that goes to the distractor, by block with PWCA (L,); without one, as
    `patches`."""
    patches: Tensor
    """The same of the patches, mean over them; NaN in the model's last block, which computes no patch."""
    where: Tensor
    """The class token's attention over the distractor's patches, mean over blocks, (h, w)."""
    blocks: tuple[int, ...]
    """Numbers of those L blocks, from 1."""


@torch.no_grad()
def attention_maps(model: DCAL, images: Tensor, device: Device) -> Maps:
    """Rollout, GLCA attention and selection of a batch.

    GLCA's map is that of its last block, mean over heads, at the rows that its readout reads: the class row (`cls`),
    the mean of the selected rows (`mean`), or the average of both (`cls_mean`). A branch that is read by pooling has
    the mean of the selected rows.

    Args:
        images: uint8 (B, 3, H, W) of the model's size.
    """
    if model.glca is None:
        return Maps(rollout_and_selection(model, images, device)[0], None, None)
    prefix, readout, seen = model.prefix, model.glca.readout, []

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        out, trace = attention_with_trace(q, k, v, **options)
        s_BRN = head_mean(trace)
        chosen_BN = s_BRN[:, prefix:].mean(1)
        class_BN = s_BRN[:, 0] if model.pooling.kind == "token" else chosen_BN
        seen.append({"cls": class_BN, "mean": chosen_BN, "cls_mean": (class_BN + chosen_BN) / 2}[readout])
        return out

    with watched(model.glca, attend=attend):
        rollout, selected = rollout_and_selection(model, images, device)
    return Maps(rollout, seen[-1][:, prefix:].cpu().view_as(rollout), selected)


@torch.no_grad()
def distraction(model: DCAL, image: Tensor, distractor: Tensor, device: Device) -> Distraction:
    """PWCA's attention of an image towards a distractor, both with their streams as in training, in eval mode.

    An image that is its own distractor pays it exactly half of its attention, in every block.

    Args:
        image: uint8 (3, H, W) of the model's size.
        distractor: the other image, uint8 (3, H, W) of the model's size.

    Raises:
        UserError: the model has no PWCA.
    """
    if not model.pwca_blocks:
        raise UserError(
            "pair: the run has no PWCA (attention.pwca.blocks or probability is 0), so nothing distracts it"
        )
    model.eval()
    prefix, shares, towards = model.prefix, [], []

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        out, trace = attention_with_trace(q, k, v, **options)
        s_NM = head_mean(trace.of_images(1))[0]
        towards_NN = s_NM[:, s_NM.shape[1] // 2 :]
        share_N = towards_NN.sum(1)
        reading = slice(0, 1) if model.pooling.kind == "token" else slice(prefix, None)
        # the mean of no patch is NaN
        shares.append(torch.stack([share_N[reading].mean(), share_N[prefix:].mean()]))
        towards.append(towards_NN[reading, prefix:].mean(0))
        return out

    pair = Partners(torch.tensor([1, 0], device=device.torch))
    with watched(model.pwca, attend_pair=attend), device.autocast():
        model.features(device.normalise(torch.stack([image, distractor])), pair)
    class_token, patches = torch.stack(shares, dim=1).cpu()
    grid = tuple(model.vit.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
    where = torch.stack(towards).mean(0).view(grid).cpu()
    return Distraction(class_token, patches, where, tuple(index + 1 for index in model.pwca_blocks))


def head_mean(trace: Trace) -> Tensor:
    """The attention map of all rows, mean over heads, float32 also where the model computes in half precision."""
    with without_autocast(trace.q_BHND.device):
        return attention_rows(trace, slice(None), torch.float32).mean(1)


def watched(module: nn.Module, **attention: Attend) -> RemovableHandle:
    """Hands a branch the attention it is to compute with, whoever calls it, until the context is left."""

    def give(module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**options, **attention}

    return module.register_forward_pre_hook(give, with_kwargs=True)
