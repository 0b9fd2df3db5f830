"""Temperature scaling: probabilities that are as often right as they say.

    temperature = fit_temperature(read("eval-val/predictions.csv"))
    table = scale(read("eval-test/predictions.csv"), temperature)

Logits are divided by one number, fitted on other images than those evaluated. Predicted classes
stay the same. Guo et al. 2017, "On calibration of modern neural networks".
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from tfpipe.common.text import plural
from tfpipe.models import predictions
from tfpipe.models.predictions import Predictions

_log = logging.getLogger("tfpipe")

_RANGE = (0.05, 20.0)
_USUAL = (0.1, 10.0)
# Logarithms are taken of no less than the smallest normal float32: an impossible class costs 87,
# not infinity.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)


def fit_temperature(table: Predictions) -> float:
    """Returns the temperature in [0.05, 20] with the least mean negative log-likelihood.

    It has 3 significant digits, so that another batch size, which changes probabilities' seventh
    digits, gives the same number. It is 1, with a warning, where every image is classified
    correctly: the best one would be 0, and useless for others.

    Raises:
        ValueError: the table is empty, or has images without a label.
        DataError: it has rows that are not probabilities.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if table.targets is not None:
        raise ValueError("a temperature is of one class an image; of several labels, thresholds are chosen")
    if not len(table.labels) or (table.labels < 0).any():
        raise ValueError("calibration needs labelled images")
    if (table.predicted == table.labels).all():
        images = plural(len(table.labels), "image")
        _log.warning("calibration: %s, all classified correctly: no temperature can be fitted, 1 is used", images)
        return 1.0
    logits, here = _logits(table), np.arange(len(table.labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature), axis=1)[here, table.labels].mean())

    low, high = map(math.log, _RANGE)
    found = math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    temperature = float(f"{found:.3g}")
    if not _USUAL[0] <= temperature <= _USUAL[1]:
        reason = "too few images, or hardly any misclassified" if temperature < 1 else "hardly better than chance"
        _log.warning("calibration: the temperature is %g, beyond %g to %g: %s", temperature, *_USUAL, reason)
    return temperature


def scale(table: Predictions, temperature: float) -> Predictions:
    """Returns the table with softmax(log p / temperature), float32; `predicted` stays the same.

    Raises:
        ValueError: the temperature is not positive.
        DataError: the table has rows that are not probabilities.
    """
    from scipy.special import softmax

    if not temperature > 0 or math.isinf(temperature):
        raise ValueError(f"temperature must be a positive number (got {temperature!r})")
    scaled = softmax(_logits(table) / temperature, axis=1).astype(np.float32)
    winners = table.predicted
    tied = np.flatnonzero(scaled.argmax(axis=1) != winners)  # rounding made them equal, and an earlier class comes first
    scaled[tied, winners[tied]] = np.nextafter(scaled[tied, winners[tied]], np.float32(2))
    return dataclasses.replace(table, probabilities=scaled)


def _logits(table: Predictions) -> np.ndarray[Any, Any]:
    predictions.check(table.probabilities, table.keys)
    logits: np.ndarray[Any, Any] = np.log(np.maximum(table.probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    return logits
