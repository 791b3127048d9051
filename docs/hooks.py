"""Lays the site out like the repository, so that one relative link serves GitHub, an editor and the site.

mkdocs knows the files below `docs/` only, and puts them at the root of the site. Here they move to `docs/`, and the
pages beside that folder join them, with every file that a page may link to.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINKED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "Makefile",
    "*.txt",
    "*.cfg",
    "*.toml",
    "conf/**/*.yaml",
    "dcal/**/*.py",
    "tests/*.py",
    "experiments/**/*.md",
    "experiments/**/*.yaml",
    "experiments/**/*.json",
    "experiments/**/*.png",
    "docs/**/*.md",
    "docs/**/*.png",
    "docs/**/*.svg",
    "docs/*.ipynb",
    "docs/**/*.py",
    "docs/*.css",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every linked file under its path in the repository, and the theme's own."""
    found = sorted({path for pattern in LINKED for path in ROOT.glob(pattern)})
    mirrored = [File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in found]
    return Files([*mirrored, *(file for file in files if file.src_dir != config.docs_dir)])
