"""Finished runs as records: small enough to commit, complete enough for tables, figures and paired tests.

One file per run name holds a record per run, keyed by (cfg_id, seed):

    name, task, primary_metric; config: what all runs share; groups: {digest: group of every test item}; runs: [{
        cfg_id, seed, config: what differs, split, metrics, git, versions, device, train_seconds,
        images_per_second, curve: {epoch, loss weights and losses by epoch},
        items: {count, digest, images, <metric>: outcome of every test item}}]

Configurations are flat (`optimizer.lr`) and hold what decides the numbers, neither paths nor speed. Outcomes
of items, sorted by the item's index, are base64: `bits:` of right and wrong, or `u16:` little-endian in units
of 1e-4 (average precisions). `digest`, of their positions, and `images`, of what is there, tell whether two runs were
judged on the same items; older runs have no `images`. `groups`, of re-identification alone, tells which queries show
the same identity; in memory every record has its own, as `items: {group}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dcal.report.epochs import curve, renamed, speed
from dcal.report.items import decode_outcomes, digest, encode_groups, encode_outcomes, read_items
from dcal.run.files import write_atomically
from dcal.run.identity import IDENTITY, NOT_IDENTITY, attention_name, dataset_name, flatten, recorded_defaults
from dcal.run.legacy import renamed_keys
from dcal.run.listing import finished_runs
from dcal.utils.errors import UserError, first_line

RunRecord = dict[str, Any]
Results = dict[str, Any]
"""What a file holds, the records with their full configuration."""


NOT_METRICS = ("count", "digest", "images", "group")
"""What the items of a record hold besides outcomes."""
TIES = 5e-3
"""Half-precision logits tie, and a metric may break ties otherwise than the recorded predictions do."""


class BadRun(UserError):
    """The files of a run cannot be used; the message names the file."""


def collect(root: Path) -> tuple[dict[str, list[RunRecord]], list[str]]:
    """The records of all finished runs below `root` by run name; a sentence for each that cannot be used."""
    found: dict[str, list[RunRecord]] = {}
    directories, problems = finished_runs(root)
    for directory in directories:
        try:
            name, record = read_run(directory)
            if directory.resolve().parts[-2:] != (own := own_place(record)):
                place = "/".join(own)
                raise BadRun(f"{directory}: a copy of a run, not read; its own folder is {place}, rename it to read it")
            found.setdefault(name, []).append(record)
        except BadRun as problem:
            problems.append(str(problem))
    return found, problems


def own_place(record: RunRecord) -> tuple[str, str]:
    """The end of the path of a run's folder, `<cfg_id>/seed=<seed>`, which that of a backup has not.

    The id is the one that the run itself recorded, so runs of older versions, whose ids were made otherwise, count.
    """
    return record["cfg_id"], f"seed={record['seed']}"


def read_run(directory: Path) -> tuple[str, RunRecord]:
    """Name and record of one run directory.

    Raises:
        BadRun: a file is missing, torn, or does not fit the others.
    """
    result = parse(directory / "result.json", lambda text: renamed_keys(json.loads(text)))
    config = parse(directory / "config_resolved.yaml", lambda text: flat(read_yaml(text)))
    versions = parse(directory / "versions.json", json.loads)
    try:
        lines = read_metrics(directory, result.get("split", "val"))
        record = {
            "cfg_id": result["cfg_id"],
            "seed": result["seed"],
            "primary_metric": result["primary_metric"],
            "config": config,
            "split": result["split"],
            "metrics": {key: round(value, 6) for key, value in result["metrics"].items()},
            "git": result["git"],
            "versions": {key: value for key, value in versions.items() if key not in ("argv", "platform")},
            "device": result.get("device"),
            **speed(lines, config["train.batch_size"]),
            "curve": curve(lines, f"{result['split']}/{result['primary_metric']}"),
            "items": read_outcomes(directory / "items.npz"),
        }
        if "judged" in result:
            record["items"]["images"] = str(result["judged"])
        name = str(result["name"])
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRun(f"{directory / 'result.json'}: {error!r} is missing or of the wrong kind") from None
    for metric, code in record["items"].items():
        if metric not in NOT_METRICS and abs(decode_outcomes(code).mean() - record["metrics"][metric]) > TIES:
            raise BadRun(f"{directory / 'items.npz'}: its mean {metric} is not that of result.json")
    return name, record


def read_metrics(directory: Path, split: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, by epoch.

    Args:
        split: that the run was judged on.

    Raises:
        BadRun: the file cannot be read.
    """
    file = directory / "metrics.jsonl"
    lines: list[dict[str, Any]] = parse(file, lambda text: renamed(map(json.loads, text.splitlines()), split))
    return lines


