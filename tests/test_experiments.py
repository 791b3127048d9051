"""Every recipe, ablation and documented command composes into a configuration that the code accepts."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from compose import settings_id
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pages import documented
from run_command import run_command

from dcal.commands.words.keys import check_words, group_options
from dcal.config import register
from dcal.utils.errors import UserError
from dcal.utils.paths import config_dir, experiments_dir

RECIPES = group_options("experiment")
ABLATIONS = group_options("ablation")
VARIANTS = group_options("variant")
RATES = [name for name in VARIANTS if name.startswith("finetune/")]


def composed(*overrides: str) -> DictConfig:
    """The configuration of `dcal-train` with these overrides; Hydra's own choices can be interpolated."""
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    OmegaConf.to_container(config, resolve=True)
    return config


@cache
def parameters(target: str) -> inspect.Signature:
    return inspect.signature(get_object(target))


def check_signatures(config: DictConfig) -> None:
    """Every `_target_` exists and takes the keys beside it."""

    def walk(node: Any) -> None:
        if not isinstance(node, dict):
            return
        if "_target_" in node:
            keys = {key: value for key, value in node.items() if not key.startswith("_")}
            bind = (
                parameters(node["_target_"]).bind_partial
                if node.get("_partial_")
                else parameters(node["_target_"]).bind
            )
            try:
                bind(**keys)
            except TypeError as error:
                pytest.fail(f"{node['_target_']}: {error}")
        for value in node.values():
            walk(value)

    walk(OmegaConf.to_container(config))


@pytest.mark.parametrize("group", ["attention", "backbone", "dataset", "optimizer", "task"])
def test_every_option_of_a_group(group: str) -> None:
    for option in group_options(group):
        check_signatures(composed(f"{group}={option}")[group])


def sweep_of(name: str) -> dict[str, list[Override]]:
    """The parameters of an ablation, each as the overrides of its points."""
    params = OmegaConf.load(experiments_dir() / "ablation" / f"{name}.yaml").hydra.sweeper.params
    parse = OverridesParser.create().parse_override
    found = {}
    for key, values in params.items():
        override = parse(f"{key}={values}")
        words = override.sweep_string_iterator() if override.is_sweep_override() else [values]
        found[str(key)] = [parse(f"{key}={word}") for word in words]
    return found


def points(params: Mapping[str, Sequence[Override]]) -> Iterator[list[Override]]:
    """Points of a sweep that show each value of each parameter."""
    first = [values[0] for values in params.values()]
    yield first
    for number, values in enumerate(params.values()):
        for value in values[1:]:
            yield [*first[:number], value, *first[number + 1 :]]


def recipes_for(ablation: str) -> list[str]:
    """The recipes that the header of an ablation names, or all."""
    text = (experiments_dir() / "ablation" / f"{ablation}.yaml").read_text(encoding="utf-8")
    named = re.search(r"^# For: ([^(\n]+)", text, re.MULTILINE)
    patterns = [word.strip() for word in named[1].split(",")] if named else ["*"]
    assert all(any(fnmatch(recipe, pattern) for recipe in RECIPES) for pattern in patterns), patterns
    return [recipe for recipe in RECIPES if any(fnmatch(recipe, pattern) for pattern in patterns)]


def overridden_groups(file: Path) -> set[str]:
    """The groups in which a recipe or an ablation makes another choice."""
    entries = OmegaConf.load(file).get("defaults", [])
    return {str(key).removeprefix("override /") for entry in entries if isinstance(entry, DictConfig) for key in entry}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe: str) -> None:
    config = composed(f"experiment={recipe}")
    check_signatures(config)
    assert config.name.startswith(recipe.split("/")[0])


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations(ablation: str) -> None:
    """Every point composes, fits the code and is a run of its own; the recipes take turns."""
    params = sweep_of(ablation)
    assert "seed" in params, "an ablation declares its seeds"
    recipes = recipes_for(ablation)
    recipe = recipes[ABLATIONS.index(ablation) % len(recipes)]

    @cache
    def chosen(*groups: str) -> DictConfig:
        config = composed(f"experiment={recipe}", f"ablation={ablation}", *groups)
        assert HydraConfig.get().mode.name == "MULTIRUN"
        return config

    ids = set()
    for point in points(params):
        groups = [str(override.input_line) for override in point if group_options(override.key_or_group)]
        config = copy.deepcopy(chosen(*groups))
        OmegaConf.set_struct(config, True)
        for override in point:  # as Hydra does it, which would compose anew for each
            if not group_options(override.key_or_group):
                OmegaConf.update(config, override.key_or_group, override.value())
        check_signatures(config)
        ids.add((settings_id(config), config.seed))
    assert len(ids) == 1 + sum(len(values) - 1 for values in params.values())


def test_any_recipe_goes_with_any_ablation() -> None:
    """They make other choices in different groups, and the options of a group share their keys (test_config.py)."""
    recipes, ablations = (
        set().union(*(overridden_groups(experiments_dir() / group / f"{name}.yaml") for name in names))
        for group, names in (("experiment", RECIPES), ("ablation", ABLATIONS))
    )
    ablations |= {key for name in ABLATIONS for key in sweep_of(name) if group_options(key)}
    assert recipes == {"backbone", "dataset", "task", "optimizer"} and ablations == {"attention", "variant"}


