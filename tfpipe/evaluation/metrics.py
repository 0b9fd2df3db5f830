"""Metrics of a table of predictions, as in metrics.json.

    metrics = measure(read("eval/"))
    metrics["accuracy"], metrics["accuracy_interval"]

No metric depends on the order of the rows, to the last bit. Undefined values (the recall of a class
without images) are None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.files import check_json, read_json
from tfpipe.common.text import number
from tfpipe.evaluation import label_metrics
from tfpipe.evaluation.calibration import SMALLEST_PROBABILITY
from tfpipe.evaluation.clusters import BY_GROUP, NUM_DRAWS, Groups, wilson
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.evaluation.numbers import values
from tfpipe.models.predictions import METRICS_NAME, Predictions
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION

if TYPE_CHECKING:
    from scipy.sparse import coo_array

FILE_NAME = METRICS_NAME

_NUM_BINS = 15  # as Guo et al. 2017
_MAX_K = 5
_SPREAD = {"mean": "mean", "standard deviation": "deviation"}

Array = np.ndarray[Any, Any]


def _record(**kinds: Any) -> Any:
    """Returns the type of a JSON object with fields of a type or, if optional, (type, default)."""
    return msgspec.defstruct(
        "Record", [(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in kinds.items()]
    )


_Share, _Interval, _List = float | None, tuple[float, float] | None, cast("Any", list)
_Class = _record(class_name=str, precision=_Share, recall=_Share, f1=_Share, auc=_Share, support=int)
_Confusion = _record(class_names=list[str], cells=(list[tuple[int, int, int]], []), matrix=(list[list[int]], []))
_Sensitivity = _record(
    **dict.fromkeys(("threshold", "sensitivity", "specificity"), _Share),
    **dict.fromkeys(("sensitivity_interval", "specificity_interval"), _Interval),
)
_Binary = _record(positive_class=str, roc_auc=_Share, average_precision=_Share, sensitivity_at_specificity=_Sensitivity)
_Calibration = _record(split=str, temperature=float, before=_record(ece=float))
_Metrics = _record(
    count=int,
    **dict.fromkeys(("accuracy", "log_loss", "ece"), float),
    **dict.fromkeys(("balanced_accuracy", "auc"), _Share),
    accuracy_interval=tuple[float, float],
    top_k=dict[str, float],
    per_class=_List[_Class],
    binary=_Binary | None,
    confusion=_Confusion,
    reliability=_List[_record(count=int, accuracy=_Share, confidence=_Share)],
    calibration=(_Calibration | None, None),
    groups=(_record(num_groups=int, interval=str) | None, None),
    folds=(label_metrics.Folds | None, None),
    **dict.fromkeys(in_order.NAMES, (_Share, None)),
    **{f"{name}_interval": (_Interval, None) for name in in_order.NAMES},
)


def measure(
    table: Predictions,
    *,
    positive_class: str | None = None,
    specificity: float = 0.95,
    order: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns all metrics of a labelled table; ready for JSON.

    - count; accuracy; accuracy_interval: 95 %, Wilson's score interval; balanced_accuracy: mean
      recall of the classes with images.
    - groups, where the data set has them: num_groups, and how intervals are then found, all of
      them: by cluster bootstrap, see `clusters`.
    - top_k: {"1": ..., up to "5"} for every k below the number of classes; equal probabilities rank
      as their columns do.
    - log_loss: mean of -ln p of the right class, p at least 1.2e-38.
    - auc: area under the ROC curve. With two classes that of the positive one, with more the mean
      of each class against the others (macro), over the classes for which it is defined.
    - ece: expected calibration error, sum over bins of share * |accuracy - mean confidence|;
      confidence is the largest probability, in 15 bins of equal width, (0, 1/15] to (14/15, 1].
    - reliability: the bins; null where empty.
    - per_class: precision, recall, f1, auc (against the others), support (images of it), predicted
      (times).
    - confusion: cells of [i, j, n]: n > 0 images of class i were predicted as class j, both by
      class_names. `confusion_matrix` returns them as an array.
    - binary, with two classes or a positive class, else null: roc_auc; average_precision (the area
      under the PR curve); sensitivity_at_specificity: the lowest threshold, "positive where its
      probability is >= threshold", that reaches the requested specificity, with 95 % Wilson
      intervals; a null threshold calls nothing positive. All null without negatives.
    - of classes in an order, task ("ordinal") and the metrics of `numbers.order.measure`.

    Args:
        table: labelled.
        positive_class: the finding that sensitivity is about. Default: of two classes the second.
        specificity: to be reached at least, in (0, 1].
        order: the names of classes that are in an order, the lowest first; else None.

    Raises:
        ValueError: the table is empty or unlabelled, there is no such class, or the specificity is
            out of range.
    """
    check_options(table.class_names, positive_class, specificity)
    if table.targets is not None:
        raise ValueError("the table is of several labels an image, which label_metrics.measure takes, or of numbers")
    if not len(table.labels) or (table.labels < 0).any():
        raise ValueError("metrics need labelled images, one or more")
    classes, confidence = range(len(table.class_names)), table.probabilities.max(axis=1).astype(np.float64)
    right, per_class = table.predicted == table.labels, _per_class(table)
    positive = len(classes) - 1 if len(classes) == 2 else None
    if positive_class is not None:
        positive = list(table.class_names).index(positive_class)
    binary = None if positive is None else _binary(table, positive, specificity)
    reliability = _reliability(confidence, right)
    gaps = (abs(bin_["accuracy"] - bin_["confidence"]) * bin_["count"] for bin_ in reliability if bin_["count"])
    groups = (
        None if table.groups is None else {"num_groups": Groups(table.groups).count, "interval": BY_GROUP.format(NUM_DRAWS)}
    )
    return {
        **({} if order is None else {"task": ORDINAL, **in_order.measure(table, order)}),
        **({} if groups is None else {"groups": groups}),
        "count": len(right),
        "accuracy": _ratio(right.sum(), len(right)),
        "accuracy_interval": share_interval(table, right),
        "balanced_accuracy": _mean(row["recall"] for row in per_class),
        "top_k": _top_k(table),
        "log_loss": _log_loss(table),
        "auc": binary["roc_auc"] if binary and len(classes) == 2 else _mean(row["auc"] for row in per_class),
        "ece": math.fsum(gaps) / len(right),
        "per_class": per_class,
        "binary": binary,
        "confusion": {"class_names": list(table.class_names), "cells": _confusion_cells(table)},
        "reliability": reliability,
    }


