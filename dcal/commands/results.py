"""`dcal-results`: from finished runs to the tables of the READMEs, with intervals and paired tests.

It prints the tables of the runs that it finds and writes nothing; `write=true` writes records, tables, figures and
pages. These are functions of the JSON files alone, so that a reader can make them again. With `report=DIR` it writes
one page about the runs in a folder instead, from all that they keep.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from dcal.commands.words.overrides import typed_overrides
from dcal.report.dashboard import Page
from dcal.report.dashboard import publish as publish_dashboard
from dcal.report.format import markdown
from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder
from dcal.report.pages import fill, html
from dcal.report.plot import draw
from dcal.report.protocol import (
    Planned,
    contrasts,
    contrasts_text,
    draw_map,
    predictions_text,
    read_protocol,
    sort_records,
    state_text,
)
from dcal.report.records import Results, collect, flat, load, load_all, merge, parse, read_yaml, save, with_defaults
from dcal.report.table import Spec, Table, make_table, specs
from dcal.run.files import write_atomically
from dcal.run.queue import jobs_of
from dcal.utils.errors import UserError
from dcal.utils.paths import experiments_dir


def results(config: DictConfig) -> None:
    """Checks the command line, then reports or tabulates."""
    check_keys(config)
    if config.report is not None:
        write_report(Path(config.report).expanduser(), config)
    else:
        tabulate(config)


def check_keys(config: DictConfig) -> None:
    """Raises a UserError if a key was typed that has no effect on a report, or none without `write=true`."""
    typed = list(typed_overrides())
    idle = [word for word, key in typed if key not in REPORT_KEYS]
    if idle and config.report is not None:
        raise UserError(f"{idle[0]}: has no effect on report={config.report}; leave it out")
    unwritten = [word for word, key in typed if key in WRITE_KEYS]
    if unwritten and not config.write and config.report is None:
        raise UserError(f"{unwritten[0]}: has no effect unless files are written; add write=true or leave it out")


def tabulate(config: DictConfig) -> None:
    """Collects the runs and prints their tables, and writes all that is made of them if asked to."""
    out = Path(config.out)
    found = collected(out, Path(config.runs), config.device)
    if config.write:
        write_records(out, found)
    names = list(found)
    results = dict(sorted({**load_all(out), **{name: with_defaults(found[name]) for name in names}}.items()))
    if config.verdicts is not None:
        report_protocol(Path(config.verdicts).expanduser(), results, config)
        return
    path = Path(config.tables) if config.tables else experiments_dir() / "tables.yaml"
    if config.tables and not path.is_file():
        raise UserError(f"tables={path}: no such file; leave it out for the tables of the installation")
    listed = specs(parse(path, read_yaml)) if path.is_file() else []
    tables = [table for spec in listed if (table := described(spec, results)) is not None]
    texts = {**dict.fromkeys(spec.name for spec in listed), **{table.spec.name: markdown(table) for table in tables}}
    # what has just been collected is worth a look before anybody has described a table for it
    unlisted = [name for name in names if not any(table.spec.takes(name) for table in tables)]
    own = [make_table(Spec(name, [name]), results) for name in unlisted]
    if config.write:
        for page in map(Path, config.pages):
            rewrite(page, texts)
        for table in tables:
            publish(table, Path(config.figures), Path(config.html))
        for table in own:
            publish(table, Path(config.html), Path(config.html))
    shown = [table for table in (*tables, *own) if any(table.spec.takes(name) for name in names)]
    for table in shown:
        print(f"\n{table.spec.title or table.spec.name}\n\n{markdown(table)}")
    if config.wandb is not None:
        told = publish_dashboard(config.wandb, [dashboard_page(table, results) for table in shown])
        print(f"\nworkspace  {told.workspace}\nreport     {told.report}")
    if not names:
        print(f"runs={config.runs}: no finished run was read; name another folder by runs=", file=sys.stderr)
    elif not config.write:
        print(f"\nNothing was written; write=true writes records to {out}, and tables, figures and pages.")


def dashboard_page(table: Table, results: Mapping[str, Results]) -> Page:
    """A table for W&B, with the names of its runs, and the metrics of its columns after each epoch."""
    names = [str(found["name"]) for name, found in results.items() if table.spec.takes(name)]
    split = table.rows[0].records[0]["split"]
    metrics = [f"{split}/{metric}" for metric in table.rows[0].values]
    return Page(table.spec.title or table.spec.name, markdown(table), names, metrics)


def described(spec: Spec, results: Mapping[str, Results]) -> Table | None:
    """The table of a description; None, with a word about it, where the runs do not fit the description any more."""
    try:
        return make_table(spec, results)
    except UserError as problem:
        print(f"left as it is: {problem}", file=sys.stderr)
        return None


REPORT_KEYS = ("report", "device")
"""What a report listens to."""
WRITE_KEYS = ("pages", "figures", "html")
"""Where files go; without `write=true` there are none."""


def write_report(root: Path, config: DictConfig) -> None:
    """Writes `report.html` into a run directory or a folder of runs.

    Raises:
        UserError: no finished run is there.
    """
    folder = read_folder(root, config.device)
    for problem in folder.problems:
        print(problem, file=sys.stderr)
    file = root / "report.html"
    write_atomically(file, document(folder))
    print(f"{file}: {len(folder.runs)} runs, {file.stat().st_size / 1e6:.1f} MB; open it in a browser")


def report_protocol(path: Path, results: Mapping[str, Results], config: DictConfig) -> None:
    """Prints what a protocol says of its runs; with `write=true` also the page beside it, and the map."""
    protocol = read_protocol(path)
    name = str(protocol["name"])
    cells = [cell for cell in protocol["order"] if any(found["name"] == f"{name}/{cell}" for found in results.values())]
    finished, strangers = sort_records(list(plan(protocol, cells)), results, name)
    for stranger in strangers:
        print(f"left out: {stranger}", file=sys.stderr)
    found = contrasts(protocol, finished)
    texts: dict[str, str | None] = {
        f"{name}-state": state_text(protocol, finished),
        f"{name}-contrasts": contrasts_text(found),
        f"{name}-predictions": predictions_text(protocol, found),
    }
    print("\n\n".join(filter(None, texts.values())))
    if config.write:
        figures = Path(config.figures)
        figures.mkdir(parents=True, exist_ok=True)
        draw_map(protocol, found, figures / f"{name}.png")
        rewrite(path.with_name("README.md"), texts)


def plan(protocol: Mapping[str, Any], cells: Sequence[str]) -> Iterator[Planned]:
    """The settings that each arm has in these cells, whatever the data's folder and the weights' file."""
    jobs = {(job.cell, job.arm, job.point): job.overrides for job in jobs_of(protocol, cells)} if cells else {}
    for (cell, arm, point), words in jobs.items():
        config: Any = OmegaConf.to_container(compose("train", list(words)), resolve=True)  # by the Hydra that runs this
        yield Planned(cell, arm, point, flat(config))


def collected(out: Path, runs: Path, device: str | None) -> dict[str, Results]:
    """The runs below a folder merged with the records in `out`, by the name of their file there without `.json`."""
    found, problems = collect(runs)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    merged = {}
    for name, records in found.items():
        for record in records:
            record["device"] = record["device"] or device
        file = out / f"{name.replace('/', '-')}.json"
        old = load(file)["runs"] if file.is_file() else []
        merged[file.stem] = merge(name, old, records)
        print(f"{name}: {len(records)} runs collected")
    return merged


def write_records(out: Path, found: Mapping[str, Results]) -> None:
    """Writes a file of records per name of runs."""
    for name, results in found.items():
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{name}.json"
        save(results, file)
        print(f"{file}: written")


def publish(table: Table, figures: Path, pages: Path) -> None:
    """Writes figure and page of a table that has runs."""
    if not table.rows:
        return
    figures.mkdir(parents=True, exist_ok=True)
    pages.mkdir(parents=True, exist_ok=True)
    picture = figures / f"{table.spec.name}.png"
    draw(table, picture)
    write_atomically(pages / f"{table.spec.name}.html", html(table, picture))


def rewrite(page: Path, texts: Mapping[str, str | None]) -> None:
    """Fills the marked places of a file, if there is one and anything changes."""
    if page.is_file():
        old = page.read_text(encoding="utf-8")
        new = fill(old, texts)
        if new != old:
            write_atomically(page, new)
            print(f"{page}: written anew")