def test_every_variant_is_swept_over() -> None:
    """So that `test_ablations` composes it and sees that it makes a difference. Rates belong to one family each."""
    swept = {override.value() for name in ABLATIONS for override in sweep_of(name).get("variant", ())}
    assert swept == set(VARIANTS) - set(RATES)


@pytest.mark.parametrize("variant", RATES)
def test_the_rates_of_a_family_compose_and_name_their_source(variant: str) -> None:
    config = composed("experiment=paper/reid", f"variant={variant}")  # whose optimizer is another one
    assert config.optimizer.opt == "adamw" and 0.5 <= config.optimizer.layer_decay <= 1.0
    assert 1e-5 <= config.optimizer.lr <= 1e-3 and config.optimizer.lr_batch_size in (256, 512, 1024, 2048)
    check_signatures(config.optimizer)
    text = (experiments_dir() / "variant" / f"{variant}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^# .*(github\.com/|arXiv |clip\.yaml)", text, re.MULTILINE)


PAPER = {
    "paper/fgvc": (
        ["cub", "cars", "aircraft"],
        ["deit_tiny", "deit_small", "deit_base", "vit_base", "r50_vit_base"],
        {"epochs": 100, "batch_size": 16, "opt": "adamw", "weight_decay": 0.05, "top_ratio": 0.1},
    ),
    "paper/reid": (
        ["veri", "msmt17", "market1501", "dukemtmc"],
        ["deit_tiny", "deit_small", "deit_base", "vit_base"],
        {"epochs": 120, "batch_size": 64, "opt": "momentum", "weight_decay": 1e-4, "top_ratio": 0.3},
    ),
}


@pytest.mark.parametrize("recipe", PAPER)
def test_every_cell_of_the_paper_has_its_settings(recipe: str) -> None:
    datasets, backbones, wanted = PAPER[recipe]
    # each data set and each backbone once: cells combine them freely
    cells = [(d, backbones[0]) for d in datasets] + [(datasets[0], b) for b in backbones[1:]]
    for dataset, backbone in cells:
        config = composed(f"experiment={recipe}", f"dataset={dataset}", f"backbone={backbone}", "attention=dcal")
        assert config.name == f"paper/{dataset}-{backbone}"
        assert config.dataset.root == config.dataset.reader.root == f"data/{dataset}"
        size = [448, 448] if "fgvc" in recipe else [256, 256] if dataset == "veri" else [256, 128]
        assert (config.dataset.image_size, config.backbone.pretrained) == (size, True)
        assert (config.attention.glca.blocks, config.attention.pwca.blocks) == (1, None)
        batch, optimizer = config.train.batch_size, config.optimizer
        found = {"epochs": config.train.epochs, "batch_size": batch, "opt": optimizer.opt}
        found |= {"weight_decay": optimizer.weight_decay, "top_ratio": config.attention.glca.top_ratio}
        assert found == wanted
        lr = optimizer.lr if optimizer.lr_batch_size is None else optimizer.lr * batch / optimizer.lr_batch_size
        assert lr == pytest.approx(5e-4 / 512 * 16 if "fgvc" in recipe else 0.008)
        check_signatures(config)


def test_every_recipe_shows_its_command() -> None:
    assert {f"{name.rsplit('/')[-1]}.yaml" for name in (*RECIPES, *ABLATIONS)} <= {
        file.name for file, _ in documented()
    }


def test_one_ablation_at_a_time() -> None:
    with pytest.raises(UserError, match="one command per ablation"):
        check_words(["-m", "ablation=components,readout"])
    check_words(["ablation=components", "seed=0,1", "hydra/sweeper=basic", "variant=size/224"])


@pytest.mark.parametrize("file", sorted((experiments_dir() / "sweep").glob("*.yaml")), ids=lambda file: file.stem)
def test_wandb_sweeps_give_commands_that_compose(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep: Any = agent.load_sweep_config(str(file))
    drawn = {key: {"value": (spec.get("values") or [spec.get("min")])[0]} for key, spec in sweep["parameters"].items()}
    monkeypatch.setenv("DCAL_ROOT", "/sets/birds")
    monkeypatch.setenv("DCAL_CHECKPOINT", "/weights/w.safetensors")
    env, program, *words = agent.create_sweep_command(sweep["command"])
    assert (env, program, words.pop()) == ("${env}", sweep["program"], "${args_no_hyphens}")
    words += agent.create_sweep_command_args({"args": drawn})["args_no_hyphens"]
    check_words(words)
    config = composed(*words)
    check_signatures(config)
    assert config.dataset.root == "/sets/birds" and config.optimizer.lr == drawn["optimizer.lr"]["value"]
    assert config.wandb.mode == "online", "an agent follows a run that is online"
    assert config.dataset.val_fraction or config.dataset.val_ids, "never tune on the test split"
    assert sweep["metric"] == {"name": f"val/{get_object(config.task._target_).primary_metric}", "goal": "maximize"}


def test_smoke_ablation_to_table(tmp_path: Path) -> None:
    """One command runs the sweep, the next makes its table."""
    from dcal.report.records import collect

    words = ["ablation=components", "experiment=tiny/fgvc", "seed=0", f"run.root={tmp_path / 'runs'}"]
    run_command("train", *words, f"dataset.root={tmp_path / 'birds'}")
    found, problems = collect(tmp_path / "runs")
    assert not problems
    (records,) = found.values()
    assert sorted(record["config"]["attention"] for record in records) == ["dcal", "glca", "none", "pwca"]
    json.dumps(records)
