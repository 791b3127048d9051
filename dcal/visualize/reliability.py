"""`reliability.json` for people: a table of rates, the pairs of cameras, and plots as SVG geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

FILE = "reliability.json"
"""In a run directory, what `dcal-evaluate reliability=true` found."""
SIDE = 200.0
"""Width and height of a plot's unit square in the units of the SVG."""


class Row(NamedTuple):
    """A line of the table."""

    name: str
    value: str
    interval: str
    """Empty where there is none."""
    explanation: str


class Plot(NamedTuple):
    """A curve in the unit square."""

    title: str
    x_axis: str
    y_axis: str
    x_ticks: list[tuple[float, str]]
    summary: str
    """For those who cannot see it."""
    path: str = ""
    bars: Sequence[tuple[float, float, float, float]] = ()
    """x, y, width, height."""
    diagonal: bool = False


def reliability_rows(found: Mapping[str, Any]) -> list[Row]:
    """The rates of `reliability.json` in words and percent, whatever of them is there."""
    return [*_verification(found), *_calibration(found), *_unknown(found)]


def reliability_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    if not rows:
        return "reliability: there is no pair of one identity, or none of two, so there are no rates"
    width = max(len(row.name) for row in rows)
    return "\n".join(f"{row.name:<{width}}  {row.value:>9}  {row.interval}".rstrip() for row in rows)


def cameras(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs of cameras, the largest equal error rate first."""
    rows = [{**pair, **{rate: pair[rate]["value"] for rate in ("auc", "eer")}} for pair in found.get("cameras", ())]
    return sorted(rows, key=lambda row: -row["eer"])


def plots(found: Mapping[str, Any]) -> list[Plot]:
    """ROC curve; or reliability diagram and risk-coverage curve."""
    drawn = []
    if found.get("roc"):
        decades = max(1, math.ceil(-math.log10(found["roc"][0][0])))  # of a single impostor the curve is one point
        points = [(1 + math.log10(rate) / decades, hits) for rate, hits in found["roc"]]
        ticks = [(1 - decade / decades, f"1e-{decade}" if decade else "1") for decade in range(decades, -1, -1)]
        last = ", ".join(
            f"{100 * hits:.1f} % at {rate:.0e}" for rate, hits in found["roc"][:: len(found["roc"]) // 3 or 1]
        )
        drawn.append(Plot("Verification", "false match rate", "true positive rate", ticks, last, _path(points)))
    tenths = [(number / 4, f"{25 * number} %") for number in range(5)]
    if "calibration" in found:
        rows = found["calibration"]["bins"]
        bars = [
            (SIDE * row["low"], SIDE * (1 - row["accuracy"]), SIDE * (row["high"] - row["low"]), SIDE * row["accuracy"])
            for row in rows
        ]
        said = ", ".join(f"{100 * row['accuracy']:.0f} % right at {100 * row['confidence']:.0f} %" for row in rows)
        drawn.append(Plot("Reliability diagram", "confidence", "accuracy", tenths, said, bars=bars, diagonal=True))
    if "selective" in found:
        points = [(coverage, 1 - risk) for coverage, risk in found["selective"]["curve"]]
        said = ", ".join(
            f"{100 * right:.1f} % of the {100 * part:.0f} % surest" for part, right in points[:: len(points) // 4 or 1]
        )
        drawn.append(Plot("Selective accuracy", "share answered", "accuracy", tenths, said, _path(points)))
    return drawn


def _verification(found: Mapping[str, Any]) -> Iterator[Row]:
    if "auc" not in found:
        return
    count = f"{found['genuine']:,} pairs of one identity, {found['impostor']:,} of two".replace(",", " ")
    yield _row("verification AUC", found["auc"], f"a genuine pair scores higher than an impostor; {count}")
    yield _row("equal error rate", found["eer"], f"at a threshold of {found['eer'].get('threshold', math.nan):.4f}")
    for entry in found["tpr"]:
        yield _row(f"TPR at a false match rate of {entry['fpr']:g}", entry, _at(entry))
    own = found["open_set"]
    for entry in own["dir"]:
        name = f"DIR at a false alarm rate of {entry['far']:g}"
        yield _row(name, entry, f"{_at(entry)}; {own['mated']} probes in the gallery, {own['non_mated']} that are not")


def _calibration(found: Mapping[str, Any]) -> Iterator[Row]:
    if "calibration" in found:
        own = found["calibration"]
        words = "of 15 bins; the mean gap of confidence and accuracy"
        yield Row("calibration error (ECE)", _percent(own["ece"]), "", words)
        if "scaled" in own:
            name = f"... at temperature {own['temperature']:.3f}"
            words = f"fitted on val; NLL {own['nll']:.4f} -> {own['scaled']['nll']:.4f}"
            yield Row(name, _percent(own["scaled"]["ece"]), "", words)
    if "selective" in found:
        for entry in found["selective"]["accuracy"]:
            yield _row(f"accuracy of the {100 * entry['coverage']:g} % surest", entry, "the others are not answered")
        words = "mean error over all such shares"
        yield Row("area under risk-coverage", _percent(found["selective"]["aurc"]), "", words)


def _unknown(found: Mapping[str, Any]) -> Iterator[Row]:
    if "unknown" in found:
        own = found["unknown"]
        count = f"{own['known']} images of known classes, {own['unknown']} of unknown ones"
        yield _row("unknown classes: AUC", own["auc"], f"a known image is the more confident one; {count}")
        threshold = own["fpr95"]["threshold"]
        yield _row("unknown classes: passed", own["fpr95"], f"above {threshold:.4f}, as 95 % of the known images are")


def _row(name: str, entry: Mapping[str, float], explanation: str) -> Row:
    known = "low" in entry and "high" in entry
    interval = f"[{100 * entry['low']:.2f}, {100 * entry['high']:.2f}]" if known else ""
    return Row(name, _percent(entry["value"]), interval, explanation)


def _at(entry: Mapping[str, float]) -> str:
    return f"at a threshold of {entry['threshold']:.4f}" if "threshold" in entry else "no threshold keeps this rate"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{SIDE * x:.1f} {SIDE * (1 - y):.1f}" for x, y in points)
