"""DCAL against its literal definition and against the identities that hold exactly, for every supported family."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from reference import LiteralDCAL
from tiny import MEMBERS, images_for, scramble, tiny_model, tiny_vit
from torch import Tensor, nn

from dcal.attention.pairing import Partners
from dcal.attention.pwca import STREAMS
from dcal.bench import measure
from dcal.create import create_dcal_model
from dcal.loss import UncertaintyLoss
from dcal.model import DCAL
from dcal.output import Output
from dcal.utils.errors import UserError

DEIT = "deit_tiny_patch16_224"
DINO = "vit_small_patch16_dinov3"
LABELS = torch.tensor([0, 3, 1])
NEXT = Partners(torch.tensor([1, 2, 0]))


def assert_close(actual: Tensor | None, expected: Tensor | None, tolerance: float, what: str = "") -> None:
    """Largest difference, relative to the largest entry."""
    assert actual is not None and expected is not None
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= tolerance, f"{what}: relative error {error:.1e}"


def loss_and_gradients(model: nn.Module, out: Output) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of the branches, and its gradient for every parameter of `model`."""
    logits = out.logits()
    weighting = UncertaintyLoss(tuple(logits)).double()
    total = weighting({name: F.cross_entropy(value, LABELS) for name, value in logits.items()})
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return total, {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


def both(model: DCAL, images: Tensor, partners: Partners | None) -> tuple[Output, Output]:
    """The fast path's and the definition's output, from the same random numbers (noise partners, jittered RoPE)."""
    torch.manual_seed(5)
    fast = model(images, partners=partners)
    torch.manual_seed(5)
    return fast, LiteralDCAL(model)(images, partners)


def assert_same_step(model: DCAL, fast: Output, slow: Output, tolerance: float = 1e-9) -> None:
    """Outputs, selection, loss and every parameter's gradient agree."""
    for name, value in fast.logits().items():
        assert_close(value, slow.logits()[name], tolerance, name)
    if fast.selected is not None and slow.selected is not None:
        assert torch.equal(fast.selected.sort().values, slow.selected.sort().values)
    loss, gradients = loss_and_gradients(model, fast)
    loss_slow, gradients_slow = loss_and_gradients(model, slow)
    assert_close(loss, loss_slow, tolerance, "loss")
    # a key's bias shifts all scores of a row alike: its gradient is 0 but for rounding, so compare on a
    # common scale
    largest = max(g.abs().max().item() for g in gradients_slow.values())
    assert gradients.keys() == gradients_slow.keys()
    for name, gradient in gradients.items():
        error = (gradient - gradients_slow[name]).abs().max().item()
        scale = max(gradients_slow[name].abs().max().item(), 1e-6 * largest)
        assert error <= tolerance * scale, f"{name}: relative error {error / scale:.1e}"


# --- parity with the literal reference
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("member", MEMBERS)
def test_agrees_with_the_literal_definition(member: str, stream: str) -> None:
    model = tiny_model(member, pwca={"stream": stream}).train()
    images = images_for(member)
    assert_same_step(model, *both(model, images, NEXT))
    model.eval()
    assert_close(model(images).glca, LiteralDCAL(model)(images).glca, 1e-9)


POOLED = ("test_vit3", "test_vit2")
"""Read by an attention pool over registers and patches, and by the mean of the patches behind a register."""
VARIANTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "two blocks of GLCA": {"glca": {"blocks": 2}},
    "PWCA in the last block only": {"pwca": {"blocks": 1}},
    "PWCA in one block in the middle": {"pwca": {"blocks": [2]}},
    "PWCA in blocks with a gap, both branches deep": {"pwca": {"blocks": [1, 3]}, "glca": {"blocks": 2}},
    "PWCA in the last two, both branches deep": {"pwca": {"blocks": 2}, "glca": {"blocks": 2}},
    "last block's attention": {"glca": {"selection": "last"}},
    "mean readout": {"glca": {"readout": "mean"}},
    "cls readout": {"glca": {"readout": "cls"}},
    "no GLCA": {"glca": {"blocks": 0}},
    "no PWCA": {"pwca": {"blocks": 0}},
}


