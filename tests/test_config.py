"""The composed configuration: typed, complete, and the same keys in every option of a group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compose import composed, settings_id
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dcal.commands.words.keys import check_words, group_options
from dcal.commands.words.members import JOINT
from dcal.config import Config, register
from dcal.inference.trust import Trust
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir, experiments_dir

GROUPS = ("backbone", "attention", "task", "dataset", "optimizer")


def leaves(node: Any, prefix: str = "") -> set[str]:
    """Dotted keys; what lies below a free node (a reader's or a timm model's own arguments) is not ours to compare."""
    if not isinstance(node, dict) or prefix in ("reader.", "kwargs."):
        return {prefix}
    return set().union(*(leaves(value, f"{prefix}{key}.") for key, value in node.items()))


def options_of(group: str) -> list[str]:
    """Without `dataset=joint`, which has its sizes from its members, see tests/commands/test_joint_run.py."""
    return [option for option in group_options(group) if option != JOINT]


@pytest.mark.parametrize("group", GROUPS)
def test_the_keys_of_a_group_are_those_of_its_base_and_of_the_schema(group: str) -> None:
    base = leaves(OmegaConf.to_container(OmegaConf.load(config_dir() / f"_{group}.yaml")))
    assert base | {"_partial_."} == leaves(OmegaConf.to_container(OmegaConf.structured(Config)[group])) | {"_partial_."}
    for option in options_of(group):
        own: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{option}.yaml"))
        assert own.pop("defaults") == [f"/_{group}", "_self_"]
        assert leaves(own) <= base | {""}, option


def test_bases_are_no_options() -> None:
    """Neither for us nor for Hydra, whose `glob(*)` sweeps over all that it finds in the folder of a group."""
    register()
    for group in GROUPS:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            (override,) = parser.parse_overrides([f"{group}=glob(*)"])
            swept = list(override.sweep_string_iterator())
        assert swept == group_options(group) and not any(name.startswith("_") for name in swept)
        with pytest.raises(UserError, match=f"{group}=_{group}: no such option"):
            check_words([f"{group}=_{group}"])


def test_an_option_of_ones_own_needs_no_base(tmp_path: Path) -> None:
    """Keys that it leaves out have the schema's default, or are missing and named."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "mine.yaml").write_text("_target_: my.create\nname: mine\n", encoding="utf-8")
    (folder / "ours.yaml").write_text("defaults: [/_backbone, _self_]\nname: ours\n", encoding="utf-8")
    searchpath = f"hydra.searchpath=[file://{experiments_dir()},file://{tmp_path}]"
    mine, ours = (composed(searchpath, f"backbone={name}").backbone for name in ("mine", "ours"))
    assert (mine._target_, mine.name, mine.pretrained, mine.kwargs) == ("my.create", "mine", False, None)
    assert (ours._target_, ours.name, ours.kwargs) == ("dcal.backbone.create_backbone", "ours", {})


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes(group: str) -> None:
    for option in options_of(group):
        config = composed(f"{group}={option}")
        assert OmegaConf.missing_keys(config) == set()
        for key, node in OmegaConf.to_container(config, resolve=True).items():  # type: ignore[union-attr]
            Trust().check(str(key), node)


def test_wandb_is_told_on_the_command_line_then_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert composed().wandb.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    own = composed().wandb
    assert (own.mode, own.project, own.entity) == ("disabled", "birds", "team")
    assert composed("wandb.mode=offline", "wandb.project=mine").wandb.mode == "offline"


def test_identity_is_the_configuration_not_what_was_typed() -> None:
    default = settings_id(composed())
    assert settings_id(composed("attention=dcal", "optimizer.opt=adamw")) == default
    assert settings_id(composed("seed=3", "dataset.root=/elsewhere", "train.workers=0", "name=other")) == default
    assert settings_id(composed("attention=glca")) != default != settings_id(composed("train.epochs=7"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("attention=dcla", "did you mean dcal"),
        ("backbone=deit_tinny", "did you mean deit_tiny"),
        ("train.epohcs=3", "did you mean train.epochs"),
        ("attention=none,glac", "did you mean glca"),
    ],
)
def test_typos_get_the_nearest_name(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_words([override])


def test_right_overrides_pass() -> None:
    check_words(["-m", "attention=none,dcal", "attention.glca.top_ratio=0.2", "dataset.reader.seed=3"])


def test_wrong_type_names_the_key(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dcal", "train", "train.epochs=abc", f"run.root={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "train.epochs" in done.stderr and "abc" in done.stderr
    assert "Traceback" not in done.stderr
