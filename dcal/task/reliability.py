"""How far the answers of a model can be relied on: what a user needs before acting on a single one of them.

What is found goes into `reliability.json` of a run, and from there into the report page.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dcal.metric.classification import classification_metrics
from dcal.metric.decision.calibration import calibration, fit_temperature, selective


def classifier_reliability(
    log_probabilities: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Calibration and selective accuracy of a classifier.

    Args:
        log_probabilities: (N, C), of the images that are reported on.
        labels: (N,) classes.
        validation: the same of the images that the temperature is fitted on; None: it is not fitted.

    Returns:
        `calibration`, with `nll`; with validation images also `temperature` and `scaled`, the same after scaling; and
        `selective`; see `dcal.metric.decision.calibration`.
    """
    found: dict[str, Any] = {"calibration": _calibration(log_probabilities, labels)}
    if validation is not None:
        temperature = fit_temperature(*validation)
        scaled = (log_probabilities.double() / temperature).log_softmax(1)
        found["calibration"] |= {"temperature": temperature, "scaled": _calibration(scaled, labels)}
    found["selective"] = selective(*_answers(log_probabilities, labels))
    return found


def _calibration(log_probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    nll = classification_metrics(log_probabilities, labels)["nll"]
    return {**calibration(*_answers(log_probabilities, labels)), "nll": nll}


def _answers(log_probabilities: Tensor, labels: Tensor) -> tuple[Any, Any]:
    best = log_probabilities.double().max(1)
    return best.values.exp().clamp(max=1).numpy(), (best.indices == labels).numpy()
