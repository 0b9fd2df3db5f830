"""Linear regression on features, by Huber's loss or the squared error.

kernel, bias = fit(points, wanted, strength=1.0, loss="huber", first=start(wanted, num_features), ...)
losses(points @ kernel + bias, wanted, "huber")      # float64 [N]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from tfpipe.networks.heads import HUBER

Array = np.ndarray[Any, Any]
Fit = tuple[Array, Array]  # kernel float64 [P, D], bias float64 [D]


def start(wanted: Array, num_features: int) -> Fit:
    """Returns the fit without features."""
    return np.zeros((num_features, wanted.shape[1])), np.median(wanted, axis=0)


def fit(points: Array, wanted: Array, strength: float, loss: str, first: Fit, iterations: int, gtol: float) -> Fit:
    """Returns the fit of the least loss, from another one, by L-BFGS; it has one minimum.

    The loss is the mean of `losses`, and |kernel|**2 / (2 * strength * N * D): the balance of
    `proportional_odds.fit`.
    """
    shape = first[0].shape
    decay = 1 / (strength * wanted.size)

    def value(values: Array) -> tuple[float, Array]:
        kernel, bias = values[: first[0].size].reshape(shape), values[first[0].size :]
        errors = points @ kernel + bias - wanted
        slopes = (np.clip(errors, -1, 1) if loss == HUBER else errors) / wanted.size
        total = losses(points @ kernel + bias, wanted, loss).mean() + decay / 2 * np.square(kernel).sum()
        return float(total), np.concatenate([(points.T @ slopes + decay * kernel).ravel(), slopes.sum(0)])

    values = np.concatenate([first[0].ravel(), first[1]])
    found = minimize(value, values, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "gtol": gtol})
    return found.x[: first[0].size].reshape(shape), found.x[first[0].size :]


def losses(found: Array, wanted: Array, loss: str) -> Array:
    """Returns the loss of each row, float64 [N], as `objectives.Numbers`."""
    errors = np.abs(found - wanted)
    squared = np.square(errors) / 2
    return np.asarray((np.where(errors > 1, errors - 0.5, squared) if loss == HUBER else squared).mean(1))
