"""The same backbone written as other code bases write it: one builder per layout, from timm's names to theirs.

What stands beside a backbone in such files (heads, decoders, optimizers, a second backbone) is in them, too.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from tiny import SMALL, scramble
from torch import Tensor, nn

State = dict[str, Tensor]

PLAIN = "deit_tiny_patch16_224"
DINOV2, DINOV2_REG = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
DINOV3 = "vit_small_patch16_dinov3_qkvb"
CLIP = "vit_base_patch16_clip_quickgelu_224"
SIGLIP = "vit_base_patch16_siglip_224"
RADIO = "vit_base_patch16_radio_v3"


class WeightFile(NamedTuple):
    """A layout as its authors write it, and what becomes of it."""

    title: str
    use: str
    """What people use such files for."""
    build: Callable[[State], Any]
    """The content of the file from the state of the timm model without classifier."""
    model: str = PLAIN
    suffix: str = ".pth"
    refused: str = ""
    """What the sentence must say that refuses it; empty where it loads."""
    said: str = ""
    """What the line that is logged must say."""
    warned: str = ""
    """What a warning must say; empty where there is none."""
    options: Mapping[str, Any] = {}
    """Further arguments of the model."""
    plain: bool = True
    """Whether it holds a plain ViT, as DeiT-Tiny is, so that its real weights can be written in this layout."""

    @property
    def small(self) -> dict[str, Any]:
        """Arguments that make the model tiny."""
        return {**SMALL, **self.options}

    def source(self, size: tuple[int, int] = (112, 112)) -> nn.Module:
        """The timm model whose weights are written, every one of them drawn."""
        vit = timm.create_model(self.model, img_size=size, num_classes=0, **self.small)
        scramble(vit)
        if self.model == RADIO:
            nn.init.zeros_(vit.patch_embed.proj.bias)  # the original has none
        return vit.eval()


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def split_qkv(state: Mapping[str, Tensor], *names: str, without: Iterable[str] = ()) -> State:
    """`blocks.N.attn.qkv.*` as three projections under `names`; names in `without` are left out."""
    out = {}
    for name, value in state.items():
        match = re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.(weight|bias)", name)
        if match is None:
            out[name] = value
            continue
        for each, part in zip(names, value.chunk(3), strict=True):
            if f"{each}.{match[2]}" not in without:
                out[f"{match[1]}.{each}.{match[2]}"] = part.clone()
    return out


def pass_reid(state: State) -> State:
    parts = {f"part_token{n}": torch.zeros(1, 1, 3) for n in (1, 2, 3)}
    places = {f"part{n}_pos": torch.zeros(1, 1, 3) for n in (1, 2, 3)}
    return {**state, "pos_embed": state["pos_embed"][:, 1:], "cls_pos": torch.zeros(1, 1, 3), **parts, **places}


def other(state: Mapping[str, Tensor]) -> State:
    """A second backbone, whose weights must not be taken."""
    return {name: value + 1 for name, value in state.items()}


def dino(state: State) -> Any:
    """DINO's training file: a student behind DataParallel, a teacher, a head each, and the arguments of the script."""
    head = {"head.mlp.0.weight": torch.zeros(4, 4), "head.last_layer.weight_g": torch.zeros(4, 1)}
    return {
        "student": {**under("module.backbone.", other(state)), **under("module.", head)},
        "teacher": {**under("backbone.", state), **head},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="vit_small", lr=0.1),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def ibot(state: State) -> Any:
    masked = {"masked_embed": torch.zeros(1, state["cls_token"].shape[-1])}
    file = dino({**state, **masked})
    return {"state_dict": file["teacher"], "args": file["args"]}


def dinov2(state: State) -> State:
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def dinov2_registers(state: State) -> State:
    """The class token's position is a term of its own here; timm adds it to the token."""
    cls, pos = state["cls_token"], state["pos_embed"]
    file = {name: value for name, value in state.items() if name not in ("reg_token",)}
    file |= {"cls_token": -cls, "pos_embed": torch.cat([2 * cls, pos], 1), "register_tokens": state["reg_token"]}
    return dinov2(file)


def chunked(state: State) -> Any:
    """Of DINOv2's training code, which shards blocks in chunks."""
    state = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", name): value for name, value in dinov2(state).items()}
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.mlp.0.weight": torch.zeros(2, 2)}
    student, teacher = {**under("backbone.", other(state)), **heads}, {**under("backbone.", state), **heads}
    return {"model": {**under("student.", student), **under("teacher.", teacher)}, "iteration": 7}


