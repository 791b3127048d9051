"""The layers of the code: a module imports only from lower floors.

Inside one package (`dcal.attention`, `dcal.dataset`, ...) modules of one floor may import each other, without
cycles. An import counts wherever it stands: inside a function and under `if TYPE_CHECKING` too.
`dcal/__init__.py` only re-exports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dcal"

# names below `dcal.`; the first pattern that matches counts
FLOORS = (
    "paths stop rank dataset.record",
    "distributed",
    "config device launch measure memory rng run loss optimizer output metric.* attention.*",
    "backbone head index microbatch parts tracking dataset.* report.*",
    "model meter",
    "checkpoint figure parallel cost.*",
    "task.* maps",
    "setup sheet",
    "step resume",
    "engine",
    "build cli multirun",
    "restore",
    "embed trained pictures condition",
    "graph",
    # entry points: none imports another
    "train evaluate results bench predict extract query explain export doctor",
)


def floor_of(module: str) -> int:
    for floor, patterns in enumerate(FLOORS):
        if any(fnmatch(module, pattern) for pattern in patterns.split()):
            return floor
    raise AssertionError(f"dcal.{module} has no floor: give it one in FLOORS of {Path(__file__).name}")


def package_of(module: str) -> str:
    return module.rpartition(".")[0]


@cache
def sources() -> dict[str, ast.Module]:
    """Modules by their name below `dcal.`; packages (`__init__.py`) under the name of their folder."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return found


def imported(tree: ast.Module, inside: str) -> Iterator[str]:
    """Absolute dotted names that a module imports; `from a import b` gives `a.b`, be that a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), inside)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def edges(module: str) -> set[str]:
    """Modules that `module` imports, by their names below `dcal.`; "" is `dcal/__init__.py` itself."""
    inside = ".".join(filter(None, ("dcal", package_of(module))))
    found = set()
    for name in imported(sources()[module], inside):
        if name.split(".")[0] == "dcal" and name != "dcal.__version__":
            target = name.removeprefix("dcal").removeprefix(".")
            found.add(target if target in sources() else package_of(target))
    return found


PACKAGES = sorted(".".join(file.parent.relative_to(PACKAGE).parts) for file in PACKAGE.glob("*/**/__init__.py"))
MODULES = sorted(set(sources()) - {"", *PACKAGES})


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_lower_floors(module: str) -> None:
    for target in sorted(edges(module)):
        assert target not in {"", *PACKAGES}, (
            f"dcal.{module}: import the module that defines the name, not dcal.{target}"
        )
        below = floor_of(target) < floor_of(module)
        sibling = floor_of(target) == floor_of(module) and package_of(target) == package_of(module) != ""
        assert below or sibling, (
            f"dcal.{module} (floor {floor_of(module)}) imports dcal.{target} (floor {floor_of(target)})"
        )


def test_every_module_has_a_floor() -> None:
    assert all(floor_of(module) >= 0 for module in MODULES)


def test_packages_import_nothing_of_dcal() -> None:
    # otherwise a low module would load, through its package, modules of higher floors
    assert {package: edges(package) for package in PACKAGES if edges(package)} == {}


def test_no_cycles() -> None:
    order = TopologicalSorter({module: edges(module) for module in MODULES})
    order.prepare()  # raises CycleError, which names the cycle


def test_only_build_instantiates() -> None:
    """`_target_` runs code, so there is one place that decides which targets are allowed."""
    guilty = set()
    for module, tree in sources().items():
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for name in {*imported(tree, "dcal"), *used}:
            if name.endswith(("utils.instantiate", "utils.call")) or name == "hydra.utils.*":
                guilty.add(module)
    assert guilty <= {"build"}


def test_the_rules_catch_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_rule(module: str, code: str) -> None:
        monkeypatch.setitem(sources(), module, ast.parse(code))

    break_rule("loss", "def f():\n    from dcal.model import DCAL")
    break_rule("model", "import dcal.loss")
    with pytest.raises(AssertionError, match=r"dcal.loss \(floor 2\) imports dcal.model \(floor 4\)"):
        test_imports_come_from_lower_floors("loss")
    break_rule("attention.rollout", "from . import glca")
    break_rule("attention.glca", "from .rollout import AttentionRollout")
    with pytest.raises(ValueError, match="cycle"):
        test_no_cycles()
    break_rule("train", "import hydra\nhydra.utils.instantiate({})")
    with pytest.raises(AssertionError):
        test_only_build_instantiates()
