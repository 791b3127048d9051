"""`dcal-predict`: the most probable classes of any images, as a table, CSV or JSON lines."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig
from tqdm import tqdm

from dcal.commands.opened import end_incomplete, open_run, printable
from dcal.dataset.image_files import find_images
from dcal.inference.images import open_images
from dcal.inference.predictor import Guess
from dcal.inference.restore import Restored
from dcal.inference.thresholds import NO_CLASS, read_thresholds
from dcal.run.files import atomic_write
from dcal.task.inference import finite
from dcal.utils.errors import UserError, check_number, choose

FORMATS = ("table", "csv", "jsonl")


def predict(config: DictConfig) -> None:
    """Predicts, image by image, and writes what was asked for."""
    kind = chosen_format(config.format, config.out)
    check_number("top", config.top, ge=1, whole=True)
    paths = find_images(config.images)
    restored = open_run(config)
    if restored.task.name != "fgvc":
        raise UserError(
            f"run={config.run}: re-identification has no classes to predict; dcal-extract gives the images' features, "
            "dcal-query finds the nearest among them"
        )
    bad: dict[str, str] = {}
    with opened(config.out) as file:
        write = WRITERS[kind](file, paths, restored.class_names)
        for path, guesses, answer in guess(restored, paths, config.top, bad):
            write(path, guesses, answer, "")
        for name, reason in bad.items():
            write(Path(name), [], "", reason.removeprefix(f"{name}: "))
    end_incomplete(bad, len(paths))


def guess(
    restored: Restored, paths: Sequence[Path], top: int, bad: dict[str, str]
) -> Iterator[tuple[Path, list[Guess], str]]:
    """The `top` classes of each image, most probable first, and the answer of a calibrated run.

    That is the most probable class, or "none of these classes"; empty for a run without thresholds.

    Args:
        bad: gets the reasons of images that have no classes.
    """
    thresholds = read_thresholds(restored)
    predictor, loader = restored.predictor, open_images(restored, paths)
    with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
        for seen in predictor.batches(loader):
            ranked = predictor.guesses(predictor.log_probabilities(seen), top)
            for index, usable, guesses in zip(seen.index.tolist(), finite(seen), ranked, strict=True):
                if not usable:
                    bad[str(paths[index])] = "the model answers with NaN"
                    continue
                sure = thresholds is None or guesses[0].probability >= thresholds["class"]["threshold"]
                answer = "" if thresholds is None else guesses[0].label if sure else NO_CLASS
                yield paths[index], guesses, answer
            bar.update(int(seen.index[-1]) + 1 - bar.n)
    bad.update(loader.skipped)


def chosen_format(name: str | None, out: str | None) -> str:
    """What is written: the named format, or that of the suffix.

    Raises:
        UserError: neither says which of `FORMATS`.
    """

    if name is None and out is None:
        return "table"
    if name is None:
        name = Path(str(out)).suffix.removeprefix(".")
        if name not in FORMATS:
            raise UserError(f"out={out}: its suffix must be .csv or .jsonl, or say format={'|'.join(FORMATS)}")
    return choose("format", name, FORMATS)


@contextmanager
def opened(out: str | None) -> Iterator[TextIO]:
    """The terminal, or a file that appears once it is whole."""
    if out is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough; Python would complain of it once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None
        return
    path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


Writer = Callable[[Path, Sequence[Guess], str, str], None]
"""Writes an image with its guesses and the answer, or with the reason why there are none."""


def table_writer(file: TextIO, paths: Sequence[Path], names: Sequence[str]) -> Writer:
    """Aligned columns; the widths are known beforehand, so that lines appear as they are computed."""
    width, labels = max(len(printable(path)) for path in paths), max(map(len, names))

    def write(path: Path, guesses: Sequence[Guess], answer: str, reason: str) -> None:
        lines = [f"{label:<{labels}}  {probability:.4f}" for label, probability in guesses] or [printable(reason)]
        if guesses and answer not in ("", guesses[0].label):
            lines.insert(0, answer)
        first = [printable(path), *[""] * (len(lines) - 1)]
        file.writelines(f"{left:<{width}}  {line}\n" for left, line in zip(first, lines, strict=True))

    return write


def csv_writer(file: TextIO, paths: Sequence[Path], names: Sequence[str]) -> Writer:
    """A row per image and class: path, rank from 1, label, probability, error, answer."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "rank", "label", "probability", "error", "answer"))

    def write(path: Path, guesses: Sequence[Guess], answer: str, reason: str) -> None:
        name = printable(path)
        rows = [(name, rank, *guess, "", answer) for rank, guess in enumerate(guesses, 1)]
        writer.writerows(rows or [(name, "", "", "", printable(reason), "")])

    return write


def jsonl_writer(file: TextIO, paths: Sequence[Path], names: Sequence[str]) -> Writer:
    """A line per image: {"path", "top": [{"label", "probability"}]} or {"path", "error"}; "answer" if there is one."""

    def write(path: Path, guesses: Sequence[Guess], answer: str, reason: str) -> None:
        content: dict[str, Any] = {"error": printable(reason)} if reason else {"top": [g._asdict() for g in guesses]}
        content |= {"answer": answer} if answer else {}
        file.write(json.dumps({"path": printable(path), **content}, ensure_ascii=False) + "\n")

    return write


WRITERS = {"table": table_writer, "csv": csv_writer, "jsonl": jsonl_writer}