@pytest.mark.parametrize(
    ("variant", "stream"),
    [(name, stream) for name in VARIANTS for stream in (STREAMS if "pwca" in VARIANTS[name] else ("clean",))],
)
@pytest.mark.parametrize("member", ["deit_tiny_distilled_patch16_224", "vit_small_patch16_rope_mixed_224", *POOLED])
def test_variants_agree_with_the_literal_definition(member: str, variant: str, stream: str) -> None:
    options = VARIANTS[variant]
    model = tiny_model(
        member, options.get("glca"), {**options.get("pwca", {}), "stream": stream}, vit={"depth": 4}
    ).train()
    partners = NEXT if model.pwca_blocks else None
    assert_same_step(model, *both(model, images_for(member), partners))


@pytest.mark.parametrize("fusion", ["max", "min"])
@pytest.mark.parametrize("member", [DEIT, *POOLED])
def test_head_fusions_agree_with_the_literal_definition(member: str, fusion: str) -> None:
    model = tiny_model(member, head_fusion=fusion).train()
    assert_same_step(model, *both(model, images_for(member), NEXT))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("blocks", [3, 1, [1, 2]])
def test_noise_partners_agree_with_the_literal_definition(stream: str, blocks: Any) -> None:
    model = tiny_model(pwca={"stream": stream, "pairing": "gaussian", "blocks": blocks}).train()
    images = images_for(DEIT)
    partners = model.draw_partners(images)
    assert partners is not None and partners.noise
    assert_same_step(model, *both(model, images, partners))


# --- identities
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("member", MEMBERS)
def test_attending_to_oneself_changes_nothing(member: str, stream: str) -> None:
    model = tiny_model(member, pwca={"stream": stream, "pairing": "none"}).train()
    out = model(images_for(member))
    assert_close(out.pwca, out.sa, 1e-10)


@pytest.mark.parametrize("member", MEMBERS)
def test_glca_with_all_patches_and_copied_weights_is_the_last_block(member: str) -> None:
    model = tiny_model(member, glca={"top_ratio": 1.0, "readout": "cls"}).eval()
    features = model(images_for(member)).features
    assert_close(features.glca, features.sa, 1e-10)
    # `selection: all` is the same thing said differently
    model = tiny_model(member, glca={"selection": "all", "readout": "mean"}).eval()
    images = images_for(member)
    tokens, features = plain_tokens(model, images), model(images).features
    if model.pooling.kind == "token":
        assert_close(features.glca, tokens[:, model.prefix :].mean(1), 1e-10)
        assert_close(features.sa, tokens[:, 0], 1e-10)
    else:  # as timm reads the model itself
        assert_close(features.sa, model.vit(images), 1e-10)
        same = (features.glca - features.sa).abs().max() < 1e-10
        assert same == (model.pooling.kind == "mean")  # equal weights are not those of the pool's query


def plain_tokens(model: DCAL, images: Tensor) -> Tensor:
    """What the plain timm forward gives before pooling, normalised."""
    tokens = model.vit.forward_features(images)
    return model.vit.fc_norm(tokens) if isinstance(model.vit.norm, nn.Identity) else tokens


