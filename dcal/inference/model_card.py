"""The model card of an export: what the model is, what it was trained on, how good it is, how to load and feed it.

Markdown with the metadata that the Hugging Face Hub reads at its head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

import yaml

from dcal.inference.restore import Restored, read_config
from dcal.inference.thresholds import promises, read_thresholds
from dcal.run.identity import dataset_name
from dcal.run.result import read_result

TASKS = {
    "fgvc": ("image-classification", "fine-grained classification"),
    "reid": ("image-feature-extraction", "object re-identification"),
}
LOAD = {
    "safetensors": """
import dcal  # pip install dcal

model = dcal.load("folder")  # or, from the Hub, dcal.TrainedDCAL.from_pretrained("user/name")
{use}
""",
    "torch_export": """
import torch

model = torch.export.load("model.pt2").module()
{outputs} = model(torch.rand(8, 3, {height}, {width}){side_torch})
""",
    "onnx": """
import numpy, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = numpy.random.rand(8, 3, {height}, {width}).astype("float32")
{outputs} = session.run(None, {{"images": images{side_numpy}}})
""",
    "openvino": """
import numpy, openvino

model = openvino.compile_model("model.xml", "CPU")
images = numpy.random.rand(8, 3, {height}, {width}).astype("float32")
{outputs} = model({{"images": images{side_numpy}}}).values()
""",
    "boxmot": """
from boxmot.reid.core import ReID  # pip install boxmot

reid = ReID("model.onnx")
features = reid(image, boxes)  # BGR array, boxes (N, 4) as x1, y1, x2, y2; or --reid model.onnx on its command line
""",
    "ultralytics": """
from ultralytics import YOLO  # pip install ultralytics

# in a copy of its botsort.yaml: with_reid: True and model: model.onnx
YOLO("yolo11n.pt").track("video.mp4", tracker="botsort.yaml")
""",
}
LOAD["onnx_int8"] = LOAD["onnx"]
TRACKERS = ("boxmot", "ultralytics")
"""Formats whose graph answers with the embedding alone, to a program that prepares the images itself."""


def model_card(
    config: Mapping[str, Any],
    format: str = "safetensors",
    outputs: Sequence[str] = (),
    parity: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        config: what `config.json` holds, see `dcal.inference.pretrained.TrainedDCAL`.
        format: as in `dcal.inference.export_formats`.
        outputs: names of what an exported graph returns.
        parity: how the export was compared with PyTorch, one sentence.
    """
    facts = config.get("facts") or {}
    licence = facts.get("license")
    backbone, tag = config["backbone"]["name"], TASKS[config["task"]][0]
    head = {
        "library_name": "dcal",
        "license": licence or "other",
        "pipeline_tag": tag,
        "tags": ["dcal", "vision-transformer", config["task"], format],
        **({} if licence else {"license_name": "not-stated"}),
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {facts.get('run', 'DCAL')}: {backbone} with dual cross-attention",
        introduction(config, facts),
        f"## Load\n\n```python{loading(config, format, outputs)}```",
        f"## Input\n\n{contract(config, format)}",
        f"## Output\n\n{answers(config, format)}",
    ]
    parts += [f"## Metrics\n\n{results(facts)}"] if facts.get("metrics") else []
    if facts.get("thresholds"):
        kept = "\n".join(f"- {promise}" for promise in promises(facts["thresholds"]))
        parts += [f"## Thresholds\n\nOf `facts.thresholds` in `config.json`, by `dcal-calibrate`:\n\n{kept}"]
    parts += [f"## Compared with PyTorch\n\n{parity}"] if parity else []
    parts += [f"## Licence\n\n{terms(licence)}"]
    if facts.get("configuration"):
        parts += [f"## Configuration\n\n```yaml\n{yaml.safe_dump(facts['configuration'])}```"]
    return "\n\n".join(parts) + "\n"


