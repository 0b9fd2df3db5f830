"""Metrics of several labels an image, as in metrics.json.

    metrics = measure(read("eval/"))
    metrics["macro_auc"], metrics["macro_auc_interval"]

An unknown label takes no part. No metric depends on the order of the rows, to the last bit.
Undefined values (the AUC of a class that no image has) are None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from tfpipe.common.files import check_json
from tfpipe.evaluation.calibration import SMALLEST_PROBABILITY
from tfpipe.evaluation.clusters import BY_GROUP, Groups, percentile_interval, resamples, wilson
from tfpipe.models import predictions
from tfpipe.models.predictions import DEFAULT_THRESHOLD, Predictions
from tfpipe.records.manifest import MULTILABEL

Array = np.ndarray[Any, Any]

NUM_RESAMPLES = 1000  # half of `clusters.NUM_DRAWS`: each takes far longer
_LEAST_SPREAD = 1e-9  # of draws that differ by more than rounding
_METRICS = ("auc", "average_precision", "f1")


_Share = float | None
_Interval = tuple[float, float] | None


class _Row(msgspec.Struct):
    """A class in metrics.json."""

    class_name: str
    threshold: float
    auc: _Share
    auc_interval: _Interval
    average_precision: _Share
    average_precision_interval: _Interval
    precision: _Share
    recall: _Share
    f1: _Share
    f1_interval: _Interval
    support: int
    without: int
    unknown: int
    predicted: int


class _Chosen(msgspec.Struct):
    """The thresholds, by class, and the split that they were chosen on."""

    split: str
    thresholds: dict[str, float]
    before: dict[str, Any]


class Spread(msgspec.Struct):
    """A metric of an out-of-fold evaluation: of each fold, their mean and deviation, and the interval of the mean."""

    values: list[_Share]
    mean: _Share
    deviation: _Share
    interval: _Interval


Folds = dict[str, list[str | int] | Spread]  # names and counts of images, and metrics


class _Content(msgspec.Struct):
    """The content of metrics.json that is shown elsewhere."""

    task: Literal["multilabel"]
    count: int
    known: int
    label_accuracy: float
    exact_match: float
    log_loss: float
    macro_auc: _Share
    macro_auc_interval: _Interval
    macro_average_precision: _Share
    macro_average_precision_interval: _Interval
    macro_f1: _Share
    macro_f1_interval: _Interval
    micro_f1: _Share
    per_class: list[_Row]
    calibration: _Chosen | None = None
    folds: Folds | None = None


def check(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the content of metrics.json of several labels; raises DataError if it is another."""
    check_json(content, _Content, path)
    return content


class _Class(NamedTuple):
    """The images of which one class is known, by falling score."""

    truth: Array  # bool [n]
    ends: Array  # bool [n], the last image of each score
    predicted: Array  # bool [n]
    order: Array  # int64 [n], rows of the table


def measure(table: Predictions, *, num_resamples: int = NUM_RESAMPLES) -> dict[str, Any]:
    """Returns all metrics of a table of several labels an image; ready for JSON.

    - task; count (of images); known (labels); label_accuracy: share of the known labels that are
      right; exact_match: share of the images of which all known labels are; log_loss: mean of the
      binary cross-entropy of known labels.
    - macro_auc, macro_average_precision, macro_f1: the mean over the classes for which it is
      defined; micro_f1: over all labels.
    - per_class: threshold, auc (area under the ROC curve), average_precision (under the PR curve,
      its steps not interpolated), precision, recall, f1 at the threshold; support (images with it),
      without, unknown, predicted.
    - NAME_interval of auc, average_precision, f1 and their macro means: 95 %, by bootstrap of
      images (Efron 1979), or of groups where the data set has them (then groups has num_groups);
      percentiles are widened for few of them, and Wilson's interval is taken where draws do not
      vary, as in `clusters`. The same for equal tables.

    Args:
        table: with targets, and thresholds unless they are all 0.5.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: nothing is known of any image.
    """
    targets = table.targets
    if targets is None or not (targets >= 0).any():
        raise ValueError("metrics need labelled images, one or more")
    known, truth = targets >= 0, targets > 0
    found = predictions.present(table.probabilities, table.thresholds)
    right = (found == truth) | ~known
    thresholds = [DEFAULT_THRESHOLD] * len(table.class_names) if table.thresholds is None else table.thresholds.tolist()
    by_key = np.argsort(np.array(table.keys, object), kind="stable")  # resamples are of images, in whatever order they come
    classes = [
        _sorted(truth[:, i], known[:, i], table.probabilities[:, i], found[:, i], by_key) for i in range(len(thresholds))
    ]
    whole = _values(classes, np.ones((1, len(targets)), np.float32))
    groups = None if table.groups is None else Groups(table.groups)
    drawn = np.arange(len(targets)) if groups is None else groups.of_image[by_key]
    intervals = _intervals(classes, drawn, num_resamples)
    per_class = []
    for index, name in enumerate(table.class_names):
        hits = int((found & truth & known)[:, index].sum())
        support, predicted = (int((one & known)[:, index].sum()) for one in (truth, found))
        row: dict[str, Any] = {"class_name": name, "threshold": thresholds[index]}
        for metric in _METRICS:
            row[metric] = _plain(whole[metric][0, index])
            row[f"{metric}_interval"] = intervals[metric][index]
        row |= {"precision": _ratio(hits, predicted), "recall": _ratio(hits, support)}
        row |= {"support": support, "without": int(known[:, index].sum()) - support}
        per_class.append({**row, "unknown": int((~known)[:, index].sum()), "predicted": predicted})
    macro: dict[str, Any] = {}
    for metric in _METRICS:
        macro[f"macro_{metric}"] = _mean(row[metric] for row in per_class)
        macro[f"macro_{metric}_interval"] = intervals[metric][-1]
    total = {name: int((one & known).sum()) for name, one in (("hits", found & truth), ("truth", truth), ("found", found))}
    return {
        "task": MULTILABEL,
        **({} if groups is None else {"groups": {"num_groups": groups.count, "interval": BY_GROUP.format(num_resamples)}}),
        "count": len(targets),
        "known": int(known.sum()),
        "label_accuracy": float((right & known).sum() / known.sum()),
        "exact_match": float(right[known.any(axis=1)].all(axis=1).mean()),
        "log_loss": _log_loss(truth[known], table.probabilities[known]),
        **macro,
        "micro_f1": _ratio(2 * total["hits"], total["truth"] + total["found"]),
        "num_resamples": num_resamples,
        "per_class": per_class,
    }


