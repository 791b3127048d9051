"""Re-identification: mAP and CMC of the branches' features, alone and concatenated, under the field's protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcal.dataset.loader import Data
from dcal.dataset.record import Record
from dcal.device import Device
from dcal.figure import RankedList, draw_ranked_lists, log_figure, pick_examples
from dcal.metric.ranking import PerQuery
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import evaluate_retrieval
from dcal.model import DCAL
from dcal.output import join_features
from dcal.task.evaluation import Evaluation, check_inference
from dcal.task.inference import Inferred, infer
from dcal.task.objective import Objective


class ReID:
    """The re-identification task.

    Features are taken before BNNeck; each branch's is L2-normalised, the concatenation again.

    Args: the keys of the group, see `conf/task/reid.yaml`.

    Raises:
        ValueError: an option that retrieval has no use for is set, or one is out of range.
    """

    name = "reid"
    headline = "mAP"
    test_split = "test"

    def __init__(
        self,
        *,
        loss_weighting: str,
        label_smoothing: float,
        triplet: Mapping[str, Any],
        bnneck: bool,
        instances: int,
        mixup: float,
        cutmix: float,
        inference: Sequence[str],
        flip_test: bool,
        metric: str,
        rerank: bool,
        side_information: str,
    ) -> None:
        if mixup or cutmix:
            raise ValueError("task.mixup and task.cutmix blend identities: they need task=fgvc")
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"task.metric={metric!r}: choose one of cosine, euclidean")
        if side_information not in ("none", "camera", "camera_view"):
            raise ValueError(f"task.side_information={side_information!r}: choose one of none, camera, camera_view")
        if triplet["weight"] and instances < 2:
            raise ValueError("task.triplet.weight needs pairs of one identity in a batch: set task.instances=2 or more")
        self.loss_weighting, self.label_smoothing, self.triplet = loss_weighting, label_smoothing, triplet
        self.bnneck, self.instances = bnneck, instances
        self.mixup, self.cutmix = 0.0, 0.0
        self.inference, self.flip_test = check_inference(inference), flip_test
        self.metric, self.rerank, self.side_information = metric, rerank, side_information

    def objective(self, branches: Sequence[str]) -> Objective:
        """The loss of a training batch for a model with these branches."""
        return Objective(
            branches,
            self.loss_weighting,
            self.label_smoothing,
            self.triplet["weight"],
            self.triplet["margin"],
        )

    def evaluate(
        self, model: DCAL, data: Data, split: str, batch_size: int, workers: int, device: Device
    ) -> Evaluation:
        """mAP, CMC and mINP: of the concatenated feature, and per branch with the branch's name appended.

        Args:
            split: `test` for `query` and `gallery`, `val` for `val_query` and `val_gallery`.
        """
        prefix = "" if split == "test" else f"{split}_"
        query, gallery = (
            infer(
                model,
                data.eval_loader(prefix + part, batch_size, workers),
                device,
                self.flip_test,
                features_only=True,
            )
            for part in ("query", "gallery")
        )
        metrics, items = self._retrieve(self._join(query), self._join(gallery), query, gallery, device)
        for branch in query.features if len(query.features) > 1 else ():
            own, results = self._retrieve(query.features[branch], gallery.features[branch], query, gallery, device)
            metrics |= {f"{key}_{branch}": value for key, value in own.items()}
            items |= {f"average_precision_{branch}": results["average_precision"]}
        if self.rerank:
            keep = gallery.labels >= 0
            distances = k_reciprocal_rerank(self._join(query), self._join(gallery)[keep])
            reranked = evaluate_retrieval(
                None,
                query.labels,
                query.cameras,
                None,
                gallery.labels[keep],
                gallery.cameras[keep],
                distances=distances,
            )
            metrics |= {f"{key}_rerank": value for key, value in reranked.items()}
        metrics |= {"queries": float(len(query.labels)), "gallery": float(len(gallery.labels))}
        nearest = gallery.index[rank_lists(self._join(query).to(device.torch), self._join(gallery).to(device.torch))]
        return Evaluation(metrics, {"index": query.index, "label": query.labels, "nearest": nearest, **items})

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
        """Draws ranked lists, of queries found and of queries missed, into `folder`, and logs them to W&B."""
        prefix = "" if split == "test" else f"{split}_"
        gallery = data.records(f"{prefix}gallery")
        items = evaluation.items
        rows = []
        for row in pick_examples((items["first_rank"] == 1) & items["valid"]):
            number = int(items["index"][row])
            asked = data.records(f"{prefix}query")[number]
            found = [gallery[int(position)] for position in items["nearest"][row]]
            images = [data.image(f"{prefix}gallery", int(position)) for position in items["nearest"][row]]
            marks = [judge(asked, record) for record in found]
            rows.append(RankedList(data.image(f"{prefix}query", number), images, marks))
        path = folder / "examples.png"
        draw_ranked_lists(rows, path)
        log_figure(tracker, path)
        return path

    def _join(self, seen: Inferred) -> Tensor:
        present = [seen.features[branch] for branch in self.inference if branch in seen.features]
        if not present:
            raise ValueError(f"task.inference={list(self.inference)}: the model has none of these branches")
        return join_features(present)

    def _retrieve(
        self, q: Tensor, g: Tensor, query: Inferred, gallery: Inferred, device: Device
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The metrics of one feature, and its results per query."""
        result: dict[str, Any] = evaluate_retrieval(
            q.to(device.torch),
            query.labels,
            query.cameras,
            g.to(device.torch),
            gallery.labels,
            gallery.cameras,
            metric=self.metric,
            per_query=True,
        )
        per_query: PerQuery = result.pop("per_query")
        return result, per_query._asdict()


@torch.no_grad()
def rank_lists(query_QD: Tensor, gallery_GD: Tensor, length: int = 10, rows: int = 512) -> Tensor:
    """Positions of the gallery items nearest to each query by cosine, junk included: (Q, length), on the CPU."""
    length = min(length, len(gallery_GD))
    return torch.cat([(part @ gallery_GD.T).topk(length).indices.cpu() for part in query_QD.split(rows)])


def judge(asked: Record, found: Record) -> str:
    """What the protocol makes of a gallery image: `junk`, `same camera` (both left out), `right` or `wrong`."""
    if found.label < 0:
        return "junk"
    if found.label != asked.label:
        return "wrong"
    return "same camera" if found.camera == asked.camera >= 0 else "right"
