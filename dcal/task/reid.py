"""Re-identification: mAP and CMC of the branches' features, alone and concatenated, under the field's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcal.dataset.data import Data
from dcal.distributed.collectives import rank_and_world_size
from dcal.metric.decision.verification import verification
from dcal.metric.ranking import MARKS, PerQuery, breakdown, judge
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import METRICS, evaluate_retrieval, nearest
from dcal.model import DCAL
from dcal.task.evaluation import Evaluation
from dcal.task.inference import combined_features, infer
from dcal.task.options import Task
from dcal.utils.device import Device
from dcal.utils.errors import UserError, choose
from dcal.visualize.examples import RankedList, draw_ranked_lists, keep_gallery, log_cameras, log_figure, pick_examples
from dcal.visualize.gallery import FILE

LISTED = 10
LISTS_KEPT = 12


@dataclass(kw_only=True)
class ReID(Task):
    """The re-identification task.

    Features are taken before BNNeck; each branch's is L2-normalised, the concatenation again.

    Raises:
        UserError: an option that retrieval has no use for is set, or one is out of range.
    """

    name: ClassVar = "reid"
    primary_metric: ClassVar = "mAP"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixup or self.cutmix:
            raise UserError("task.mixup and task.cutmix blend identities: they need task=fgvc")
        choose("task.metric", self.metric, METRICS)
        choose("task.side_information", self.side_information, ("none", "camera", "camera_view"))

    def splits(self, split: str) -> tuple[str, ...]:
        """The splits of the data set that an evaluation of `split` reads."""
        prefix = "" if split == "test" else f"{split}_"
        return f"{prefix}query", f"{prefix}gallery"

    def evaluate_one(
        self,
        model: DCAL,
        data: Data,
        split: str,
        batch_size: int,
        workers: int,
        device: Device,
        reliability: bool = False,
    ) -> Evaluation:
        """mAP, CMC and mINP: of the concatenated feature, and per branch with the branch's name appended.

        Args:
            split: `test` for `query` and `gallery`, `val` for `val_query` and `val_gallery`.
            reliability: find the rates of verification and of open sets, too.
        """
        parts = self.splits(split)
        query, gallery = (
            infer(
                model,
                data.eval_loader(part, batch_size, workers, *rank_and_world_size(), device.pins_memory),
                device,
                self.flip_test,
                features_only=True,
            )
            for part in parts
        )
        query_pictures, gallery_pictures = (
            torch.tensor(data.pictures(part))[seen.index] for part, seen in zip(parts, (query, gallery), strict=True)
        )
        known: dict[str, Any] = {  # besides their features
            "query_ids": query.labels,
            "query_cams": query.cameras,
            "query_pictures": query_pictures,
            "gallery_ids": gallery.labels,
            "gallery_cams": gallery.cameras,
            "gallery_pictures": gallery_pictures,
        }
        tracks = tracks_of(data, split, gallery.index)

        def retrieve(q: Tensor, g: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
            """The metrics of one feature, and its results per query."""
            result = evaluate_retrieval(
                query_features=q.to(device.torch),
                gallery_features=g.to(device.torch),
                **known,
                metric=self.metric,
                gallery_tracks=tracks,
                per_query=True,
                sharded=True,
            )
            per_query: PerQuery = result.pop("per_query")
            return result, per_query._asdict()

        q, g = (combined_features(seen.features, self.inference).to(device.torch) for seen in (query, gallery))
        metrics, items = retrieve(q, g)
        for branch in query.features if len(query.features) > 1 else ():
            own, results = retrieve(query.features[branch], gallery.features[branch])
            metrics |= {f"{key}_{branch}": value for key, value in own.items()}
            items |= {f"average_precision_{branch}": results["average_precision"]}
        if self.rerank:
            keep = gallery.labels >= 0
            kept = {key: value[keep] if key.startswith("gallery") else value for key, value in known.items()}
            reranked = evaluate_retrieval(
                query_features=None,
                gallery_features=None,
                **kept,
                distances=k_reciprocal_rerank(q, g[keep]),
                gallery_tracks=None if tracks is None else tracks[keep],
                sharded=True,
            )
            metrics |= {f"{key}_rerank": value for key, value in reranked.items()}
        metrics |= {"queries": float(len(query.labels)), "gallery": float(len(gallery.labels))}
        _, rows = nearest(q, g, LISTED)
        asked = {"index": query.index, "label": query.labels, "camera": query.cameras}
        marks = judge(
            query.labels,
            query.cameras,
            gallery.labels[rows],
            gallery.cameras[rows],
            query_pictures,
            gallery_pictures[rows],
        )
        items = {**asked, "nearest": gallery.index[rows], "nearest_mark": marks, **items}
        names = data.names(parts[0])
        found = None
        if reliability:  # of images also where tracks are ranked
            found = verification(query_features=q, gallery_features=g, **known, metric=self.metric)
        return Evaluation(metrics, items, [names[position] for position in query.index], found)

    def show(
        self,
        model: DCAL,
        data: Data,
        split: str,
        evaluation: Evaluation,
        device: Device,
        folder: Path,
        tracker: Any,
    ) -> Path:
        """Draws ranked lists, of queries found and of queries missed, into `folder`, and logs them to W&B.

        Keeps the pictures of more such lists for reports, and logs the metrics of each camera's queries.
        """
        items, prefix = evaluation.items, "" if split == "test" else f"{split}_"
        found = (items["first_rank"] == 1) & items["valid"]
        rows = []
        for row in pick_examples(found):
            asked, *nearest = (data.image(*key) for key in ranked_list(items, row, prefix))
            rows.append(RankedList(asked, nearest, [MARKS[code] for code in items["nearest_mark"][row]]))
        path = folder / "examples.png"
        draw_ranked_lists(rows, path)
        log_figure(tracker, path)
        kept = [key for row in pick_examples(found, LISTS_KEPT) for key in ranked_list(items, row, prefix)]
        keep_gallery(model, data, kept, device, folder / FILE)
        log_cameras(tracker, breakdown(PerQuery(*(items[key] for key in PerQuery._fields)), items["camera"]))
        return path


def tracks_of(data: Data, split: str, index: Tensor) -> Tensor | None:
    """The track of each gallery image, where the reader says that tracks are ranked (VeRi-776, image to track)."""
    tracks = data.catalog.protocol.get("tracks") if split == "test" else None
    return None if tracks is None else torch.tensor(tracks)[index]


def ranked_list(items: Mapping[str, Tensor], row: int, prefix: str) -> list[tuple[str, int]]:
    """Split and position of a query and of what was found for it, nearest first."""
    asked, nearest = int(items["index"][row]), items["nearest"][row].tolist()
    return [(f"{prefix}query", asked), *((f"{prefix}gallery", position) for position in nearest)]
