"""The pages say what is: examples run, commands compose, links lead somewhere, the site builds without a warning."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from pages import PAGES, ROOT, Fence, anchors, commands, documented, fences, links
from run_command import composed_command, run_command

import dcal
from dcal.commands.words.keys import check_words, group_options, known_keys
from dcal.utils.errors import UserError

EXECUTED = ("README.md", "tutorial.md")
"""Pages whose Python runs, block after block in one namespace. That of the others, which need a run, must parse."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def write_file(fence: Fence, folder: Path) -> bool:
    """Writes a block that begins with `# file: NAME` to that file; whether it does."""
    first = fence.code.partition("\n")[0]
    if not first.startswith("# file: "):
        return False
    file = folder / first.removeprefix("# file: ")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(fence.code, encoding="utf-8")
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in EXECUTED], ids=name_of)
def test_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of `text` is what the Python before it printed. The commands of the tutorial run, too."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for fence in fences(page.read_text(encoding="utf-8")):
        where = f"{page.name}, line {fence.line}"
        if write_file(fence, tmp_path):
            continue
        if fence.language == "python":
            assert not printed, f"{where}: the block before prints, and its output is not shown"
            code = fence.code.replace("448", "96")  # smaller images: a second instead of ten
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(compile("\n" * (fence.line - 1) + code, str(page), "exec"), namespace)
            printed = stdout.getvalue()
        elif fence.language == "text":
            assert printed == fence.code, where
            printed = ""
        elif fence.language == "sh" and page.name == "tutorial.md":
            for program, *words in commands(fence.code):
                assert program == "dcal-train"
                run_command("train", *words)
    assert not printed, f"{page.name}: the last block prints, and its output is not shown"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in EXECUTED], ids=name_of)
def test_python_on_the_other_pages_parses(page: Path) -> None:
    for fence in fences(page.read_text(encoding="utf-8")):
        if fence.language == "python":
            compile("\n" * (fence.line - 1) + fence.code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for line, target in links(page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(f"line {line}: {target}: no such file in the repository")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            broken.append(f"line {line}: {target}: no such heading")
    assert broken == []


def test_every_page_is_listed() -> None:
    """In the index of docs/, and in the navigation of the site."""
    listed = {target for _, target in links((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))}
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or page.name in listed, f"list {page.name} in docs/README.md"
        assert f" docs/{page.name}\n" in navigation, f"list docs/{page.name} in the nav of mkdocs.yml"


def test_documented_commands_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        for fence in fences(page.read_text(encoding="utf-8")):
            write_file(fence, tmp_path)
    shown: dict[tuple[str, ...], Path] = {}
    for file, words in documented():
        shown.setdefault(tuple(words), file)
    assert len(shown) > 40
    for words, file in shown.items():
        try:
            if any(word.startswith("ablation=") for word in words):
                check_words(words[1:])  # tests/test_experiments.py composes every ablation
            else:
                composed_command(words)
        except (Exception, SystemExit) as error:
            pytest.fail(f"{name_of(file)}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("command", ["dcal-trian", "dcal-train train.epohcs=3", "dcal-bench precision=fp32"])
def test_a_wrong_command_is_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, UserError, HydraException)):
        composed_command(command.split())


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    assert (tmp_path / "site" / "docs" / "tutorial" / "index.html").is_file()
    assert (tmp_path / "site" / "docs" / "images" / "examples.png").is_file()


def test_every_name_of_the_mapping_exists() -> None:
    """Each word in backticks is a path, a public name, a key or an option, a command, or a target of make."""
    scripts = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    keys = set(known_keys("train"))
    names = re.findall(r"`([^`]+)`", (ROOT / "docs" / "mapping.md").read_text(encoding="utf-8"))
    assert len(names) > 50
    for name in names:
        group, _, option = name.partition("=")
        known = (
            (ROOT / name).exists()
            or name in keys
            or option in group_options(group)
            or (name.startswith("dcal.") and name.removeprefix("dcal.") in dcal.__all__)
            or (name.startswith("dcal-") and f"    {name} =" in scripts)
            or (name.startswith("make ") and f"\n{name.removeprefix('make ')}:" in targets)
        )
        assert known, f"docs/mapping.md: {name}"


def test_quoted_messages_of_the_troubleshooting_page_exist() -> None:
    """Three dots stand for what a message fills in. Messages of other programs are listed here."""
    foreign = {
        "dcal-train: command not found",
        'Cannot find implementation or library stub for module named "dcal"',
        "ModuleNotFoundError: onnx",
    }
    sources = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "dcal").rglob("*.py")]
    nodes = (node for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = re.findall(r"^\| (.+?) \|", page, re.MULTILINE)
    quoted = {message for symptom in symptoms for message in re.findall(r"`([^`]* [^`]*)`", symptom)} - foreign
    assert len(quoted) > 8
    for message in quoted:
        for part in (part.strip(" ;") for part in message.split("...")):
            assert any(part in text for text in texts), f"docs/troubleshooting.md: {message}: no message says {part!r}"
