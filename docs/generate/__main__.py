"""Writes the generated pages of docs/: `python -m docs.generate`, or only those whose names follow."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
PAGES = ("api", "configuration", "datasets", "families", "security", "weights")
"""Each has a module here, whose `page()` returns the whole text of `docs/<name>.md`."""


def main(names: list[str]) -> None:
    sys.path.append(str(DOCS.parent / "tests"))  # the families and weight files that the tests run are what is listed
    for name in names or PAGES:
        text = import_module(f"docs.generate.{name}").page()
        (DOCS / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"docs/{name}.md")


if __name__ == "__main__":
    unknown = sorted(set(sys.argv[1:]) - set(PAGES))
    if unknown:
        sys.exit(f"{unknown[0]}: no such page; choose among {', '.join(PAGES)}")
    main(sys.argv[1:])
