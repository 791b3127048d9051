"""The figures of `dcal-explain`: one image with its maps and predictions, and curves of faithfulness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dcal.visualize.attention_maps import Distraction, Maps
from dcal.visualize.examples import shaded, upsample

PANEL = 2.5
"""Height of a picture in inches; the longer side of a wide one."""
BESIDE = 3.6
"""Width in inches of the column right of the pictures: predictions, curves."""
LINE = 0.13
"""Height in inches of a prediction, at least."""
BRANCH_COLORS = {"both": "#3b4a5a", "sa": "#4c78a8", "glca": "#e07b39"}
BRANCH_NAMES = {"both": "combined", "sa": "SA", "glca": "GLCA"}
MAP_STYLES = {"rollout": ("#4c78a8", "-"), "glca": ("#e07b39", "-"), "random": ("#8a8f98", "--")}
MAP_NAMES = {"rollout": "SA rollout", "glca": "GLCA attention", "random": "random order"}
PERCENT_OF_WIDTH = 0.02
Guesses = Mapping[str, Sequence[tuple[str, float]]]
"""Classes and probabilities by branch (`both`, `sa`, `glca`), most probable first; empty in Re-ID."""


def draw_sheet(
    image: Tensor, maps: Maps, guesses: Guesses, title: str, path: Path, pair: tuple[Tensor, Distraction] | None
) -> None:
    """One row: image, rollout, GLCA attention, selected patches, predictions; under it the distractor, if any.

    Args:
        image: uint8 (3, H, W).
        maps: of this image.
        path: the PNG to write.
        pair: the distractor, uint8 (3, H, W), and the attention that the image pays to it.
    """
    pixels = image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    tall, wide = PANEL * min(1.0, height / width), PANEL * min(1.0, width / height)
    if height > width:  # a narrow picture has room to be taller
        tall, wide = 1.3 * tall, 1.3 * wide
    pictures = [("image", pixels, None), ("SA rollout", pixels, maps.rollout)]
    if maps.glca is not None and maps.selected is not None:
        chosen = f"selected, {int(maps.selected.sum())} of {maps.selected.numel()}"
        pictures += [("GLCA attention", pixels, maps.glca), (chosen, shaded(pixels, maps.selected), None)]
    ratios = [wide] * len(pictures)
    if guesses or (pair is not None and len(pictures) == 2):
        ratios.append(BESIDE)
    rows = [max(tall, LINE * sum(map(len, guesses.values()))), *([] if pair is None else [tall])]
    size = (sum(ratios) + 0.1 * len(ratios), sum(rows) + 0.35 * len(rows) + 0.3)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    room = int(13 * size[0])
    # file and class names are text, a `$` in them no formula
    figure.suptitle(title if len(title) <= room else f"{title[: room - 1]}…", fontsize=9, parse_math=False)
    grid = figure.add_gridspec(len(rows), len(ratios), width_ratios=ratios, height_ratios=rows)
    for column, picture in enumerate(pictures):
        _picture(figure.add_subplot(grid[0, column]), *picture)
    if guesses:
        _predictions(figure.add_subplot(grid[0, -1]), guesses)
    if pair is not None:
        distractor, attention = pair
        other = distractor.permute(1, 2, 0).numpy()
        _picture(figure.add_subplot(grid[1, 0]), "distractor", other, None)
        _picture(figure.add_subplot(grid[1, 1]), "PWCA attention to it", other, attention.where)
        _shares(figure.add_subplot(grid[1, 2:]), attention)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_faithfulness(results: Mapping[str, Any], images: int, path: Path) -> None:
    """Mean deletion and insertion curves, the areas with their intervals in the legend.

    Args:
        results: from `dcal.metric.faithfulness.summarize`.
    """
    figure = Figure(figsize=(8.4, 3.9), dpi=110, layout="constrained")
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
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False}  # curves may be anywhere
        axis.legend(fontsize=7, title=f"AUC, 95 % interval over {images} images", title_fontsize=7, **below)
        _plain(axis)
    axes[0].set_ylabel("probability of the predicted class", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _picture(axis: Any, title: str, pixels: Any, heat: Tensor | None) -> None:
    axis.set_anchor("N")  # titles of a row on one line
    axis.imshow(pixels)
    if heat is not None:
        axis.imshow(upsample(heat, pixels.shape[:2]), cmap="inferno", alpha=0.55)
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _predictions(axis: Any, guesses: Guesses) -> None:
    """Bars of probability, the classes' names on them, branch by branch."""
    row, ticks, names = 0.0, [], []
    for branch, pairs in guesses.items():
        ticks.append(row + (len(pairs) - 1) / 2)
        names.append(BRANCH_NAMES[branch])
        for label, probability in pairs:
            axis.barh(row, probability, height=0.86, color=BRANCH_COLORS[branch], alpha=0.35)
            axis.text(PERCENT_OF_WIDTH, row, label, va="center", fontsize=7, parse_math=False)
            axis.text(0.99, row, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=7)
            row += 1.0
        row += 0.6
    axis.set(xlim=(0, 1), ylim=(row - 0.6, -0.8), xticks=[])
    axis.set_yticks(ticks, names, fontsize=7, rotation=90, va="center")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("predictions", fontsize=8)


def _shares(axis: Any, pair: Distraction) -> None:
    """The share of attention to the distractor over depth; a half is what an image pays to itself."""
    depth = np.array(pair.blocks)
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
