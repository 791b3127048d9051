"""Re-identification: mAP and CMC of the branches' features, alone and concatenated, under the field's protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dcal.dataset.loader import Data
from dcal.device import Device
from dcal.distributed import place
from dcal.figure import RankedList, draw_ranked_lists, keep_gallery, log_cameras, log_figure, pick_examples
from dcal.metric.nearest import nearest
from dcal.metric.ranking import MARKS, PerQuery, judge
from dcal.metric.rerank import k_reciprocal_rerank
from dcal.metric.retrieval import breakdown, evaluate_retrieval
from dcal.model import DCAL
from dcal.report.gallery import FILE
from dcal.task.evaluation import Evaluation, check_inference
from dcal.task.inference import Inferred, combined_features, infer
from dcal.task.objective import Objective

LISTED = 10
LISTS_KEPT = 12


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
                data.eval_loader(prefix + part, batch_size, workers, *place()),
                device,
                self.flip_test,
                features_only=True,
            )
            for part in ("query", "gallery")
        )
        q, g = (combined_features(seen.features, self.inference) for seen in (query, gallery))
        metrics, items = self._retrieve(q, g, query, gallery, device)
        for branch in query.features if len(query.features) > 1 else ():
            own, results = self._retrieve(query.features[branch], gallery.features[branch], query, gallery, device)
            metrics |= {f"{key}_{branch}": value for key, value in own.items()}
            items |= {f"average_precision_{branch}": results["average_precision"]}
        if self.rerank:
            keep = gallery.labels >= 0
            distances = k_reciprocal_rerank(q, g[keep])
            reranked = evaluate_retrieval(
                None,
                query.labels,
                query.cameras,
                None,
                gallery.labels[keep],
                gallery.cameras[keep],
                distances=distances,
                sharded=True,
            )
            metrics |= {f"{key}_rerank": value for key, value in reranked.items()}
        metrics |= {"queries": float(len(query.labels)), "gallery": float(len(gallery.labels))}
        rows = nearest(q.to(device.torch), g.to(device.torch), LISTED).index
        asked = {"index": query.index, "label": query.labels, "camera": query.cameras}
        marks = judge(query.labels, query.cameras, gallery.labels[rows], gallery.cameras[rows])
        return Evaluation(metrics, {**asked, "nearest": gallery.index[rows], "nearest_mark": marks, **items})

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
            sharded=True,
        )
        per_query: PerQuery = result.pop("per_query")
        return result, per_query._asdict()


def ranked_list(items: Mapping[str, Tensor], row: int, prefix: str) -> list[tuple[str, int]]:
    """Split and position of a query and of what was found for it, nearest first."""
    asked, nearest = int(items["index"][row]), items["nearest"][row].tolist()
    return [(f"{prefix}query", asked), *((f"{prefix}gallery", position) for position in nearest)]
