"""`dcal-results`: from finished runs to tables, comparisons, lists and choices, with intervals and paired tests.

It prints, and writes nothing; `write=true` writes records, tables, figures and pages, which are functions of the JSON
files alone, so that a reader can make them again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcal.commands.words.overrides import composed_train, words_of
from dcal.report import best, listing, records
from dcal.report.compare import text
from dcal.report.compare.pair import compare_sides
from dcal.report.compare.sides import read_side
from dcal.report.dashboard import Page
from dcal.report.dashboard import publish as publish_dashboard
from dcal.report.format import grid_of, markdown
from dcal.report.grid import FORMATS, render, render_all
from dcal.report.html.document import document
from dcal.report.html.run_files import read_folder
from dcal.report.pages import MARKED, fill, html
from dcal.report.plot import draw_table
from dcal.report.protocol import verdicts
from dcal.report.protocol.rates import rates_text
from dcal.report.records import Results, RunRecord
from dcal.report.table import Spec, Table, make_table, matches, specs
from dcal.run.files import explain_write_errors, write_atomically
from dcal.run.label import typed_overrides
from dcal.run.lock import acquire_lock
from dcal.run.queue import is_open, jobs_of
from dcal.utils.errors import UserError, check_number, choose
from dcal.utils.paths import experiments_dir

TABLE_KEYS = ("runs", "out", "device", "tables", "format", "wandb", "write", "pages", "figures", "html")
KEYS = {
    "list": ("where", "sort", "metric", "format"),
    "compare": ("metric", "margin", "power", "format"),
    "best": ("metric", "where", "format"),
    "report": ("device",),
    "verdicts": ("runs", "out", "device", "write", "figures"),
}
"""What is asked for → the other keys that count then; without any of them it is the tables, with TABLE_KEYS."""
WRITE_KEYS = ("pages", "figures", "html")
"""Where files go; without `write=true` there are none."""


def check_keys(config: DictConfig) -> None:
    """Raises a UserError if two things are asked for, or if a key was typed that has no effect on what is."""
    asked = [key for key in KEYS if config[key] is not None]
    if len(asked) > 1:
        raise UserError(f"{asked[0]}=, {asked[1]}=: give one of {', '.join(f'{key}=' for key in KEYS)} at a time")
    known = (asked[0], *KEYS[asked[0]]) if asked else TABLE_KEYS
    what = f"{asked[0]}=" if asked else "the tables"
    for word, key in typed_overrides():
        if key not in known and not key.startswith("hydra"):
            raise UserError(f"{word}: has no effect on {what}; leave it out")
        if key in WRITE_KEYS and not config.write:
            raise UserError(f"{word}: has no effect unless files are written; add write=true or leave it out")


def results(config: DictConfig) -> None:
    """Does the one thing that is asked for; prints the tables if it is none of `KEYS`."""
    check_keys(config)
    kind = choose("format", config.format, FORMATS)
    if config.report is not None:
        write_report(Path(config.report).expanduser(), config)
    elif config.list is not None:
        root = Path(config.list).expanduser()
        print(render(listing.listing(root, words_of(config.where), config.sort, config.metric), kind))
    elif config.compare is not None:
        compare(words_of(config.compare), config, kind)
    elif config.best is not None:
        choice = best.choose_best(Path(config.best).expanduser(), config.metric, words_of(config.where))
        print(best.text_of(choice) if kind == "markdown" else render(best.grid_of(choice), kind))
    elif not config.write:
        tabulate(config)
    else:
        with explain_write_errors(Path(config.out)):
            Path(config.out).mkdir(parents=True, exist_ok=True)
        with acquire_lock(Path(config.out)):  # records are read, merged and written: of two at once one would be lost
            tabulate(config)


def compare(names: list[str], config: DictConfig, kind: str) -> None:
    """Prints the comparison of two sides."""
    if len(names) != 2:
        raise UserError(f"compare=[{','.join(names)}]: give two, compare=[A,B]")
    for key in ("margin", "power"):
        check_number(key, config[key], gt=0, note="in points")
    first, second = map(read_side, names)
    pair = compare_sides(first, second, config.metric, config.margin)
    print(text.text_of(pair, config.power) if kind == "markdown" else render(text.grid_of(pair, config.power), kind))


def tabulate(config: DictConfig) -> None:
    """Prints the tables of the runs that are found and of the records in `out`; writes them if that is asked for."""
    out = Path(config.out)
    found = collected(out, Path(config.runs), config.device)
    if config.write:
        write_records(out, found)
    names = list(found)
    new = {name: {**own, "runs": records.with_defaults(own["runs"])} for name, own in found.items()}
    results = dict(sorted({**records.load_all(out), **new}.items()))
    if config.verdicts is not None:
        report_protocol(Path(config.verdicts).expanduser(), results, config)
        return
    path = Path(config.tables) if config.tables else experiments_dir() / "tables.yaml"
    if config.tables and not path.is_file():
        raise UserError(f"tables={path}: no such file; leave it out for the tables of the installation")
    listed = specs(records.parse(path, records.read_yaml)) if path.is_file() else []
    known = [table for spec in listed if (table := described(spec, results)) is not None]
    texts = {**dict.fromkeys(spec.name for spec in listed), **{table.spec.name: markdown(table) for table in known}}
    # what has just been collected is worth a look before anybody has described a table for it
    unlisted = [name for name in names if not all(is_told(name, record, known) for record in results[name]["runs"])]
    own = [make_table(Spec(f"{name}-all" if name in texts else name, [name]), results) for name in unlisted]
    if config.write:
        for page in map(Path, config.pages):
            rewrite(page, texts)
        for table in known:
            publish(table, Path(config.figures), Path(config.html))
        for table in own:
            publish(table, Path(config.html), Path(config.html))
    shown = [table for table in [*known, *own] if table.rows and any(table.spec.takes(name) for name in names)]
    if config.format == "markdown":
        for table in shown:
            print(f"\n{table.spec.title or table.spec.name}\n\n{markdown(table)}")
    else:
        print(render_all([grid_of(table) for table in shown], config.format))
    if config.wandb is not None:
        workspace, report = publish_dashboard(config.wandb, [dashboard_page(table, results) for table in shown])
        print(f"\nworkspace  {workspace}\nreport     {report}")
    if not names:
        tell(f"runs={config.runs}: no finished run was read; name another folder by runs=")
    elif not config.write:
        tell(f"Nothing was written; write=true writes records to {out}, and tables, figures and pages.")


def is_told(name: str, record: RunRecord, tables: Sequence[Table]) -> bool:
    """Whether one of the tables is made of this run, too."""
    return any(table.spec.takes(name) and matches(record, table.spec.where) for table in tables)


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
        tell(f"left as it is: {problem}")
        return None


def write_report(root: Path, config: DictConfig) -> None:
    """Writes `report.html` into a run directory or a folder of runs.

    Raises:
        UserError: no finished run is there.
    """
    folder = read_folder(root, config.device)
    for problem in folder.problems:
        tell(problem)
    file = root / "report.html"
    write_atomically(file, document(folder))
    print(f"{file}: {len(folder.runs)} runs, {file.stat().st_size / 1e6:.1f} MB; open it in a browser")


def report_protocol(path: Path, results: Mapping[str, Results], config: DictConfig) -> None:
    """Prints what a protocol says of its runs; with `write=true` also the page beside it, and the map."""
    protocol = verdicts.read_protocol(path)
    name = str(protocol["name"])
    run = {str(found["name"]).removeprefix(f"{name}/") for found in results.values()}
    cells = [cell for cell in protocol["order"] if cell in run and not is_open(protocol, cell)]
    finished, strangers = verdicts.sort_records(list(plan(protocol, cells)), results, name)
    for stranger in strangers:
        tell(f"left out: {stranger}")
    found = verdicts.contrasts(protocol, finished)
    texts: dict[str, str | None] = {
        f"{name}-state": verdicts.state_text(protocol, finished),
        f"{name}-rates": rates_text(protocol, finished),
        f"{name}-contrasts": verdicts.contrasts_text(found, bool(protocol.get("confirmation_seeds"))),
        f"{name}-predictions": verdicts.predictions_text(protocol, found),
    }
    print("\n\n".join(filter(None, texts.values())))
    if config.write:
        figures = Path(config.figures)
        figures.mkdir(parents=True, exist_ok=True)
        verdicts.draw_map(protocol, found, figures / f"{name}.png")
        page = path.with_name("README.md")
        others = MARKED.finditer(page.read_text(encoding="utf-8")) if page.is_file() else ()
        rewrite(page, {**{match["name"]: None for match in others}, **texts})


def plan(protocol: Mapping[str, Any], cells: Sequence[str]) -> Iterator[verdicts.Planned]:
    """The settings that each arm has in these cells, whatever the data's folder and the weights' file."""
    jobs = {(job.cell, job.arm, job.point): job.overrides for job in jobs_of(protocol, cells)} if cells else {}
    for (cell, arm, point), words in jobs.items():
        config: Any = OmegaConf.to_container(composed_train(words), resolve=True)
        yield verdicts.Planned(cell, arm, point, records.flat(config))


def collected(out: Path, runs: Path, device: str | None) -> dict[str, Results]:
    """The runs below a folder merged with the records in `out`, by the name of their file there without `.json`."""
    found, problems = records.collect(runs)
    for problem in problems:
        tell(f"left out: {problem}")
    merged: dict[str, Results] = {}
    for name, new in found.items():
        for record in new:
            record["device"] = record["device"] or device
        file = out / f"{name.replace('/', '-')}.json"
        if file.stem in merged:
            raise UserError(f"name={name}: its records have the same file as those of {merged[file.stem]['name']}")
        old = records.load_results(file)["runs"] if file.is_file() else []
        merged[file.stem] = records.merge(name, old, new)
        tell(f"{name}: {len(new)} runs collected")
    return merged


def write_records(out: Path, found: Mapping[str, Results]) -> None:
    """Writes a file of records per name of runs."""
    for name, results in found.items():
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{name}.json"
        records.save_results(results, file)
        tell(f"{file}: written")


def publish(table: Table, figures: Path, pages: Path) -> None:
    """Writes the figure of a table that has runs, and beside its page what a paper takes: LaTeX, CSV, figure as PDF."""
    if not table.rows:
        return
    figures.mkdir(parents=True, exist_ok=True)
    pages.mkdir(parents=True, exist_ok=True)
    name = table.spec.name
    picture = figures / f"{name}.png"
    draw_table(table, picture)
    draw_table(table, pages / f"{name}.pdf")
    write_atomically(pages / f"{name}.html", html(table, picture))
    for suffix, kind in (("tex", "latex"), ("csv", "csv")):
        write_atomically(pages / f"{name}.{suffix}", f"{render(grid_of(table), kind)}\n")


def tell(text: str) -> None:
    """Prints what is no result, so that the results alone can go to a file."""
    print(text, file=sys.stderr)


def rewrite(page: Path, texts: Mapping[str, str | None]) -> None:
    """Fills the marked places of a file, if there is one and anything changes."""
    if page.is_file():
        old = page.read_text(encoding="utf-8")
        new = fill(old, texts)
        if new != old:
            write_atomically(page, new)
            tell(f"{page}: written anew")
