"""A table as a page of its own, and tables inside other pages."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from dcal.report.format import cells, commit_of, footnote, metric_values
from dcal.report.table import Table, column
from dcal.utils.errors import UserError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #ddd; padding: .3em .8em; text-align: left }
img { max-width: 100% } pre { background: #f4f4f4; padding: .8em; overflow-x: auto } small { color: #555 }
"""

MARKED = re.compile(r"(?P<open><!-- results:(?P<name>[\w-]+) -->\n).*?(?P<close><!-- /results -->)", re.DOTALL)


def fill(text: str, tables: Mapping[str, str | None]) -> str:
    """Replaces what stands between `<!-- results:NAME -->` and `<!-- /results -->` by the table of that name.

    Where that is None, the page keeps what it has.

    Raises:
        UserError: there is no table of that name.
    """

    def replace(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise UserError(f"<!-- results:{match['name']} -->: tables.yaml has {', '.join(tables) or 'no table'}")
        new = tables[match["name"]]
        return match[0] if new is None else f"{match['open']}{new}\n{match['close']}"

    return MARKED.sub(replace, text)


def html(table: Table, figure: Path | None) -> str:
    """A page that opens without a server: the table, its figure inside, and every run."""
    spec = table.spec
    parts = [f"<h1>{escape(spec.title or spec.name)}</h1>", html_table(*cells(table))]
    parts.append(f"<p><small>{escape(footnote(table))}</small></p>")
    if figure is not None:
        parts.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}">')
    if spec.command:
        parts.append(f"<pre>{escape(spec.command.strip())}</pre>")
    metrics = list(table.rows[0].values)
    runs = [
        [row.label, record["cfg_id"], str(record["seed"]), record["split"], commit_of(record)]
        + [metric_values(key, column([record], key)) for key in metrics]
        + [f"{record['train_seconds'] / 60:.1f}", f"{record['images_per_second']:.0f}"]
        for row in table.rows
        for record in row.records
    ]
    header = ["row", "cfg_id", "seed", "split", "commit", *metrics, "minutes", "images/s"]
    parts.append("<h2>Runs</h2>" + html_table(header, runs))
    head = f'<meta charset="utf-8"><title>{escape(spec.name)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(tag: str, texts: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    return "<table>" + line("th", header) + "".join(line("td", row) for row in rows) + "</table>"
