"""docs/security.md: the table of dependencies is that of setup.cfg and constraints.txt, and no module unpickles."""

from __future__ import annotations

import ast

from docs.generate.security import PAGE, PLACE, ROOT, table


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = PLACE.search(page)
    assert written is not None
    # licences may be worded otherwise in other versions of a package: what is ours must agree
    cells = [[row.split(" | ")[:3] for row in text.splitlines()] for text in (written[0], table(page))]
    assert cells[0] == cells[1], "write it anew: python -m docs.generate security"
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
