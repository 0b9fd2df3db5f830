"""What the report of `html_report` has of a regression alone: drawings and the largest errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfpipe.evaluation.near_duplicates import reader_of
from tfpipe.evaluation.numbers.values import IN_UNITS, SHOWN
from tfpipe.models.classifiers import Predictor
from tfpipe.models.predictions import Predictions
from tfpipe.records.targets import text_of
from tfpipe.report import figures

_MAX_SHOWN = 12  # images for each target
_MAX_SIDE = 160  # pixels of an image on the page

Array = np.ndarray[Any, Any]


def fields(
    predictor: Predictor, directory: str | os.PathLike[str], split: str, table: Predictions, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a page of a regression has alone."""
    return {
        "shown_metrics": SHOWN,
        "in_units": IN_UNITS,
        "targets": [{**row, **_drawn(predictor, directory, split, table, row["name"])} for row in found["per_target"]],
    }


def worst(table: Predictions, place: int) -> Array:
    """Returns the rows with the target at this place, int64 [M], the largest error first."""
    if table.targets is None:
        raise ValueError("the table is of classes")
    errors = abs(table.probabilities[:, place].astype(np.float64) - table.targets[:, place])
    known = np.flatnonzero(np.isfinite(errors))
    ordered: Array = known[np.argsort(-errors[known], kind="stable")]
    return ordered


def _drawn(
    predictor: Predictor, directory: str | os.PathLike[str], split: str, table: Predictions, name: str
) -> dict[str, Any]:
    """Returns the drawings of a target, and the images with the largest errors."""
    place = list(table.class_names).index(name)
    rows = worst(table, place)
    truth, values = (np.asarray(column)[rows, place] for column in (table.targets, table.probabilities))
    reader = reader_of(predictor, directory, split)
    return {
        "scatter": figures.scatter(truth, values),
        "residuals": figures.residuals(truth, values),
        "worst": [
            {
                "images": [figures.photograph(reader.evaluated(row), _MAX_SIDE)],  # the table has the order of the split
                "target": text_of([float(truth[index])]),
                "value": text_of([float(values[index])]),
                "filename": table.filenames[row],
            }
            for index, row in enumerate(rows[:_MAX_SHOWN].tolist())
        ],
    }
