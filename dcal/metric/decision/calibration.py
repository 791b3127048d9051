"""Can a classifier's confidence be believed? Calibration, selective accuracy and the detection of unknown classes.

The confidence of an answer is the probability of the most probable class.

Shape suffixes: N images, C classes, B bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from torch import Tensor

from dcal.metric.classification import classification_metrics
from dcal.metric.decision.roc import Rate, area_interval, curve_of, rate_entry, sums_of
from dcal.metric.interval import Floats, mean_interval

BINS = 15
"""Of the expected calibration error, as in Guo et al. (2017)."""
COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""Shares of the images, the most confident ones, of which the accuracy is reported."""
DRAWN = 50
"""Points of the risk-coverage curve that is drawn."""
KNOWN_KEPT = 0.95
"""Share of the images of known classes that are kept where the share of unknown ones that pass is reported."""
TEMPERATURES = (0.01, 100.0)


def calibration(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017) and its reliability diagram.

    Confidences are put into bins of equal width, (0, 1/B], ..., (1 - 1/B, 1]. The error is the mean over images of the
    distance between the accuracy of their bin and its mean confidence.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) whether the answer is right.
        bins: B.

    Returns:
        `ece`, in [0, 1]; and `bins`, of those that hold images: `low`, `high`, `count`, `confidence`, `accuracy`.

    Raises:
        ValueError: no image, or arrays that do not fit.
    """
    confidence_N, correct_N = _answers(confidence, correct)
    number_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    count_B = np.bincount(number_N, minlength=bins)
    sure_B, right_B = (np.bincount(number_N, values, bins) for values in (confidence_N, correct_N))
    rows = [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "count": int(count_B[number]),
            "confidence": float(sure_B[number] / count_B[number]),
            "accuracy": float(right_B[number] / count_B[number]),
        }
        for number in np.flatnonzero(count_B).tolist()
    ]
    return {"ece": float(np.abs(sure_B - right_B).sum() / len(confidence_N)), "bins": rows}


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature T of softmax(log p / T) with the smallest negative log-likelihood (Guo et al., ICML 2017).

    Fit it on images that are neither trained on nor reported on.

    Args:
        log_probabilities: (N, C).
        labels: (N,) classes.

    Returns:
        T in [0.01, 100]: above 1 the model is too sure of itself.
    """
    wide_NC = log_probabilities.double()

    def loss(log_temperature: float) -> float:
        scaled_NC = (wide_NC / np.exp(log_temperature)).log_softmax(1)
        return float(-scaled_NC.gather(1, labels[:, None]).clamp(min=torch.finfo(torch.float32).min).mean())

    bounds = tuple(np.log(TEMPERATURES).tolist())
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def selective(confidence: ArrayLike, correct: ArrayLike) -> dict[str, Any]:
    """What the accuracy is if only the most confident answers are given (El-Yaniv and Wiener, JMLR 2010).

    Of equal confidences each is as likely to be answered as the others.

    Args:
        confidence: (N,).
        correct: (N,) whether the answer is right.

    Returns:
        `aurc`, the area under the risk-coverage curve: the mean of the error among the k most confident images over
        k = 1, ..., N (Geifman et al., ICLR 2019); `accuracy`, at each of `COVERAGES`: `coverage`, `value`, and with its
        95 % interval over the images answered `low` and `high`; and `curve`, coverage and error of points to draw.

    Raises:
        ValueError: no image, or arrays that do not fit.
    """
    confidence_N, correct_N = _answers(confidence, correct)
    expected_N = _wrong_by_confidence(confidence_N, correct_N)
    images = len(expected_N)
    risk_N = np.cumsum(expected_N) / np.arange(1, images + 1)
    rows = []
    for coverage in COVERAGES:
        answered = max(1, round(coverage * images))
        low, high = mean_interval(1 - expected_N[:answered]) if answered > 1 else (np.nan, np.nan)
        accuracy = Rate(float(1 - risk_N[answered - 1]), max(0.0, low), min(1.0, high))
        rows.append({"coverage": coverage, **rate_entry(accuracy)})
    shown = sorted({max(1, round(images * step / DRAWN)) for step in range(1, DRAWN + 1)})
    curve = [[count / images, float(risk_N[count - 1])] for count in shown]
    return {"aurc": float(risk_N.mean()), "accuracy": rows, "curve": curve}


def unknown_detection(known: ArrayLike, unknown: ArrayLike) -> dict[str, Any]:
    """Does low confidence give away an image of a class that the model has never seen (Hendrycks and Gimpel, 2017)?

    Args:
        known: (P,) confidence on images of the classes.
        unknown: (N,) confidence on images of other classes.

    Returns:
        `known`, `unknown` (numbers of images); `auc`, how often a known image is more confident than an unknown one,
        with its 95 % interval over images; `fpr95`, the share of unknown images at least as confident as the threshold
        that keeps 95 % of the known ones, and that `threshold`.

    Raises:
        ValueError: no image of one kind.
    """
    known_P, unknown_N = np.asarray(known, np.float64), np.asarray(unknown, np.float64)
    curve = curve_of(known_P, unknown_N)
    unit_P, unit_N = np.arange(len(known_P)), len(known_P) + np.arange(len(unknown_N))
    lower_P, higher_N = _share_below(known_P, unknown_N), 1 - _share_below(unknown_N, known_P)
    total = len(known_P) + len(unknown_N)
    placement = sums_of(unit_P, lower_P, unit_N, higher_N, total)
    count = sums_of(unit_P, np.ones(len(known_P)), unit_N, np.ones(len(unknown_N)), total)
    kept = int(np.argmax(curve.hits_T >= np.ceil(KNOWN_KEPT * len(known_P) * (1 - 1e-12))))
    return {
        "known": len(known_P),
        "unknown": len(unknown_N),
        "auc": rate_entry(area_interval(curve, placement, count)),
        "fpr95": {"value": curve.alarms_T[kept] / curve.negatives, "threshold": float(curve.threshold_T[kept])},
    }


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
        `selective`: see the functions of these names.
    """
    found: dict[str, Any] = {"calibration": _with_nll(log_probabilities, labels)}
    if validation is not None:
        temperature = fit_temperature(*validation)
        scaled = (log_probabilities.double() / temperature).log_softmax(1)
        found["calibration"] |= {"temperature": temperature, "scaled": _with_nll(scaled, labels)}
    found["selective"] = selective(*_confidence(log_probabilities, labels))
    return found


def _with_nll(log_probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    nll = classification_metrics(log_probabilities, labels)["nll"]
    return {**calibration(*_confidence(log_probabilities, labels)), "nll": nll}


def _confidence(log_probabilities: Tensor, labels: Tensor) -> tuple[Any, Any]:
    best = log_probabilities.double().max(1)
    return best.values.exp().clamp(max=1).numpy(), (best.indices == labels).numpy()


def _answers(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    confidence_N, correct_N = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence_N.ndim != 1 or not len(confidence_N) or confidence_N.shape != correct_N.shape:
        raise ValueError(
            f"one confidence and one outcome per image expected, got {np.shape(confidence)}, {np.shape(correct)}"
        )
    return confidence_N, correct_N


def _wrong_by_confidence(confidence_N: Floats, correct_N: Floats) -> Floats:
    """How often the k-th most confident answer is wrong; among equally confident ones, their mean."""
    _, group_N, size_K = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group_N, 1 - correct_N) / size_K, size_K)


def _share_below(values: Floats, others: Floats) -> Floats:
    """For each value the share of the others that are smaller; an equal one counts half."""
    ordered = np.sort(others)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + up_to) / 2 / len(others)
