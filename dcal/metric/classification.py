"""Top-k accuracy and negative log-likelihood of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def classification_metrics(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of the N items in [0, 1], and nats for `nll`.

    Args:
        log_probabilities: (N, C).
        labels: (N,) classes.

    Counted on the CPU: not every device has float64.

    Returns:
        `top1`, `top1_macro` (the mean over classes of the share of their items that is recognised; classes without
        items left out), `top5` (as many as there are classes, if fewer), and `nll`, the mean negative log-likelihood.
    """
    log_probabilities, labels = log_probabilities.cpu(), labels.cpu()
    first = log_probabilities.argmax(1)  # not topk's first column: the two settle ties differently
    five = log_probabilities.topk(min(5, log_probabilities.shape[1]), dim=1).indices
    count = labels.bincount()
    recognised = labels[first == labels].bincount(minlength=len(count)).double() / count
    picked = log_probabilities.gather(1, labels[:, None])
    return {
        "top1": (first == labels).double().mean().item(),
        "top1_macro": recognised[count > 0].mean().item(),
        "top5": (five == labels[:, None]).any(1).double().mean().item(),
        "nll": -picked.double().clamp(min=torch.finfo(torch.float32).min).mean().item(),
    }
