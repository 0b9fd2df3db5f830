"""What evaluations found, as a model card says it: metrics with intervals, a table of classes, and the limits they showed.

results = read("eval/", specification)
metrics_table(results), class_table(results), limits(results)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from tfpipe.common.files import load_json
from tfpipe.common.text import plural
from tfpipe.evaluation import metrics
from tfpipe.evaluation.report import TWINS_NAME, likely_label_errors
from tfpipe.formats.specifications import Specification
from tfpipe.models import predictions
from tfpipe.report import markdown

_MAX_SHOWN = 5
NONE = "-"


class _Computed(TypedDict):
    device: str
    arithmetic: str


class _Receipt(TypedDict):
    split: str
    model_sha256: str
    data_root_hash: str
    ids_sha256: str
    computed: NotRequired[list[_Computed]]


class _Twins(TypedDict):
    against: list[str]
    count: int
    count_without: int
    accuracy_without: float | None
    accuracy_without_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Results:
    """What an evaluation's folder holds.

    Attributes:
        receipt: the content of receipt.json.
        metrics: the content of metrics.json.
        num_doubtful: pictures whose label is likely wrong.
        twins: the content of near_duplicates.json, None where there is none.
    """

    receipt: _Receipt
    metrics: dict[str, Any]
    num_doubtful: int
    twins: _Twins | None

    @property
    def split(self) -> str:
        """The split's name."""
        return self.receipt["split"]

    @property
    def computed(self) -> str:
        """In which arithmetic on which devices, in words."""
        found = [f"{one['arithmetic']} on {one['device']}" for one in self.receipt.get("computed", ())]
        return "; ".join(found) or NONE


def read(path: str | os.PathLike[str], specification: Specification) -> Results:
    """Returns what an evaluation found.

    Raises:
        ValueError: it is of another model.
        FileNotFoundError: it is not there, or did not finish.
        DataError: its files are damaged, or do not belong together.
    """
    folder = Path(path)
    table = predictions.read(folder)
    receipt, found = load_json(folder / predictions.RECEIPT_NAME, _Receipt), metrics.load(folder)
    if (of := receipt["model_sha256"]) != specification.sha256:
        raise ValueError(f"{path}: is an evaluation of the model {of}, not of the exported one, {specification.sha256}")
    twins = load_json(folder / TWINS_NAME, _Twins) if (folder / TWINS_NAME).exists() else None
    return Results(receipt, found, len(likely_label_errors(table)), twins)


def metrics_table(results: Results) -> str:
    """Returns the metrics of all classes together."""
    return markdown.table(["metric", "value", "95 % interval"], _metric_rows(results.metrics))


def _metric_rows(found: dict[str, Any]) -> Iterator[Sequence[object]]:
    yield "pictures, each exactly once", f"{found['count']:,}", ""
    yield "accuracy", percent(found["accuracy"]), interval(found["accuracy_interval"])
    yield "balanced accuracy (mean recall of the classes)", percent(found["balanced_accuracy"]), ""
    for k, share in list(found["top_k"].items())[1:][-1:]:
        yield f"top-{k} accuracy", percent(share), ""
    yield "AUC" if len(found["per_class"]) == 2 else "AUC, mean of the classes", number(found["auc"]), ""
    yield "log loss", number(found["log_loss"]), ""
    yield "expected calibration error", number(found["ece"]), ""
    if found["binary"]:
        at, name = found["binary"]["sensitivity_at_specificity"], found["binary"]["positive_class"]
        threshold = NONE if at["threshold"] is None else f"{at['threshold']:.9g}"
        yield f"average precision of {name}", number(found["binary"]["average_precision"]), ""
        yield f"sensitivity for {name}, threshold {threshold}", percent(at["sensitivity"]), interval(at["sensitivity_interval"])
        yield "specificity at this threshold", percent(at["specificity"]), interval(at["specificity_interval"])


def class_table(results: Results) -> str:
    """Returns a row per class; the interval is that of the recall."""
    header = ["class", "pictures", "recall", "95 % interval", "precision", "F1", "AUC"]
    rows = []
    for index, row in enumerate(results.metrics["per_class"]):
        recall = percent(row["recall"]), interval(_recall_interval(results, index))
        others = percent(row["precision"]), number(row["f1"]), number(row["auc"])
        rows.append([row["class_name"], f"{row['support']:,}", *recall, *others])
    return markdown.table(header, rows)