def load(folder: Path) -> dict[str, Any]:
    """Returns the content of metrics.json in a folder; raises DataError if it is damaged."""
    path = folder / FILE_NAME
    found: dict[str, Any] = read_json(path)
    if isinstance(found, dict) and found.get("task") == MULTILABEL:
        return label_metrics.check(found, path)
    if isinstance(found, dict) and found.get("task") == REGRESSION:
        return values.check(found, path)
    confusion = check_json(found, _Metrics, path).confusion
    dense = ((i, j, n) for i, row in enumerate(confusion.matrix) for j, n in enumerate(row) if n)  # of earlier versions
    cells = [list(cell) for cell in confusion.cells or dense]
    found["confusion"] = {"class_names": confusion.class_names, "cells": cells}
    places = [place for cell in cells for place in cell[:2]]
    if not places or not 0 <= min(places) <= max(places) < len(found["per_class"]) == len(confusion.class_names):
        raise DataError("its confusion matrix is not one of its classes", path=path)
    return found


def check_options(class_names: Iterable[str], positive_class: str | None, specificity: float) -> None:
    """Raises `ValueError` unless `measure` can work with these."""
    if positive_class is not None:
        arguments.choice("positive_class", positive_class, class_names)
    arguments.check(specificity=specificity)


def fold_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table of the folds of an out-of-fold evaluation, its header first; empty of other evaluations."""
    folds = found.get("folds")
    if not folds:
        return []
    chosen = {name: row for name, row in folds.items() if name not in ("names", "counts")}
    rows = [["fold", "images", *(_title(name) for name in chosen)]]
    for index, (name, count) in enumerate(zip(folds["names"], folds["counts"], strict=True)):
        rows.append([name, f"{count:,}", *(number(row["values"][index]) for row in chosen.values())])
    rows += [[title, "", *(number(row[key]) for row in chosen.values())] for title, key in _SPREAD.items()]
    if any(row["interval"] for row in chosen.values()):
        intervals = [" to ".join(map(number, row["interval"] or ())) for row in chosen.values()]
        rows.append(["95 % of the mean", "", *intervals])
    return rows


def _title(metric: str) -> str:
    """Returns the name of a metric for people: "macro AUC"."""
    return " ".join(word.upper() if word in ("auc", "ece", "f1") else word for word in metric.split("_"))


def share_interval(table: Predictions, hits: Array, among: Array | None = None) -> list[float] | None:
    """Returns the 95 % interval of a share of images: by group where the table has groups, or Wilson's.

    `hits` and `among` as in `clusters.Groups.interval`.
    """
    if table.groups is not None:
        return Groups(table.groups).interval(hits, among)
    among = np.ones(len(hits), bool) if among is None else among
    return wilson(int((hits & among).sum()), int(among.sum()))


def _ratio(count: int, total: int) -> float | None:
    return float(count / total) if total else None


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [float(value) for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None  # exact: the same in any order


def confusion_matrix(measured: Mapping[str, Any]) -> coo_array:
    """Returns the confusion matrix of `measure`'s result, int64 [C, C], sparse."""
    from scipy.sparse import coo_array

    cells = np.array(measured["confusion"]["cells"], np.int64).reshape(-1, 3)
    return coo_array((cells[:, 2], (cells[:, 0], cells[:, 1])), shape=[len(measured["confusion"]["class_names"])] * 2)


