"""The docstrings of what docs/api.md lists say enough."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

import dcal
from docs.generate.api import definition, docstring, listed, methods, sections


def functions() -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """Every function and method on the page, and every `__init__`, with the docstring that describes it."""
    for _, module, name in listed():
        node = definition(module, name)
        if isinstance(node, ast.FunctionDef):
            yield name, docstring(module, node), node
        elif isinstance(node, ast.ClassDef):
            yield from ((name, docstring(module, node), init) for init in methods(node, "__init__"))
            yield from ((f"{name}.{method.name}", docstring(module, method), method) for method in methods(node))


def test_every_public_name_is_on_the_page_and_described() -> None:
    assert set(dcal.__all__) - {"__version__"} <= {name for _, _, name in listed()}, "add it to SECTIONS"
    assert all(docstring(module, definition(module, name)) for _, module, name in listed())


FUNCTIONS = list(functions())


@pytest.mark.parametrize(("name", "text", "node"), FUNCTIONS, ids=[name for name, _, _ in FUNCTIONS])
def test_docstrings_say_enough(name: str, text: str, node: ast.FunctionDef) -> None:
    """Each argument, and each error that the function itself raises."""
    head, found = sections(text)
    assert head, f"{name}: no docstring"
    given = [*node.args.args, *node.args.kwonlyargs, *filter(None, [node.args.vararg, node.args.kwarg])]
    described = {word for key, _ in found.get("Args", []) for word in key.split(", ")}
    missing = {arg.arg for arg in given} - described - {"self"}
    assert not missing, f"{name}: Args lack {', '.join(sorted(missing))}"
    raised = {part.exc.func.id for part in ast.walk(node) if isinstance(part, ast.Raise) and named_call(part.exc)}  # type: ignore[union-attr]
    told = " ".join(key for key, _ in found.get("Raises", []))
    assert all(error in told for error in raised), f"{name}: Raises lacks one of {', '.join(sorted(raised))}"


def named_call(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
