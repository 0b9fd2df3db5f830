"""Regression on classes in an order: one score, and rising thresholds, see `tfpipe.networks.links`.

weights, free = fit(points, labels, strength=1.0, weights=None, start=start(labels))
log_probabilities(points @ weights, free)       # float64 [N, C]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from tfpipe.networks.links import free_of, thresholds_of

Array = np.ndarray[Any, Any]
Fit = tuple[Array, Array]  # weights float64 [D], and the numbers of the thresholds, float64 [C - 1]


def start(labels: Array, num_features: int) -> Fit:
    """Returns the fit without features: classes are as likely as they are frequent."""
    counts = np.bincount(labels)
    shares = np.cumsum(counts)[:-1] / len(labels)
    return np.zeros(num_features), free_of(np.log(shares / (1 - shares))).astype(np.float64)


def fit(points: Array, labels: Array, strength: float, weights: Array | None, first: Fit, iterations: int, gtol: float) -> Fit:
    """Returns the fit of the least loss, from another one, by L-BFGS.

    The loss is the mean of -ln p of the right class, weighted, and |w|**2 / (2 * strength * total weight), as in
    scikit-learn's LogisticRegression. It has one minimum: it is convex in weights and thresholds.
    """
    size, last = points.shape[1], len(first[1])
    own = np.full(len(points), 1.0) if weights is None else weights
    own, decay = own / own.sum(), 1 / (strength * own.sum())
    is_below, is_above = labels < last, labels > 0

    def loss(values: Array) -> tuple[float, Array]:
        kernel, free = values[:size], values[size:]
        thresholds, score = thresholds_of(free), points @ kernel
        below, above = thresholds[np.minimum(labels, last - 1)] - score, score - thresholds[np.maximum(labels - 1, 0)]
        distances = np.diff(thresholds)
        counts = np.bincount(labels, own, last + 1)[1:-1]
        total = own @ np.where(is_below, log_expit(below), 0) + own @ np.where(is_above, log_expit(above), 0)
        total += counts @ np.log(-np.expm1(-distances))
        up, down = own * np.where(is_below, expit(-below), 0), own * np.where(is_above, expit(-above), 0)
        of_thresholds = np.bincount(np.maximum(labels - 1, 0), down, last) - np.bincount(np.minimum(labels, last - 1), up, last)
        of_free = np.cumsum(of_thresholds[::-1])[::-1]
        of_free[1:] = (of_free[1:] - counts / np.expm1(distances)) * expit(free[1:])
        return decay / 2 * kernel @ kernel - total, np.concatenate([points.T @ (up - down) + decay * kernel, of_free])

    found = minimize(loss, np.concatenate(first), jac=True, method="L-BFGS-B", options={"maxiter": iterations, "gtol": gtol})
    return found.x[:size], found.x[size:]


def log_probabilities(score: Array, free: Array) -> Array:
    """Returns the logarithms of the probabilities of scores [N], float64 [N, C]."""
    thresholds = thresholds_of(free)
    below, above = log_expit(thresholds - score[:, np.newaxis]), log_expit(score[:, np.newaxis] - thresholds)
    inner = below[:, 1:] + above[:, :-1] + np.log(-np.expm1(-np.diff(thresholds)))
    return np.concatenate([below[:, :1], inner, above[:, -1:]], axis=1)
