"""Pictures of a run: what the model looked at, and whether it was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dcal.attention.rollout import AttentionRollout
from dcal.dataset.data import Data
from dcal.dataset.image_files import spread
from dcal.metric.classes import class_accuracies, confusion_matrix
from dcal.model import DCAL, SIDE_INFORMATION_SCALE
from dcal.utils.device import Device
from dcal.visualize import gallery

# matplotlib and wandb take a second to import: inside the functions that draw and log, for `dcal-predict` does neither
CHARTED_CLASSES = 100
"""Of more classes W&B draws no confusion matrix: a chart of its holds 10 000 rows."""
EXAMPLES = 6
LOOK_BATCH = 16


@torch.no_grad()
def rollout_and_selection(
    model: DCAL, images: Tensor, device: Device, side: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Where the model looks: the class token's rollout over the patches, and the patches GLCA selects.

    With GLCA the rollout is over the blocks before the branch: what its selection ranks by.

    Args:
        images: uint8 (B, 3, H, W).
        side: index of each image's camera, (B,), where the model embeds it: `Device.side_index`.

    Returns:
        rollout (B, h, w) summing to at most 1, and bool (B, h, w); on the CPU.

    Raises:
        UserError: the model embeds cameras and `side` is missing.
    """
    model.eval()
    fusion = "mean" if model.glca is None else model.glca.head_fusion
    normalised = device.normalise(images)
    with device.autocast():
        selected = model(normalised, side=side).selected
    # the last block as a whole, of which the model itself computes the class row only
    with AttentionRollout(model.vit, fusion) as rollout, device.autocast(), _side_embedding(model, side):
        model.vit(normalised)
    grid = tuple(model.vit.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
    attention = rollout.cls_attention(model.depth - model.glca_blocks)
    mask = torch.zeros_like(attention, dtype=torch.bool)
    if selected is not None:
        mask = mask.scatter(1, selected, True)
    return attention.view(-1, *grid).cpu(), mask.view(-1, *grid).cpu()


def _side_embedding(model: DCAL, side: Tensor | None) -> AbstractContextManager[object]:
    """The backbone called inside sees its tokens as the model gives them to it, with their camera embedding."""
    if model.side is None or side is None:
        return nullcontext()
    added = SIDE_INFORMATION_SCALE * model.side[side]
    first: Any = model.vit.blocks[0]  # type: ignore[index]
    hook: RemovableHandle = first.register_forward_pre_hook(lambda block, args: (args[0] + added, *args[1:]))
    return hook


def keep_gallery(model: DCAL, data: Data, wanted: Sequence[tuple[str, int]], device: Device, path: Path) -> None:
    """Writes small pictures of images, and where the model looks in them, for reports.

    Args:
        wanted: split and position of each image; repeated ones are kept once.
        path: the file, see `dcal.visualize.gallery`.
    """
    keys = list(dict.fromkeys(wanted))
    jpegs: list[bytes] = []
    looks: list[tuple[Tensor, Tensor]] = []
    left = iter(keys)
    while batch := list(islice(left, LOOK_BATCH)):
        images = torch.stack([data.image(*key) for key in batch])
        records = [data.records(split)[index] for split, index in batch]
        cameras, views = ([getattr(record, key) for record in records] for key in ("camera", "view"))
        side = device.side_index({"camera": torch.tensor(cameras), "view": torch.tensor(views)})
        jpegs += [gallery.encode_jpeg(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
        looks.append(rollout_and_selection(model, images, device, side))
    attention, selected = (torch.cat(maps).numpy() for maps in zip(*looks, strict=True))
    parts, index = zip(*keys, strict=True)
    gallery.save_gallery(gallery.Gallery(list(parts), list(index), jpegs, attention, selected), path)


def draw_examples(
    images: Tensor,
    rollout: Tensor,
    selected: Tensor,
    captions: Sequence[str],
    correct: Sequence[bool],
    path: Path,
) -> None:
    """Rows of pictures: the images, the rollout over them, and the patches that GLCA selected, if it did.

    Args:
        images: uint8 (B, 3, H, W).
        rollout: (B, h, w).
        selected: bool (B, h, w); nowhere without GLCA.
        captions: a line under each image.
        correct: green or red for each caption.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    count, titles = len(images), ["image", "rollout", *(["selected patches"] if selected.any() else [])]
    figure = Figure(figsize=(1.9 * count, 1.9 * len(titles) + 0.5), dpi=110, layout="constrained")
    axes = figure.subplots(len(titles), count, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, title in zip(axes[:, 0], titles, strict=True):
        row.set_ylabel(title)
    for column, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        axes[0, column].imshow(pixels)
        axes[1, column].imshow(pixels)
        axes[1, column].imshow(upsample(rollout[column], pixels.shape[:2]), cmap="inferno", alpha=0.55)
        if selected.any():
            axes[2, column].imshow(shaded(pixels, selected[column]))
        color = "#1a7f37" if correct[column] else "#c0392b"
        axes[-1, column].set_xlabel(captions[column], color=color, fontsize=8, parse_math=False)  # a class may be "$"
    figure.savefig(path)


class RankedList(NamedTuple):
    """A query and what was found for it, nearest first."""

    query: Tensor
    """uint8 (3, H, W)."""
    found: Sequence[Tensor]
    marks: Sequence[str]
    """For each: `right`, `wrong`, or why the protocol leaves it out (`same camera`, `same image`, `junk`)."""


LEFT_OUT = "#9aa0a6"
MARK_COLORS = {"right": "#1a7f37", "wrong": "#c0392b"} | dict.fromkeys(("same camera", "same image", "junk"), LEFT_OUT)


def draw_ranked_lists(rows: Sequence[RankedList], path: Path) -> None:
    """A row per query: the query, then what was found, framed green or red; grey is left out by the protocol."""
    from matplotlib.figure import Figure

    columns = 1 + max(len(row.found) for row in rows)
    height, width = rows[0].query.shape[1:]
    figure = Figure(figsize=(0.9 * columns, (0.9 * height / width + 0.25) * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        pictures = zip(line, [row.query, *row.found], ["query", *row.marks], strict=False)
        for axis, picture, mark in pictures:
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.spines[:].set(color=MARK_COLORS.get(mark, "black"), linewidth=2.5)
            axis.set_xlabel(mark, fontsize=6, color=MARK_COLORS.get(mark, "black"), labelpad=1)
        for axis in line:
            axis.set(xticks=[], yticks=[])
        for axis in line[1 + len(row.found) :]:
            axis.set_visible(False)
    figure.savefig(path)


def log_figure(tracker: Any, path: Path) -> None:
    """The figure file as a W&B image."""
    import wandb

    tracker.log({path.stem: wandb.Image(str(path))})


def log_examples(tracker: Any, images: Tensor, rollout: Tensor, columns: Mapping[str, Sequence[str]]) -> None:
    """The same examples as a W&B table: image, rollout over it, and the given columns."""
    import wandb

    table = wandb.Table(columns=["image", "rollout", *columns])
    for row, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        heat = upsample(rollout[row], pixels.shape[:2])[..., None]
        overlay = (pixels * (0.3 + 0.7 * heat)).astype(np.uint8)
        table.add_data(wandb.Image(pixels), wandb.Image(overlay), *(values[row] for values in columns.values()))
    tracker.log({"examples": table})


def log_classes(tracker: Any, names: Sequence[str], label: Tensor, prediction: Tensor) -> None:
    """Per-class accuracy and confused classes as W&B tables, and the confusion matrix as a chart, if it is readable."""
    import wandb

    truth, guess = label.numpy(), prediction.numpy()
    cells = confusion_matrix(truth, guess, len(names))
    accuracy = class_accuracies(truth, guess, len(names))
    judged = [[name, int(row.sum()), float(share)] for name, row, share in zip(names, cells, accuracy, strict=True)]
    confused = [[names[row], names[at], int(cells[row, at])] for row, at in zip(*cells.nonzero(), strict=True)]
    found: dict[str, Any] = {
        "classes": wandb.Table(["class", "images", "accuracy"], judged),
        "confused": wandb.Table(["truth", "prediction", "images"], confused),
    }
    if len(names) <= CHARTED_CLASSES:
        found["confusion"] = wandb.plot.confusion_matrix(
            y_true=truth.tolist(), preds=guess.tolist(), class_names=list(names), title="Confusion matrix"
        )
    tracker.log(found)


def log_cameras(tracker: Any, cameras: Mapping[int, Mapping[str, float]]) -> None:
    """The metrics of each camera's queries as a W&B table."""
    import wandb

    rows = [[camera, *values.values()] for camera, values in cameras.items()]
    tracker.log({"cameras": wandb.Table(["camera", *next(iter(cameras.values()))], rows)})


def upsample(grid: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """A patch grid at the image's size, its values stretched to [0, 1]."""
    large = F.interpolate(grid[None, None].float(), size=size, mode="bicubic")[0, 0]
    spread = (large.max() - large.min()).clamp(min=1e-12)
    return ((large - large.min()) / spread).numpy()


def shaded(pixels: NDArray[Any], selected: Tensor) -> NDArray[Any]:
    """A picture (H, W, 3) that is dark where its patches, bool (h, w), are not selected."""
    mask = F.interpolate(selected[None, None].float(), size=pixels.shape[:2], mode="nearest")[0, 0].numpy()
    return (pixels * (0.25 + 0.75 * mask[..., None])).astype(pixels.dtype)


def pick_examples(correct: Tensor, count: int = EXAMPLES) -> list[int]:
    """Positions to show: as many right as wrong ones if there are, spread over the split, the right ones first."""
    right, wrong = correct.nonzero().flatten().tolist(), (~correct).nonzero().flatten().tolist()
    num_wrong = min(len(wrong), max(count // 2, count - len(right)))
    return spread(right, count - num_wrong) + spread(wrong, num_wrong)