def _sorted(truth: Array, known: Array, scores: Array, found: Array, by_key: Array) -> _Class:
    order = by_key[known[by_key]]
    places = {row: place for place, row in enumerate(by_key.tolist())}
    order = order[np.argsort(-scores[order], kind="stable")]
    ends = np.append(scores[order][1:] != scores[order][:-1], True) if len(order) else np.zeros(0, bool)
    return _Class(truth[order], ends, found[order], np.array([places[row] for row in order.tolist()], np.int64))


def _values(classes: list[_Class], weights: Array) -> dict[str, Array]:
    """Returns each metric of each class, float64 [resamples, C], NaN where it is undefined.

    `weights` [resamples, N] are how often each image counts, in the order of the keys.
    """
    functions: dict[str, Callable[[_Class, Array], Array]] = {"auc": _auc, "average_precision": _average_precision, "f1": _f1}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: np.stack([function(one, weights[:, one.order].astype(np.float64)) for one in classes], axis=1)
            for name, function in functions.items()
        }


def _curve(one: _Class, weights: Array) -> tuple[Array, Array]:
    """Returns the weight of positives and of negatives at each score or above, [resamples, scores]."""
    return tuple(np.cumsum(weights * part, axis=1)[:, one.ends] for part in (one.truth, ~one.truth))  # type: ignore[return-value]


def _auc(one: _Class, weights: Array) -> Array:
    if not len(one.truth):
        return np.full(len(weights), np.nan)
    hits, alarms = _curve(one, weights)
    before = np.concatenate([np.zeros((len(hits), 1)), hits[:, :-1]], axis=1)
    steps = np.diff(alarms, axis=1, prepend=0.0)
    area: Array = (steps * (hits + before) / 2).sum(axis=1) / (hits[:, -1] * alarms[:, -1])
    return area


def _average_precision(one: _Class, weights: Array) -> Array:
    if not len(one.truth):
        return np.full(len(weights), np.nan)
    hits, alarms = _curve(one, weights)
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = np.where(steps > 0, hits / (hits + alarms), 0.0)
    area: Array = (steps * precision).sum(axis=1) / hits[:, -1]
    return area


def _f1(one: _Class, weights: Array) -> Array:
    hits, support, predicted = (weights[:, part].sum(axis=1) for part in (one.truth & one.predicted, one.truth, one.predicted))
    shares: Array = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
    return shares


def _intervals(classes: list[_Class], drawn: Array, num_resamples: int) -> dict[str, list[list[float] | None]]:
    """Returns the interval of each class, and last of the macro mean, by metric.

    `drawn` is what is drawn with each image, in the order of the keys: itself, or its group.
    """
    count = int(drawn.max()) + 1
    parts = [_values(classes, weights[:, drawn]) for weights in resamples(count, len(drawn), num_resamples)]
    images = [(one.order[one.truth], one.order[~one.truth]) for one in classes]
    # A class counts as many as have it, or have not, whatever is fewer.
    sizes = [min(filter(None, (len(np.unique(drawn[part])) for part in parts)), default=0) for parts in images]
    sizes.append(len(np.unique(drawn[np.concatenate([one.order for one in classes])])))
    found: dict[str, list[list[float] | None]] = {}
    for metric in _METRICS:
        values = np.concatenate([part[metric] for part in parts])
        defined = ~np.isnan(values)
        sums = np.where(defined, values, 0.0).sum(axis=1)
        means = np.where(defined.any(axis=1), sums / np.maximum(defined.sum(axis=1), 1), np.nan)
        found[metric] = [_interval(column, size) for column, size in zip((*values.T, means), sizes, strict=True)]
    return found


def _interval(values: Array, size: int) -> list[float] | None:
    """Returns the interval of a metric between 0 and 1 that was drawn from `size` images or groups, as in `clusters`."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    if size < 2:
        return [0.0, 1.0]  # one tells nothing of others
    if np.ptp(defined) < _LEAST_SPREAD:
        return wilson(round(size * float(defined[0])), size)
    return percentile_interval(defined, size)


def _log_loss(truth: Array, probabilities: Array) -> float:
    values = probabilities.astype(np.float64)
    own = np.maximum(np.where(truth, values, 1 - values), SMALLEST_PROBABILITY)
    return math.fsum(-np.log(own)) / len(own)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _ratio(count: int, total: int) -> float | None:
    return float(count / total) if total else None


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
