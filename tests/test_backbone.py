"""Backbones at any size, and weights from files of every layout; what cannot be loaded says why and what to do."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import MEMBERS, SMALL, image_size, images_for, scramble, tiny_vit
from torch import Tensor, nn

from dcal.attention.support import REASONS, UnsupportedBackbone, check_supported
from dcal.backbone import create_backbone, embed, final_norm, normalisation, portable
from dcal.model import DCAL
from dcal.utils.errors import UserError
from dcal.weights.files import CheckpointError
from dcal.weights.load import load_weights

DEIT = "deit_tiny_patch16_224"


def plain(size: tuple[int, int] = (64, 64), name: str = DEIT, **options: object) -> nn.Module:
    """A timm model with its own classifier, every weight drawn."""
    vit = timm.create_model(name, img_size=size, num_classes=11, **{**SMALL, **options})
    scramble(vit)
    return vit


def small(size: tuple[int, int] = (64, 64), checkpoint: Path | None = None, name: str = DEIT) -> nn.Module:
    return create_backbone(name, size, checkpoint=checkpoint, kwargs=SMALL)


@pytest.mark.parametrize("member", MEMBERS)
def test_any_family_at_a_size_that_is_not_square(member: str) -> None:
    vit = tiny_vit(member).double().eval()
    images = images_for(member)
    tokens, ropes = embed(vit, images)
    assert tokens.shape == (3, vit.num_prefix_tokens + 12, 32) and len(ropes) == 3
    # the tokens that timm's own forward hands to its first block
    seen: list[Tensor] = []
    handle = vit.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    features = vit.forward_features(images)
    handle.remove()
    torch.testing.assert_close(tokens, seen[0])
    assert vit(images).shape == (3, 32)  # no classifier
    assert final_norm(vit)(features).shape == features.shape


@pytest.mark.parametrize(("stride", "grid"), [(12, (21, 10)), (16, (16, 8)), (8, (31, 15))])
def test_overlapping_patches(stride: int, grid: tuple[int, int]) -> None:
    """Trap 7: 256 × 128 with TransReID's stride of 12 gives 21 × 10 patches."""
    vit = create_backbone(DEIT, (256, 128), patch_stride=stride, kwargs=SMALL)
    assert vit.patch_embed.grid_size == grid
    tokens, _ = embed(vit, torch.randn(1, 3, 256, 128))
    assert tokens.shape[1] == 1 + grid[0] * grid[1]
    model = DCAL(vit, 5, glca={"blocks": 1}, pwca={"blocks": None}).eval()
    assert model(torch.randn(2, 3, 256, 128)).selected.max() < grid[0] * grid[1]
    with pytest.raises(UserError, match="patch_stride needs a plain patch projection"):
        create_backbone("vit_tiny_r_s16_p8_224", (64, 64), patch_stride=4, kwargs=SMALL)


