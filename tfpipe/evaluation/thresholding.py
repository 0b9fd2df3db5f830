"""Thresholds of several labels an image: where a class counts as predicted.

thresholds = choose_thresholds(read("eval-val/predictions.csv"))     # [C], "there where its probability is >= threshold"
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tfpipe.common.text import plural
from tfpipe.models.predictions import DEFAULT_THRESHOLD, Predictions

_log = logging.getLogger("tfpipe")

_DIGITS = (2, 3, 4, 5, 6)


def choose_thresholds(table: Predictions) -> list[float]:
    """Returns for each class the threshold with the best F1 on the images where it is known.

    Of equally good ones that nearest to 0.5. It lies between two probabilities that occur, and has
    as few digits as that allows: another batch size, which changes the seventh digits, gives the
    same. It is 0.5, with a warning, for a class that no image has.

    Raises:
        ValueError: the table is not of several labels an image.
    """
    if table.targets is None:
        raise ValueError("thresholds are of several labels an image: the table has one class for each")
    chosen, lacking = [], []
    for index, name in enumerate(table.class_names):
        known = table.targets[:, index] >= 0
        truth, scores = table.targets[known, index] > 0, table.probabilities[known, index].astype(np.float64)
        if not truth.any():
            lacking.append(name)
        chosen.append(_best(truth, scores) if truth.any() else DEFAULT_THRESHOLD)
    if lacking:
        what = plural(len(lacking), "class", "classes")
        _log.warning("thresholds: no image has %s, for which %g is used: %s", what, DEFAULT_THRESHOLD, ", ".join(lacking))
    return chosen


def _best(truth: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> float:
    values = np.unique(scores)
    positives, found = np.sort(scores[truth]), np.sort(scores)
    hits = len(positives) - np.searchsorted(positives, values)  # at each value or above
    predicted = len(found) - np.searchsorted(found, values)
    f1 = 2 * hits / (len(positives) + predicted)
    below = np.concatenate([[0.0], values[:-1]])
    places = [_between(low, high) for low, high in zip(below[f1 == f1.max()], values[f1 == f1.max()], strict=True)]
    return min(places, key=lambda place: (abs(place - DEFAULT_THRESHOLD), place))


def _between(low: float, high: float) -> float:
    """Returns 0.5, or a short number near the middle: well between two scores, whatever their last digits."""
    middle, margin = (low + high) / 2, (high - low) / 10
    shorts = (DEFAULT_THRESHOLD, *(float(f"{middle:.{digits}g}") for digits in _DIGITS))
    return next((short for short in shorts if low + margin <= short <= high - margin), high)
