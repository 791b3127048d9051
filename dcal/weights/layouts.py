"""Which layouts of weight files are known, how to tell them apart, and the names of timm's models for their tensors.

A layout is known by the names that its backbone always has; what is before those names (`module.`, `base.`,
`teacher.backbone.`, `visual.trunk.`, ...) is the prefix of the backbone in the file. Names of the large code bases go
to timm's own filter as they are; the converters here are for those it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcal.utils.errors import UserError

State = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]
"""Regular expressions and what takes their place in a name, applied in order."""

WRAPPERS = r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\."
AVERAGES = {"ema", "teacher", "momentum", "target", "averaged"}
"""Words in the name of a moving average of the weights, which is evaluated instead of the trained ones."""


class Layout(NamedTuple):
    """The names that a code base gives to the parameters of a backbone."""

    title: str
    anchors: tuple[str, ...]
    """Names that are in every such backbone. What is before the first one is before all the others."""
    convert: Callable[[State], State] = dict
    """Other names to those that timm's filter knows."""
    refusal: str = ""
    """Why it cannot be loaded and what to do; empty where it can."""


class Found(NamedTuple):
    """A backbone in a file."""

    layout: Layout
    prefix: str
    """What is before its own names."""
    state: State
    """Its tensors, by the names that timm's filter knows."""
    others: tuple[str, ...]
    """Places of other backbones in the same file."""
    beside: tuple[str, ...]
    """Names in the file that belong to no backbone."""


def find_backbone(tensors: Mapping[str, Tensor]) -> Found:
    """The backbone in the tensors of a file; of a trained one and its moving average, the average.

    Raises:
        UserError: none, several without a moving average among them, or one that is refused; the message says so.
    """
    tensors = rename(tensors, [(WRAPPERS, "")])
    prefixes: dict[str, Layout] = {}
    for layout in LAYOUTS:
        for prefix in _prefixes(tensors, layout.anchors):
            if layout.refusal:
                raise UserError(f"these are weights of {layout.title}: {layout.refusal}")
            prefixes.setdefault(prefix, layout)
    if not prefixes:
        raise UserError(f"no Vision Transformer is in it; it begins with {', '.join(list(tensors)[:3])}")
    prefix = _chosen(list(prefixes))
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    others = tuple(other for other in prefixes if other != prefix)
    beside = tuple(name for name in tensors if not name.startswith((prefix, *others)))
    return Found(prefixes[prefix], prefix, prefixes[prefix].convert(own), others, beside)


def _prefixes(tensors: Mapping[str, Tensor], anchors: tuple[str, ...]) -> list[str]:
    first = anchors[0]
    prefixes = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    return [prefix for prefix in prefixes if all(f"{prefix}{anchor}" in tensors for anchor in anchors)]


def _chosen(prefixes: list[str]) -> str:
    averages = [prefix for prefix in prefixes if AVERAGES & set(re.split(r"[._]", prefix))]
    choice = averages if len(prefixes) > 1 else prefixes
    if len(choice) != 1:
        raise UserError(
            f"it holds {len(prefixes)} backbones, {', '.join(f'{prefix}*' for prefix in prefixes)}, and no name says "
            "which one is a moving average: save the one that you want in a file of its own"
        )
    return choice[0]


