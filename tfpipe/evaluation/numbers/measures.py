"""Metrics of predicted numbers, each with its interval.

    measure(truth, predicted, keys, None, ("mean_absolute_error", "spearman"))
    # {"mean_absolute_error": 3.2, "mean_absolute_error_interval": [2.9, 3.6], "spearman": ...}

Intervals are percentiles of a bootstrap of images, or of groups, widened for few as in `clusters`.
No value depends on the order of the rows, to the last bit. Undefined values (R2 where all images
have one value) are None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tfpipe.evaluation.clusters import Groups, percentile_interval, resamples

Array = np.ndarray[Any, Any]

NUM_RESAMPLES = 1000


def measure(
    truth: Array,
    predicted: Array,
    keys: Sequence[str],
    groups: Sequence[str] | None,
    names: Iterable[str],
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Returns metrics by name, and the 95 % interval of each as NAME_interval.

    Args:
        truth: float [N].
        predicted: float [N].
        keys: of the images.
        groups: of the images, which are drawn in their place.
        names: of `METRICS`.
        num_resamples: of the bootstrap.
    """
    by_key = np.argsort(np.array(keys, object), kind="stable")
    pairs = [np.asarray(values, np.float64)[by_key] for values in (truth, predicted)]
    drawn = np.arange(len(by_key)) if groups is None else Groups(groups).of_image[by_key]
    count = int(drawn.max()) + 1
    functions = {name: METRICS[name](*pairs) for name in names}
    values: dict[str, list[Array]] = {name: [] for name in functions}
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = {name: function(np.ones((1, len(by_key))))[0] for name, function in functions.items()}
        for weights in resamples(count, len(drawn), num_resamples):
            of_images = weights[:, drawn].astype(np.float64)
            for name, function in functions.items():
                values[name].append(function(of_images))
    found: dict[str, Any] = {}
    for name, value in whole.items():
        found[name] = float(value) if math.isfinite(value) else None
        drawn_values = np.concatenate(values[name])
        found[f"{name}_interval"] = percentile_interval(drawn_values[np.isfinite(drawn_values)], count)
    return found


# ---- each metric: from pairs [N] to the function of weights [R, N], how often each counts, to values [R]

_OfWeights = Callable[[Array], Array]


def _mean(weights: Array, values: Array) -> Array:
    found: Array = weights @ values / weights.sum(axis=1)
    return found


def _mean_absolute_error(truth: Array, predicted: Array) -> _OfWeights:
    return lambda weights: _mean(weights, abs(predicted - truth))


def _root_mean_squared_error(truth: Array, predicted: Array) -> _OfWeights:
    return lambda weights: np.sqrt(_mean(weights, np.square(predicted - truth)))


def _r2(truth: Array, predicted: Array) -> _OfWeights:
    centred = truth - truth.mean()  # sums of squares of large numbers would lose digits

    def value(weights: Array) -> Array:
        variance = _mean(weights, np.square(centred)) - np.square(_mean(weights, centred))
        return 1 - _mean(weights, np.square(predicted - truth)) / np.where(variance > _SMALL * scale, variance, np.nan)

    scale = float(np.square(centred).mean())
    return value


_SMALL = 1e-12  # of a variance: what rounding leaves where all are equal


def _kappa(truth: Array, predicted: Array) -> _OfWeights:
    """Quadratic weighted kappa (Cohen 1968): squared distances, over those of independent raters."""
    a, b = truth - truth.mean(), predicted - truth.mean()

    def value(weights: Array) -> Array:
        chance = _mean(weights, np.square(a)) + _mean(weights, np.square(b)) - 2 * _mean(weights, a) * _mean(weights, b)
        found: Array = 1 - _mean(weights, np.square(a - b)) / chance
        return found

    return value


def _spearman(truth: Array, predicted: Array) -> _OfWeights:
    """Spearman's rank correlation; equal values share the mean of their ranks."""
    ranks_of = [_ranks(values) for values in (truth, predicted)]

    def value(weights: Array) -> Array:
        total = weights.sum(axis=1, keepdims=True)
        a, b = (ranks(weights) - (total + 1) / 2 for ranks in ranks_of)  # whose mean is 0
        covariance, *variances = ((weights * one * other).sum(axis=1) for one, other in ((a, b), (a, a), (b, b)))
        found: Array = covariance / np.sqrt(variances[0] * variances[1])
        return found

    return value


def _ranks(values: Array) -> Callable[[Array], Array]:
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    place = np.empty(len(values), np.int64)
    place[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))

    def ranks(weights: Array) -> Array:
        counts = np.add.reduceat(weights[:, order], starts, axis=1)
        means: Array = np.cumsum(counts, axis=1) - (counts - 1) / 2
        return means[:, place]

    return ranks


METRICS: dict[str, Callable[[Array, Array], _OfWeights]] = {
    "mean_difference": lambda truth, predicted: lambda weights: _mean(weights, predicted - truth),
    "mean_absolute_error": _mean_absolute_error,
    "root_mean_squared_error": _root_mean_squared_error,
    "r2": _r2,
    "kappa": _kappa,
    "spearman": _spearman,
}