def dinov3(state: State) -> State:
    file = {}
    for name, value in state.items():
        name = re.sub(r"gamma_([12])$", r"ls\1.gamma", name).replace("reg_token", "storage_tokens")
        if name.endswith("attn.q_bias"):
            v_bias = state[name.replace("attn.q_bias", "attn.gone").replace("gone", "v_bias")]
            name, value = name.replace("q_bias", "qkv.bias"), torch.cat([value, torch.zeros_like(value), v_bias])
            file[name.replace("qkv.bias", "qkv.bias_mask")] = torch.ones_like(value)
        if not name.endswith(("attn.v_bias", "attn.k_bias")):
            file[name] = value
    return {**file, "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def hf_vit(state: State) -> State:
    state = split_qkv(state, *(f"attention.attention.{each}" for each in ("query", "key", "value")))
    return renamed(
        state,
        (r"^(cls_token|mask_token|dist_token|register_tokens)$", r"embeddings.\1"),
        (r"dist_token", "distillation_token"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )


def hf_dinov2(state: State) -> State:
    """Blocks have timm's names for norms and MLP here."""
    return renamed(
        hf_vit(state),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(layer\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    )


def hf_dinov3(state: State) -> State:
    file = {name: value for name, value in dinov3(state).items() if "rope" not in name and "bias_mask" not in name}
    names = [f"attention.{each}_proj" for each in "qkv"]
    return renamed(
        split_qkv(file, *names, without=["attention.k_proj.bias"]),
        (r"^storage_tokens$", "embeddings.register_tokens"),
        (r"^(cls_token|mask_token)$", r"embeddings.\1"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"^blocks\.", "layer."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.mlp\.fc1\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    )


def hf_clip(state: State) -> State:
    names = [f"self_attn.{each}_proj" for each in "qkv"]
    file = renamed(
        split_qkv(state, *names),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        (r"^norm_pre\.", "pre_layrnorm."),
        (r"^norm\.", "post_layernorm."),
        (r"^blocks\.", "encoder.layers."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
        (r"\.norm([12])\.", r".layer_norm\1."),
    )
    file["embeddings.position_embedding.weight"] = file.pop("pos_embed")[0]
    file["embeddings.position_ids"] = torch.arange(5)
    if "cls_token" in file:
        file["embeddings.class_embedding"] = file.pop("cls_token")[0, 0]
    if "attn_pool.latent" in file:
        file["head.probe"] = file.pop("attn_pool.latent")
        for kind in ("weight", "bias"):
            parts = [file.pop(f"attn_pool.q.{kind}"), file.pop(f"attn_pool.kv.{kind}")]
            file[f"head.attention.in_proj_{kind}"] = torch.cat(parts)
        file = renamed(
            file,
            (r"^attn_pool\.proj", "head.attention.out_proj"),
            (r"^attn_pool\.norm", "head.layernorm"),
            (r"^attn_pool\.mlp", "head.mlp"),
        )
    text = {"text_model.embeddings.token_embedding.weight": torch.zeros(3, 4), "logit_scale": torch.zeros(())}
    return {**under("vision_model.", file), **text}


def clip(state: State) -> State:
    """OpenAI's names, without the `visual.` before them."""
    file = renamed(
        state,
        (r"^patch_embed\.proj", "conv1"),
        (r"^norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"^pos_embed$", "positional_embedding"),
        (r"^cls_token$", "class_embedding"),
        (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    )
    file["positional_embedding"] = file["positional_embedding"][0]
    file["class_embedding"] = file["class_embedding"][0, 0]
    return {**file, "proj": torch.zeros(len(file["class_embedding"]), 7)}


def openai(state: State) -> State:
    text = {"transformer.resblocks.0.ln_1.weight": torch.zeros(8), "positional_embedding": torch.zeros(77, 8)}
    return {**under("visual.", clip(state)), **text, "logit_scale": torch.zeros(())}


def clip_reid(state: State) -> State:
    beside = {
        "cv_embed": torch.zeros(6, 32),
        "classifier.weight": torch.zeros(5, 32),
        "bottleneck.bias": torch.zeros(32),
    }
    return {
        **under("image_encoder.", clip(state)),
        **beside,
        **under("text_encoder.", {"ln_final.bias": torch.zeros(8)}),
    }


def perception(state: State) -> State:
    """Perception Encoder of Meta: CLIP's names, and an attention pool with joined projections."""
    names = {name for name in state if name.startswith("attn_pool.")}
    pool = {name.removeprefix("attn_pool."): state[name] for name in names}
    joined = {
        f"attn.in_proj_{kind}": torch.cat([pool.pop(f"q.{kind}"), pool.pop(f"kv.{kind}")])
        for kind in ("weight", "bias")
    }
    pool = renamed(
        {**pool, **joined},
        (r"^latent$", "probe"),
        (r"^proj\.", "attn.out_proj."),
        (r"^norm\.", "layernorm."),
        (r"^mlp\.fc1", "mlp.c_fc"),
        (r"^mlp\.fc2", "mlp.c_proj"),
    )
    file = clip({name: value for name, value in state.items() if name not in names})
    return {**under("visual.", {**file, **under("attn_pool.", pool)}), "logit_scale": torch.zeros(())}


def deit3(state: State) -> Any:
    return {"model": renamed(state, (r"\.ls([12])\.gamma$", r".gamma_\1"))}


def eva02(state: State) -> Any:
    file = renamed(state, (r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3."), (r"^fc_norm\.", "norm."))
    return {"module": {**file, "mask_token": torch.zeros(1, 1, 32), "lm_head.weight": torch.zeros(5, 32)}}


def beit3(state: State) -> Any:
    file = renamed(
        split_qkv(state, *(f"self_attn.{each}_proj" for each in "qkv")),
        (r"^cls_token$", "vision_embed.cls_token"),
        (r"^patch_embed\.", "vision_embed."),
        (r"^pos_embed$", "encoder.embed_positions.A.weight"),
        (r"^blocks\.(\d+)\.self_attn\.(._proj)\.", r"encoder.layers.\1.self_attn.\2.A."),
        (r"^blocks\.(\d+)\.attn\.norm\.", r"encoder.layers.\1.self_attn.inner_attn_ln.A."),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj.A."),
        (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.\1.self_attn_layer_norm.A."),
        (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.\1.final_layer_norm.A."),
        (r"^blocks\.(\d+)\.mlp\.norm\.", r"encoder.layers.\1.ffn.A.ffn_layernorm."),
        (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.ffn.A."),
    )
    places = file["encoder.embed_positions.A.weight"]
    file["encoder.embed_positions.A.weight"] = torch.cat([torch.zeros(2, 32), places[0]])  # two for padding
    text = {"beit3.text_embed.weight": torch.zeros(9, 32), "beit3.encoder.layers.0.ffn.B.fc1.bias": torch.zeros(3)}
    norms = {name: file.pop(name) for name in ("fc_norm.weight", "fc_norm.bias")}
    return {"model": {**under("beit3.", file), **text, **norms}}


def radio(state: State) -> State:
    file = renamed(state, (r"^pos_embed$", "patch_generator.pos_embed"))
    file["patch_generator.embedder.weight"] = file.pop("patch_embed.proj.weight").flatten(1)
    file["patch_generator.cls_token.token"] = torch.cat([file.pop("cls_token"), file.pop("reg_token")], 1)[0]
    del file["patch_embed.proj.bias"]  # the linear projection has none
    conditioner = {"radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1)}
    return {**under("radio_model.model.", file), **conditioner}


def aimv2(state: State) -> State:
    return renamed(
        state,
        (r"^blocks\.", "trunk.blocks."),
        (r"^norm\.", "trunk.post_trunk_norm."),
        (r"^patch_embed\.", "preprocessor.patchifier."),
        (r"^pos_embed$", "preprocessor.pos_embed"),
        (r"\.norm([12])\.", r".norm_\1."),
        (r"\.mlp\.fc1_g\.", ".mlp.fc1."),
        (r"\.mlp\.fc1_x\.", ".mlp.fc3."),
    )


def sapiens2(state: State) -> State:
    file = renamed(
        state,
        (r"^reg_token$", "storage_tokens"),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"\.attn\.([qkv])_proj\.", r".attn.w\1."),
        (r"\.gamma_1$", ".attn.gamma.weight"),
        (r"\.mlp\.fc1\.", ".ffn.w12."),
        (r"\.mlp\.fc2\.", ".ffn.w3."),
    )
    return {**file, "mask_token": torch.zeros(1, 1, 32)}


def torchvision(state: State) -> State:
    return renamed(
        state,
        (r"^cls_token$", "class_token"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^norm\.", "encoder.ln."),
        (r"^blocks\.", "encoder.layers.encoder_layer_"),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.linear_1."),
        (r"\.mlp\.fc2\.", ".mlp.linear_2."),
    )


def transreid(state: State, sie: bool = False, **beside: Tensor) -> State:
    width = state["cls_token"].shape[-1]
    file = {
        **under("base.", {**state, "fc.weight": torch.zeros(1000, width)}),
        "classifier.weight": torch.zeros(5, width),
    }
    file |= under("b1.0.", {"norm1.weight": torch.zeros(width)})
    return {**file, **({"base.sie_embed": torch.zeros(6, 1, width)} if sie else {}), **beside}


def mae(state: State) -> Any:
    decoder = {"decoder_embed.weight": torch.zeros(4, 4), "decoder_blocks.0.norm1.weight": torch.zeros(4)}
    decoder |= {"decoder_pos_embed": torch.zeros(1, 5, 4), "decoder_pred.bias": torch.zeros(3)}
    return {"model": {**state, **decoder, "mask_token": torch.zeros(1, 1, 4)}}


def mae_tuned(state: State) -> Any:
    """Fine-tuned with the mean of the patches, whose norm comes after it."""
    return {"model": renamed(state, (r"^norm\.", "fc_norm."))}


def ics(state: State) -> State:
    stem = {"patch_embed.conv.0.weight": torch.zeros(4, 3, 7, 7), "patch_embed.conv.1.BN.weight": torch.zeros(2)}
    return {**transreid(state), **under("base.", stem)}


def distilled(state: State) -> Any:
    width = state["cls_token"].shape[-1]
    return {"model": {**state, "dist_token": torch.zeros(1, 1, width), "head_dist.weight": torch.zeros(5, width)}}


def jax(state: State) -> dict[str, np.ndarray[Any, Any]]:
    """Google's ViT and AugReg: names of Flax, kernels transposed, heads apart."""
    out = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": torch.zeros(state["norm.bias"].shape[0], 3),
        "head/bias": torch.zeros(3),
    }
    width = len(state["norm.bias"])
    heads = 3 if width == 192 else 2
    for number in sorted({int(name.split(".")[1]) for name in state if name.startswith("blocks.")}):
        block, target = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        for ours, flax in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{target}{flax}/scale"], out[f"{target}{flax}/bias"] = (
                state[f"{block}{ours}.{kind}"] for kind in ("weight", "bias")
            )
        attention = f"{target}MultiHeadDotProductAttention_1/"
        parts = [state[f"{block}attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias")]
        for each, weight, bias in zip(("query", "key", "value"), *parts, strict=True):
            out[f"{attention}{each}/kernel"] = weight.T.reshape(width, heads, -1)
            out[f"{attention}{each}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{target}MlpBlock_3/Dense_{layer}/"
            out[f"{dense}kernel"] = state[f"{block}mlp.fc{layer + 1}.weight"].T
            out[f"{dense}bias"] = state[f"{block}mlp.fc{layer + 1}.bias"]
    return {name: value.numpy() for name, value in out.items()}


def siglip_jax(state: State) -> dict[str, np.ndarray[Any, Any]]:
    """SigLIP of big_vision: two towers in a file, each with positions of its own, and a pool of attention."""
    pool = {name.removeprefix("attn_pool."): value for name, value in state.items() if name.startswith("attn_pool.")}
    width = len(state["norm.bias"])
    vit = jax({"cls_token": torch.zeros(1), **{name: state[name] for name in state if "attn_pool" not in name}})
    out = {name: torch.from_numpy(value) for name, value in vit.items() if not name.startswith(("cls", "head"))}
    out = renamed(
        out,
        ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
        ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
        ("MlpBlock_3", "MlpBlock_0"),
        ("LayerNorm_2", "LayerNorm_1"),
    )
    attention = "MAPHead_0/MultiHeadDotProductAttention_0/"
    parts = {kind: torch.cat([pool[f"q.{kind}"], pool[f"kv.{kind}"]]).chunk(3) for kind in ("weight", "bias")}
    for each, weight, bias in zip(("query", "key", "value"), parts["weight"], parts["bias"], strict=True):
        out[f"{attention}{each}/kernel"] = weight.T.reshape(width, 2, -1)
        out[f"{attention}{each}/bias"] = bias.reshape(2, -1)
    out[f"{attention}out/kernel"] = pool["proj.weight"].T.reshape(2, -1, width)
    out[f"{attention}out/bias"] = pool["proj.bias"]
    out["MAPHead_0/probe"] = pool["latent"]
    out["MAPHead_0/LayerNorm_0/scale"], out["MAPHead_0/LayerNorm_0/bias"] = pool["norm.weight"], pool["norm.bias"]
    for layer in (0, 1):
        out[f"MAPHead_0/MlpBlock_0/Dense_{layer}/kernel"] = pool[f"mlp.fc{layer + 1}.weight"].T
        out[f"MAPHead_0/MlpBlock_0/Dense_{layer}/bias"] = pool[f"mlp.fc{layer + 1}.bias"]
    text = {"pos_embedding": torch.zeros(1, 7, width), "Encoder_0/encoderblock_0/LayerNorm_0/scale": torch.ones(3)}
    return {name: value.numpy() for name, value in {**under("params/img/", out), **under("params/txt/", text)}.items()}


def write(file: WeightFile, state: State, folder: Path) -> Path:
    """The file on disk, its tensors copied."""
    path = folder / f"weights{file.suffix}"
    content = file.build({name: value.detach().clone() for name, value in state.items()})
    if file.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    elif file.suffix == ".npz":
        np.savez(path, **content)
    elif file.suffix == ".pt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(tree(content)).save(str(path))
    else:
        torch.save(content, path)
    return path


def tree(state: Mapping[str, Tensor]) -> nn.Module:
    """Modules that hold the tensors under their dotted names, and compute nothing."""
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(value))
    return root


FILES = (
    WeightFile("timm, `.safetensors`", "everything", dict, suffix=".safetensors"),
    WeightFile("DeiT, `{model: …}`", "FGVC", lambda s: {"model": s, "epoch": 3, "args": {"lr": 0.1}}),
    WeightFile(
        "timm's `train.py`, `{state_dict: …}` and its moving average",
        "own training",
        lambda s: {"state_dict": other(s), "state_dict_ema": s, "args": argparse.Namespace(lr=1)},
        said=r"state_dict_ema\.\* is taken, state_dict\.\* left out",
    ),
    WeightFile(
        "`{model_state_dict: …}`", "own training", lambda s: {"model_state_dict": s, "optimizer_state_dict": {}}
    ),
    WeightFile(
        "`module.` of DDP, `_orig_mod.` of `torch.compile`", "own training", lambda s: under("module._orig_mod.", s)
    ),
    WeightFile(
        "run of DCAL, `vit.*`",
        "own training",
        lambda s: {**under("vit.", s), "head.classifier.weight": torch.zeros(5, 3), "side": torch.zeros(2, 1, 3)},
        said="left out: head, side",
    ),
    WeightFile("DINO, `teacher` and `student`, pickled arguments", "FGVC, own pre-training", dino, said="teacher"),
    WeightFile("iBOT, PersonViT: `masked_embed`", "Re-ID", ibot, said="left out: masked_embed, head"),
    WeightFile("DINOv2 of Meta", "FGVC, animals", dinov2, DINOV2),
    WeightFile("DINOv2 with registers of Meta", "FGVC", dinov2_registers, DINOV2_REG, plain=False),
    WeightFile("DINOv2's training code, chunked blocks", "own pre-training", chunked, DINOV2, said="teacher"),
    WeightFile("DINOv3 of Meta", "FGVC, animals", dinov3, DINOV3, plain=False),
    WeightFile("transformers, ViT", "what most people download", lambda s: under("vit.", hf_vit(s))),
    WeightFile(
        "transformers, DeiT with distillation token",
        "FGVC",
        lambda s: under("deit.", hf_vit(s)),
        "deit_tiny_distilled_patch16_224",
        plain=False,
    ),
    WeightFile("transformers, DINOv2", "FGVC", lambda s: hf_dinov2(dinov2(s)), DINOV2, ".safetensors"),
    WeightFile(
        "transformers, DINOv2 with registers", "FGVC", lambda s: hf_dinov2(dinov2_registers(s)), DINOV2_REG, plain=False
    ),
    WeightFile("transformers, DINOv3", "FGVC, animals", hf_dinov3, DINOV3, ".safetensors", plain=False),
    WeightFile("transformers, CLIP", "Re-ID", hf_clip, CLIP, plain=False),
    WeightFile(
        "transformers, SigLIP and SigLIP 2",
        "retrieval",
        hf_clip,
        SIGLIP,
        ".safetensors",
        plain=False,
    ),
    WeightFile("torchvision", "FGVC", torchvision),
    WeightFile("DeiT-3 of Meta", "FGVC", deit3, "deit3_small_patch16_224", plain=False),
    WeightFile("EVA-02, `{module: …}`", "FGVC", eva02, "eva02_tiny_patch14_224", plain=False),
    WeightFile("BEiT-3", "FGVC", beit3, "beit3_base_patch16_224", plain=False),
    WeightFile("Perception Encoder of Meta", "FGVC, body-ID", perception, "vit_pe_core_tiny_patch16_384", plain=False),
    WeightFile("RADIO", "FGVC, retrieval", radio, RADIO, ".safetensors", plain=False),
    WeightFile(
        "TIPSv2, `vision_encoder.*`",
        "FGVC",
        lambda s: under("vision_encoder.", dinov2_registers(s)),
        "vit_base_patch14_reg1_tipsv2",
        plain=False,
    ),
    WeightFile("AIMv2 of Apple", "FGVC, retrieval", aimv2, "aimv2_large_patch14_224", ".safetensors", plain=False),
    WeightFile(
        "Sapiens2 of Meta",
        "people",
        sapiens2,
        "vit_base_patch16_sapiens2",
        options={"num_kv_heads": (2, 1, 1)},
        plain=False,
    ),
    WeightFile(
        "OpenCLIP with a ViT of timm, `visual.trunk.*`",
        "BioCLIP 2, Re-ID",
        lambda s: {
            **under("visual.trunk.", s),
            "visual.head.proj.weight": torch.zeros(3, 3),
            "text.ln": torch.zeros(3),
        },
    ),
    WeightFile("OpenAI CLIP, state dict", "CLIP-ReID's start", openai, CLIP, plain=False),
    WeightFile("OpenAI CLIP, TorchScript `.pt`", "CLIP-ReID's start", openai, CLIP, ".pt", plain=False),
    WeightFile(
        "CLIP-ReID, `image_encoder.*`", "Re-ID", clip_reid, CLIP, said="cv_embed", warned="cv_embed embeds", plain=False
    ),
    WeightFile("Google's ViT and AugReg, `.npz`", "DCAL's ViT-B, TransFG", jax, suffix=".npz"),
    WeightFile("SigLIP of Google, `.npz`", "retrieval", siglip_jax, SIGLIP, ".npz", plain=False),
    WeightFile("TransReID, `base.*`", "Re-ID", transreid, said="left out: fc, classifier"),
    WeightFile(
        "TransReID with SIE",
        "Re-ID",
        lambda s: transreid(s, sie=True),
        warned="sie_embed embeds the cameras of the file's data set",
    ),
    WeightFile(
        "TransReID-SSL with ICS stem",
        "Re-ID",
        ics,
        refused="a ViT with an ICS stem .*three convolutions.*take the ViT-S or ViT-B",
    ),
    WeightFile(
        "PASS, part tokens", "Re-ID", pass_reid, refused="weights of PASS: it has three part tokens .*PersonViT"
    ),
    WeightFile("MAE, encoder", "FGVC", lambda s: {"model": s}),
    WeightFile("MAE, encoder and decoder", "FGVC", mae, said="left out: decoder_embed"),
    WeightFile("MAE, fine-tuned", "FGVC", mae_tuned, said="fc_norm is taken for norm"),
    WeightFile(
        "DeiT, distilled, for the plain model",
        "",
        distilled,
        refused="weights of a distilled model.*dist_token.*choose",
    ),
    WeightFile(
        "Swin (SOLIDER, MegaDescriptor)",
        "Re-ID, animals",
        lambda s: {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(9, 3), **s},
        refused="weights of Swin: its attention is of another kind",
    ),
    WeightFile(
        "BEiT",
        "FGVC",
        lambda s: {"model": {**s, "blocks.0.attn.relative_position_bias_table": torch.zeros(9, 3)}},
        refused="weights of BEiT: its attention is of another kind",
    ),
    WeightFile(
        "CaiT", "FGVC", lambda s: {**s, "blocks_token_only.0.attn.q.weight": torch.zeros(3)}, refused="weights of CaiT"
    ),
    WeightFile(
        "ConvNeXt",
        "FGVC",
        lambda s: {"model": {"stages.0.0.dwconv.weight": torch.zeros(3, 1, 7, 7)}},
        refused="weights of ConvNeXt",
    ),
)
BY_TITLE = {file.title: file for file in FILES}