def _recall_interval(results: Results, index: int) -> list[float] | None:
    row = results.metrics["per_class"][index]
    return metrics.wilson(round((row["recall"] or 0) * row["support"]), row["support"])


def limits(results: Results) -> str:
    """Returns what the evaluation showed the model not to do well, and what it could not show, as a list."""
    parts = (_uncertainty, _worst_classes, _confusions, _calibration, _label_errors, _near_duplicates)
    return markdown.bullets(line for part in parts for line in part(results))


def _uncertainty(results: Results) -> Iterator[str]:
    low, high = results.metrics["accuracy_interval"]
    classes = [row for row in results.metrics["per_class"] if row["support"]]
    rarest = min(classes, key=lambda row: int(row["support"]))
    yield (
        f"{plural(results.metrics['count'], 'picture')} say the accuracy to within an interval of {100 * (high - low):.1f}"
        f" percentage points; the rarest class, {markdown.text(rarest['class_name'])}, has {rarest['support']:,}."
    )
    if missing := [row["class_name"] for row in results.metrics["per_class"] if not row["support"]]:
        more = f" and {len(missing) - _MAX_SHOWN:,} more" if len(missing) > _MAX_SHOWN else ""
        yield f"Nothing is known of classes without a picture: {', '.join(map(markdown.text, missing[:_MAX_SHOWN]))}{more}."


def _worst_classes(results: Results) -> Iterator[str]:
    rows = [(row["recall"], index, row) for index, row in enumerate(results.metrics["per_class"]) if row["support"]]
    worst = [(index, row) for recall, index, row in sorted(rows, key=lambda item: item[:2]) if recall < 1][:_MAX_SHOWN]
    for index, row in worst:
        given = f"{percent(row['recall'])} (95 %: {interval(_recall_interval(results, index))})"
        yield f"Of class {markdown.text(row['class_name'])}, {given} of {plural(row['support'], 'picture')} are recognised."
    if not worst:
        yield "Every picture was recognised: this set does not show where the model fails."


def _confusions(results: Results) -> Iterator[str]:
    names, cells = (results.metrics["confusion"][name] for name in ("class_names", "cells"))
    for i, j, count in sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:_MAX_SHOWN]:
        share = f"{count:,} of {plural(results.metrics['per_class'][i]['support'], 'picture')}"
        yield f"Taken for class {markdown.text(names[j])}: {share} of class {markdown.text(names[i])}."


def _calibration(results: Results) -> Iterator[str]:
    found, fitted = results.metrics, results.metrics["calibration"]
    yield f"Probabilities differ from how often they are right by {100 * found['ece']:.1f} percentage points on average (ECE)."
    if fitted:
        before = 100 * fitted["before"]["ece"]
        yield (
            f"**That is after temperature scaling ({fitted['temperature']:g}, fitted on {markdown.text(fitted['split'])}). The"
            f" exported files give the probabilities before it, which are off by {before:.1f} points.**"
        )


def _label_errors(results: Results) -> Iterator[str]:
    if results.num_doubtful:
        verb = "has a label" if results.num_doubtful == 1 else "have labels"
        yield (
            f"{plural(results.num_doubtful, 'picture')} of {results.metrics['count']:,} {verb} that the model contradicts with"
            " confidence: either the label is wrong, or the model is. The evaluation's report shows them."
        )


def _near_duplicates(results: Results) -> Iterator[str]:
    twins, name = results.twins, markdown.text(results.split)
    others = " and ".join(twins["against"]) if twins else ""
    if twins is None or not others:
        yield f"Whether pictures of {name} have near-duplicates among those trained on was not looked for."
    elif not twins["count"]:
        yield f"No near-duplicates of pictures of {name} were found in {others}."
    else:
        have = "has a near-duplicate" if twins["count"] == 1 else "have near-duplicates"
        without = f"{percent(twins['accuracy_without'])} (95 %: {interval(twins['accuracy_without_interval'])})"
        left = f"on the {twins['count_without']:,} without"
        yield f"{plural(twins['count'], 'picture')} of {name} {have} in {others}; accuracy {left}: {without}."


def percent(value: float | None) -> str:
    """Returns a share as text."""
    return NONE if value is None else f"{value:.2%}"


def interval(value: Sequence[float] | None) -> str:
    """Returns an interval of shares as text."""
    return NONE if value is None else f"{value[0]:.2%} to {value[1]:.2%}"


def number(value: float | None) -> str:
    """Returns a number as text."""
    return NONE if value is None else f"{value:.4f}"
