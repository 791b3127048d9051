"""docs/api.md: the public names and the points of extension, from their docstrings.

Read from the source, so that types and defaults are shown as they were written.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dcal

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "Model": "create: create_dcal_model | model: DCAL | attention.options: GLCAOptions PWCAOptions | "
    "output: Output Branches",
    "Training": "api.train: train FinishedRun | utils.errors: UserError",
    "Trained models": "inference.pretrained: load TrainedDCAL",
    "Backbone": "backbone: create_backbone normalisation Normalisation | weights.load: load_weights Loaded | "
    "weights.files: CheckpointError | attention.support: check_supported UnsupportedBackbone",
    "Attention": "attention.rollout: AttentionRollout | attention.glca: GlobalLocalCrossAttention | "
    "attention.pwca: PairWiseCrossAttention",
    "Pairs": "attention.pairing: Pairing Partners DrawPartners derangement",
    "Losses": "loss: UncertaintyLoss TripletLoss | task.objective: Objective Losses",
    "Retrieval": "metric.retrieval: evaluate_retrieval | metric.ranking: PerQuery | metric.rerank: k_reciprocal_rerank",
    "Statistics": "metric.statistics: paired_comparison PairedComparison",
    "Data": "dataset.record: Catalog Record Part DataError | dataset.data: Data | dataset.images: Loader | "
    "dataset.readers.tables: make_catalog Entry | dataset.readers.reid_protocol: build_catalog Sighting Counts",
    "Readers of data sets": "dataset.readers.fgvc: read_image_folder read_csv read_cub read_nabirds read_aircraft | "
    "dataset.readers.fgvc_mat: read_cars read_dogs read_flowers read_pets | "
    "dataset.readers.reid_custom: read_identity_folder read_identity_csv | "
    "dataset.readers.reid_person: read_market1501 read_dukemtmc read_occluded_duke read_msmt17 | "
    "dataset.readers.reid_vehicle: read_veri read_vehicleid | "
    "dataset.synthetic.birds: read_synthetic_birds | dataset.synthetic.people: read_synthetic_people",
}
"""Title -> modules of `dcal`, each with the names that it defines."""
INTRODUCTION = """\
# Python interface

Written from the docstrings by `python -m docs.generate api`; do not edit. Names that begin with `dcal.` are those that
`import dcal` offers; the others are points of extension, imported from their modules. The [tutorial](tutorial.md) shows
them at work.

Capital letters in the names of tensors are their dimensions: `q_BHND` is B images, H heads, N tokens, D channels.
"""
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign


def listed() -> Iterator[tuple[str, str, str]]:
    """Section, module and name of everything on the page."""
    for section, modules in SECTIONS.items():
        for part in modules.split("|"):
            module, _, names = part.strip().partition(": ")
            yield from ((section, module, name) for name in names.split())


def page() -> str:
    parts, current = [INTRODUCTION], ""
    for section, module, name in listed():
        if section != current:
            parts.append(f"## {section}\n")
        parts.append(entry(module, name))
        current = section
    return "\n".join(parts)


def entry(module: str, name: str) -> str:
    """The whole text on one name."""
    node = definition(module, name)
    public = name in dcal.__all__
    where = f"`dcal.{name}`" if public else f"`from dcal.{module} import {name}`"
    lines = [f"### {name}", "", f"{where} ([source](../dcal/{module.replace('.', '/')}.py))", ""]
    shown = f"dcal.{name}" if public else name
    if isinstance(node, ast.FunctionDef):
        lines += fenced(signature(shown, node))
    elif isinstance(node, ast.ClassDef):
        lines += [line for init in methods(node, "__init__") for line in fenced(signature(shown, init))]
    lines.append(markdown(docstring(module, node)))
    if isinstance(node, ast.ClassDef):
        lines += fields(node)
        for method in methods(node):
            property_ = any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)
            head = f"{name}.{method.name}: {ast.unparse(method.returns)}" if property_ and method.returns else ""
            lines += [f"#### {name}.{method.name}", ""]
            lines += [*fenced(head or signature(f"{name}.{method.name}", method)), markdown(docstring(module, method))]
    return "\n".join(lines)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / "dcal" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def definition(module: str, name: str) -> Definition:
    for node in tree(module).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if name == (target.id if isinstance(target, ast.Name) else getattr(node, "name", None)):
            assert isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign)
            return node
    raise AssertionError(f"dcal.{module} defines no {name}")


def docstring(module: str, node: Definition) -> str:
    """Of a class or function; of an assignment, the string below it."""
    if not isinstance(node, ast.Assign):
        return ast.get_docstring(node) or ""
    body = tree(module).body
    return text_of(body[body.index(node) + 1])


def text_of(node: ast.stmt | None) -> str:
    """The text of an expression statement that is a string."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return textwrap.dedent(node.value.value).strip()
    return ""


def methods(node: ast.ClassDef, name: str | None = None) -> Iterator[ast.FunctionDef]:
    """Its public methods and properties, or the one that is asked for."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            public = (not part.name.startswith("_") or part.name == "__call__") and part.name != "extra_repr"
            if part.name == name or (name is None and public):
                yield part


def fields(node: ast.ClassDef) -> list[str]:
    """A list of the annotated fields of a tuple or data class."""
    lines = []
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign):
            default = f" = {ast.unparse(part.value)}" if part.value else ""
            text = " ".join(text_of(after).split())
            head = f"- `{ast.unparse(part.target)}: {ast.unparse(part.annotation)}{default}`"
            lines.append(f"{head}: {text}" if text else head)
    return [*lines, ""] if lines else []


def signature(name: str, node: ast.FunctionDef) -> str:
    """`name(parameters) -> result`, a parameter per line where they do not fit on one."""
    given = node.args
    defaults = [*[None] * (len(given.args) - len(given.defaults)), *given.defaults]
    shown = [parameter(arg, default) for arg, default in zip(given.args, defaults, strict=True) if arg.arg != "self"]
    if given.vararg or given.kwonlyargs:
        shown.append(f"*{parameter(given.vararg, None)}" if given.vararg else "*")
    shown += [parameter(arg, default) for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    shown += [f"**{parameter(given.kwarg, None)}"] if given.kwarg else []
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {text},\n" for text in shown) + f"){result}"


def parameter(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(arg.annotation)}" if arg.annotation else ""
    return f"{arg.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def fenced(code: str) -> list[str]:
    """Not marked as Python: a signature alone does not parse."""
    return ["```", code, "```", ""]


def markdown(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    head, found = sections(text)
    lines = [head, ""]
    for title, entries in found.items():
        lines += [f"{title}:", ""]
        lines += [f"- `{name}`: {words}" if name else f"- {words}" for name, words in entries]
        lines.append("")
    return "\n".join(lines)


def sections(text: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The text before the first section, and the entries (name or "", words) of each section."""
    head, *parts = re.split(r"^(Args|Returns|Raises):", text, flags=re.MULTILINE)
    found: dict[str, list[tuple[str, str]]] = {}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        if title == "Returns" or not body.startswith("\n"):
            found[title] = [("", " ".join(body.split()))]
            continue
        found[title] = []
        for item in re.split(r"\n(?=\S)", textwrap.dedent(body).strip()):
            name, _, words = " ".join(item.split()).partition(": ")
            found[title].append((name, words))
    return head.strip(), found