def introduction(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    names, glca = config["class_names"], config["attention"]["glca"]
    what = f"{len(names)} classes" if config["task"] == "fgvc" else f"trained on {len(names)} identities"
    text = f"A model for {TASKS[config['task']][1]} ({what}), trained on `{facts.get('dataset', 'unknown data')}`: "
    text += f"timm's `{config['backbone']['name']}`"
    if glca["blocks"]:
        text += (
            f" and a global-local cross-attention branch, which looks again at {100 * glca['top_ratio']:g} % of the "
            f"patches (`selection={glca['selection']}`, `readout={glca['readout']}`)"
        )
    text += (
        ". Method: Zhu et al., *Dual Cross-Attention Learning*, CVPR 2022, [arXiv 2205.02151]"
        "(https://arxiv.org/abs/2205.02151). Pair-wise cross-attention, if any, was at work in training only."
    )
    commit = (facts.get("git") or {}).get("commit")
    if "cfg_id" in facts:
        text += f"\n\nRun `{facts['run']}`, configuration `{facts['cfg_id']}`, seed {facts['seed']}, weights "
        text += f"`{facts['weights']}`" + (f", commit `{commit[:12]}`." if commit else ".")
    return text


def loading(config: Mapping[str, Any], format: str, outputs: Sequence[str]) -> str:
    classifies = config["task"] == "fgvc"
    use = 'model.predict("bird.jpg")' if classifies else 'model.embed(["a.jpg", "b.jpg"])'
    cameras = bool((config.get("sides") or [0])[0])
    height, width = config["image_size"]
    return LOAD[format].format(
        outputs=", ".join(outputs) + ("," if len(outputs) == 1 else ""),
        use=use + ("  # [{class name: probability, ...}]" if classifies else "  # (2, D), of length 1"),
        height=height,
        width=width,
        side_torch=", torch.zeros(8, dtype=torch.int64)" if cameras else "",
        side_numpy=', "side": numpy.zeros(8, "int64")' if cameras else "",
    )


def contract(config: Mapping[str, Any], format: str) -> str:
    """What has to be fed, so that a reader in another language gets it right."""
    (height, width), (tall, wide) = config["image_size"], config["resize"]
    text = f"`images`: float32 (batch, 3, {height}, {width}), any batch size, RGB"
    cut = "cuts out the boxes and resizes them to this size by itself, without antialiasing."
    if format == "boxmot":
        return (
            f"{text}, normalised with ImageNet's mean and standard deviation, as BoxMOT does whatever the model; the "
            f"graph turns it into the backbone's. BoxMOT {cut}"
        )
    if format == "ultralytics":
        return f"{text} in **[0, 1]**; normalisation is part of the graph. Ultralytics {cut}"
    if format == "safetensors":
        text = (
            "`predict` and `embed` take files, PIL images or uint8 RGB arrays of any size. The model itself takes "
            "normalised images: `model(model.normalise(model.preprocess(pictures)))`"
        )
    else:
        text += " in **[0, 1]**; normalisation with the backbone's mean and standard deviation is part of the graph"
    text += (
        f".\n\nPictures are resized to {tall} × {wide} (height × width; bilinear with antialiasing, as Pillow's; the "
        "aspect ratio is not kept)"
    )
    if (height, width) != (tall, wide):
        text += f" and cropped to {height} × {width} from the centre"
    cameras, views = config.get("sides") or (0, 1)
    if cameras:
        what = "the camera" if views == 1 else f"camera × {views} + view"
        text += f".\n\n`side`: int64 (batch,), {what}, in [0, {cameras * views})"
    return text + "."


def answers(config: Mapping[str, Any], format: str) -> str:
    """What comes back."""
    branches = " and ".join(f"`{branch}`" for branch in config["inference"])
    classifies = config["task"] == "fgvc"
    if classifies:
        text = (
            f"`probabilities` (batch, {len(config['class_names'])}): mean of the softmax of {branches}, in the order "
            "of `class_names` in `config.json`"
        )
    else:
        text = (
            f"`embedding` (batch, D): the features of {branches}, each of length 1, joined, of length 1 again; two are "
            "compared by their dot product"
        )
    if format != "safetensors" and format not in TRACKERS:
        of_branch = "`logits_*` (batch, classes)" if classifies else "`feature_*` (batch, D), before BNNeck,"
        text += f"; {of_branch} of each branch"
        if config["attention"]["glca"]["blocks"]:
            text += "; `selected` (batch, K): the patches that the global-local branch chose, counted row by row"
    return text + "."


def results(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(facts["metrics"].items()))
    text = f"On the split `{facts.get('split', 'test')}` of `{facts['dataset']}`, as the run's `result.json` has them"
    if facts.get("flip_test"):
        text += ", averaged over each image and its mirror image (an exported graph sees the image alone)"
    return f"{text}:\n\n| metric | value |\n| --- | --- |\n{rows}"


def terms(licence: str | None) -> str:
    text = "The code that trained and runs it is under Apache-2.0. "
    weights = f"The weights are under `{licence}`. " if licence else "For the weights none has been stated. "
    return text + weights + "The data set and the pretrained weights it started from have terms of their own."


def facts_of(restored: Restored, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What the card tells of a run. Paths are left out, but for a file's own name: others read the card."""
    hidden = ("_target_", "_partial_", "reader", "members", "root", "cache")
    groups = {
        group: {key: value for key, value in plain[group].items() if key not in hidden}
        for group in ("backbone", "attention", "task", "dataset", "optimizer", "train")
    }
    start = read_config(restored.directory).backbone
    groups["backbone"] |= {
        "pretrained": start.pretrained,
        "checkpoint": start.checkpoint and PureWindowsPath(start.checkpoint).name,
    }
    result = read_result(restored.directory) or {}
    facts: dict[str, Any] = {
        "run": plain["name"],
        "seed": plain["seed"],
        "weights": restored.weights.name,
        "dataset": dataset_name(plain["dataset"]),
        "flip_test": plain["task"]["flip_test"],
        **{key: result[key] for key in ("cfg_id", "split", "primary_metric", "metrics", "git") if key in result},
        "configuration": groups,
    }
    if (thresholds := read_thresholds(restored)) is not None:
        facts["thresholds"] = thresholds
    shown: dict[str, Any] = _without_folders(facts)
    return shown


def _without_folders(node: Any) -> Any:
    """The same with the last part of every absolute path (and of one below `~`) in its place."""
    if isinstance(node, dict):
        named: dict[str, Any] = node
        return {key: _without_folders(value) for key, value in named.items()}
    if isinstance(node, list):
        return [_without_folders(value) for value in node]
    is_path = isinstance(node, str) and (node.startswith(("/", "~", "\\")) or PureWindowsPath(node).drive)
    return PureWindowsPath(node).name if is_path else node  # which takes both kinds of slashes for such
