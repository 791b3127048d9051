"""DCAL: a timm ViT with the two extra attention branches, and what comes out of it.

Shapes: B images, S ≥ B images in the backbone's stream (the rest are noise partners), N tokens (prefix
first), C classes, D channels, K selected patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcal.attention.adapters import is_adapter
from dcal.attention.glca import GlobalLocalCrossAttention
from dcal.attention.options import GLCAOptions, PWCAOptions, options_of
from dcal.attention.pairing import UNKNOWN, DrawPartners, Pairing, Partners
from dcal.attention.pooling import CLASS_TOKEN, pooling_of
from dcal.attention.pwca import PairWiseCrossAttention, pwca_block_indices
from dcal.attention.rollout import HEAD_FUSIONS
from dcal.attention.rows import run_traced
from dcal.attention.support import check_supported
from dcal.attention.trace import Trace
from dcal.backbone import embed, final_norm
from dcal.distributed.collectives import all_gather, broadcast, local_slice
from dcal.heads import Head
from dcal.output import Branches, Output
from dcal.utils.errors import UserError, check_number, choose

SIDE_INFORMATION_SCALE = 3.0  # TransReID's λ for the camera and view embedding


class DCAL(nn.Module):
    """Dual Cross-Attention Learning on a timm ViT (Zhu et al., CVPR 2022).

    Args:
        vit: a supported timm ViT; its weights become the self-attention branch, shared with PWCA.
        num_classes: classes, or training identities.
        glca: options of the branch, or a mapping of some of them; None for off.
        pwca: options of pair-wise cross-attention, or a mapping of some of them; None for off.
        head_fusion: `mean`, `max` or `min` over heads in the rollout.
        bnneck: BNNeck in every head, as Re-ID has it.
        side_information: number of cameras (or camera-view pairs) that get a learned embedding; 0 for none.

    Raises:
        UnsupportedBackbone: the branches cannot be attached to `vit`.
        UserError: an option out of its range; the message names its key.
    """

    def __init__(
        self,
        vit: nn.Module,
        num_classes: int,
        *,
        glca: GLCAOptions | Mapping[str, Any] | None = None,
        pwca: PWCAOptions | Mapping[str, Any] | None = None,
        head_fusion: str = "mean",
        bnneck: bool = False,
        side_information: int = 0,
    ) -> None:
        super().__init__()
        check_supported(vit)
        choose("attention.head_fusion", head_fusion, HEAD_FUSIONS)
        self.vit = vit
        self.depth, self.prefix, channels = len(vit.blocks), int(vit.num_prefix_tokens), int(vit.embed_dim)  # type: ignore
        self.pooling = pooling_of(vit) or CLASS_TOKEN
        self.activation_checkpointing = False
        if self._attn_pool is not None:
            self._attn_pool.fused_attn = True  # type: ignore[assignment]
        for block in vit.blocks:  # type: ignore[union-attr]
            block.attn.fused_attn = True  # the branches see attention where it is called as one function
        self.head = Head(channels, num_classes, bnneck)
        self.side = nn.Parameter(torch.zeros(side_information, 1, channels)) if side_information else None

        self.glca: GlobalLocalCrossAttention | None = None
        self._add_glca(options_of(GLCAOptions, glca), head_fusion, num_classes, bnneck)
        self._add_pwca(options_of(PWCAOptions, pwca))

    def _add_glca(self, options: GLCAOptions, head_fusion: str, num_classes: int, bnneck: bool) -> None:
        own = asdict(options)
        self.glca_blocks: int = own.pop("blocks")
        warmup: float = own.pop("warmup_epochs")
        check_number("attention.glca.warmup_epochs", warmup, ge=0)
        self.glca_warmup_epochs = warmup if self.glca_blocks else 0.0
        if not 0 <= self.glca_blocks < self.depth:
            raise UserError(f"attention.glca.blocks={self.glca_blocks}: this backbone allows 0 to {self.depth - 1}")
        if self.glca_blocks:
            last = list(self.vit.blocks)[-self.glca_blocks :]  # type: ignore[arg-type]
            own |= {"head_fusion": head_fusion, "pooling": self.pooling, "attention_pool": self._attn_pool}
            self.glca = GlobalLocalCrossAttention(last, final_norm(self.vit), self.prefix, **own)
            self.glca_head = Head(int(self.vit.embed_dim), num_classes, bnneck)  # type: ignore[arg-type]

    def _add_pwca(self, options: PWCAOptions) -> None:
        final = options.probability if options.final_probability is None else options.final_probability
        for key, value in (("probability", options.probability), ("final_probability", final)):
            check_number(f"attention.pwca.{key}", value, ge=0, le=1)
        self.pwca_probabilities = float(options.probability), float(final)
        met = pwca_block_indices(options.blocks, self.depth)
        self.pwca_blocks = met if any(self.pwca_probabilities) else ()
        self.pwca = PairWiseCrossAttention(options.stream)
        self.pairing: DrawPartners = Pairing(options.pairing, options.pairing_ratio, options.curriculum)

    @property
    def _attn_pool(self) -> nn.Module | None:
        """The backbone's attention pool, where it is read by one."""
        return getattr(self.vit, "attn_pool", None)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that training has losses for; with probabilities below 1 not every step has PWCA's."""
        return ("sa", *(["glca"] if self.glca else []), *(["pwca"] if self.pwca_blocks else []))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The classifiers. All else, the trunk, is run by `features`."""
        return (self.head, *([self.glca_head] if self.glca else []))

    @property
    def whole_modules(self) -> list[nn.Module]:
        """Modules with parameters that run only as a whole: not where their keys are projected apart from the rest."""
        blocks = list(self.vit.blocks)[:-1]  # type: ignore[arg-type]
        apart = self.pwca_blocks and self.pwca.stream == "figure"
        return [*([] if apart else blocks), *([self.glca] if self.glca else [])]

    @property
    def new_parameters(self) -> set[str]:
        """Names of the parameters that no backbone checkpoint holds: heads, side embedding, GLCA if it is no copy, and
        adapters."""
        known = ("vit.", "glca.") if self.glca and self.glca.copied else ("vit.",)
        return {name for name, _ in self.named_parameters() if not name.startswith(known) or is_adapter(name)}

    def draw_partners(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        progress: float = 0.0,
        side: Tensor | None = None,
        parts: int = 1,
    ) -> Partners | None:
        """Draws the PWCA partners of a training batch; None where PWCA is off, or off in this step because
        `pwca_probabilities` say so. Not compiled: it uses the CPU generator. Of several processes, which all have the
        same batch, the first draws for all.

        Args:
            images: the batch, as for `forward`.
            labels: class of each image (B,); needed by every pairing but natural, gaussian and none.
            progress: share of the training that is done, in [0, 1], for the probability and the curriculum.
            side: as for `forward`.
            parts: where features decide, into how many parts the batch is split to find them.

        Raises:
            ValueError: fewer than two images, or labels missing that the pairing needs.
        """
        if not self.pwca_blocks:
            return None
        # a sure thing draws no random number: probability 1 stays what it was before there was a probability
        first, last = self.pwca_probabilities
        probability = first + progress * (last - first)
        if probability < 1.0 and broadcast(torch.rand(1)).item() >= probability:
            return None
        if labels is None:
            labels = torch.full((len(images),), UNKNOWN)

        def embed_batch() -> Tensor:
            with torch.no_grad():
                sides = [None] * parts if side is None else local_slice(side).tensor_split(parts)
                pieces = zip(local_slice(images).tensor_split(parts), sides, strict=True)
                return all_gather(torch.cat([self.features(piece, side=its)[0].sa for piece, its in pieces]))

        partners = self.pairing(labels.cpu(), progress, embed_batch)
        # on MPS such a copy may read the draw after it is gone
        moved = broadcast(partners.index_B).to(images.device, non_blocking=images.device.type != "mps")
        return partners._replace(index_B=moved)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        partners: Partners | None = None,
        side: Tensor | None = None,
    ) -> Output:
        """Runs the branches: all of them in training mode, without PWCA in evaluation mode.

        Args:
            images: normalised float images (B, 3, H, W) of the size the backbone was built for.
            labels: classes (B,), used only to draw partners by class.
            partners: the draw of `draw_partners`; drawn here if a training step does not give it.
            side: camera (or camera-view) index of each image, where the model embeds it.

        Raises:
            ValueError: what `draw_partners` raises, if partners are drawn here.
            UserError: images of integers; the model embeds cameras and `side` is missing.
        """
        if not (self.training and self.pwca_blocks):
            partners = None
        elif partners is None:
            partners = self.draw_partners(images, labels, side=side)
        return self.classify(*self.features(images, partners, side))

    def features(
        self, images: Tensor, partners: Partners | None = None, side: Tensor | None = None, glca_alone: bool = False
    ) -> tuple[Branches, Tensor | None]:
        """Everything below the heads, image by image: no batch statistics.

        Args:
            images: (S, 3, H, W). Of those behind the first B only the backbone's stream is computed, as partners.
            partners: of the first B images; without them there is no distracted stream, and S = B.
            side: (S,), as in `forward`.
            glca_alone: gradients of GLCA's loss stay in the branch, as in its warm-up.

        Raises:
            UserError: images of integers; the model embeds cameras and `side` is missing.

        Returns:
            the branches' features of the first B images, and the patches that GLCA selected there (B, K).
        """
        if not images.is_floating_point():
            raise UserError(
                f"images are {images.dtype}: the model takes normalised float images, (pixels / 255 - mean) / std with "
                "mean and std of dcal.backbone.normalisation(model.vit)"
            )
        # not len(images), which would fix the batch size of an exported graph
        batch = images.shape[0] if partners is None else len(partners.index_B)
        if partners is not None and partners.noise:
            images = torch.cat([images, torch.randn_like(images)])
            side = None if side is None else torch.cat([side, side])
        x, ropes = embed(self.vit, images)
        if self.side is not None:
            if side is None:
                raise UserError("this model embeds cameras (task.side_information): give side=, one index per image")
            x = x + SIDE_INFORMATION_SCALE * self.side[side]
        tokens, glca_inputs, traces = self._trunk(x, ropes, partners, batch)

        norm, fusion = final_norm(self.vit), "mean" if self.glca is None else self.glca.head_fusion
        sa, weights = self.pooling.feature_with_weights(tokens[:batch], norm, self._attn_pool, fusion)
        pwca = None if partners is None else self.pooling.feature(tokens[-batch:], norm, self._attn_pool)
        glca, selected = (None, None)
        if self.glca is not None:
            later = ropes[self.depth - self.glca_blocks :]
            if glca_alone:
                glca_inputs = [x.detach() for x in glca_inputs]
                later = [None if rope is None else rope.detach() for rope in later]
            glca, selected = self.glca(glca_inputs, traces, later, weights_BN=weights)
        return Branches(sa, glca, pwca), selected

    def classify(self, features: Branches, selected: Tensor | None = None) -> Output:
        """The heads on the features of a whole batch: BNNeck takes its statistics from it.

        Args:
            features: of each branch, (B, D), from `features`.
            selected: the patches that GLCA selected (B, K), passed on.
        """
        sa, glca, pwca = features
        return Output(
            self.head(sa),
            None if glca is None else self.glca_head(glca),
            None if pwca is None else self.head(pwca),
            features,
            selected,
        )

    def _trunk(
        self, tokens: Tensor, ropes: Sequence[Tensor | None], partners: Partners | None, batch: int
    ) -> tuple[Tensor, list[Tensor], list[Trace]]:
        """All blocks on one stream or two. The last one computes only what is read: where a class token is, the prefix.

        Returns:
            those rows of both streams, the distracted one last, (S + B, prefix or N, D); GLCA's inputs; and the
            attention traces of the blocks before GLCA.
        """
        glca_inputs: list[Tensor] = []
        traces: list[Trace] = []
        met = self.pwca_blocks if partners is not None else ()
        first_glca = self.depth - self.glca_blocks
        wanted = first_glca if self.glca is not None and self.glca.needs_traces else 0
        for index, (block, rope) in enumerate(zip(self.vit.blocks, ropes, strict=True)):  # type: ignore[arg-type]
            if index >= first_glca:
                glca_inputs.append(tokens[:batch])
            prefix_only = self.prefix if index == self.depth - 1 and self.pooling.kind == "token" else None
            if partners is not None and index in met:
                if index == met[0]:
                    tokens = self.pwca.start(tokens, partners.index_B)
                tokens, trace = self._call(self.pwca, block, tokens, partners.index_B, rope, prefix_only)
            else:
                tokens, trace = self._call(run_traced, block, tokens, rope, prefix_only)
            if index < wanted:
                traces.append(trace.of_images(batch, own=self.activation_checkpointing))
        return tokens, glca_inputs, traces

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)