def _confusion_cells(table: Predictions) -> list[list[int]]:
    num_classes = len(table.class_names)
    cells, counts = np.unique(table.labels * num_classes + table.predicted, return_counts=True)
    rows: list[list[int]] = np.stack([cells // num_classes, cells % num_classes, counts], axis=1).tolist()
    return rows


def _per_class(table: Predictions) -> list[dict[str, Any]]:
    guesses = table.predicted
    groups = table.labels[guesses == table.labels], table.labels, guesses
    hits, support, predicted = (np.bincount(group, minlength=len(table.class_names)).tolist() for group in groups)
    return [
        {
            "class_name": name,
            "precision": _ratio(hits[i], predicted[i]),
            "recall": _ratio(hits[i], support[i]),
            "f1": _ratio(2 * hits[i], support[i] + predicted[i]),
            "auc": _roc_auc(table.labels == i, table.probabilities[:, i]),
            "support": support[i],
            "predicted": predicted[i],
        }
        for i, name in enumerate(table.class_names)
    ]


def _top_k(table: Predictions) -> dict[str, float]:
    columns, ranks = np.arange(len(table.class_names)), np.empty(len(table.labels), int)
    for rows in table.blocks():
        probabilities, labels = table.probabilities[rows], table.labels[rows, None]
        own = np.take_along_axis(probabilities, labels, axis=1)
        ranks[rows] = ((probabilities > own) | ((probabilities == own) & (columns < labels))).sum(axis=1)
    return {str(k): float((ranks < k).sum() / len(ranks)) for k in range(1, min(_MAX_K, len(columns) - 1) + 1)}


def _log_loss(table: Predictions) -> float:
    own = table.probabilities[np.arange(len(table.labels)), table.labels].astype(np.float64)
    return math.fsum(-np.log(np.maximum(own, SMALLEST_PROBABILITY))) / len(own)


def _reliability(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    bins = np.clip(np.ceil(confidence * _NUM_BINS).astype(int) - 1, 0, _NUM_BINS - 1)
    return [
        {
            "low": i / _NUM_BINS,
            "high": (i + 1) / _NUM_BINS,
            "count": int((bins == i).sum()),
            "confidence": _mean(confidence[bins == i]),
            "accuracy": _ratio(right[bins == i].sum(), (bins == i).sum()),
        }
        for i in range(_NUM_BINS)
    ]


def _roc_auc(truth: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> float | None:
    from sklearn.metrics import roc_auc_score

    return None if truth.all() or not truth.any() else float(roc_auc_score(truth, scores))


def _binary(table: Predictions, positive: int, specificity: float) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    truth, scores = table.labels == positive, table.probabilities[:, positive]
    return {
        "positive_class": table.class_names[positive],
        "roc_auc": _roc_auc(truth, scores),
        "average_precision": float(average_precision_score(truth, scores)) if truth.any() else None,
        "sensitivity_at_specificity": _sensitivity(table, truth, scores, specificity),
    }


def _sensitivity(table: Predictions, truth: Array, scores: Array, specificity: float) -> dict[str, Any]:
    positives, negatives = np.sort(scores[truth]), np.sort(scores[~truth])
    thresholds = np.unique(scores)
    rejected = np.searchsorted(negatives, thresholds)  # negatives below each threshold
    if not len(negatives):  # any threshold would do
        return {"asked": float(specificity), **dict.fromkeys(_Sensitivity.__struct_fields__)}
    reached = thresholds[rejected >= specificity * len(negatives) - 1e-9]  # 0.55 * 100 is a little more than 55
    threshold = float(reached[0]) if len(reached) else None
    found = 0 if threshold is None else len(positives) - int(np.searchsorted(positives, threshold))
    spared = len(negatives) if threshold is None else int(np.searchsorted(negatives, threshold))
    positive = np.zeros(len(scores), bool) if threshold is None else scores >= threshold
    return {
        "asked": float(specificity),
        "threshold": threshold,
        "specificity": _ratio(spared, len(negatives)),
        "specificity_interval": share_interval(table, ~positive, ~truth),
        "sensitivity": _ratio(found, len(positives)),
        "sensitivity_interval": share_interval(table, positive, truth),
    }
