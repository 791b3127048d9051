"""Fine-grained classification and re-identification with Vision Transformers and two extra attention branches.

    import dcal

    run = dcal.train(["experiment=smoke/fgvc"])     # what `dcal-train experiment=smoke/fgvc` does
    model = dcal.load(run.directory)                # the trained model, with its class names and image pipeline
    model.predict("bird.jpg")                       # [{"species": 0.93, ...}]

    model = dcal.create_dcal_model("deit_tiny_patch16_224", num_classes=200, image_size=224, top_ratio=0.1)
    model(images).logits()                          # {"sa": ..., "glca": ..., "pwca": ...}, in a loop of your own

The branches are those of Dual Cross-Attention Learning (Zhu et al., CVPR 2022): GLCA, global-local cross-attention, and
PWCA, pair-wise cross-attention. The names below are the public interface; docs/api.md describes all of them, and
`help(dcal.load)` one. They are resolved at first use (PEP 562), so that `import dcal`, and with it the start of every
command, does not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DCAL",
    "AttentionRollout",
    "Catalog",
    "FinishedRun",
    "GlobalLocalCrossAttention",
    "Output",
    "PairWiseCrossAttention",
    "PairedComparison",
    "Record",
    "TrainedDCAL",
    "TripletLoss",
    "UncertaintyLoss",
    "UserError",
    "__version__",
    "create_dcal_model",
    "evaluate_retrieval",
    "k_reciprocal_rerank",
    "load",
    "paired_comparison",
    "read_aircraft",
    "read_cars",
    "read_csv",
    "read_cub",
    "read_dogs",
    "read_dukemtmc",
    "read_flowers",
    "read_identity_csv",
    "read_identity_folder",
    "read_image_folder",
    "read_market1501",
    "read_msmt17",
    "read_nabirds",
    "read_occluded_duke",
    "read_pets",
    "read_synthetic_birds",
    "read_synthetic_people",
    "read_vehicleid",
    "read_veri",
    "train",
]

_NAMES_IN = {
    "dcal.api.train": "FinishedRun train",
    "dcal.attention.glca": "GlobalLocalCrossAttention",
    "dcal.attention.pwca": "PairWiseCrossAttention",
    "dcal.attention.rollout": "AttentionRollout",
    "dcal.create": "create_dcal_model",
    "dcal.dataset.readers.fgvc": "read_aircraft read_csv read_cub read_image_folder read_nabirds",
    "dcal.dataset.readers.fgvc_mat": "read_cars read_dogs read_flowers read_pets",
    "dcal.dataset.readers.reid_custom": "read_identity_csv read_identity_folder",
    "dcal.dataset.readers.reid_person": "read_dukemtmc read_market1501 read_msmt17 read_occluded_duke",
    "dcal.dataset.readers.reid_vehicle": "read_vehicleid read_veri",
    "dcal.dataset.record": "Catalog Record",
    "dcal.dataset.synthetic.birds": "read_synthetic_birds",
    "dcal.dataset.synthetic.people": "read_synthetic_people",
    "dcal.inference.pretrained": "TrainedDCAL load",
    "dcal.loss": "TripletLoss UncertaintyLoss",
    "dcal.metric.rerank": "k_reciprocal_rerank",
    "dcal.metric.retrieval": "evaluate_retrieval",
    "dcal.metric.statistics": "PairedComparison paired_comparison",
    "dcal.model": "DCAL",
    "dcal.output": "Output",
    "dcal.utils.errors": "UserError",
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names.split()}

if TYPE_CHECKING:
    from dcal.api.train import FinishedRun, train
    from dcal.attention.glca import GlobalLocalCrossAttention
    from dcal.attention.pwca import PairWiseCrossAttention
    from dcal.attention.rollout import AttentionRollout
    from dcal.create import create_dcal_model
    from dcal.dataset.readers.fgvc import read_aircraft, read_csv, read_cub, read_image_folder, read_nabirds
    from dcal.dataset.readers.fgvc_mat import read_cars, read_dogs, read_flowers, read_pets
    from dcal.dataset.readers.reid_custom import read_identity_csv, read_identity_folder
    from dcal.dataset.readers.reid_person import read_dukemtmc, read_market1501, read_msmt17, read_occluded_duke
    from dcal.dataset.readers.reid_vehicle import read_vehicleid, read_veri
    from dcal.dataset.record import Catalog, Record
    from dcal.dataset.synthetic.birds import read_synthetic_birds
    from dcal.dataset.synthetic.people import read_synthetic_people
    from dcal.inference.pretrained import TrainedDCAL, load
    from dcal.loss import TripletLoss, UncertaintyLoss
    from dcal.metric.rerank import k_reciprocal_rerank
    from dcal.metric.retrieval import evaluate_retrieval
    from dcal.metric.statistics import PairedComparison, paired_comparison
    from dcal.model import DCAL
    from dcal.output import Output
    from dcal.utils.errors import UserError
else:  # hidden from type checkers: a module with `__getattr__` would type every misspelt name as Any

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'dcal' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