@pytest.mark.parametrize("stream", STREAMS)
def test_the_selection_matters_to_every_readout_but_cls(stream: str) -> None:
    for readout, moves in (("cls", False), ("mean", True), ("cls_mean", True)):
        features = []
        for selection in ("rollout", "all"):
            model = tiny_model(glca={"readout": readout, "selection": selection, "blocks": 2}, pwca={"stream": stream})
            features.append(model.eval()(images_for(DEIT)).features.glca)
        if moves:
            assert (features[0] - features[1]).abs().max() > 1e-3
        else:
            assert_close(features[0], features[1], 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("member", MEMBERS)
def test_identities_in_low_precision(member: str, stream: str, dtype: torch.dtype, tolerance: float) -> None:
    options = {"glca": {"top_ratio": 1.0, "readout": "cls"}, "pwca": {"stream": stream, "pairing": "none"}}
    model = tiny_model(member, **options, dtype=torch.float32).train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(images_for(member, dtype=torch.float32))
    assert_close(out.features.pwca, out.features.sa, tolerance)
    assert_close(out.features.glca, out.features.sa, tolerance)


def test_pwca_adds_no_parameter_and_no_inference_work() -> None:
    with_pwca, without = tiny_model(), tiny_model(pwca={"blocks": 0})
    assert with_pwca.state_dict().keys() == without.state_dict().keys()
    images = images_for(DEIT).to("meta")
    counts = [measure.flops(lambda model=model: model.to("meta").eval()(images)) for model in (with_pwca, without)]
    assert counts[0] == counts[1] > 0
    assert tiny_model().eval()(images_for(DEIT)).pwca is None


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("blocks", [3, 2, 1])
def test_the_loss_of_pwca_alone_reaches_the_first_block(stream: str, blocks: int) -> None:
    model = tiny_model(pwca={"stream": stream, "blocks": blocks}).train()
    out = model(images_for(DEIT), partners=NEXT)
    F.cross_entropy(out.pwca, LABELS).backward()
    for block in model.vit.blocks:
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in model.glca.parameters())


@pytest.mark.parametrize("stream", STREAMS)
def test_the_partner_matters_at_every_depth(stream: str) -> None:
    """Trap 3: neither overwritten by the backbone's stream at each block, nor frozen at the first block's features."""
    images = images_for(DEIT)
    outs = {}
    for blocks in (0, 1, 2, 3):
        model = tiny_model(pwca={"stream": stream, "blocks": blocks}).train()
        out = model(images, partners=NEXT if blocks else None)
        outs[blocks] = out.sa if out.pwca is None else out.pwca
    for more in (1, 2, 3):
        assert (outs[more] - outs[more - 1]).abs().max() > 1e-3


@pytest.mark.parametrize("stream", STREAMS)
def test_the_backbone_is_not_disturbed_by_the_branches(stream: str) -> None:
    model = tiny_model(pwca={"stream": stream}).train()
    plain = tiny_model(glca={"blocks": 0}, pwca={"blocks": 0}).train()
    out = model(images_for(DEIT), partners=NEXT)
    assert_close(out.features.sa, plain(images_for(DEIT)).features.sa, 1e-12)
    F.cross_entropy(out.sa, LABELS).backward()
    assert all(parameter.grad is None for parameter in model.glca.parameters())


def test_construction_leaves_the_backbone_as_it_came() -> None:
    vit = tiny_vit(DEIT)
    scramble(vit)
    before = copy.deepcopy(vit.state_dict())
    for init in ("copy", "fresh"):
        model = DCAL(vit, 5, glca={"blocks": 2, "init": init, "top_ratio": 0.3}, pwca={"blocks": 3})
        assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
        same = [
            torch.equal(ours, theirs)
            for ours, theirs in zip(model.glca.blocks.parameters(), vit.blocks[-2:].parameters(), strict=True)
        ]
        assert all(same) if init == "copy" else not any(same)
        assert not {p.data_ptr() for p in model.glca.parameters()} & {p.data_ptr() for p in vit.parameters()}


@pytest.mark.parametrize("member", MEMBERS)
def test_fresh_glca_blocks_run_and_are_no_copies(member: str) -> None:
    model = DCAL(tiny_vit(member), 5, glca={"blocks": 1, "init": "fresh", "top_ratio": 0.3}).double().train()
    out = model(images_for(member))
    assert out.glca is not None and out.glca.isfinite().all()
    out.glca.sum().backward()


# --- how it runs
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("member", [DEIT, DINO, "vit_small_patch16_rope_mixed_224"])
def test_activation_checkpointing_gives_the_same_gradients(member: str, stream: str) -> None:
    model = tiny_model(member, glca={"blocks": 2}, pwca={"stream": stream}).train()
    results = []
    for on in (False, True):
        model.activation_checkpointing = on
        results.append(loss_and_gradients(model, model(images_for(member), partners=NEXT)))
    assert_close(results[1][0], results[0][0], 1e-12)
    assert results[0][1].keys() == results[1][1].keys()
    largest = max(g.abs().max().item() for g in results[0][1].values())
    for name, gradient in results[0][1].items():
        assert (results[1][1][name] - gradient).abs().max() <= 1e-12 * largest, name


