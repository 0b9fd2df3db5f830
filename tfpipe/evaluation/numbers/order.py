"""Metrics of classes in an order: how far the predicted class is from the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfpipe.evaluation.numbers import measures
from tfpipe.models.predictions import Predictions

Array = np.ndarray[Any, Any]

SHOWN = {
    "kappa": "quadratic weighted kappa",
    "mean_absolute_error": "mean distance from the right class, in classes",
    "spearman": "Spearman correlation",
}
NAMES = tuple(SHOWN)


def measure(table: Predictions, order: Sequence[str], num_resamples: int = measures.NUM_RESAMPLES) -> dict[str, Any]:
    """Returns the metrics of NAMES with their intervals, see `measures.measure`, and the order.

    - kappa: quadratic weighted, of the right and the predicted class.
    - mean_absolute_error: the number of classes between them.
    - spearman: rank correlation of the right class and the mean of the predicted distribution, which
      has more values than there are classes.

    Args:
        table: labelled, of one class an image.
        order: the names of its classes, the lowest first.
        num_resamples: of the bootstrap.
    """
    places = _places(table, order)
    truth, predicted = places[table.labels], places[table.predicted]
    means = table.probabilities.astype(np.float64) @ places
    common: dict[str, Any] = {"keys": table.keys, "groups": table.groups, "num_resamples": num_resamples}
    found = measures.measure(truth, predicted, names=NAMES[:2], **common)
    return {"order": list(order), **found, **measures.measure(truth, means, names=NAMES[2:], **common)}


def distances(table: Predictions, order: Sequence[str]) -> Array:
    """Returns the number of classes between the right and the predicted one, float64 [N]."""
    places = _places(table, order)
    found: Array = abs(places[table.predicted] - places[table.labels])
    return found


def _places(table: Predictions, order: Sequence[str]) -> Array:
    return np.array([list(order).index(name) for name in table.class_names], np.float64)
