"""The generated pages of docs/ are what their generators write; the comments on data sets agree with the readers."""

from __future__ import annotations

from importlib import import_module

import pytest
import timm
from pages import ROOT

from dcal.commands.keys import group_options
from docs.generate import datasets
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
