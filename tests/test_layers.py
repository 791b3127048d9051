"""The layers of the code: a module imports from its own layer and from lower ones, without cycles.

An import counts wherever it stands: inside a function and under `if TYPE_CHECKING` too. `dcal/__init__.py` only
re-exports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "dcal"

LAYERS = (
    "config utils attention loss optimizer",
    "dataset distributed metric run",
    "weights backbone heads output model create",
    "task visualize",
    "training inference report bench",
    "commands __main__ api",
)
"""From the lowest up; the table in CONTRIBUTING.md says the same."""


def layer_of(module: str) -> int:
    first = module.split(".")[0]
    for layer, packages in enumerate(LAYERS, 1):
        if first in packages.split():
            return layer
    raise AssertionError(f"dcal.{module} has no layer: give its package one in LAYERS of {Path(__file__).name}")


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
def test_imports_come_from_the_same_or_a_lower_layer(module: str) -> None:
    for target in sorted(edges(module)):
        assert target not in {"", *PACKAGES}, (
            f"dcal.{module}: import the module that defines the name, not dcal.{target}"
        )
        assert layer_of(target) <= layer_of(module), (
            f"dcal.{module} (layer {layer_of(module)}) imports dcal.{target} (layer {layer_of(target)})"
        )


def test_packages_import_nothing_of_dcal() -> None:
    # otherwise a low module would load, through its package, modules of higher layers
    assert {package: edges(package) for package in PACKAGES if edges(package)} == {}


def test_no_cycles() -> None:
    """Neither among modules nor among packages."""
    TopologicalSorter({module: edges(module) for module in MODULES}).prepare()  # CycleError names the cycle
    packages: dict[str, set[str]] = {}
    for module in MODULES:
        own = module.split(".")[0]
        packages.setdefault(own, set()).update({target.split(".")[0] for target in edges(module)} - {own})
    TopologicalSorter(packages).prepare()


SHARED = (
    "commands.app",
    "commands.words.keys",
    "commands.opened",
    "commands.words.overrides",
    "commands.words.members",
)
"""What entry points have in common."""


def test_entry_points_do_not_import_each_other() -> None:
    commands = [module for module in MODULES if module.startswith("commands.") and module not in SHARED]
    assert {m: edges(m) & set(commands) for m in commands if edges(m) & set(commands)} == {}


def test_the_house_stays_tidy() -> None:
    """Few files at the front door, rooms that one can look over, files that one can read in one sitting."""
    modules = {package: [m for m in MODULES if package_of(m) == package] for package in ["", *PACKAGES]}
    assert len(modules[""]) + 1 <= 10  # dcal/__init__.py too
    assert {package: len(found) for package, found in modules.items() if len(found) > 15} == {}


def test_only_build_instantiates() -> None:
    """`_target_` runs code, so there is one place that decides which targets are allowed.

    The identity of a run reads the data set that the user of `dcal-train` has configured; no other command does.
    """
    guilty = set()
    for module, tree in sources().items():
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for name in {*imported(tree, "dcal"), *used}:
            if name.endswith(("utils.instantiate", "utils.call")) or name == "hydra.utils.*":
                guilty.add(module)
    assert guilty <= {"training.build", "run.identity"}


def test_the_rules_catch_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_rule(module: str, code: str) -> None:
        monkeypatch.setitem(sources(), module, ast.parse(code))

    break_rule("loss", "def f():\n    from dcal.model import DCAL")
    break_rule("model", "import dcal.loss")
    with pytest.raises(AssertionError, match=r"dcal.loss \(layer 1\) imports dcal.model \(layer 3\)"):
        test_imports_come_from_the_same_or_a_lower_layer("loss")
    break_rule("attention.rollout", "from . import glca")
    break_rule("attention.glca", "from .rollout import AttentionRollout")
    with pytest.raises(ValueError, match="cycle"):
        test_no_cycles()
    break_rule("commands.train", "import hydra\nhydra.utils.instantiate({})")
    with pytest.raises(AssertionError):
        test_only_build_instantiates()
