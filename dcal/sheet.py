"""The figures of `dcal-explain`: one image with its maps and predictions, and curves of faithfulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dcal.figure import upsample
from dcal.maps import Distraction

PANEL = 2.5
"""Height of a picture in inches; the longer side of a wide one."""
BRANCH_COLORS = {"both": "#3b4a5a", "sa": "#4c78a8", "glca": "#e07b39"}
BRANCH_NAMES = {"both": "combined", "sa": "SA", "glca": "GLCA"}
MAP_STYLES = {"rollout": ("#4c78a8", "-"), "glca": ("#e07b39", "-"), "random": ("#8a8f98", "--")}
MAP_NAMES = {"rollout": "SA rollout", "glca": "GLCA attention", "random": "random order"}
PERCENT_OF_WIDTH = 0.02


class Sheet(NamedTuple):
    """What is drawn of one image."""

    image: Tensor
    """uint8 (3, H, W)."""
    rollout: Tensor
    """(h, w)."""
    glca: Tensor | None
    selected: Tensor | None
    guesses: Mapping[str, Sequence[tuple[str, float]]]
    """Classes and probabilities by branch (`both`, `sa`, `glca`), most probable first; empty in Re-ID."""


def draw_sheet(sheet: Sheet, title: str, path: Path, distractor: Tensor | None, pair: Distraction | None) -> None:
    """One row: image, rollout, GLCA attention, selected patches, predictions; under it the distractor, if any.

    Args:
        distractor: uint8 (3, H, W), with `pair`.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    pixels = sheet.image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    tall, wide = PANEL * min(1.0, height / width), PANEL * min(1.0, width / height)
    if height > width:  # a narrow picture has room to be taller
        tall, wide = 1.3 * tall, 1.3 * wide
    pictures = [("image", None), ("SA rollout", sheet.rollout)]
    pictures += [("GLCA attention", sheet.glca)] if sheet.glca is not None else []
    count = len(pictures) + (sheet.selected is not None)
    beside = 3.6 if sheet.guesses else 0.0
    rows = 1 if pair is None else 2
    total = max(count * (wide + 0.1) + beside, 2 * wide + 4.0 if pair else 0.0)
    figure = Figure(figsize=(total, rows * (tall + 0.35) + 0.3), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=9)
    parts: Any = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    ratios = [wide] * count + ([beside] if beside else [total - count * wide] if total > count * wide + 1 else [])
    axes = parts[0].subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    for axis, (name, heat) in zip(axes, pictures, strict=False):
        _picture(axis, pixels, name, heat)
    if sheet.selected is not None:
        mask = upsample(sheet.selected.float(), (height, width), mode="nearest")
        mask = np.maximum(mask, float(sheet.selected.all()))  # all of them: nothing to darken
        shaded = (pixels * (0.25 + 0.75 * mask[..., None])).astype(np.uint8)
        _picture(axes[count - 1], shaded, f"selected, {int(sheet.selected.sum())} of {sheet.selected.numel()}", None)
    if sheet.guesses:
        _predictions(axes[-1], sheet.guesses)
    elif len(axes) > count:
        axes[-1].set_visible(False)
    if pair is not None and distractor is not None:
        below = parts[1].subplots(1, 3, width_ratios=[wide, wide, max(3.0, total - 2 * wide - 0.6)])
        other = distractor.permute(1, 2, 0).numpy()
        _picture(below[0], other, "distractor", None)
        _picture(below[1], other, "PWCA attention to it", pair.where)
        _shares(below[2], pair)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_faithfulness(results: Mapping[str, Any], images: int, path: Path) -> None:
    """Mean deletion and insertion curves, the areas with their intervals in the legend.

    Args:
        results: from `dcal.metric.faithfulness.summary`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), dpi=110, layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for axis, kind, better, what in zip(
        axes, ("deletion", "insertion"), ("lower", "higher"), ("hidden", "shown"), strict=True
    ):
        for name, entry in results.items():
            color, style = MAP_STYLES[name]
            curve, (auc, low, high) = entry[kind]["curve"], (entry[kind][key] for key in ("auc", "low", "high"))
            label = f"{MAP_NAMES[name]}  {auc:.3f} [{low:.3f}, {high:.3f}]"
            axis.plot(np.linspace(0, 100, len(curve)), curve, style, color=color, label=label)
        axis.set_title(f"{kind}: {better} is better", fontsize=9)
        axis.set_xlabel(f"% of the patches {what}, most attended first", fontsize=8)
        axis.legend(fontsize=7, title=f"AUC, 95 % interval over {images} images", title_fontsize=7, frameon=False)
        _plain(axis)
    axes[0].set_ylabel("probability of the predicted class", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _picture(axis: Any, pixels: Any, title: str, heat: Tensor | None) -> None:
    axis.imshow(pixels)
    if heat is not None:
        axis.imshow(upsample(heat, pixels.shape[:2]), cmap="inferno", alpha=0.55)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _predictions(axis: Any, guesses: Mapping[str, Sequence[tuple[str, float]]]) -> None:
    """Bars of probability, the classes' names on them, branch by branch."""
    place, ticks, names = 0.0, [], []
    for branch, pairs in guesses.items():
        ticks.append(place + (len(pairs) - 1) / 2)
        names.append(BRANCH_NAMES[branch])
        for label, probability in pairs:
            axis.barh(place, probability, height=0.86, color=BRANCH_COLORS[branch], alpha=0.35)
            axis.text(PERCENT_OF_WIDTH, place, label, va="center", fontsize=7)
            axis.text(1.0, place, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=7)
            place += 1.0
        place += 0.6
    axis.set(xlim=(0, 1), ylim=(place - 0.6, -0.8), xticks=[])
    axis.set_yticks(ticks, names, fontsize=7, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("predictions", fontsize=8)


def _shares(axis: Any, pair: Distraction) -> None:
    """The share of attention to the distractor over depth; a half is what an image pays to itself."""
    depth = np.arange(len(pair.class_token)) + pair.first_block
    axis.axhline(50, color="#c8ccd2", linewidth=1)
    axis.plot(depth, 100 * pair.class_token.numpy(), "o-", markersize=3, color="#e07b39", label="of the class token")
    axis.plot(depth, 100 * pair.patches.numpy(), "o-", markersize=3, color="#4c78a8", label="of the patches")
    axis.set(ylim=(0, 100), xticks=depth)
    axis.set_xlabel("block", fontsize=8)
    axis.set_title("% of the attention that goes to the distractor (line: half)", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    _plain(axis)


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