def test_activation_checkpointing_saves_memory() -> None:
    model = tiny_model(vit={"depth": 6}).train()
    saved = []
    for on in (False, True):
        model.activation_checkpointing = on
        step = lambda: model(images_for(DEIT), partners=NEXT)  # noqa: E731
        saved.append(measure.saved_bytes(step, model.parameters()))
    assert saved[1] < 0.6 * saved[0]


@pytest.mark.parametrize("member", MEMBERS)
def test_autocast_gives_float32_gradients_and_nearby_features(member: str) -> None:
    model = tiny_model(member, dtype=torch.float32).train()
    images = images_for(member, dtype=torch.float32)
    torch.manual_seed(5)  # Sapiens2 jitters its RoPE in training
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, partners=NEXT)
        total = sum(F.cross_entropy(value.float(), LABELS) for value in out.logits().values())
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    torch.manual_seed(5)
    full = model(images, partners=NEXT)
    for name, value in full.features._asdict().items():
        if name != "glca" or torch.equal(out.selected.sort().values, full.selected.sort().values):
            assert_close(getattr(out.features, name).float(), value, 0.1, name)


@pytest.mark.parametrize("member", [DEIT, DINO, *POOLED])
def test_evaluation_compiles_in_one_graph(member: str) -> None:
    model = tiny_model(member, dtype=torch.float32).eval()
    images = images_for(member, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_same_outputs(compiled(images), model(images), 1e-5)


@pytest.mark.parametrize("stream", STREAMS)
def test_training_compiles_in_one_graph_when_the_partners_are_given(stream: str) -> None:
    model = tiny_model(pwca={"stream": stream}, vit={"depth": 2}, dtype=torch.float32).train()
    images = images_for(DEIT, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    fast, slow = compiled(images, partners=NEXT), model(images, partners=NEXT)
    assert_same_outputs(fast, slow, 1e-5)
    gradients = [
        torch.autograd.grad(out.pwca.sum() + out.glca.sum(), list(model.vit.blocks.parameters()))
        for out in (fast, slow)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * max(theirs.abs().max().item(), 1e-2)


BRANCHES = {"plain": (0, 0), "GLCA": (1, 0), "PWCA": (0, None), "DCAL": (1, None)}
"""Blocks of GLCA and of PWCA (None: all)."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("glca", "pwca"), BRANCHES.values(), ids=list(BRANCHES))
def test_training_and_evaluation_compile_in_one_graph_under_autocast_too(
    glca: int, pwca: int | None, precision: str
) -> None:
    model = tiny_model(glca={"blocks": glca}, pwca={"blocks": pwca}, vit={"depth": 2}, dtype=torch.float32)
    images, half = images_for(DEIT, dtype=torch.float32), precision == "bfloat16"
    for training in (True, False):
        partners = NEXT if training and pwca is None else None
        torch._dynamo.reset()
        compiled = torch.compile(model.train(training), backend="aot_eager", fullgraph=True)
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=half):
            fast, slow = compiled(images, partners=partners), model(images, partners=partners)
        assert fast.logits().keys() == slow.logits().keys()
        for name, value in fast.logits().items():
            if name != "glca" or torch.equal(fast.selected.sort().values, slow.selected.sort().values):
                assert_close(value.float(), slow.logits()[name].float(), 0.1 if half else 1e-5, name)
        if training:
            torch.stack([value.float().sum() for value in fast.logits().values()]).sum().backward()
            gradients = [parameter.grad for parameter in model.vit.blocks.parameters()]
            assert all(grad is not None and grad.isfinite().all() for grad in gradients)


def assert_same_outputs(actual: Output, expected: Output, tolerance: float) -> None:
    assert actual.logits().keys() == expected.logits().keys()
    for name, value in actual.logits().items():
        assert_close(value, expected.logits()[name], tolerance, name)


@pytest.mark.parametrize("member", [DEIT, "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", DINO, *POOLED])
def test_the_evaluation_graph_exports(member: str) -> None:
    model = tiny_model(member, vit={"depth": 2}, dtype=torch.float32).eval()
    images = images_for(member, dtype=torch.float32)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).probabilities

    program = torch.export.export(Logits().eval(), (images,))
    kept = io.BytesIO()
    torch.export.save(program, kept)
    kept.seek(0)
    loaded = torch.export.load(kept).module()
    with torch.no_grad():
        assert_close(loaded(images), model(images).probabilities, 1e-5)
    assert "for_cpu" not in str(program.graph)  # nothing of this machine in it


def test_two_forwards_do_not_add_up() -> None:
    """Trap 1: nothing of one forward pass is left for the next."""
    model = tiny_model().eval()
    first, again = model(images_for(DEIT)), model(images_for(DEIT))
    assert torch.equal(first.glca, again.glca) and torch.equal(first.selected, again.selected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_attention_map_is_kept_for_the_backward_pass() -> None:
    """Trap 12: maps kept with their graph cost hundreds of megabytes."""
    model = tiny_model(vit={"depth": 2}, dtype=torch.float32).train()
    images = torch.randn(2, 3, 64, 48)
    shapes: set[tuple[int, ...]] = set()
    tokens = 13

    def pack(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images, partners=Partners(torch.tensor([1, 0])))
    assert not [shape for shape in shapes if shape[-2:] in {(tokens, tokens), (tokens, 2 * tokens)}]


def test_drop_path_and_dropout_run_in_training() -> None:
    model = tiny_model(vit={"drop_path_rate": 0.3, "attn_drop_rate": 0.2, "proj_drop_rate": 0.1}).train()
    for stream in STREAMS:
        model.pwca.stream = stream
        out = model(images_for(DEIT))
        sum(value.sum() for value in out.logits().values()).backward()
    model.eval()
    assert torch.equal(model(images_for(DEIT)).sa, model(images_for(DEIT)).sa)


def test_output_joins_the_branches() -> None:
    out = tiny_model().eval()(images_for(DEIT))
    expected = (out.sa.softmax(-1) + out.glca.softmax(-1)) / 2
    assert_close(out.probabilities.double(), expected, 1e-6)
    assert torch.allclose(out.embedding.norm(dim=1), torch.ones(3))
    halves = out.embedding.unflatten(1, (2, -1)).norm(dim=2)
    assert torch.allclose(halves, torch.full((3, 2), 0.5**0.5))
    # one branch: its own softmax and feature
    out = tiny_model(glca={"blocks": 0}).eval()(images_for(DEIT))
    assert_close(out.probabilities.double(), out.sa.softmax(-1), 1e-6)
    assert out.glca is None and out.selected is None and out.embedding.shape == (3, 32)


def test_side_information_reaches_every_branch() -> None:
    model = tiny_model(side_information=4, bnneck=True).train()
    with torch.no_grad():
        model.side.copy_(torch.randn_like(model.side))
    images, side = images_for(DEIT), torch.tensor([0, 1, 2])
    outs = [model(images, partners=NEXT, side=value) for value in (side, side + 1)]
    for first, second in zip(outs[0].features, outs[1].features, strict=True):
        assert (first - second).abs().max() > 1e-3


def test_branches_and_new_parameters() -> None:
    model = tiny_model()
    assert model.branches == ("sa", "glca", "pwca")
    assert tiny_model(glca={"blocks": 0}, pwca={"blocks": 0}).branches == ("sa",)
    backbone = {f"vit.{name}" for name, _ in model.vit.named_parameters()}
    fresh = tiny_model(glca={"blocks": 1, "init": "fresh"})
    assert fresh.new_parameters == {name for name, _ in model.named_parameters()} - backbone
    assert {name.split(".")[0] for name in fresh.new_parameters} == {"head", "glca", "glca_head"}
    # a copy of pre-trained blocks is not new: ten times the learning rate would wipe what it knows
    assert {name.split(".")[0] for name in model.new_parameters} == {"head", "glca_head"}


def test_partners_are_drawn_where_they_are_needed() -> None:
    model, images = tiny_model(), images_for(DEIT)
    partners = model.draw_partners(images)
    assert partners is not None and not (partners.index_B == torch.arange(3)).any()
    assert tiny_model(pwca={"blocks": 0}).draw_partners(images) is None
    with pytest.raises(UserError, match=r"at least 2 images.*train.batch_size"):
        model.train()(images[:1])
    model.eval()(images[:1])  # inference has no partners
    hardest = tiny_model(pwca={"pairing": "hardest"}).train()
    with pytest.raises(ValueError, match=r"attention.pwca.pairing=hardest needs the labels"):
        hardest(images)
    drawn = hardest.draw_partners(images, LABELS)
    features = F.normalize(hardest(images, partners=NEXT).features.sa, dim=1)
    similarity = (features @ features.T).fill_diagonal_(-2)
    assert torch.equal(drawn.index_B, similarity.argmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"glca": {"blocks": 3}}, r"attention.glca.blocks=3: .* 0 to 2"),
        ({"pwca": {"blocks": 4}}, r"attention.pwca.blocks=4: .* 0 to 3"),
        ({"pwca": {"stream": "muddy"}}, r"attention.pwca.stream='muddy'"),
        ({"pwca": {"pairing": "odd"}}, r"attention.pwca.pairing='odd'"),
        ({"pwca": {"speed": 3}}, r"^pwca has no option 'speed'"),
        ({"glca": {"selection": "best"}}, r"attention.glca.selection='best'"),
        ({"glca": {"readout": "max"}}, r"attention.glca.readout='max'"),
        ({"glca": {"init": "zero"}}, r"attention.glca.init='zero'"),
        ({"glca": {"top_ratio": 0.0}}, r"attention.glca.top_ratio=0.0"),
        ({"head_fusion": "sum"}, r"attention.head_fusion='sum'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_model(**options)


def test_create_dcal_model_takes_its_options_as_keywords() -> None:
    model = create_dcal_model(
        "test_vit", 7, (64, 32), 0.3, "dcal", glca_blocks=2, pwca_blocks=1, stream="figure", selection="last"
    )
    assert (model.glca_blocks, model.pwca_blocks, model.pwca.stream) == (2, (model.depth - 1,), "figure")
    assert model.glca.selection == "last" and model.eval()(torch.randn(1, 3, 64, 32)).sa.shape == (1, 7)
    assert create_dcal_model("test_vit", 7, (64, 32), attention="none").branches == ("sa",)
    assert create_dcal_model("test_vit", 7, (64, 32), attention="glca").branches == ("sa", "glca")
    assert create_dcal_model("test_vit", 7, (64, 32), attention="pwca").branches == ("sa", "pwca")
    with pytest.raises(UserError, match="attention='both'"):
        create_dcal_model("test_vit", 7, (64, 32), attention="both")
    with pytest.raises(UserError, match="no option 'reedout': did you mean readout"):
        create_dcal_model("test_vit", 7, (64, 32), reedout="cls")
    with pytest.raises(UserError, match=r"^glca has no option 'top_ration': did you mean top_ratio"):
        tiny_model(glca={"top_ration": 0.1})
    with pytest.raises(UserError, match=r"^stream='muddy'"):
        create_dcal_model("test_vit", 7, (64, 32), attention="glca", stream="muddy")


def test_a_plain_timm_model_with_fused_attention_switched_off_works() -> None:
    vit = timm.create_model("test_vit", num_classes=0, img_size=64)
    for block in vit.blocks:
        block.attn.fused_attn = False
    model = DCAL(vit, 5, glca={"blocks": 1, "top_ratio": 0.3}, pwca={"blocks": None}).train()
    out = model(torch.randn(2, 3, 64, 64))
    assert out.pwca is not None and out.glca is not None
