"""Metrics of a regression, as in metrics.json.

metrics = measure(read("eval/"), ["years"])
metrics["per_target"][0]["mean_absolute_error"], metrics["per_target"][0]["mean_absolute_error_interval"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tfpipe.common.files import check_json
from tfpipe.evaluation.clusters import BY_GROUP, Groups
from tfpipe.evaluation.numbers import measures
from tfpipe.models.predictions import Predictions
from tfpipe.records.manifest import REGRESSION

SHOWN = {
    "mean_absolute_error": "mean absolute error",
    "root_mean_squared_error": "root mean squared error",
    "mean_difference": "mean of prediction less target",
    "r2": "R2",
    "spearman": "Spearman correlation",
}
IN_UNITS = ("mean_absolute_error", "root_mean_squared_error", "mean_difference")

_Interval = tuple[float, float] | None
_Target = msgspec.defstruct(
    "_Target",
    [
        ("name", str),
        ("unit", str),
        ("count", int),
        ("deviation", float),
        *((name, float | None) for name in SHOWN),
        *((f"{name}_interval", _Interval) for name in SHOWN),
    ],
)


class _Content(msgspec.Struct):
    """The content of metrics.json that is shown elsewhere."""

    task: Literal["regression"]
    count: int
    per_target: list[_Target]  # type: ignore[valid-type]


def check(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the content of metrics.json of a regression; raises DataError if it is another."""
    check_json(content, _Content, path)
    return content


def measure(table: Predictions, units: Sequence[str], num_resamples: int = measures.NUM_RESAMPLES) -> dict[str, Any]:
    """Returns all metrics of a regression's table; ready for JSON.

    - task; count (of images); groups, where the data set has them.
    - per_target: name, unit; count of the images that have it, deviation of the target among them;
      the metrics of SHOWN with their intervals, see `measures`. R2 is 1 less the mean squared error
      over the variance in this table.

    Args:
        table: with targets.
        units: of each target.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: no image has a target.
    """
    if table.targets is None or not np.isfinite(table.targets).any():
        raise ValueError("metrics need labelled images, one or more")
    rows = []
    for place, (name, unit) in enumerate(zip(table.class_names, units, strict=True)):
        known = np.flatnonzero(np.isfinite(table.targets[:, place]))
        if not len(known):
            continue  # a target of the model that the data set lacks
        part = table.select(known)
        truth, values = (column[known, place].astype(np.float64) for column in (table.targets, table.probabilities))
        found = measures.measure(truth, values, part.keys, part.groups, SHOWN, num_resamples)
        rows.append({"name": name, "unit": unit, "count": len(known), "deviation": float(np.sort(truth).std()), **found})
    groups = (
        None if table.groups is None else {"num_groups": Groups(table.groups).count, "interval": BY_GROUP.format(num_resamples)}
    )
    return {
        "task": REGRESSION,
        **({} if groups is None else {"groups": groups}),
        "count": len(table.keys),
        "num_resamples": num_resamples,
        "per_target": rows,
    }
