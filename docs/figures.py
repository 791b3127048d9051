"""Draws the pictures of docs/concepts.md: `python docs/figures.py DIR`, DIR being a run of `experiment=smoke/fgvc`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

IMAGES = Path(__file__).resolve().parent / "images"
OWN, PARTNER, DISTRACTED, KEYS = "#2c6fbb", "#c0762b", "#7a3e9d", "#888888"


def canvas(figure: Figure, columns: int, limits: tuple[float, float]) -> list[Axes]:
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.set(xlim=(0, limits[0]), ylim=(0, limits[1]), aspect="equal")
        axis.axis("off")
    return list(axes)


def box(axis: Axes, at: tuple[float, float], text: str, color: str, width: float = 1.5) -> None:
    shape = FancyBboxPatch(
        (at[0] - width / 2, at[1] - 0.26), width, 0.52, boxstyle="round,pad=0.04", fc="white", ec=color
    )
    axis.add_patch(shape)
    axis.text(*at, text, ha="center", va="center", fontsize=8, color=color)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, text: str = "") -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=color, lw=1.1))
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12)
        axis.text(*middle, text, ha="center", va="bottom", fontsize=7, color=color)


def streams() -> Figure:
    """Where the distracted stream z takes the partner's keys and values from, above the first block."""
    figure = Figure(figsize=(9.6, 3.7), dpi=110, layout="constrained")
    for axis, name in zip(canvas(figure, 3, (6.2, 4.6)), ("clean", "symmetric", "figure"), strict=True):
        axis.set_title(f"stream={name}", fontsize=10)
        left = "SA 1" if name == "figure" else "z of 1"
        right = {"clean": "SA 2", "symmetric": "z of 2", "figure": "z of 1"}[name]
        colors = {"SA 1": OWN, "SA 2": PARTNER, "z of 1": DISTRACTED, "z of 2": DISTRACTED}
        for depth in range(3):
            y = 1.0 + 1.2 * depth
            box(axis, (1.3, y), left if depth else "image 1", colors[left] if depth else OWN)
            box(axis, (4.9, y), right if depth else "image 2", colors[right] if depth else PARTNER)
            if depth == 2:
                continue
            if name == "figure":
                arrow(axis, (1.3, y + 0.33), (1.3, y + 0.87), OWN)
                arrow(axis, (4.9, y + 0.33), (4.9, y + 0.87), DISTRACTED)
                arrow(axis, (2.1, y + 0.1), (4.5, y + 0.86), OWN, "Q, K, V")
            else:
                arrow(axis, (1.3, y + 0.33), (1.3, y + 0.87), DISTRACTED)
                arrow(axis, (4.9, y + 0.33), (4.9, y + 0.87), colors[right])
                arrow(axis, (4.1, y + 0.1), (1.8, y + 0.86), colors[right] if depth else PARTNER, "K, V")
                if name == "symmetric":
                    arrow(axis, (2.1, y + 0.1), (4.4, y + 0.86), DISTRACTED if depth else OWN)
        column = 4.9 if name == "figure" else 1.3
        box(axis, (column, 4.3), "label of 1", DISTRACTED)
        arrow(axis, (column, 3.73), (column, 3.99), DISTRACTED)
        axis.text(3.1, 0.25, "input below, last block above", ha="center", fontsize=7, color=KEYS)
    return figure


def readout() -> Figure:
    """GLCA: the class token and the selected patches attend to all tokens; what is read."""
    figure = Figure(figsize=(8.4, 2.9), dpi=110, layout="constrained")
    (axis,) = canvas(figure, 1, (17, 5.4))
    selected = {2, 3, 6}
    for token in range(9):
        color = DISTRACTED if token == 0 else OWN if token in selected else KEYS
        axis.add_patch(Rectangle((0.4 + token, 0.5), 0.8, 0.8, fc=color, alpha=0.25, ec=color))
        axis.text(0.8 + token, 0.9, "CLS" if token == 0 else str(token), ha="center", va="center", fontsize=8)
    axis.text(4.8, 0.1, "all tokens that enter the last block: keys and values", ha="center", fontsize=8, color=KEYS)
    for row, token in enumerate([0, *sorted(selected)]):
        color = DISTRACTED if token == 0 else OWN
        axis.add_patch(Rectangle((2.4 + row * 1.4, 3.2), 0.8, 0.8, fc=color, alpha=0.25, ec=color))
        axis.text(2.8 + row * 1.4, 3.6, "CLS" if token == 0 else str(token), ha="center", va="center", fontsize=8)
        for key in range(9):
            axis.plot([2.8 + row * 1.4, 0.8 + key], [3.2, 1.3], color=color, lw=0.4, alpha=0.5)
    axis.text(4.9, 4.25, "queries: CLS and the top-R patches, rows of one block", ha="center", fontsize=8, color=OWN)
    for number, (name, what) in enumerate(
        [
            ("cls", "the CLS row: the selection has no say"),
            ("mean", "the mean of the selected rows"),
            ("cls_mean", "both"),
        ]
    ):
        y = 4.3 - 0.9 * number
        box(axis, (10.6, y), f"readout={name}", DISTRACTED if name == "cls" else OWN, width=2.9)
        axis.text(12.4, y, what, va="center", fontsize=8)
        arrow(axis, (8.0, 3.6), (9.0, y), KEYS)
    return figure


def rollout(directory: Path) -> Figure:
    """What one map of attention shows, what the rollout over the blocks before GLCA shows, and what GLCA selects."""
    import dcal
    from dcal.attention.trace import attention_rows
    from dcal.dataset.synthetic.birds import read_synthetic_birds
    from dcal.visualize.examples import shaded, upsample

    model = dcal.load(directory, device="cpu")
    records = read_synthetic_birds(None).splits["test"][5::214]
    pictures = model.preprocess([record.path for record in records])
    with torch.no_grad(), dcal.AttentionRollout(model.vit) as looked:
        model.vit(model.normalise(pictures))
    grid = model.vit.patch_embed.grid_size
    # the record itself: the interface gives the rollout over blocks, not one block's map
    last = attention_rows(looked._recorded()[-1], slice(0, 1), torch.float32).mean(1)[:, 0, looked.num_prefix_tokens :]
    ranked = looked.cls_attention(model.depth - model.glca_blocks)
    with torch.no_grad():
        chosen = model(model.normalise(pictures)).selected
    mask = torch.zeros_like(last).scatter(1, chosen, 1.0)
    figure = Figure(figsize=(1.7 * len(records), 6.9), dpi=74, layout="constrained")
    axes = figure.subplots(4, len(records))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, title in zip(axes[:, 0], ("image", "last block alone", "rollout", "selected by GLCA"), strict=True):
        axis.set_ylabel(title, fontsize=9)
    for column, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
        axes[0, column].imshow(picture)
        for row, values in ((1, last), (2, ranked)):
            axes[row, column].imshow(picture)
            axes[row, column].imshow(upsample(values[column].view(*grid), picture.shape[:2]), cmap="inferno", alpha=0.6)
        axes[3, column].imshow(shaded(picture, mask[column].view(*grid)))
    return figure


if __name__ == "__main__":
    streams().savefig(IMAGES / "streams.png")
    readout().savefig(IMAGES / "readout.png")
    if len(sys.argv) > 1:
        rollout(Path(sys.argv[1])).savefig(IMAGES / "rollout.png")
