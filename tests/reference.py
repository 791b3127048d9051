"""DCAL written down literally: the slow half of the parity tests, and the column `literal` of `dcal-bench`.

It shares the parameters of a `dcal.model.DCAL` and nothing else: no interception, no fused attention, no
restriction to rows. Every attention map is materialised for every row, the rollout is the product of N×N
matrices, and each stream is a model call of its own: the pair-wise branch runs the backbone again for the
partners' keys and values. What the usual public code does, minus its mistakes.

Shapes: B images, S ≥ B images in the backbone's stream (the rest are noise partners), N tokens, H heads,
D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva
from torch import Tensor, nn

from dcal.attention.pairing import Partners
from dcal.attention.trace import without_autocast
from dcal.model import DCAL
from dcal.output import Branches, Output


def heads_of(attn: nn.Module, y_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all tokens, each (B, H, N, D), as timm's attention layers define them."""
    batch, tokens, _ = y_BND.shape
    if attn.qkv is not None:
        bias = attn.qkv.bias
        if getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        qkv = F.linear(y_BND, attn.qkv.weight, bias).reshape(batch, tokens, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
    else:
        q, k, v = (
            project(y_BND).reshape(batch, tokens, -1, attn.head_dim).transpose(1, 2)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_rotate(t, rope, attn) for t in (q, k))
    if k.shape[1] < q.shape[1]:  # grouped-query attention
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return q.type_as(v), k.type_as(v), v


def _rotate(t: Tensor, rope: Tensor, attn: nn.Module) -> Tensor:
    prefix = attn.num_prefix_tokens
    rotated = apply_rot_embed_cat(t[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([t[:, :, :prefix], rotated], dim=2)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ/√d), kept in memory: (B, H, N, M)."""
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)


def rest_of_block(block: nn.Module, x_BND: Tensor, out_BHND: Tensor) -> Tensor:
    """The block after `attention map @ values`: projection, residual and FFN."""
    attn = block.attn
    y = attn.norm(out_BHND.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        raise NotImplementedError("gated attention")
    y = attn.proj_drop(attn.proj(y))
    x = x_BND + block.drop_path1(_scaled(block, 1, y))
    return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))


def _scaled(block: nn.Module, which: int, y: Tensor) -> Tensor:
    gamma = getattr(block, f"gamma_{which}", None)  # Eva
    if gamma is not None:
        return gamma * y
    return getattr(block, f"ls{which}", nn.Identity())(y)


def rollout_matrix(maps_BHNN: list[Tensor], fusion: str = "mean") -> Tensor:
    """Ŝ = S̄_L ⋯ S̄_1 with S̄ = ½ S + ½ E: (B, N, N)."""
    product: Tensor | None = None
    for s_BHNN in maps_BHNN:
        s = {"mean": s_BHNN.mean(1), "max": s_BHNN.amax(1), "min": s_BHNN.amin(1)}[fusion]
        s = s / s.sum(-1, keepdim=True)
        mixed = 0.5 * s + 0.5 * torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        product = mixed if product is None else mixed @ product
    assert product is not None
    return product


class LiteralDCAL(nn.Module):
    """The forward pass of `model`, from its definition."""

    def __init__(self, model: DCAL) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, partners: Partners | None = None) -> Output:
        model = self.model
        batch = len(images)
        if partners is not None and partners.noise:
            images = torch.cat([images, torch.randn_like(images)])
        x, ropes = self.embed(images)
        states, maps = self.self_attention_stream(x, ropes)
        norm = model.vit.norm if not isinstance(model.vit.norm, nn.Identity) else model.vit.fc_norm
        sa, weights = self.read(states[-1][:batch], norm, model.vit.attn_pool)
        glca, selected = None, None
        if model.glca is not None:
            maps = [s[:batch] for s in maps[: model.depth - model.glca_blocks]]
            glca, selected = self.glca_stream([x[:batch] for x in states], maps, ropes, weights)
        pwca = None
        if partners is not None and model.pwca_blocks:
            pwca = self.read(self.pwca_stream(x, ropes, partners, batch), norm, model.vit.attn_pool)[0]
        return Output(
            model.head(sa),
            None if glca is None else model.glca_head(glca),
            None if pwca is None else model.head(pwca),
            Branches(sa, glca, pwca),
            selected,
        )

    def read(
        self, x_BND: Tensor, norm: nn.Module, pool: nn.Module | None, equal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The feature of the tokens as the backbone defines it, and the weight that every token has in it, (B, N).

        Args:
            equal: an attention pool gives all patches the same weight.
        """
        vit, (batch, tokens) = self.model.vit, x_BND.shape[:2]
        before = isinstance(vit.fc_norm, nn.Identity)
        y = norm(x_BND) if before else x_BND
        weights = torch.zeros(batch, tokens, dtype=y.dtype, device=y.device)
        if pool is None and vit.cls_token is not None:
            weights[:, 0] = 1.0
            feature = norm(x_BND)[:, 0]
            return feature, weights
        patches = slice(vit.num_prefix_tokens, None)
        seen = (
            slice(None) if getattr(vit, "pool_include_prefix", isinstance(vit, Eva) and pool is not None) else patches
        )
        if pool is None:
            weights[:, seen] = 1.0 / y[:, seen].shape[1]
            feature = (weights[:, None] @ y)[:, 0]
        else:
            heads, width = pool.num_heads, y.shape[-1] // pool.num_heads
            k, v = pool.kv(y[:, seen]).unflatten(-1, (2, heads, width)).permute(2, 0, 3, 1, 4)
            q = pool.q(pool.latent).unflatten(-1, (heads, width)).transpose(1, 2).expand(batch, -1, -1, -1)
            s = attention_map(q, k)
            if equal:
                s = torch.zeros_like(s)
                s[..., y[:, seen].shape[1] - y[:, patches].shape[1] :] = 1.0 / y[:, patches].shape[1]
            weights[:, seen] = {"mean": s.mean(1), "max": s.amax(1), "min": s.amin(1)}[self.fusion][:, 0].detach()
            weights = weights / weights.sum(1, keepdim=True)
            z = pool.proj((s @ v).transpose(1, 2).flatten(2))
            feature = (z + pool.mlp(pool.norm(z)))[:, 0]
        return (feature if before else norm(feature)), weights

    @property
    def fusion(self) -> str:
        return "mean" if self.model.glca is None else self.model.glca.head_fusion

    def embed(self, images: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        vit, depth = self.model.vit, self.model.depth
        x = vit._pos_embed(vit.patch_embed(images))
        ropes: list[Tensor | None] = [None] * depth
        if isinstance(x, tuple):
            x, rope = x
            ropes = list(rope) if getattr(vit, "rope_mixed", False) else [rope] * depth
        return vit.norm_pre(x), ropes

    def self_attention_stream(
        self, x: Tensor, ropes: list[Tensor | None], blocks: int | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tokens before each of the first `blocks` blocks and after the last, and their attention maps."""
        states, maps = [x], []
        for block, rope in list(zip(self.model.vit.blocks, ropes, strict=True))[:blocks]:
            q, k, v = heads_of(block.attn, block.norm1(x), rope)
            s = attention_map(q, k)
            x = rest_of_block(block, x, s @ v)
            states.append(x)
            maps.append(s.detach())
        return states, maps

    def glca_stream(
        self, states: list[Tensor], maps: list[Tensor], ropes: list[Tensor | None], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The branch's feature and the selected patches, by the product of matrices."""
        model, glca = self.model, self.model.glca
        assert glca is not None
        prefix, first = model.prefix, model.depth - model.glca_blocks
        patches = states[0].shape[1] - prefix
        count = max(1, int(glca.top_ratio * patches + 1e-9))
        with torch.no_grad(), without_autocast(states[0].device):
            used = maps[-1:] if glca.selection == "last" else maps
            wide = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in used]
            rank = (weights.to(wide[0].dtype)[:, None] @ rollout_matrix(wide, glca.head_fusion))[:, 0]
            selected = rank[:, prefix:].topk(count, dim=1).indices
        rows = torch.cat([torch.arange(prefix, device=selected.device).expand(len(selected), -1), selected + prefix], 1)
        every = torch.arange(len(rows), device=rows.device)[:, None]
        x = states[first][every, rows]
        for block, full, rope in zip(glca.blocks, states[first:-1], ropes[first:], strict=True):
            # queries of rows that changed: put them back among all tokens, so that each keeps its position
            scattered = full.index_put((every, rows), x)
            q = heads_of(block.attn, block.norm1(scattered), rope)[0]
            _, k, v = heads_of(block.attn, block.norm1(full), rope)
            out = attention_map(q, k) @ v
            x = rest_of_block(block, scattered, out)[every, rows]
        if model.vit.cls_token is None or model.vit.attn_pool is not None:
            equal = {"cls": [False], "mean": [True], "cls_mean": [False, True]}[glca.readout]
            return torch.stack([self.read(x, glca.norm, glca.attn_pool, equal=way)[0] for way in equal]).mean(
                0
            ), selected
        y = glca.norm(x)
        mean = y[:, prefix:].mean(1)
        return {"cls": y[:, 0], "mean": mean, "cls_mean": (y[:, 0] + mean) / 2}[glca.readout], selected

    def pwca_stream(self, x: Tensor, ropes: list[Tensor | None], partners: Partners, batch: int) -> Tensor:
        """The distracted tokens of the batch after the last block, from nothing but the embedded images."""
        model = self.model
        stream, partner = model.pwca.stream, partners.index_B
        parting = model.pwca_blocks[0]
        alone = stream == "symmetric" and not partners.noise  # attends to distracted streams only
        states = self.self_attention_stream(x, ropes, parting if alone else model.depth)[0]
        z = states[parting][partner] if stream == "figure" else states[parting][:batch]
        for index in range(parting, model.depth):
            block, rope, x = model.vit.blocks[index], ropes[index], states[min(index, len(states) - 1)]
            if index not in model.pwca_blocks:
                q, k, v = heads_of(block.attn, block.norm1(z), rope)
                z = rest_of_block(block, z, attention_map(q, k) @ v)
                continue
            if stream == "figure":
                own, other = x[:batch], z
            elif stream == "clean":
                own, other = z, x[partner]
            else:
                own, other = z, torch.cat([z, x[batch:]])[partner]
            q, k1, v1 = heads_of(block.attn, block.norm1(own), rope)
            _, k2, v2 = heads_of(block.attn, block.norm1(other), rope)
            s = attention_map(q, torch.cat([k1, k2], dim=2))
            z = rest_of_block(block, own, s @ torch.cat([v1, v2], dim=2))
        return z