def test_drop_path_grows_over_the_blocks() -> None:
    vit = create_backbone(DEIT, (64, 64), drop_path_rate=0.2, kwargs=SMALL)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "deit_tinny_patch16_224",
            (64, 64),
            r"backbone.name='deit_tinny_patch16_224' .* near it: deit_tiny_patch16_224",
        ),
        ("resnet18", (64, 64), "resnet18.*not a Vision Transformer"),
        (
            DEIT,
            (60, 64),
            r"dataset.image_size=\[60,64\] is not a multiple of the 16x16 patches of deit_tiny.*; near it: \[64,64\]",
        ),
        ("vit_tiny_r_s16_p8_224", (64, 80), r"\[64,80\] is not a multiple of the 32x32 patches"),
    ],
)
def test_what_cannot_be_built_says_so(name: str, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(name, size)


@pytest.mark.parametrize("size", [8, 0, -16])
@pytest.mark.parametrize("stride", [None, 12])
def test_an_image_holds_a_patch(size: int, stride: int | None) -> None:
    with pytest.raises(UserError, match=r"image_size=\[64,-?\d+\] is smaller than the 16x16 .*; near it: \[64,16\]"):
        create_backbone(DEIT, (64, size), patch_stride=stride)


@pytest.mark.parametrize(
    "option", [{"drop_path_rate": 1.0}, {"drop_path_rate": -0.1}, {"patch_stride": 0}, {"patch_stride": 1.5}]
)
def test_an_option_out_of_its_range_is_named(option: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"^backbone\.{next(iter(option))}="):
        create_backbone(DEIT, (64, 64), kwargs=SMALL, **option)


# --- which models are supported
# ---------------------------------------------------------------------------------------

REFUSED = {
    "beit_base_patch16_224": "Beit is not supported: its attention adds a position bias",
    "cait_xxs24_224": "Cait is not supported: its talking-heads",
    "samvit_base_patch16_224": "VisionTransformerSAM is not supported: it attends in windows",
    "hiera_tiny_224": "Hiera is not supported: its resolution changes",
    "swin_tiny_patch4_window7_224": "SwinTransformer is not supported: it attends in windows",
    "swinv2_tiny_window8_256": "SwinTransformerV2 is not supported",
    "xcit_nano_12_p16_224": "Xcit is not supported: it attends over channels",
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos is not supported",
    "vit_dwee_patch16_reg1_gap_256": "its DiffAttention is not plain softmax attention",
    "vit_small_patch16_18x2_224": "its ParallelThingsBlock is not a pre-norm block",
    "vit_base_patch16_xp_224": "its ParallelScalingBlock is not a pre-norm block",
    "eva02_enormous_patch14_clip_224": "its EvaBlockPostNorm is not a pre-norm block",
    "naflexvit_base_patch16_map": "NaFlexVit is not supported: it packs patches of images of any shape",
    "convnext_atto": "none of timm's plain Vision Transformer classes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_at_construction_with_the_reason(name: str) -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name)
    with pytest.raises(UnsupportedBackbone, match=REFUSED[name]) as error:
        check_supported(model)
    assert "Supported are" in str(error.value)


def test_every_reason_belongs_to_a_class_of_timm() -> None:
    seen = {name.split(" is not")[0] for name in REFUSED.values()}
    assert set(REASONS) == seen & set(REASONS)


def test_dcal_refuses_too() -> None:
    with pytest.raises(UnsupportedBackbone, match="pools its tokens by 'max'"):
        DCAL(timm.create_model("test_vit2", global_pool="max"), 5)
    with pytest.raises(UnsupportedBackbone, match="pools its tokens by 'prr'"):
        create_backbone("test_vit", (64, 64), kwargs={"global_pool": "prr"})
    with pytest.raises(UnsupportedBackbone, match="Cait"):
        create_backbone("cait_xxs24_224", (224, 224))


# --- weights
# -----------------------------------------------------------------------------------------------------------


def save_pth(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def test_distilled_weights_and_their_two_heads(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    source = plain(name=name)
    assert "head_dist.weight" in source.state_dict()
    path = save_pth({"model": source.state_dict()}, tmp_path / "weights.pth")
    vit = small(checkpoint=path, name=name)
    assert torch.equal(vit.dist_token, source.dist_token) and torch.equal(vit.pos_embed, source.pos_embed)
    with pytest.raises(CheckpointError, match="weights of a distilled model"):
        small(checkpoint=path)  # a distilled file for the plain model


@pytest.mark.parametrize(
    ("source_size", "target_size"),
    [
        ((64, 64), (96, 48)),
        ((256, 128), (128, 64)),
        ((128, 64), (256, 128)),
        ((96, 128), (192, 240)),
        ((64, 64), (64, 64)),
    ],
)
@pytest.mark.parametrize("name", [DEIT, "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_position_embeddings_are_resampled_from_any_grid(
    name: str, source_size: tuple[int, int], target_size: tuple[int, int], tmp_path: Path
) -> None:
    """Trap 7: also from a grid that is not square. Embeddings linear in the coordinates stay so."""
    source, prefix = plain(source_size, name), small(target_size, name=name).num_prefix_tokens
    prefix = 0 if getattr(source, "no_embed_class", False) else prefix
    rows, columns = source.patch_embed.grid_size
    down = torch.linspace(-1, 1, rows).view(-1, 1, 1).expand(-1, columns, 1)
    right = torch.linspace(-1, 1, columns).view(1, -1, 1).expand(rows, -1, 1)
    with torch.no_grad():
        source.pos_embed[0, prefix:] = torch.cat([down, right], -1).flatten(0, 1).repeat(1, 16)
    vit = small(target_size, save_pth(source.state_dict(), tmp_path / "weights.pth"), name)
    torch.testing.assert_close(vit.pos_embed[0, :prefix], source.pos_embed[0, :prefix])
    grid = vit.pos_embed[0, prefix:, :2].unflatten(0, vit.patch_embed.grid_size).detach()
    middle = grid[
        grid.shape[0] // 4 : -(grid.shape[0] // 4) or None, grid.shape[1] // 4 : -(grid.shape[1] // 4) or None
    ]
    assert middle[..., 0].std(1).max() < 1e-5 and middle[..., 1].std(0).max() < 1e-5
    assert (grid[1:, :, 0] > grid[:-1, :, 0] - 1e-5).all() and (grid[:, 1:, 1] > grid[:, :-1, 1] - 1e-5).all()
    assert grid[0, 0].max() < -0.5 and grid[-1, -1].min() > 0.5


def test_a_grid_that_cannot_be_guessed_is_an_error(tmp_path: Path) -> None:
    path = save_pth(plain((256, 32)).state_dict(), tmp_path / "weights.pth")  # 16 × 2 patches
    with pytest.raises(CheckpointError, match="32 position embeddings, which fit no grid of about 16 x 16"):
        small((256, 256), path)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = save_pth(plain(embed_dim=64).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        CheckpointError, match=r"wide.pth: .*wrong shape: cls_token \(1, 1, 64\) instead of \(1, 1, 32\)"
    ):
        small(checkpoint=path)
    path = save_pth(plain(depth=4).state_dict(), tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=r"not in the model: blocks.3.* …; .*choose the matching backbone"):
        small(checkpoint=path)
    path = save_pth(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="no Vision Transformer is in it; it begins with conv1"):
        small(checkpoint=path)
    with pytest.raises(CheckpointError):
        create_backbone("vit_small_patch16_dinov3", (64, 64), checkpoint=path, kwargs=SMALL)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        small(checkpoint=tmp_path / "absent.pth")
    save_file(plain().state_dict(), tmp_path / "whole.safetensors")
    torch.save(plain().state_dict(), tmp_path / "whole.pth")
    for suffix in ("safetensors", "pth"):
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        torn = tmp_path / f"torn.{suffix}"
        torn.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=rf"torn.{suffix} cannot be read as weights"):
            small(checkpoint=torn)
    for content in ([1, 2], {"model": {}}, {"epoch": 3}):
        with pytest.raises(CheckpointError, match="holds no weights"):
            small(checkpoint=save_pth(content, tmp_path / "empty.pth"))


class Unusual(Exception):
    """What an HTTP library might raise."""


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), RuntimeError("no weights"), Unusual("connection refused")]
)
def test_pretrained_without_internet_names_the_way_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise error
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=rf"could not be fetched \({error}\).*backbone.checkpoint=PATH"):
        create_backbone(DEIT, (64, 64), pretrained=True)