def parse(path: Path, parser: Any) -> Any:
    """The parsed text of a file.

    Raises:
        BadRun: it cannot be read or parsed.
    """
    try:
        return parser(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise BadRun(f"{path}: cannot be read ({first_line(error)})") from None


def read_yaml(text: str) -> Any:
    """As OmegaConf wrote it: plain YAML would take 1e-4 for a text."""
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run in dotted keys; `task`, `dataset`, `attention` by name, paths cut to a name."""
    identity = {key: config[key] for key in IDENTITY}
    for group, keys in NOT_IDENTITY.items():
        identity[group] = {key: value for key, value in identity[group].items() if key not in keys}
    found: dict[str, Any] = {}
    for key, value in flatten(identity):
        if key.rpartition(".")[2] not in ("_target_", "_partial_", "root"):
            is_path = isinstance(value, str) and ("/" in value or "\\" in value)
            found[key] = PurePath(value.replace("\\", "/")).name if is_path else value
    found["attention"] = attention_name(found)
    found["task"] = config["task"]["_target_"].rpartition(".")[2].lower()
    found["dataset"] = dataset_name(config["dataset"])
    return dict(sorted(found.items()))


def read_outcomes(path: Path) -> dict[str, Any]:
    """The outcome of every test item, by metric.

    Raises:
        BadRun: the file is missing, torn, not the one that the run wrote, or lacks an array.
    """
    try:
        items = read_items(path)
    except UserError as error:
        raise BadRun(str(error)) from None
    index = np.ascontiguousarray(items.positions, dtype="<i8")
    group = {} if items.groups is None else {"group": encode_groups(items.groups)}
    outcomes = {key: encode_outcomes(values) for key, values in sorted(items.outcomes.items()) if len(index)}
    return {"count": len(index), "digest": digest(index, group.get("group", "")), **group, **outcomes}


def load_results(path: Path) -> Results:
    """A file of records, each with its full configuration.

    Raises:
        BadRun: the file cannot be read, or holds no records.
    """

    def parser(text: str) -> Results:
        results: Results = renamed_keys(json.loads(text))
        groups = results.pop("groups", {})  # files of classification have none
        for record in results["runs"]:
            record["config"] = {**results["config"], **record["config"]}
            record["primary_metric"] = results["primary_metric"]
            if record["items"]["digest"] in groups:
                record["items"]["group"] = groups[record["items"]["digest"]]
        return {**results, "runs": with_defaults(results["runs"])}

    found: Results = parse(path, parser)
    return found


def with_defaults(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The records with every key: a run from before a key existed has what is its default: what it did then."""
    return [{**record, "config": {**recorded_defaults(), **record["config"]}} for record in records]


def load_all(folder: Path) -> dict[str, Results]:
    """Every file of records in a folder, by its name without `.json`."""
    return {file.stem: load_results(file) for file in sorted(folder.glob("*.json"))}


def merge(name: str, old: Iterable[RunRecord], new: Iterable[RunRecord]) -> Results:
    """Old and new records in one; of two with the same (cfg_id, seed) the new one, on the known device."""
    records: dict[tuple[str, int], RunRecord] = {}
    for record in (*old, *new):
        key = record["cfg_id"], record["seed"]
        device = record["device"] or (records[key]["device"] if key in records else None)
        records[key] = {**record, "device": device}
    first = next(iter(records.values()))
    return {
        "name": name,
        "task": first["config"]["task"],
        "primary_metric": first["primary_metric"],
        "runs": [records[key] for key in sorted(records)],
    }


def save_results(results: Results, path: Path) -> None:
    """Writes a file of records: what runs share once, every record's entries one a line."""
    shared = common(record["config"] for record in results["runs"])
    runs = [
        {**record, "config": {key: value for key, value in record["config"].items() if key not in shared}}
        for record in results["runs"]
    ]
    groups = {}
    for record in runs:
        del record["primary_metric"]
        items = record["items"] = dict(record["items"])
        if "group" in items:
            groups[items["digest"]] = items.pop("group")
    head = {key: results[key] for key in ("name", "task", "primary_metric")} | ({"groups": groups} if groups else {})
    write_atomically(path, "\n".join(dump({**head, "config": shared, "runs": runs}, depth=3)) + "\n")


def common(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that all configurations have with the same value."""
    first, *others = configs
    return {key: value for key, value in first.items() if all(o.get(key, ...) == value for o in others)}


def dump(node: Any, depth: int, indent: str = "") -> Iterator[str]:
    """JSON in lines, broken `depth` levels deep, so that a diff shows which run changed."""
    if not depth or not isinstance(node, (dict, list)) or not node:
        yield indent + json.dumps(node, ensure_ascii=False)
        return
    pairs = node.items() if isinstance(node, dict) else ((None, value) for value in node)
    yield indent + ("{" if isinstance(node, dict) else "[")
    for number, (key, value) in enumerate(pairs, 1):
        lines = list(dump(value, depth - 1, indent + " "))
        if key is not None:
            lines[0] = f"{indent} {json.dumps(key)}: {lines[0].lstrip()}"
        lines[-1] += "," if number < len(node) else ""
        yield from lines
    yield indent + ("}" if isinstance(node, dict) else "]")
