"""Kills training at random moments, repeats it until it is through, and compares it with a run never interrupted.

    python tests/kill_harness.py                          # every configuration, 20 kills each
    python tests/kill_harness.py --kills 50 bf16 --seed 1
    python tests/kill_harness.py device=cuda deterministic=true  # on a GPU, recorded where that is possible
    python tests/kill_harness.py device=cuda deterministic=true train.compile=none graph

This process imports torch once and forks a child for every life of a run, so that a life costs what training costs.
The child counts what it does (optimizer steps, batches of an evaluation, every opening, renaming or removing of a file,
of a checkpoint or not); at a random one of these, of a kind drawn first, it tells the parent, which waits a random
moment of up to 5 ms and sends SIGKILL.

Compared are: weights and the whole training state of the newest checkpoint, last and best weights, per-item outcomes,
metrics.jsonl line by line, and the metrics of result.json. All to the last bit, but for wall-clock times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process that forks must have no threads

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import dcal.inference.restore  # imported here once rather than by every child
import dcal.training.build
import dcal.training.trainer
import dcal.training.wandb_run
from dcal.config import register
from dcal.run.directory import Run
from dcal.training.execute import train
from dcal.utils.device import Device
from dcal.utils.paths import config_dir

COMMON = [
    "name=killed",
    "train.epochs=6",
    "train.batch_size=8",
    "train.eval_batch_size=4",
    "train.checkpoint_minutes=0",  # a checkpoint after every step
    "train.progress=false",
    "backbone.drop_path_rate=0.2",
]
BIRDS = [
    *COMMON,
    "experiment=tiny/fgvc",
    "dataset.reader.train_per_class=6",
    "dataset.val_fraction=0.3",
    "task.mixup=0.2",
    "attention.pwca.pairing=hardest",
]
PEOPLE = [*COMMON, "experiment=tiny/reid", "dataset.reader.train_identities=24", "dataset.val_ids=8"]
CONFIGURATIONS = {
    "quick": [*BIRDS, "train.precision=bf16", "train.ema_decay=0.9", "train.workers=1", "train.epochs=2"],
    "fp32": [*BIRDS, "train.ema_decay=0.9"],
    "bf16": [*BIRDS, "train.precision=bf16", "train.ema_decay=0.9", "attention.glca.selection=random"],
    "fp32-workers": [*BIRDS, "train.workers=2", "attention.pwca.stream=symmetric", "train.eval_every=2"],
    "bf16-workers": [
        *BIRDS,
        "train.workers=2",
        "train.precision=bf16",
        "attention.pwca.pairing=curriculum",
        "attention.pwca.curriculum=[easiest,natural,gaussian]",
    ],
    "graph": [*BIRDS, "train.precision=bf16", "task.mixup=0", "train.compile=graph", "train.ema_decay=0.9"],
    "few-checkpoints": [*BIRDS, "train.precision=bf16", "train.ema_decay=0.9", "train.checkpoint_minutes=0.02"],
    "reid-accumulated": [*PEOPLE, "task.bnneck=true", "train.accumulate=3", "train.ema_decay=0.9"],
}
KINDS = ("step", "evaluation", "checkpoint", "result", "start")
REACH = {"step": 6, "evaluation": 3, "checkpoint": 60, "result": 5, "start": 15}
"""How many events of a kind a life sees at most: few, for many lives."""
RESULTS = ("metrics.jsonl", "best.safetensors", "last.safetensors", "items.npz", "result.json")
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
CLOCK = {"train/images_per_second", "seconds"}


def compose_run(overrides: list[str], root: Path) -> DictConfig:
    """The configuration that `dcal-train` would have."""
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", [*overrides, f"run.root='{root}'"])


class Witness:
    """Counts what a child does by kind, and tells the parent when it has come to the last event of its life."""

    def __init__(self, root: Path, pipe: int, last: tuple[str, int] | None) -> None:
        self.root, self.pipe, self.last = str(root), pipe, last
        self.seen: Counter[str] = Counter()
        self.in_step = False

    def see(self, kind: str) -> None:
        self.seen[kind] += 1
        if (kind, self.seen[kind]) == self.last:
            os.write(self.pipe, json.dumps(kind).encode())

    def watch(self) -> None:
        """Puts itself where things happen; for good, so only in a child."""
        update, normalise = dcal.training.trainer.update, Device.normalise

        def step(*args: Any) -> Any:
            self.in_step = True
            self.see("step")
            losses = update(*args)
            self.in_step = False
            return losses

        def batch(*args: Any) -> Any:
            self.see("step" if self.in_step else "evaluation")
            return normalise(*args)

        dcal.training.trainer.update, Device.normalise = step, batch  # type: ignore[assignment, method-assign]
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and isinstance(args[0], (str, os.PathLike)):
            path = os.fspath(args[0])
            if isinstance(path, str) and path.startswith(self.root):
                result = any(name in path for name in RESULTS)
                self.see("checkpoint" if "checkpoints" in path else "result" if result else "start")


def live(config: DictConfig, root: Path, last: tuple[str, int] | None, log: Path) -> dict[str, int] | None:
    """One life of a run in a child, ended at event `last`; the events by kind of one that ended by itself."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            witness = Witness(root, write, last)
            witness.watch()
            train(Run(config))
            sys.stdout.flush()
            os.write(write, json.dumps(witness.seen).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.write(write, b"null")
        finally:
            os._exit(code)  # no way back into the harness
    os.close(write)
    said = json.loads(os.read(read, 1000))
    if isinstance(said, str):
        time.sleep(random.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    if said is None:
        raise AssertionError(f"a life of the run failed:\n{log.read_text()[-3000:]}")
    return None if isinstance(said, str) else said


def torture(name: str, kills: int, folder: Path, overrides: Sequence[str] = ()) -> Counter[str]:
    """Trains configuration `name` once in peace and then until it was killed `kills` times; what it was doing then.

    Args:
        overrides: after those of the configuration.

    Raises:
        AssertionError: two of them differ, or a repeated run fails.
    """
    started, words = time.monotonic(), [*CONFIGURATIONS[name], *overrides]
    peace = folder / "in peace"  # with a space
    events = live(compose_run(words, peace), peace, None, folder / "in peace.log")
    assert events is not None and events.keys() == {*KINDS}, events
    victims: Counter[str] = Counter()
    runs = 0
    while victims.total() < kills:  # in several runs, for some are through before they could be killed that often
        runs += 1
        war, log = folder / f"at war {runs}", folder / f"at war {runs}.log"
        config, through = compose_run(words, war), False
        while not through:
            kind = random.choice(KINDS)
            last = (kind, random.randint(1, REACH[kind])) if victims.total() < kills else None
            through = live(config, war, last, log) is not None
            victims[kind] += not through
        compare(*(next(root.glob("killed/*/seed=0")) for root in (peace, war)))
    by_kind = ", ".join(f"{kind} {count}" for kind, count in victims.most_common())
    seconds = time.monotonic() - started
    print(f"{name}: {victims.total()} kills, {runs} runs, {seconds:.0f} s, all equal ({by_kind})", flush=True)
    return victims


def compare(peace: Path, war: Path) -> None:
    """Everything that two runs leave behind, bit by bit.

    Raises:
        AssertionError: naming the first difference.
    """
    files = [{str(f.relative_to(run)) for f in run.rglob("*") if f.is_file()} for run in (peace, war)]
    assert files[0] == files[1], f"files of one run only: {sorted(files[0] ^ files[1])}"
    for name in sorted(files[0]):
        ours, theirs = peace / name, war / name
        if name.endswith(".safetensors"):
            assert ours.read_bytes() == theirs.read_bytes(), f"{name} differs"
        elif name.endswith(".npz"):
            same(dict(np.load(ours)), dict(np.load(theirs)), name)
        elif name.endswith(".pt"):
            # on the CPU: a process that has used CUDA cannot fork others that do
            same(*(torch.load(file, map_location="cpu", weights_only=True) for file in (ours, theirs)), name)
        elif name == "metrics.jsonl":  # the history has a line for each life
            same(*([json.loads(line) for line in file.read_text().splitlines()] for file in (ours, theirs)), name)
        elif name == "result.json":
            same(*(json.loads(file.read_text())["metrics"] for file in (ours, theirs)), name)
    assert "last.safetensors" in files[0] and "items.npz" in files[0] and "metrics.jsonl" in files[0]


def same(one: Any, other: Any, where: str) -> None:
    """Equal trees of tensors, arrays and plain values, but for what a clock has written."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"{where}: keys {sorted(one.keys() ^ other.keys())}"
        for key in one.keys() - CLOCK:
            if key != "metrics_size":  # numbers of clocks have a different number of digits
                same(one[key], other[key], f"{where}: {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), f"{where}: {len(one)} and {len(other)} entries"
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}[{number}]")
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert one.shape == other.shape and bool((one == other).all()), f"{where} differs"
    else:
        assert one == other, f"{where}: {one} and {other}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "words", nargs="*", metavar="configuration | key=value",
        help=f"{', '.join(CONFIGURATIONS)}; and overrides for all of them, such as device=cuda deterministic=true",
    )  # fmt: skip
    parser.add_argument("--kills", type=int, default=20, help="per configuration")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args(arguments)
    overrides = [word for word in asked.words if "=" in word]
    names = [word for word in asked.words if word not in overrides]
    unknown = set(names) - set(CONFIGURATIONS)
    if unknown:
        parser.error(f"no configuration {', '.join(sorted(unknown))}: choose from {', '.join(CONFIGURATIONS)}")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    random.seed(asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name in names or CONFIGURATIONS:
            torture(name, asked.kills, Path(folder) / name, overrides)


if __name__ == "__main__":
    main()
