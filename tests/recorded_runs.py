"""Run directories as a run leaves them, written by hand: for what reads them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dcal.visualize.gallery import FILE, Gallery, encode_jpeg, save_gallery

GLCA = {"blocks": 1, "top_ratio": 0.1, "selection": "rollout"}
CONFIG: dict[str, Any] = {
    "backbone": {"_target_": "dcal.backbone.create_backbone", "checkpoint": "/secret/w.safetensors"},
    "attention": {"_target_": "dcal.model.DCAL", "glca": GLCA, "pwca": {"blocks": None}},
    "task": {"_target_": "dcal.task.fgvc.FGVC"},
    "dataset": {
        "reader": {"_target_": "dcal.dataset.readers.fgvc.read_cub", "root": "/secret/birds"},
        "root": "/secret/birds",
        "image_size": [224, 224],
        "cache": "ram",
    },
    "optimizer": {"lr": 0.0001},
    "train": {"batch_size": 10, "epochs": 2, "workers": 2},
    "deterministic": False,
}
ITEMS = 40
NOTHING_ELSE = {
    "list": None,
    "compare": None,
    "best": None,
    "report": None,
    "verdicts": None,
    "wandb": None,
    "format": "markdown",
}
NAMES = ["000.Ant_<b>", "001.Bee", "002.Cow", "003.Dog", "004.Eel", "005.Fox"]


def write_run(root: Path, seed: int, wrong: int, attention: str = "dcal", name: str = "fgvc/birds") -> Path:
    """A run directory in which the last `wrong` of 40 items, in a shuffled file, are wrong."""
    config = json.loads(json.dumps(CONFIG))
    for branch in ("glca", "pwca"):
        if attention not in (branch, "dcal"):
            config["attention"][branch]["blocks"] = 0
    folder = root / name / f"id-{attention}" / f"seed={seed}"
    folder.mkdir(parents=True)
    result = {
        "status": "finished",
        "name": name,
        "cfg_id": f"id-{attention}",
        "seed": seed,
        "primary_metric": "top1",
    }
    result |= {"metrics": {"top1": 1 - wrong / ITEMS, "nll": 0.5}, "split": "test"}
    result |= {"git": {"commit": "0123456789abcdef", "dirty": False}, "device": "2 CPU cores"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config_resolved.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.9", "argv": "/secret/x", "platform": "host"}))
    lines = [
        {"epoch": 1, "step": 10, "train/images_per_second": 50.0, "train/loss": 2.0},
        {"epoch": 2, "step": 20, "train/images_per_second": 100.0, "train/loss": 1.0, "test/top1": 0.9},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    order = np.random.default_rng(seed).permutation(ITEMS)
    label = order % 5
    prediction = np.where(order >= ITEMS - wrong, label + 1, label)
    names = np.array([f"bird/{number:02}.jpg" for number in order])
    np.savez(folder / "items.npz", index=order, label=label, prediction=prediction, name=names)
    return folder


def write_queries(root: Path, attention: str, values: np.ndarray, labels: np.ndarray) -> None:
    folder = write_run(root, 0, 0, attention, "reid/people")
    config = (folder / "config_resolved.yaml").read_text().replace("fgvc.FGVC", "reid.ReID")
    (folder / "config_resolved.yaml").write_text(config)
    metrics = {"mAP": float(values.mean()), "rank1": 0.0}
    result = json.loads((folder / "result.json").read_text()) | {"primary_metric": "mAP", "metrics": metrics}
    (folder / "result.json").write_text(json.dumps(result))
    every = {"index": np.arange(len(values)), "label": labels, "valid": np.ones(len(values), dtype=bool)}
    every["name"] = np.array([f"query/{number}.jpg" for number in every["index"]])
    np.savez(folder / "items.npz", average_precision=values, first_rank=np.full(len(values), 2), **every)


def configure(folder: Path, **more: Any) -> Any:
    tables = folder / "tables.yaml"
    entry = {"runs": "fgvc-birds", "by": ["attention"], "against": {"attention": "none"}, "order": ["none"]}
    tables.write_text(OmegaConf.to_yaml({"birds": entry, "later": {"runs": "nothing-*"}}))
    values = {"runs": "runs", "out": "results", "figures": "figures", "html": "html", "pages": ["README.md"]}
    paths = {key: str(folder / value) for key, value in values.items() if isinstance(value, str)}
    pages = [str(folder / "README.md"), str(folder / "no such file.md")]
    return OmegaConf.create(
        {**NOTHING_ELSE, **paths, "pages": pages, "tables": str(tables), "device": None, "write": True, **more}
    )


def complete(folder: Path) -> Path:
    """What a run of today keeps besides: class names, pictures, what was typed."""
    (folder / "model.json").write_text(json.dumps({"class_names": NAMES}))
    (folder / "overrides.json").write_text(json.dumps(["attention=dcal", "seed=0"]))
    with np.load(folder / "items.npz") as items:
        shown = np.concatenate([items["index"][items["label"] != items["prediction"]], np.arange(4)])
    numbers = list(dict.fromkeys(shown.tolist()))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (len(numbers), 32, 48, 3), dtype=np.uint8)
    maps = rng.random((len(numbers), 4, 6), dtype=np.float32)
    save_gallery(
        Gallery(["test"] * len(numbers), numbers, [encode_jpeg(p) for p in pixels], maps, maps > 2), folder / FILE
    )
    return folder


def as_reid(folder: Path, cameras: bool = True) -> Path:
    """Turns a run into one of Re-ID with six queries in two cameras."""
    config = OmegaConf.load(folder / "config_resolved.yaml")
    config.task._target_ = "dcal.task.reid.ReID"
    OmegaConf.save(config, folder / "config_resolved.yaml")
    items: dict[str, Any] = {"index": np.arange(6), "label": np.array([3] * 6)}
    items["average_precision"] = np.array([1.0, 0.5, 0.0, 1.0, 1.0, 0.4])
    items |= {"first_rank": np.array([1, 2, 0, 1, 1, 3]), "inp": items["average_precision"]}
    items |= {"valid": items["average_precision"] > 0}
    items |= {"nearest": np.array([[7, 8]] * 6), "nearest_mark": np.array([[1, 0]] * 6, dtype=np.uint8)}
    items |= {"camera": np.array([0, 0, 0, 4, 4, 4])} if cameras else {}
    np.savez(folder / "items.npz", **items)
    result = json.loads((folder / "result.json").read_text())
    result |= {"primary_metric": "mAP", "metrics": {"mAP": 0.78, "rank1": 0.6, "mINP": 0.78}}
    (folder / "result.json").write_text(json.dumps(result))
    parts, numbers = ["query", "query", "gallery", "gallery"], [0, 5, 7, 8]
    jpeg = encode_jpeg(np.full((64, 32, 3), 90, dtype=np.uint8))
    maps = np.random.default_rng(0).random((4, 8, 4), dtype=np.float32)
    save_gallery(Gallery(parts, numbers, [jpeg] * 4, maps, maps > 2), folder / FILE)
    return folder
