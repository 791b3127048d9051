"""What `test_processes.py` compares: the same work done by one process and by two.

    python ranks.py FOLDER

imports torch once and forks, which is much cheaper than starting three processes. Each leaves a dictionary of results
by case in `FOLDER/<processes>-<rank>.pt`.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dcal.commands.words.members import with_members
from dcal.config import register
from dcal.distributed.collectives import all_gather_batches, init_distributed, world_size
from dcal.metric.retrieval import evaluate_retrieval
from dcal.training.build import build
from dcal.training.parallel import full_state_dict
from dcal.training.state import TrainState
from dcal.training.step import update
from dcal.training.trainer import evaluate
from dcal.utils.paths import config_dir

COMMON = ["seed=3", "optimizer=sgd", "optimizer.lr=0.05", "train.batch_size=8", "train.eval_batch_size=3"]
FGVC = ["experiment=tiny/fgvc", "task.mixup=0.5"]
REID = ["experiment=tiny/reid", "task.bnneck=true", "task.instances=2", "train.ema_decay=0.5"]
JOINT = [
    "backbone=test_vit", "dataset=joint", "task=reid", "task.instances=2", "dataset.batches=balanced",
    "dataset.image_size=[64,32]", "dataset.resize=[64,32]", "train.precision=fp32", "train.workers=0",
    "train.epochs=1", "optimizer.schedule.warmup_epochs=0",
    "++dataset.members={one:{dataset:synthetic_people,reader:{image_size:[64,32],train_identities:8,"
    "test_identities:4,cameras:3,images_per_camera:2}},two:{dataset:synthetic_people,reader:{image_size:[64,32],"
    "train_identities:5,test_identities:3,cameras:2,images_per_camera:2,seed:1}}}",
]  # fmt: skip
CASES = {
    ("fgvc", "ddp fsdp"): FGVC,
    ("figure stream, checkpointed", "fsdp"): [
        *FGVC, "attention.pwca.stream=figure", "train.activation_checkpointing=true"
    ],
    ("symmetric stream, hardest partners, in parts", "ddp"): [
        *FGVC, "attention.pwca.stream=symmetric", "attention.pwca.pairing=hardest", "train.accumulate=2"
    ],
    ("reid", "ddp"): REID,
    ("joint", "ddp"): JOINT,
    ("reid, in parts", "ddp fsdp"): [*REID, "train.accumulate=2"],
}  # fmt: skip
"""Overrides by name and strategies."""
STEPS = 3


def configure(overrides: list[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = with_members(compose("train", ["name=ranks", *COMMON, *overrides]))
    OmegaConf.resolve(config)
    return config


def train(overrides: list[str]) -> dict[str, Any]:
    """An evaluation before and some steps: metrics, losses, weights and the optimizer's state."""
    setup = build(configure(overrides))
    before = evaluate(setup, "test")
    losses = steps(setup)
    return {
        "metrics": before.metrics,
        "items": before.items,
        "losses": losses,
        "weights": {name: value.clone() for name, value in full_state_dict(setup.model.state_dict()).items()},
        "evaluated": {name: value.clone() for name, value in setup.assemble_eval_model().state_dict().items()},
        "objective": setup.objective.state_dict(),
        "optimizer": full_state_dict(setup.optimization.optimizer.state_dict())["state"],
    }


def steps(setup: TrainState) -> list[dict[str, float]]:
    losses = []
    setup.loader.batch_sampler.seek(0)
    for number, batch in enumerate(all_gather_batches(setup.loader, setup.device.torch)):
        losses.append({name: value.item() for name, value in update(setup, batch, number / 10).items()})
        if number + 1 == STEPS:
            return losses
    raise AssertionError(f"an epoch of fewer than {STEPS} batches")


def rank_in_blocks() -> dict[str, Any]:
    """Retrieval in blocks of few queries, more of them than processes."""
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(count, 8, generator=generator) for count in (21, 60))
    ids = [torch.randint(0, 6, (count,), generator=generator) for count in (21, 60)]
    cams = [torch.randint(0, 3, (count,), generator=generator) for count in (21, 60)]
    result = evaluate_retrieval(
        query, ids[0], cams[0], gallery, ids[1], cams[1], per_query=True, block_bytes=4096, sharded=True
    )
    return {**result, "per_query": tuple(result["per_query"])}


def work(rank: int, processes: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "localhost"}
    os.environ |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with init_distributed("cpu"):
        found: dict[Any, Any] = {"ranking": rank_in_blocks()}
        for (case, strategies), overrides in CASES.items():
            if world_size() == 1:
                found[case] = train(overrides)
            else:
                found |= {(case, name): train([*overrides, f"launch.strategy={name}"]) for name in strategies.split()}
    torch.save(found, folder / f"{processes}-{rank}.pt")


def main() -> None:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    places = [(0, 1), (0, 2), (1, 2)]
    children = [context.Process(target=work, args=(*place, port, Path(sys.argv[1]))) for place in places]
    for child in children:
        child.start()
    for child in children:
        child.join()
    raise SystemExit(max(abs(child.exitcode or 0) for child in children))


if __name__ == "__main__":
    main()
