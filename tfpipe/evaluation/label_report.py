"""What the report of `html_report` has of several labels an image alone: the labels that the model contradicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfpipe.evaluation.near_duplicates import reader_of
from tfpipe.models import explanation
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.predictions import Predictions, present
from tfpipe.records import combinations
from tfpipe.report import figures

MAX_SHOWN = 24  # images, or pairs of images, in one list
MAX_SIDE = 160  # pixels of an image on the page

Array = np.ndarray[Any, Any]


def fields(
    predictor: Predictor, directory: str | os.PathLike[str], split: str, table: Predictions, found: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a page of several labels an image has alone."""
    thresholds = [row["threshold"] for row in found["per_class"]]
    wrong = worst_labels(table, thresholds)
    shown = _shown(predictor, directory, split, table, thresholds, wrong[:MAX_SHOWN])
    return {"mistakes": {"count": len(wrong), "shown": shown}}


def worst_labels(table: Predictions, thresholds: Sequence[float]) -> Array:
    """Returns (row, class) of the known labels that the model contradicts, int64 [M, 2], the most confident first."""
    if table.targets is None:
        raise ValueError("the table has one class for each image, and no labels")
    wrong = (present(table.probabilities, np.array(thresholds)) != (table.targets > 0)) & (table.targets >= 0)
    places = np.argwhere(wrong)
    distances = abs(table.probabilities - table.targets)[wrong]
    ordered: Array = places[np.argsort(-distances, kind="stable")]
    return ordered


def _shown(
    predictor: Predictor,
    directory: str | os.PathLike[str],
    split: str,
    table: Predictions,
    thresholds: Sequence[float],
    places: Array,
) -> list[dict[str, Any]]:
    """Returns contradicted labels for the page; of a `Classifier`, with the evidence for the class."""
    if not len(places) or table.targets is None:
        return []
    reader = reader_of(predictor, directory, split)
    images = np.stack([reader.evaluated(int(row)) for row, _ in places])  # the table has the order of the split
    heats = explanation.explain(predictor, images, places[:, 1]) if isinstance(predictor, Classifier) else [None] * len(images)
    found = present(table.probabilities, np.array(thresholds)).astype(int)
    return [
        {
            "images": [
                figures.photograph(one, MAX_SIDE)
                for one in (image, *(() if heat is None else (explanation.overlay(image, heat),)))
            ],
            "class_name": table.class_names[column],
            "is_labelled": bool(table.targets[row, column] > 0),
            "probability": float(table.probabilities[row, column]),
            "labels": combinations.text_of_values(table.targets[row].tolist(), table.class_names),
            "predicted": combinations.text_of_values(found[row].tolist(), table.class_names),
            "filename": table.filenames[row],
        }
        for (row, column), image, heat in zip(places.tolist(), images, heats, strict=True)
    ]
