"""What is added to the scores of a task's labels before anything is tuned.

An encoder that was taught other tasks prefers some words to others: of pairs of questions it may call nine in
ten alike and yet put those that are alike first. The few labelled rows of a task correct that: one number per
label, fitted to the untuned model's scores, counts wherever options are compared, in losses and in answers
(docs/decisions/0017).

References:
    Zhao et al., *Calibrate Before Use*, arXiv:2102.09690: such numbers, for a model that was prompted.
    Guo et al., *On Calibration of Modern Neural Networks*, arXiv:1706.04599: vector scaling, of scale 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

LabelOffsets = tuple[float, ...]
SPREAD = 2.0  # nats; standard deviation of the offsets before a row is seen


def label_offsets(log_probs: Tensor, labels: Tensor) -> LabelOffsets:
    """Offset of each of C labels, in nats, likeliest by the rows and a normal prior of mean 0.

    Args:
        log_probs: ``(R, C)``, the model's of R labelled rows.
        labels: ``(R,)``, the right ones.
    """
    scores = log_probs.double().cpu().numpy()
    told = np.bincount(labels.cpu().numpy(), minlength=scores.shape[1])

    def loss(offsets: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = scores + offsets
        norm = logsumexp(moved, axis=1, keepdims=True)
        given = np.exp(moved - norm).sum(axis=0)
        value = norm.sum() - told @ offsets + (offsets / SPREAD) @ (offsets / SPREAD) / 2
        return float(value), given - told + offsets / SPREAD**2

    return tuple(minimize(loss, np.zeros(scores.shape[1]), jac=True, method="L-BFGS-B").x.tolist())
