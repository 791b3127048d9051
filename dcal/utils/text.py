"""Text for a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Rows with columns of one width each, two spaces apart; no spaces at the end of a line.

    Args:
        rows: cells, equally many in each row.
        right: numbers of the columns that end, and do not begin, at one place.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{'>' if n in right else '<'}{widths[n]}}" for n, cell in enumerate(row)).rstrip()
        for row in rows
    ]
