"""Words of the command line that are no words of Hydra's grammar."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dcal.commands.words.overrides import expand_home, quoted

TEXTS = [r"_c(\d+)", r"^(-?\d+)_", "a/seed=0/b", "photo (1).jpg", "a[0-9].jpg", "it's/a b=c", "a/'\\'", "~/x"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_needs_no_quotes(text: str) -> None:
    parser = OverridesParser.create()
    assert parser.parse_override(quoted(f"key={text}")).value() == text
    assert parser.parse_override(quoted(f"key=[{text},'b c',d]")).value() == [text, "b c", "d"]


def test_the_home_directory_is_meant_behind_a_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/some body")
    assert [expand_home(word) for word in ("a=~/x", "a=~", "a=b~/x", "~a", "-m")] == [
        "a=/home/some body/x",
        "a=/home/some body",
        "a=b~/x",
        "~a",
        "-m",
    ]


@pytest.mark.parametrize(
    "word", ["a=[1,2", "a=choice(1,2)", "a=1.5", "a=[sa,glca]", "a='x/y'", "-m", "a=x/y,z/w", "a=1)"]
)
def test_grammar_stays_as_it_is(word: str) -> None:
    assert quoted(word) == word