def rename(state: Mapping[str, Tensor], rules: Rules) -> State:
    """The same tensors under other names."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def join_qkv(state: Mapping[str, Tensor]) -> State:
    """Projections `attn.q`, `attn.k` and `attn.v` as one `attn.qkv`; a bias that only some have is 0 in the rest."""
    joined: State = {}
    for name, value in state.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn)\.[qkv]\.(weight|bias)", name)
        if not match:
            joined[name] = value
            continue
        attention, kind = match.groups()
        three = [state.get(f"{attention}.{each}.{kind}", torch.zeros_like(value)) for each in "qkv"]
        joined.setdefault(f"{attention}.qkv.{kind}", torch.cat(three))
    return joined


def _meta(state: State) -> State:
    """DINOv2's training code keeps blocks in chunks, `blocks.CHUNK.NUMBER`; numbers go through."""
    state = rename(state, [(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1")])
    if "register_tokens" in state:
        state.setdefault("mask_token", state["register_tokens"])  # by which timm tells DINOv2; it drops the tensor
    return state


def _hf_vit(state: State) -> State:
    rules = (
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"^encoder\.layer\.", "blocks."),
        (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
        (r"^layernorm\.", "norm."),
    )
    return _meta(join_qkv(rename(state, rules)))


def _hf_dinov3(state: State) -> State:
    rules = (
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^embeddings\.register_tokens$", "storage_tokens"),
        (r"^embeddings\.", ""),
        (r"^(model\.)?layer\.", "blocks."),
        (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.mlp\.gate_proj\.", ".mlp.w1."),
        (r"\.mlp\.up_proj\.", ".mlp.UP."),
        (r"\.mlp\.down_proj\.", ".mlp.DOWN."),
    )
    state = rename(state, rules)
    gated = any(".mlp.w1." in name for name in state)
    up, down = ("w2", "w3") if gated else ("fc1", "fc2")
    return join_qkv(rename(state, ((r"\.UP\.", f".{up}."), (r"\.DOWN\.", f".{down}."))))


def _hf_clip(state: State) -> State:
    rules = (
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^post_layernorm\.", "norm."),
        (r"^encoder\.layers\.", "blocks."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"^head\.probe$", "attn_pool.latent"),
        (r"^head\.attention\.in_proj_(weight|bias)$", r"attn_pool.qkv.\1"),
        (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"^head\.layernorm\.", "attn_pool.norm."),
        (r"^head\.mlp\.", "attn_pool.mlp."),
    )
    state = join_qkv(rename(state, rules))
    state.pop("embeddings.position_ids", None)
    state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].view(1, 1, -1)
    for kind in ("weight", "bias"):
        if f"attn_pool.qkv.{kind}" in state:
            q, k, v = state.pop(f"attn_pool.qkv.{kind}").chunk(3)
            state |= {f"attn_pool.q.{kind}": q, f"attn_pool.kv.{kind}": torch.cat([k, v])}
    return state


def _torchvision(state: State) -> State:
    rules = (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_", "blocks."),
        (r"^encoder\.ln\.", "norm."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."),
        (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
    )
    return rename(state, rules)


def _clip(state: State) -> State:
    """Names with the prefix by which timm's filter tells the layout."""
    return {f"visual.{name}": value for name, value in state.items()}


NO_ROLLOUT = "its attention is of another kind, see docs/families.md; choose a plain Vision Transformer"
CLIP = Layout("OpenAI CLIP and Perception Encoder", ("conv1.weight", "transformer.resblocks.0.ln_1.weight"), _clip)
HF_CLIP = Layout("Hugging Face transformers, CLIP or SigLIP", ("embeddings.patch_embedding.weight",), _hf_clip)
LAYOUTS = (
    Layout(
        "a ViT with an ICS stem (TransReID-SSL)",
        ("patch_embed.conv.0.weight", "patch_embed.proj.weight"),
        refusal="its patches come from three convolutions with instance and batch norm, which timm's models do not "
        "have; take the ViT-S or ViT-B of the same authors without the stem, or PersonViT",
    ),
    Layout("Swin", ("layers.0.blocks.0.attn.relative_position_bias_table",), refusal=NO_ROLLOUT),
    Layout("BEiT", ("blocks.0.attn.relative_position_bias_table",), refusal=NO_ROLLOUT),
    Layout("CaiT", ("blocks_token_only.0.attn.q.weight",), refusal=NO_ROLLOUT),
    Layout("ConvNeXt", ("stages.0.0.dwconv.weight",), refusal=NO_ROLLOUT),
    Layout("Hugging Face transformers, DINOv3", ("embeddings.patch_embeddings.weight",), _hf_dinov3),
    Layout("Hugging Face transformers, ViT or DINOv2", ("embeddings.patch_embeddings.projection.weight",), _hf_vit),
    HF_CLIP,
    Layout("torchvision", ("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"), _torchvision),
    CLIP,
    Layout("BEiT-3", ("beit3.vision_embed.proj.weight",)),
    Layout("RADIO", ("radio_model.model.patch_generator.embedder.weight",)),
    Layout("AIMv2", ("preprocessor.patchifier.proj.weight",)),
    Layout("Sapiens2", ("patch_embed.projection.weight",)),
    Layout(
        "PASS",
        ("part_token1", "pos_embed"),
        refusal="it has three part tokens with positions of their own, which timm's models do not have; take PersonViT",
    ),
    Layout("timm", ("patch_embed.proj.weight",), _meta),
    Layout("timm", ("blocks.0.norm1.weight", "pos_embed")),  # a hybrid whose stem has another name
)
"""The first one whose anchors are in a file has it."""
