"""Reading the Markdown pages of the repository for the tests over them: fences, links, anchors and commands."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*.md")),
]


class Fence(NamedTuple):
    """A fenced block of code."""

    line: int
    """Of the file, of the block's first line."""
    language: str
    code: str


class Link(NamedTuple):
    """An inline link or picture."""

    line: int
    target: str


def fences(text: str) -> Iterator[Fence]:
    """The fenced blocks of a page, in order."""
    opened: tuple[int, str] | None = None
    indent, lines = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"( *)```(\w*)\s*$", line)
        if match and opened is None:
            opened, indent, lines = (number + 1, match[2]), len(match[1]), []
        elif match and opened is not None:
            yield Fence(*opened, "".join(f"{kept}\n" for kept in lines))
            opened = None
        elif opened is not None:
            lines.append(line[indent:])


def prose(text: str) -> str:
    """The page with fenced blocks and code in backticks blanked out; lines keep their numbers."""
    inside, kept = False, []
    for line in text.splitlines():
        fence = re.match(r" *```", line) is not None
        kept.append("" if inside or fence else re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line))
        inside ^= fence
    return "\n".join(kept)


def links(text: str) -> Iterator[Link]:
    """The inline links and pictures of a page."""
    for number, line in enumerate(prose(text).splitlines(), 1):
        for match in re.finditer(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", line):
            yield Link(number, match[1])


def anchors(text: str) -> set[str]:
    """What `#...` may name on a page: GitHub's slug of each heading."""
    found = set()
    inside = False
    for line in text.splitlines():
        inside ^= re.match(r" *```", line) is not None
        heading = re.match(r"#{1,6} +(.*?)\s*#*$", line)
        if heading and not inside:
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command that begins a line of shell code, or of a YAML file's comment, with `dcal-`.

    Continued lines are joined. What follows a pipe or another operator of the shell is cut off; three dots stand for a
    value that the reader fills in.
    """
    joined = text.replace("\\\n", " ").replace("…", "VALUE")
    for match in re.finditer(r"^(?:#[ \w]*: |[#$]? *)(?:[A-Z_]+=\S+ )*(dcal-[a-z]+(?: .*)?)$", joined, re.MULTILINE):
        lexer = shlex.shlex(match[1], posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        yield list(itertools.takewhile(lambda word: not set(word) <= set("();<>|&"), lexer))


def inline_commands(text: str) -> Iterator[list[str]]:
    """The words of every command with overrides that a sentence or a table shows in backticks.

    Not those with a name in capitals, such as `ablation=NAME`, where the reader chooses an option.
    """
    blocks = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(dcal-[a-z]+ [^`]*=[^`]*)`", blocks):
        for words in commands(span):
            if "-sc" not in words and not any(re.fullmatch(r"(ablation|experiment)=[A-Z]+", word) for word in words):
                yield words


def documented() -> Iterator[tuple[Path, list[str]]]:
    """Every command that the pages and the YAML files show, with the file that shows it."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in fences(text):
            if fence.language in ("", "sh", "bash", "console"):
                yield from ((page, words) for words in commands(fence.code))
        yield from ((page, words) for words in inline_commands(text))
    for file in sorted([*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "experiments").rglob("*.yaml")]):
        yield from ((file, words) for words in commands(file.read_text(encoding="utf-8")))
