"""`dcal-export`: a trained run for other programs, with its model card, compared with PyTorch before it appears."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from tqdm import tqdm

from dcal.bench.measure import interleaved_medians
from dcal.commands.opened import open_run
from dcal.dataset.record import DataError
from dcal.inference.export_formats import FORMATS
from dcal.inference.export_graph import Graph, Parity, Runner, compare, parts
from dcal.inference.images import chosen, open_images, refuse_data_keys
from dcal.inference.model_card import model_card
from dcal.inference.pretrained import CONFIG, TrainedDCAL, of_run
from dcal.inference.restore import Restored
from dcal.metric.retrieval import evaluate_retrieval
from dcal.run.digest import sha256
from dcal.run.files import read_json
from dcal.utils.errors import UserError, check_number, choose, first_line
from dcal.utils.text import aligned

CARD = "README.md"
TIMED = (1, 8)
"""Sizes of the batches that are timed."""
REPEATS, MIN_SECONDS = 5, 0.02


Labels = tuple[Tensor, Tensor]
"""Labels and cameras of a batch of images, (B,) each; -1 where they are not known."""


class Written(NamedTuple):
    """An export, as the table has it."""

    name: str
    graph: Graph
    runner: Runner
    size: int
    """In bytes."""
    parity: Parity
    accuracy: tuple[str, str] | None
    """Of PyTorch and of the export; None on noise and on images without labels."""


def export(config: DictConfig) -> list[Path]:
    """Writes the exports and returns their folders, which agree with PyTorch or do not appear at all.

    Then prints what each takes and costs, one beside the other.
    """
    names = [str(name) for name in config.format] if isinstance(config.format, ListConfig) else [str(config.format)]
    if isinstance(config.batch_sizes, int):
        config.batch_sizes = [config.batch_sizes]
    check(config, names)
    restored = open_run(config)
    model = of_run(restored, config.license)
    targets = [target_of(config, name, restored, len(names) > 1) for name in names]
    for target in targets:
        check_free(target)
    written = [export_one(config, name, restored, model, target) for name, target in zip(names, targets, strict=True)]
    print(table(written))
    if config.repo:
        try:
            print(model.push_to_hub(config.repo, private=config.private))
        except Exception as error:  # what a failed upload raises depends on the hub client and its HTTP library
            raise UserError(f"repo={config.repo}: could not be pushed ({first_line(error)})") from error
    return targets


def target_of(config: DictConfig, name: str, restored: Restored, several: bool) -> Path:
    """The folder of an export."""
    if not config.out:
        return restored.directory / "export" / name
    out = Path(config.out).expanduser()
    return out / name if several else out


def export_one(config: DictConfig, name: str, restored: Restored, model: TrainedDCAL, target: Path) -> Written:
    """Writes one export."""
    form = FORMATS[name]
    graph = form.graph(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        runner = form.save(graph, folder)
        seen: list[Labels] = []
        parity = compare(graph, runner, batches(config, restored, graph, seen))
        print(report(parity, config.tolerance if form.exact else None))
        if form.exact and not parity.differences[graph.outputs[0]] <= config.tolerance:  # also if it is not a number
            raise UserError(
                f"format={name}: {graph.outputs[0]} differs from PyTorch by more than "
                f"tolerance={config.tolerance:g}; nothing was written"
            )
        if not (folder / CONFIG).exists():
            (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
            card = model_card(model.config, name, graph.outputs, sentence(parity, graph))
            (folder / CARD).write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.iterdir())
        for note in install(folder, target):
            print(note)
    print(f"{target}: {', '.join(sorted(file.name for file in target.iterdir()))}")
    return Written(name, graph, runner, size, parity, accuracies(parity, seen))


def check(config: DictConfig, names: Sequence[str]) -> None:
    """Validates the options.

    Raises:
        UserError: naming the key.
    """
    for name in names:
        choose("format", name, FORMATS)
    if not names or len(set(names)) < len(names):
        raise UserError(f"format={list(names)}: name one format or several, each once")
    if config.repo and names != ["hub"]:
        raise UserError(f"repo={config.repo} is pushed to under format=hub only")
    if not config.batch_sizes:
        raise UserError("batch_sizes=[]: give one or more sizes of at least 1")
    for size in config.batch_sizes:
        check_number("batch_sizes", size, ge=1, whole=True)
    check_number("limit", config.limit, ge=1, whole=True)
    check_number("tolerance", config.tolerance, ge=0)


def check_free(target: Path) -> None:
    """Refuses a folder that holds anything, unless an earlier export is among it.

    Raises:
        UserError: naming the key.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        earlier = "class_names" in json.loads((target / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # TypeError: JSON of a number
        earlier = False
    if not earlier:
        raise UserError(f"out={target} is there and no earlier export: choose another folder")


MANIFEST = "export.json"
"""In an export: the SHA-256 of each of its files, so that a later one knows which of them are as it left them."""


def install(folder: Path, target: Path) -> Iterator[str]:
    """Moves a new export to its place and deletes what an earlier one left; all other files there are the user's.

    Yields:
        a sentence for each file that is kept although the new export has its own: it was edited.
    """
    target.mkdir(exist_ok=True)
    manifest = target / MANIFEST
    before = read_json(manifest) if manifest.is_file() else {}
    new = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    for name in sorted(before.keys() - new.keys()):
        if (target / name).is_file() and sha256(target / name) == before[name]:
            (target / name).unlink()
    for name in [*new, MANIFEST]:
        old = target / name
        if name == CARD and old.is_file() and sha256(old) not in (before.get(name), new[name]):
            yield f"{old}: edited since it was written, and kept; the new card is not written"
        else:
            (folder / name).replace(old)


def batches(config: DictConfig, restored: Restored, graph: Graph, seen: list[Labels]) -> Iterator[tuple[Tensor, ...]]:
    """Inputs to compare with, in batches of the wanted sizes in turn: real images, or noise where none are named.

    Args:
        seen: the labels of the images are added to it.
    """
    real = config.images is not None or config.split is not None
    if not real:
        refuse_data_keys(config.dataset, "noise")
    records, origin = (
        chosen(restored, config.images, config.split, config.dataset, config.limit) if real else ([], "noise")
    )
    print(f"compared on {origin}")
    slices = parts(len(records) if real else config.limit, config.batch_sizes)
    unread: DataError | None = None
    for number, part in enumerate(tqdm(slices, "compared with PyTorch", unit="batch", leave=False)):
        if not real:
            yield graph.example(part.stop - part.start, seed=number)
            continue
        try:
            for batch in open_images(restored, records[part], batch_size=part.stop - part.start):
                side = restored.device.side_index(batch)
                seen.append((batch["label"], batch["camera"]))
                yield (graph.feed(batch["image"].float() / 255.0), *([] if side is None else [side]))
        except DataError as error:  # of this part not one image can be read: an error only if it is so of all
            unread = error
    if unread is not None and not seen:
        raise unread


def report(parity: Parity, tolerance: float | None) -> str:
    """A line per output.

    Args:
        tolerance: None for a format that may differ.
    """
    lines = [f"{parity.images} images in batches of {', '.join(map(str, parity.batch_sizes))}"]
    for number, (name, difference) in enumerate(parity.differences.items()):
        limit = f" (tolerance {tolerance:g})" if number == 0 and tolerance is not None else ""
        lines.append(f"{name:<15} largest difference {difference:.2g}{limit}")
    if parity.other_patches is not None:
        lines.append(f"{'selected':<15} other patches in {parity.other_patches} images")
    if parity.same_top1 is not None:
        lines.append(f"{'top-1':<15} the same in {parity.same_top1} of {parity.images}")
    return "\n".join(lines)


def sentence(parity: Parity, graph: Graph) -> str:
    """The comparison with PyTorch as one sentence of the model card."""
    name = graph.outputs[0]
    text = f"On {parity.images} images in batches of {', '.join(map(str, parity.batch_sizes))} the largest absolute "
    text += f"difference of `{name}` from PyTorch in fp32 was {parity.differences[name]:.1e}"
    if parity.same_top1 is not None:
        text += f"; the most probable class was the same in {parity.same_top1} of {parity.images}"
    return text + "."


def accuracies(parity: Parity, seen: Sequence[Labels]) -> tuple[str, str] | None:
    """How right PyTorch and the export are about the images, in words; None where that is not known."""
    if not seen:
        return None
    labels, cameras = (torch.cat(column) for column in zip(*seen, strict=True))
    if (labels < 0).all():
        return None
    one, other = (accuracy(answers, labels, cameras, parity.same_top1 is not None) for answers in parity.answers)
    return None if one is None or other is None else (one, other)


def accuracy(answers: Tensor, labels: Tensor, cameras: Tensor, classifies: bool) -> str | None:
    """Top-1; in re-identification the mAP of each image searched for among the others, None if none has a match."""
    if classifies:
        return f"top-1 {100 * (answers.argmax(1) == labels).double().mean():.2f} %"
    pictures = torch.arange(len(labels))
    kept = labels >= 0
    side = (answers[kept], labels[kept], cameras[kept])
    own = pictures[kept]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some of so few images have no match, and count nowhere
        found = evaluate_retrieval(*side, *side, query_pictures=own, gallery_pictures=own, per_query=True)
    return f"mAP {100 * found['mAP']:.2f} %" if found["per_query"].valid.any() else None


def table(written: Sequence[Written]) -> str:
    """PyTorch in fp32 and each export on this CPU: size, milliseconds per image, largest difference, accuracy."""
    calls: dict[str, Callable[[], object]] = {}
    for row in written:
        for size in TIMED:
            inputs = row.graph.example(size)
            calls[f"{row.name} {size}"] = functools.partial(row.runner, *inputs)
            if row is written[0]:
                calls[f"PyTorch {size}"] = functools.partial(row.graph, *inputs)
    with torch.no_grad():
        seconds = interleaved_medians(calls, REPEATS, MIN_SECONDS, torch.device("cpu"))
    first = written[0]
    rows = [["PyTorch", "", "", first.accuracy[0] if first.accuracy else "–"]]
    for one in written:
        difference = f"{one.parity.differences[one.graph.outputs[0]]:.1e}"
        rows.append([one.name, f"{one.size / 1e6:.1f}", difference, one.accuracy[1] if one.accuracy else "–"])
    times = [[f"{1000 * seconds[f'{row[0]} {size}'] / size:.2f}" for size in TIMED] for row in rows]
    head = ["", "MB", *(f"ms/image, batch {size}" for size in TIMED), "largest difference", "of these images"]
    lines = [head, *([row[0], row[1], *time, *row[2:]] for row, time in zip(rows, times, strict=True))]
    return "\n".join(aligned(lines, right=range(1, len(head))))
