"""What a model did on each test item, as `items.npz` and other programs' predictions hold it, and as text for JSON."""

from __future__ import annotations

import base64
import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcal.run.digest import check_digest
from dcal.utils.errors import UserError

Array = NDArray[Any]


class Items(NamedTuple):
    """N test items; rows in an order of their own."""

    task: str
    """`fgvc` or `reid`."""
    positions: Array | None
    """(N,) In the split; None where another program made the predictions."""
    names: Array | None
    """(N,) What the items are called; None in files of older versions."""
    labels: Array
    """(N,) Classes or identities, as numbers or names."""
    groups: Array | None
    """(N,) Items with the same value belong together; None where every item stands for itself."""
    outcomes: dict[str, Array]
    """By metric, (N,): whether the item was right, or its average precision."""
    losses: Array | None = None
    """(N,) Negative log-likelihood of the right class; None in re-identification and where it was not kept."""

    def take(self, order: Array) -> Items:
        """The items at these positions, in this order."""
        taken: dict[str, Any] = {key: own[order] for key, own in self._asdict().items() if isinstance(own, np.ndarray)}
        return self._replace(**taken, outcomes={metric: values[order] for metric, values in self.outcomes.items()})

    def values(self, metric: str) -> NDArray[np.float64]:
        """(N,) The outcomes of a metric to the four decimals that tables are made of, so that all digits agree."""
        return decode_outcomes(encode_outcomes(self.outcomes[metric]))


def read_items(path: Path) -> Items:
    """The items of an `items.npz`, by their index.

    Raises:
        UserError: the file is missing, torn, not the one that its run wrote, or lacks an array.
    """
    try:
        check_digest(path)
        with np.load(path, allow_pickle=False) as arrays:
            table = dict(arrays)
        items = _of_retrieval(table) if "average_precision" in table else _of_classification(table)
    except (OSError, UserError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    assert items.positions is not None
    return items.take(np.argsort(items.positions, kind="stable"))


def _of_classification(table: Mapping[str, Array]) -> Items:
    right = {
        "top1" + key.removeprefix("prediction"): value == table["label"]
        for key, value in sorted(table.items())
        if key.startswith("prediction")
    }
    return Items("fgvc", table["index"], table.get("name"), table["label"], None, right, table.get("nll"))


def _of_retrieval(table: Mapping[str, Array]) -> Items:
    found = {
        "mAP" + key.removeprefix("average_precision"): value
        for key, value in sorted(table.items())
        if key.startswith("average_precision")
    }
    found["rank1"] = table["first_rank"] == 1
    labels = table["label"]
    items = Items("reid", table["index"], table.get("name"), labels, labels, found)
    return items.take(np.flatnonzero(table["valid"]))  # queries without a match count nowhere


class Outcomes(NamedTuple):
    """The outcomes of one metric: S seeds, N items."""

    seeds: list[int]
    values_SN: NDArray[np.float64]
    digest: str
    """Of their positions in the split, and of their groups."""
    images: str | None
    """Tells which images these are; None where no run has recorded it, as older ones."""
    groups: NDArray[np.int64] | None
    """(N,) Items with the same number belong together: in re-identification, the queries of one identity."""

    def same_items(self, other: Outcomes) -> bool:
        """Whether both are of the same items, so that each has its partner; of older runs, as far as is known."""
        return self.digest == other.digest and (self.images == other.images or None in (self.images, other.images))


def outcomes(records: Sequence[Mapping[str, Any]], metric: str) -> Outcomes | None:
    """The outcomes of runs that differ in their seed, from their records, as tables and reports compare them.

    Returns:
        None where they are not recorded, where runs judged other items than each other, where they are too few for an
        interval, and where an older record does not say which queries belong to one identity.
    """
    items = [record["items"] for record in records]
    images = {own["images"] for own in items if "images" in own}
    if not all(metric in own for own in items) or len({own["digest"] for own in items}) > 1 or len(images) > 1:
        return None
    code = items[0].get("group")
    if code is None and records[0]["config"]["task"] == "reid":
        return None
    groups = None if code is None else decode_groups(code)
    if (items[0]["count"] if groups is None else len(np.unique(groups))) < 2:
        return None
    values_SN = np.stack([decode_outcomes(own[metric]) for own in items])
    seeds = [int(record["seed"]) for record in records]
    return Outcomes(seeds, values_SN, items[0]["digest"], next(iter(images), None), groups)


def encode_outcomes(values: NDArray[Any]) -> str:
    """Outcomes as text: right and wrong exactly, numbers in [0, 1] to four decimals."""
    if values.dtype == np.bool_:
        return f"bits:{len(values)}:" + base64.b64encode(np.packbits(values).tobytes()).decode()
    units = np.rint(values * 10_000).astype("<u2")
    return f"u16:{len(values)}:" + base64.b64encode(units.tobytes()).decode()


def decode_outcomes(text: str) -> NDArray[np.float64]:
    """The outcomes that `encode_outcomes` was given, as float64."""
    kind, count, code = text.split(":")
    raw = base64.b64decode(code)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=int(count)).astype(np.float64)
    return np.frombuffer(raw, dtype="<u2").astype(np.float64) / 10_000


def encode_groups(labels: NDArray[Any]) -> str:
    """Which items have the same label, as text: numbers from 0 in the order in which labels first appear."""
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[group].astype("<u4")
    return f"u32:{len(numbers)}:" + base64.b64encode(numbers.tobytes()).decode()


def decode_groups(text: str) -> NDArray[np.int64]:
    """The numbers that `encode_groups` has given to the labels."""
    return np.frombuffer(base64.b64decode(text.split(":")[2]), dtype="<u4").astype(np.int64)


def digest(index: NDArray[np.int64], group: str) -> str:
    """Eight digits that tell whether two runs judged the same items, grouped in the same way."""
    return hashlib.sha256(index.tobytes() + group.encode()).hexdigest()[:8]
