"""docs/security.md: the table of dependencies is that of setup.cfg and constraints.txt, and no module unpickles.

`python tests/test_security.py` writes the table.
"""

from __future__ import annotations

import ast
import configparser
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
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


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = PLACE.search(page)
    assert written is not None
    # licences may be worded otherwise in other versions of a package: what is ours must agree
    cells = [[row.split(" | ")[:3] for row in text.splitlines()] for text in (written[0], table(page))]
    assert cells[0] == cells[1], "write it anew: python tests/test_security.py"
    assert "?" not in written[0], "a licence is missing"


RESTRICTED = "dcal/weights/torchscript.py"
"""Makes plain dictionaries of the modules in a TorchScript archive, and nothing else: tests/weights/test_files.py."""


def test_nothing_is_unpickled() -> None:
    for file in (ROOT / "dcal").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                unpicklers = names & {"pickle", "cloudpickle", "joblib", "dill"}
                assert not unpicklers or file.relative_to(ROOT).as_posix() == RESTRICTED, file
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                torch_load = ast.unparse(node.func) == "torch.load"
                safe = options.get("weights_only") == "True" if torch_load else "allow_pickle" not in options
                assert safe or options.get("allow_pickle") == "False", f"{file}, line {node.lineno}"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PLACE.sub(lambda _: table(text), text), encoding="utf-8")
