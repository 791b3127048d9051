"""The generated pages of docs/ are what their generators write; the comments on data sets agree with the readers."""

from __future__ import annotations

from importlib import import_module

import pytest
import timm
from pages import ROOT

from dcal import config as schema
from dcal.commands.words.keys import group_options
from docs.generate import configuration, datasets
from docs.generate.__main__ import PAGES as GENERATED


@pytest.mark.parametrize("name", sorted(set(GENERATED) - {"security"}))  # its licences vary: tests/test_security.py
def test_the_page_is_up_to_date(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    if name == "families" and f" of timm {timm.__version__} " not in page:
        pytest.skip(f"timm {timm.__version__} is not the version whose models the page counts")
    expected = import_module(f"docs.generate.{name}").page()
    assert page == expected, f"write it anew: python -m docs.generate {name}"


def test_every_set_is_on_the_page() -> None:
    assert sorted(" ".join(datasets.KINDS.values()).split()) == group_options("dataset")


@pytest.mark.parametrize("name", [*datasets.IMAGES, *datasets.PROTOCOLS])
def test_comments_and_readers_agree(name: str) -> None:
    text = " ".join(datasets.head(name))
    rows = datasets.PROTOCOLS.get(name, {}).values()
    wanted = [*datasets.IMAGES.get(name, {}).values(), *(row.images for row in rows)]
    assert all(datasets.spaced(number) in text for number in wanted), f"{name}: {wanted} are not all in its comment"


def test_every_key_of_a_run_is_on_the_page_and_explained() -> None:
    keys = [key for section in configuration.train_keys().values() for key in section]
    assert [key.name for key in keys if not key.comment] == []
    expected = {name for name, _ in configuration.key_types(schema.Config, "") if not configuration.internal(name)}
    assert {key.name for key in keys} == expected


def test_comments_behind_below_and_above_a_value_are_read() -> None:
    text = "# of the file\na: 1 # behind\nb:\n  # above\n  c: [x, y]\n  d: null # behind, and\n    # below\n"
    assert configuration.settings(text, "p.") == [
        ("p.a", "1", "behind"),
        ("p.b.c", "[x, y]", "above"),
        ("p.b.d", "null", "behind, and below"),
    ]