def test_sources_of_weights_that_contradict_or_are_empty() -> None:
    with pytest.raises(UserError, match="choose one source of weights"):
        create_backbone(DEIT, (64, 64), pretrained=True, checkpoint="weights.pth")
    with pytest.raises(UserError, match=r"backbone\.checkpoint is empty, as after a shell variable that is not set"):
        create_backbone(DEIT, (64, 64), checkpoint="")


# --- models that timm has saved
# ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as `timm.models.save_for_hf` writes it, the hub's own form."""
    vit = plain()
    timm.models.save_for_hf(vit, tmp_path / "saved", model_args={**SMALL, "img_size": (64, 64)})
    return tmp_path / "saved"


def test_a_folder_of_timm_gives_the_architecture_and_the_weights(saved: Path) -> None:
    fresh = create_backbone(f"local-dir:{saved}", (64, 96))
    assert len(fresh.blocks) == 3 and fresh.patch_embed.grid_size == (4, 6)
    vit = create_backbone(f"local-dir:{saved}", (64, 64), pretrained=True)
    expected = plain().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in vit.state_dict().items())
    assert not torch.equal(fresh.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


def test_a_saved_model_is_built_again_without_its_folder(saved: Path) -> None:
    """As an exported model has to be: by the architecture in timm, and the normalisation that its weights want."""
    config = json.loads((saved / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (saved / "config.json").write_text(json.dumps(config))
    name = f"local-dir:{saved}"
    vit = create_backbone(name, (64, 96), kwargs={"drop_rate": 0.1})
    shutil.rmtree(saved)
    name, kwargs = portable(vit, name, {"drop_rate": 0.1})
    again = create_backbone(name, (64, 96), kwargs=json.loads(json.dumps(kwargs)))
    assert (name, kwargs["drop_rate"], again.head_drop.p) == (DEIT, 0.1, 0.1)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in vit.state_dict().items()
    }
    assert normalisation(again) == normalisation(vit) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert portable(again, DEIT, {"depth": 3}) == (DEIT, {"depth": 3})


def test_a_model_of_the_hub_is_taken_from_its_cache_without_internet(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the layout of the hub's client, which is asked once whether there is a connection."""
    folder = tmp_path / "hub" / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, folder / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked: list[str] = []
    monkeypatch.setattr("dcal.weights.hub.get_session", lambda: Offline(asked))
    vit = create_backbone("hf-hub:org/name", (64, 64), pretrained=True)
    assert torch.equal(vit.cls_token, plain().cls_token)
    start = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"backbone\.name=hf-hub:org/other could not be fetched .*local-dir:FOLDER"
    ):
        create_backbone("hf-hub:org/other", (64, 64))
    assert time.monotonic() - start < 5 and len(asked) == 2
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


class Offline:
    """A session of the hub's client without a connection."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def head(self, url: str, timeout: float) -> None:
        self.asked.append(url)
        raise Unusual("no route to host")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local-dir:/nowhere", r"/nowhere holds no config\.json.*backbone\.checkpoint=FILE"),
        ("ftp://host/model", "Unknown model source 'ftp'"),
        ("org/name", r"Use 'hf-hub:org/name' to load from the Hub"),
    ],
)
def test_names_of_saved_models_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_backbone(name, (64, 64))


def test_a_folder_with_a_configuration_that_timm_cannot_use(saved: Path) -> None:
    (saved / "config.json").write_text('{"architecture": "no_such_vit", "pretrained_cfg": {}}')
    with pytest.raises(CheckpointError, match=r"backbone\.name=local-dir:.* cannot be loaded: Unknown model"):
        create_backbone(f"local-dir:{saved}", (64, 64))


def test_normalisation_comes_from_the_weights() -> None:
    """Trap 11."""
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    wanted = {DEIT: imagenet, "vit_tiny_patch16_224.augreg_in21k": half, "vit_small_patch16_dinov3": imagenet}
    for name, (mean, std) in wanted.items():
        values = normalisation(create_backbone(name, (64, 64), kwargs=SMALL))
        assert values.mean == pytest.approx(mean) and values.std == pytest.approx(std)


def test_real_weights(deit_tiny: Path) -> None:
    vit = create_backbone(DEIT, (448, 448), checkpoint=deit_tiny)
    assert vit.pos_embed.shape == (1, 785, 192)
    same = timm.create_model(DEIT, num_classes=1000)
    load_weights(same, deit_tiny)
    torch.testing.assert_close(same.blocks[5].mlp.fc1.weight, vit.blocks[5].mlp.fc1.weight)


def test_image_sizes_of_the_tiny_members_are_not_square() -> None:
    assert all(height != width for height, width in map(image_size, MEMBERS))
