"""docs/security.md: its table of dependencies, from setup.cfg, constraints.txt and the installed packages."""

from __future__ import annotations

import configparser
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
PLACE = re.compile(r"(?<=<!-- dependencies -->\n).*?(?=<!-- /dependencies -->)", re.DOTALL)


def requirements() -> dict[str, Requirement]:
    """What an installation needs, without the extras."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].split("\n")
    return {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in pinned}


def licence(name: str) -> str | None:
    """As the installed package declares it."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    classifiers = [text.split(" :: ")[-1] for text in about.get_all("Classifier") or [] if "License ::" in text]
    return about.get("License-Expression") or ", ".join(classifiers) or (about.get("License") or "").split("\n")[0]


def table(known: str = "") -> str:
    """Rows of the page; a package that is not installed keeps the licence in `known`."""
    rows = ["| package | range | pinned | licence |", "|---|---|---|---|"]
    for name, requirement in requirements().items():
        before = re.search(rf"^\| {name} \|.*\| (.*) \|$", known, re.MULTILINE)
        declared = licence(name) or (before[1] if before else "?")
        rows.append(f"| {name} | {requirement.specifier} | {pins().get(name, '–')} | {declared} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with its table written anew."""
    text = PAGE.read_text(encoding="utf-8")
    return PLACE.sub(lambda _: table(text), text)
