"""Dual Cross-Attention Learning (GLCA + PWCA) on any timm Vision Transformer.

The names below are the public interface. They are resolved at first use (PEP 562), so that `import dcal`, and
with it the start of every command, does not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DCAL",
    "AttentionRollout",
    "GlobalLocalCrossAttention",
    "Output",
    "PairWiseCrossAttention",
    "PairedComparison",
    "TrainedDCAL",
    "TripletLoss",
    "UncertaintyLoss",
    "__version__",
    "create_dcal_model",
    "evaluate_retrieval",
    "k_reciprocal_rerank",
    "load",
    "paired_comparison",
]

_MODULE_OF = {
    "DCAL": "dcal.model",
    "Output": "dcal.output",
    "create_dcal_model": "dcal.create",
    "AttentionRollout": "dcal.attention.rollout",
    "GlobalLocalCrossAttention": "dcal.attention.glca",
    "PairWiseCrossAttention": "dcal.attention.pwca",
    "TrainedDCAL": "dcal.inference.pretrained",
    "TripletLoss": "dcal.loss",
    "UncertaintyLoss": "dcal.loss",
    "evaluate_retrieval": "dcal.metric.retrieval",
    "k_reciprocal_rerank": "dcal.metric.rerank",
    "PairedComparison": "dcal.metric.statistics",
    "paired_comparison": "dcal.metric.statistics",
    "load": "dcal.inference.pretrained",
}

if TYPE_CHECKING:
    from dcal.attention.glca import GlobalLocalCrossAttention
    from dcal.attention.pwca import PairWiseCrossAttention
    from dcal.attention.rollout import AttentionRollout
    from dcal.create import create_dcal_model
    from dcal.inference.pretrained import TrainedDCAL, load
    from dcal.loss import TripletLoss, UncertaintyLoss
    from dcal.metric.rerank import k_reciprocal_rerank
    from dcal.metric.retrieval import evaluate_retrieval
    from dcal.metric.statistics import PairedComparison, paired_comparison
    from dcal.model import DCAL
    from dcal.output import Output
else:  # hidden from type checkers: a module with `__getattr__` would type every misspelt name as Any

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'dcal' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
