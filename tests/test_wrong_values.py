"""A value that cannot be meant is one sentence that names its key, whatever the key: never a stack."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import dcal
from dcal.api.train import composed
from dcal.commands.explain import explain
from dcal.commands.predict import predict
from dcal.commands.query import query
from dcal.run.directory import Run
from dcal.training.build import build
from dcal.utils.arguments import typed_arguments
from dcal.utils.errors import UserError


def begin(*words: str) -> None:
    """What a run does before its first batch, but for its directory."""
    with composed(["experiment=tiny/fgvc", "device=cpu", *words]) as config:
        Run(config)
        OmegaConf.resolve(config)
        build(config)


def keys_of(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")


def test_no_key_takes_values_by_names_that_it_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with composed(["experiment=tiny/fgvc"]) as config:
        keys = list(keys_of(OmegaConf.to_container(config)))  # type: ignore[arg-type]
    assert {"attention.pwca.blocks", "dataset.reader.seed", "wandb.tags"} <= set(keys) and len(keys) > 100
    for key in keys:
        with pytest.raises(UserError) as refused:
            begin(f"{key}={{a:1}}")
        assert key.rpartition(".")[2] in str(refused.value), key


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("backbone=[deit_tiny,deit_small]", "backbone=.*: no such option"),
        ("backbone.kwargs=deep", "backbone.kwargs='deep': must be arguments by their names"),
        ("optimizer._partial_=false", "_partial_=false: is how dcal calls"),
        ("+dataset.reader._recursive_=false", "_recursive_=false: is how dcal calls"),
        ("dataset=[synthetic_birds]", "dataset=.*: no such option"),
        ("dataset.image_size=[]", "dataset.image_size=.*: must be"),
        ("dataset.reader=birds", "dataset.reader=birds: must name in _target_"),
        ("dataset.reader=null", "dataset.reader=None: must name in _target_"),
        ("dataset.reader._target_=math", "dataset.reader._target_=math: no function or class is there"),
        ("task._target_=dcal.task.fgvc.Missing", "task._target_=dcal.task.fgvc.Missing: no function or class is there"),
        ("dataset.reader.seed=null", "dataset.reader.seed=None: must be a whole number"),
        ("dataset.reader.train_per_class=1e30", r"dataset.reader.train_per_class=1e\+30: must be a whole number"),
    ],
)
def test_what_no_schema_types(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        begin(word)


def read(
    root: str | Path | None, sizes: Sequence[int] = (), where: Mapping[str, str] | None = None, share: float = 0.5
) -> None:
    """Annotated as readers are."""


def test_arguments_are_converted_as_the_schema_converts() -> None:
    assert typed_arguments(read, {"root": 7, "share": 1, "sizes": [1, 2], "other": "stays"}, "reader") == {
        "root": "7",
        "share": 1.0,
        "sizes": [1, 2],
        "other": "stays",
    }
    assert typed_arguments(read, {"root": None, "where": {"a": "b"}}, "reader") == {"root": None, "where": {"a": "b"}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"root": ["a"]}, r"reader.root=\['a'\]: must be text or null"),
        ({"share": "half"}, "reader.share=half: must be a number"),
        ({"sizes": 3}, "reader.sizes=3: must be a list, each a whole number"),
        ({"where": "a"}, "reader.where=a: must be values by their names, such as {a:1} or null"),
    ],
)
def test_arguments_of_another_type_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        typed_arguments(read, given, "reader")


@pytest.mark.parametrize(
    ("command", "key", "given"),
    [
        (query, "top", {}),
        (predict, "top", {"format": None, "out": None}),
        (explain, "top", {"images": "a.jpg", "faithfulness": None, "pair": None, "dataset": {}}),
        (explain, "steps", {"images": None, "faithfulness": 2, "pair": None, "top": 1}),
    ],
)
def test_a_number_of_things_is_whole(
    command: Callable[[DictConfig], None], key: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcal.commands.explain.typed_overrides", list)
    with pytest.raises(UserError, match=rf"^{key}=2.5: must be a whole number$"):
        command(OmegaConf.create({**given, key: 2.5}))


@pytest.mark.parametrize("name", [name for name in dcal.__all__ if name.startswith("read_")])
def test_every_option_of_every_reader_has_a_type(name: str) -> None:
    reader = getattr(dcal, name)
    for option in inspect.signature(reader).parameters:
        with pytest.raises(UserError, match=f"dataset.reader.{option}=.*: must be"):
            typed_arguments(reader, {option: [[1]]}, "dataset.reader")
