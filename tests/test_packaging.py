"""The package works from a wheel, an editable install and a plain checkout, and `import dcal` stays cheap."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dcal
from dcal.commands.app import CONFIGURED, OTHERS, command_function

ROOT = Path(__file__).resolve().parent.parent
WHERE = "from dcal.utils import paths as p; print(p.__file__, p.config_dir(), p.experiments_dir(), sep='\\n')"


def python(
    code: str, *flags: str, cwd: Path, path: tuple[Path, ...] = (), interpreter: str | Path = sys.executable
) -> str:
    """Output of `code` in a fresh interpreter that finds first what is on `path`.

    With the flag -S it finds the standard library besides and nothing else, installed or not.
    """
    command = [str(interpreter), *flags, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for file in (ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "LICENSE", *ROOT.glob("README.md")):
        shutil.copy(file, copy)
    for name in ("dcal", "conf", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        if name != "dcal":  # one level deeper than any file is today
            (copy / name / "group" / "deep").mkdir(parents=True)
            (copy / name / "group" / "deep" / "probe.yaml").write_text("probe: true\n", encoding="utf-8")
    return copy


def test_plain_checkout(checkout: Path, tmp_path: Path) -> None:
    module, conf, experiments = python(WHERE, "-S", cwd=tmp_path, path=(checkout,)).splitlines()
    assert Path(module) == checkout / "dcal" / "utils" / "paths.py"
    assert (Path(conf), Path(experiments)) == (checkout / "conf", checkout / "experiments")


def test_wheel_carries_the_yaml_files(checkout: Path, tmp_path: Path) -> None:
    python(f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})", cwd=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    for name in ("conf", "experiments"):
        there = {file.relative_to(checkout) for file in (checkout / name).rglob("*.yaml")}
        carried = {file.relative_to(site / "dcal") for file in (site / "dcal" / name).rglob("*.yaml")}
        assert carried == there
    assert (site / "dcal" / "py.typed").is_file()
    template = Path("dcal", "report", "html", "template")
    assert {f.name for f in (site / template).iterdir()} == {f.name for f in (ROOT / template).iterdir()}
    assert list(site.glob("dcal-*.dist-info/**/LICENSE"))
    assert {entry.name for entry in site.iterdir() if entry.suffix != ".dist-info"} == {"dcal"}

    module, conf, experiments = python(WHERE, "-S", cwd=tmp_path, path=(site,)).splitlines()
    assert Path(module) == site / "dcal" / "utils" / "paths.py"
    assert (Path(conf), Path(experiments)) == (site / "dcal" / "conf", site / "dcal" / "experiments")


@pytest.fixture(scope="module")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with an editable install of the checkout, and nothing else."""
    built = tmp_path_factory.mktemp("editable")
    python(f"from setuptools.build_meta import build_editable; build_editable({str(built)!r})", cwd=checkout)
    venv.create(built / "venv", with_pip=False)
    (site,) = (built / "venv" / "lib").glob("python*/site-packages")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return built / "venv" / "bin" / "python"


def test_editable_install_runs_from_the_checkout(checkout: Path, editable: Path, tmp_path: Path) -> None:
    module, conf, experiments = python(WHERE, cwd=tmp_path, interpreter=editable).splitlines()
    assert Path(module) == checkout / "dcal" / "utils" / "paths.py"
    assert (Path(conf), Path(experiments)) == (checkout / "conf", checkout / "experiments")


def test_mypy_sees_an_editable_install(editable: Path, tmp_path: Path) -> None:
    """With its types: the wrong one of the last line is an error, and the only one."""
    lines = ["import dcal", "version: str = dcal.__version__", "dcal.create_dcal_model(224, num_classes=3)"]
    (tmp_path / "mine.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(editable), "--cache-dir", os.devnull, "mine.py"]
    environment = {**os.environ, "PYTHONPATH": ""}  # mypy asks the interpreter where its modules are
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "mine.py:3: error: Argument 1" in done.stdout and "Found 1 error" in done.stdout, done.stdout


def test_every_package_is_listed() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "dcal").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"dcal.conf", "dcal.experiments"}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_console_scripts_lead_to_the_function_of_their_name() -> None:
    scripts = setup_cfg()["options.entry_points"]["console_scripts"].split("\n")
    found = {}
    for script in filter(None, scripts):
        command, target = (part.strip() for part in script.split("="))
        module, entry = target.split(":")
        found[command] = getattr(importlib.import_module(module), entry).args
    assert found == {f"dcal-{name}": (name,) for name in (*CONFIGURED, *OTHERS)}
    assert all(callable(command_function(name)) for (name,) in found.values())


@pytest.mark.parametrize("name", [*CONFIGURED, *OTHERS])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["experimnt=tiny/fgvc"]])
def test_help_and_a_typing_error_are_answered_at_once(name: str, words: list[str], tmp_path: Path) -> None:
    assert imported_by(name, words, tmp_path) & {*HEAVY, "numpy", "scipy"} == set()


def test_looking_at_runs_imports_no_model(tmp_path: Path) -> None:
    """Tables and the state of a list; a finished run that `dcal-train` returns has a test in run/test_identity.py."""
    queue = [str(ROOT / "experiments" / "protocol" / "when.yaml"), "cells=R0", f"dataset.root={tmp_path}", "show=true"]
    for name, words in (("results", ["runs=runs"]), ("queue", queue)):
        assert imported_by(name, words, tmp_path) & HEAVY == set()


HEAVY = {"torch", "timm", "torchvision", "wandb", "albumentations", "cv2", "matplotlib"}


def imported_by(name: str, words: list[str], folder: Path) -> set[str]:
    """The modules that are loaded once a command has ended."""
    lines = [
        f"import sys; sys.argv[1:] = {words!r}",
        f"try: from dcal.commands.app import run; run({name!r})",
        "except SystemExit: pass",
        "print('imported:', *sys.modules)",
    ]
    return set(python("\n".join(lines), cwd=folder, path=(ROOT,)).rpartition("imported:")[2].split())


def test_every_constraint_admits_what_setup_cfg_asks_for() -> None:
    options, extras = setup_cfg()["options"], setup_cfg()["options.extras_require"]
    asked = (options["install_requires"] + extras["dev"] + extras["export"]).split("\n")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}

    for requirement in map(Requirement, filter(None, asked)):
        assert requirement.name in pinned, f"{requirement.name}: no tested version in constraints.txt"
        assert requirement.specifier.contains(pinned[requirement.name])


def test_public_names_resolve() -> None:
    lazy = set(dcal.__all__) - {"__version__"}
    assert lazy == set(dcal._MODULE_OF)
    for name in sorted(lazy):
        value = getattr(dcal, name)
        assert value.__name__ == name
        assert value.__module__.startswith("dcal."), "re-exported from elsewhere"
    assert set(dcal.__all__) <= set(dir(dcal))
    with pytest.raises(AttributeError, match="has no attribute 'Dcal'"):
        _ = dcal.Dcal


def test_import_is_cheap(tmp_path: Path) -> None:
    code = "import dcal, sys; print(*({'torch', 'timm', 'hydra', 'wandb', 'numpy'} & set(sys.modules)))"
    assert python(code, cwd=tmp_path, path=(ROOT,)).split() == []
