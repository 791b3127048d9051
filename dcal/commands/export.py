"""`dcal-export`: a trained run for other programs, with its model card, compared with PyTorch before it appears."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from dcal.commands.opened import open_run
from dcal.inference.export_graph import SAVERS, Graph, Parity, compare, parts
from dcal.inference.images import chosen, open_images, refuse_data_keys
from dcal.inference.model_card import model_card
from dcal.inference.pretrained import CONFIG, of_run
from dcal.inference.restore import Restored
from dcal.run.digest import sha256
from dcal.run.files import read_json
from dcal.utils.errors import UserError, check_number, choose, first_line

CARD = "README.md"


def export(config: DictConfig) -> Path:
    """Writes the export and returns its folder, which agrees with PyTorch or does not appear at all."""
    check(config, list(SAVERS))
    restored = open_run(config)
    model = of_run(restored, config.license)
    graph = Graph(model)
    target = Path(config.out).expanduser() if config.out else restored.directory / "export" / config.format
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        runner = SAVERS[config.format](graph, folder)
        parity = compare(graph, runner, batches(config, restored, graph))
        print(report(parity, config.tolerance))
        if not parity.differences[graph.outputs[0]] <= config.tolerance:  # also if it is not a number
            raise UserError(
                f"format={config.format}: {graph.outputs[0]} differs from PyTorch by more than "
                f"tolerance={config.tolerance:g}; nothing was written"
            )
        if not (folder / CONFIG).exists():
            (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
            card = model_card(model.config, config.format, graph.outputs, sentence(parity, graph))
            (folder / CARD).write_text(card, encoding="utf-8")
        for note in place(folder, target):
            print(note)
    print(f"{target}: {', '.join(sorted(file.name for file in target.iterdir()))}")
    if config.repo:
        try:
            print(model.push_to_hub(config.repo, private=config.private))
        except Exception as error:  # what a failed upload raises depends on the hub client and its HTTP library
            raise UserError(f"repo={config.repo}: could not be pushed ({first_line(error)})") from error
    return target


def check(config: DictConfig, formats: Sequence[str]) -> None:
    """Refuses what cannot be meant.

    Raises:
        UserError: naming the key.
    """
    choose("format", config.format, formats)
    if config.repo and config.format != "hub":
        raise UserError(f"repo={config.repo} is pushed to under format=hub only")
    if not config.batch_sizes or min(config.batch_sizes) < 1:
        raise UserError(f"batch_sizes={list(config.batch_sizes)}: give one or more sizes of at least 1")
    check_number("limit", config.limit, ge=1)


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


def place(folder: Path, target: Path) -> Iterator[str]:
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


def batches(config: DictConfig, restored: Restored, graph: Graph) -> Iterator[tuple[Tensor, ...]]:
    """Inputs to compare with, in batches of the wanted sizes in turn: real images, or noise where none are named."""
    real = config.images is not None or config.split is not None
    if not real:
        refuse_data_keys(config.dataset, "noise")
    records, origin = (
        chosen(restored, config.images, config.split, config.dataset, config.limit) if real else ([], "noise")
    )
    print(f"compared on {origin}")
    slices = parts(len(records) if real else config.limit, config.batch_sizes)
    for number, part in enumerate(tqdm(slices, "compared with PyTorch", unit="batch", leave=False)):
        if not real:
            yield graph.example(part.stop - part.start, seed=number)
            continue
        for batch in open_images(restored, records[part], batch_size=part.stop - part.start):
            side = restored.device.side_index(batch)
            yield (batch["image"].float() / 255.0, *([] if side is None else [side]))


def report(parity: Parity, tolerance: float) -> str:
    """A line per output."""
    lines = [f"{parity.images} images in batches of {', '.join(map(str, parity.batch_sizes))}"]
    for number, (name, difference) in enumerate(parity.differences.items()):
        limit = f" (tolerance {tolerance:g})" if number == 0 else ""
        lines.append(f"{name:<15} largest difference {difference:.2g}{limit}")
    if parity.other_patches is not None:
        lines.append(f"{'selected':<15} other patches in {parity.other_patches} images")
    if parity.same_top1 is not None:
        lines.append(f"{'top-1':<15} the same in {parity.same_top1} of {parity.images}")
    return "\n".join(lines)


def sentence(parity: Parity, graph: Graph) -> str:
    """The same for the card."""
    name = graph.outputs[0]
    text = f"On {parity.images} images in batches of {', '.join(map(str, parity.batch_sizes))} the largest absolute "
    text += f"difference of `{name}` from PyTorch in fp32 was {parity.differences[name]:.1e}"
    if parity.same_top1 is not None:
        text += f"; the most probable class was the same in {parity.same_top1} of {parity.images}"
    return text + "."
