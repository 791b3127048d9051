"""`dcal-explain`: what a run looks at in images, what distracts it, and whether its maps are faithful."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from dcal.commands.opened import end_incomplete, open_model, printable
from dcal.commands.words.overrides import typed_overrides
from dcal.dataset.image_files import find_images
from dcal.inference.images import chosen, open_images, refuse_data_keys
from dcal.inference.restore import Opened, Restored
from dcal.metric.faithfulness import Curves, curves, summarize
from dcal.run.files import write_json
from dcal.task.fgvc import short
from dcal.utils.errors import UserError, check_number
from dcal.visualize.attention_maps import attention_maps, distraction
from dcal.visualize.explain_figure import Sheet, draw_faithfulness, draw_sheet

BATCH = 16
"""Images at once: their attention maps are kept for a moment."""


def explain(config: DictConfig) -> None:
    """Draws a figure per image, or measures faithfulness, or both."""
    check(config)
    opened = open_model(config)
    classifier = opened if isinstance(opened, Restored) and opened.task.name == "fgvc" else None
    if config.faithfulness is not None and classifier is None:
        kind = "re-identification" if isinstance(opened, Restored) else "a plain backbone"
        raise UserError(
            f"faithfulness: follows the probability of a class, and {kind} has none; give images= to see what the "
            "model looks at"
        )
    out = Path(config.out).expanduser()
    paths, left_out = explain_images(opened, config, out) if config.images is not None else ([], {})
    if config.faithfulness is not None and classifier is not None:
        measure(classifier, config, out)
    end_incomplete(left_out, len(paths))


def check(config: DictConfig) -> None:
    """Validates the options before anything is loaded.

    Raises:
        UserError: nothing is asked for, a key is of no use without another, or a number is out of its range.
    """
    if config.images is None and config.faithfulness is None:
        raise UserError("give images=PATH (a file, a folder or a glob), or faithfulness=N for N images of a split")
    if config.pair is not None and config.images is None:
        raise UserError(f"pair={config.pair}: needs images= that it distracts from")
    if config.faithfulness is None:
        refuse_data_keys(config.dataset, f"images={config.images}")
        for word, key in typed_overrides():
            if key in ("split", "steps"):
                raise UserError(f"{word}: is for faithfulness=N; leave it out")
    for key, least in (("top", 1), ("faithfulness", 2), ("steps", 1)):  # an interval over images takes two
        check_number(key, config[key], ge=least, whole=True)


def explain_images(opened: Opened, config: DictConfig, out: Path) -> tuple[list[Path], dict[str, str]]:
    """Writes a figure for each image that can be read, streaming; returns all images, and why some have none."""
    paths = find_images(config.images)
    distractor = None if config.pair is None else one_image(opened, config.pair)
    loader = open_images(opened, paths, BATCH)
    names = figure_names(paths)
    with tqdm(total=len(paths), desc="explain", unit="image", disable=None) as bar:
        for batch in loader:
            images = batch["image"]
            maps = attention_maps(opened.model, images, opened.device)
            guesses = predictions(opened, images, config.top)
            for row, index in enumerate(batch["index"].tolist()):
                glca, selected = (None if part is None else part[row] for part in maps[1:])
                sheet = Sheet(images[row], maps.rollout[row], glca, selected, guesses[row])
                pair = None
                if distractor is not None:
                    pair = distraction(opened.model, images[row], distractor, opened.device)
                draw_sheet(sheet, printable(paths[index].name), out / names[index], distractor, pair)
            bar.update(len(images))
    print(f"{len(paths) - len(loader.skipped)} figures in {out}")
    return paths, loader.skipped


def figure_names(paths: Sequence[Path]) -> list[str]:
    """Where each image's figure goes below `out`: as the images are below the folder that they share.

    A list may name them with `..`; their figures stay below `out` all the same. The suffix stays in the name, so that
    no two images share a figure.
    """
    absolute = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [f"{os.path.relpath(path, base)}.png" for path in absolute]


def one_image(opened: Opened, spec: str) -> Tensor:
    """The distractor, uint8 (3, H, W).

    Raises:
        UserError: it is not one image.
    """
    paths = find_images(spec, "pair")
    if len(paths) > 1:
        raise UserError(f"pair={spec}: names {len(paths)} images; give one")
    image: Tensor = next(iter(open_images(opened, paths)))["image"][0]
    return image


def predictions(opened: Opened, images: Tensor, top: int) -> list[dict[str, list[tuple[str, float]]]]:
    """For each image the `top` classes with probabilities, by branch and (`both`) combined as in evaluation."""
    if opened.task.name != "fgvc":
        return [{} for _ in images]
    found: list[dict[str, list[tuple[str, float]]]] = [{} for _ in images]
    for branch, scores_BC in log_probabilities(opened, opened.device.normalise(images)).items():
        for row, guesses in enumerate(opened.predictor.guesses(scores_BC, top)):
            found[row][branch] = [(short(name, 30), value) for name, value in guesses]
    return found


def log_probabilities(opened: Opened, normalised: Tensor) -> dict[str, Tensor]:
    """Of the classes, (B, C), by branch and, first and if they are two, of both combined; on the CPU.

    Of the image alone, whatever `task.flip_test` says: the maps beside them are its own.
    """
    predictor = replace(opened.predictor, flip_test=False)
    scores = predictor.scores(normalised)
    combined = {"both": predictor.log_probabilities(scores)} if len(scores.logits) > 1 else {}
    return {name: values.cpu() for name, values in {**combined, **scores.logits}.items()}


def measure(restored: Restored, config: DictConfig, out: Path) -> None:
    """Deletion and insertion over images of a split: `faithfulness.json` and `.png`, and a table."""
    records, origin = chosen(restored, None, config.split, config.dataset, config.faithfulness)
    found: dict[str, list[Curves]] = {}
    for curves_of in faithfulness(restored, records, config.steps):
        for name, both in curves_of.items():
            found.setdefault(name, []).append(both)
    results = summarize(found, "random")
    images = len(found["random"])
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "run": str(restored.directory),
        "weights": str(restored.weights),
        "split": config.split,
        "data": origin,
        "images": images,
        "steps": config.steps,
        "maps": results,
    }
    write_json(out / "faithfulness.json", content)
    draw_faithfulness(results, images, out / "faithfulness.png")
    print(faithfulness_table(results))
    print(f"{origin}: {out / 'faithfulness.json'}, {out / 'faithfulness.png'}")


def faithfulness(opened: Opened, records: Sequence[Any], steps: int) -> Iterator[dict[str, Curves]]:
    """The curves of each map for each image: the probability of the class that the run sees in the whole image."""
    with tqdm(total=len(records), desc="faithfulness", unit="image", disable=None) as bar:
        for batch in open_images(opened, records, BATCH):
            maps = attention_maps(opened.model, batch["image"], opened.device)
            normalised = opened.device.normalise(batch["image"])
            for row, index in enumerate(batch["index"].tolist()):
                first = next(iter(log_probabilities(opened, normalised[row : row + 1]).values()))
                label = int(first.argmax())

                def score(hidden: Tensor, label: int = label) -> Tensor:
                    return next(iter(log_probabilities(opened, hidden).values()))[:, label].exp()

                chance = torch.rand(maps.rollout.shape[1:], generator=torch.Generator().manual_seed(index))
                orders = {"rollout": maps.rollout[row]}
                if maps.glca is not None:
                    orders["glca"] = maps.glca[row]
                orders["random"] = chance
                yield {name: curves(normalised[row], order, score, steps) for name, order in orders.items()}
                bar.update()


def faithfulness_table(results: Mapping[str, Any]) -> str:
    """A line per map: the areas with their intervals, and how they differ from a random order."""
    lines = [f"{'map':<8}  {'deletion AUC':<24}  {'insertion AUC':<24}  minus random: deletion, insertion"]
    for name, entry in results.items():
        cells = [described(entry[kind]) for kind in ("deletion", "insertion")]
        leads = [entry[kind].get("minus_random") for kind in ("deletion", "insertion")]
        beside = "" if None in leads else ",  ".join(described(lead, "+") for lead in leads)
        lines.append(f"{name:<8}  {cells[0]:<24}  {cells[1]:<24}  {beside}".rstrip())
    return "\n".join(lines)


def described(entry: Mapping[str, float], sign: str = "") -> str:
    return f"{entry['auc']:{sign}.4f} [{entry['low']:{sign}.4f}, {entry['high']:{sign}.4f}]"
