"""The report of an evaluation of several labels an image, as `html_report` writes it for one class."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.files import written_atomically
from tfpipe.evaluation.near_duplicates import reader_of
from tfpipe.models import explanation
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.predictions import Predictions, present
from tfpipe.records import combinations
from tfpipe.records import manifest as manifests
from tfpipe.report import figures, templates

FILE_NAME = "report.html"
_MAX_SHOWN = 24  # images in the list
_MAX_SIDE = 160  # pixels of an image on the page

Array = np.ndarray[Any, Any]


def write(
    folder: Path,
    predictor: Predictor,
    directory: str | os.PathLike[str],
    table: Predictions,
    found: Mapping[str, Any],
    receipt: Mapping[str, Any],
) -> Path:
    """Writes report.html into an evaluation's folder, from its table, metrics and receipt; returns its path."""
    manifest, split = manifests.load(directory), receipt["split"]
    thresholds = [row["threshold"] for row in found["per_class"]]
    wrong = worst_labels(table, thresholds)
    page = templates.render(
        "label_report.html",
        name=manifest.name,
        split=split,
        root_hash=manifest.root_hash,
        model_sha256=receipt["model_sha256"],
        class_names=table.class_names,
        data_classes=manifest.class_names,
        labelled={name: content for name, content in manifest.splits.items() if content.labelled},
        metrics={"calibration": None, **found},
        curves=_curves(found["per_class"], table),
        explained=isinstance(predictor, Classifier),
        mistakes={"count": len(wrong), "shown": _shown(predictor, directory, split, table, thresholds, wrong[:_MAX_SHOWN])},
        receipt=json.dumps(receipt, indent=1, ensure_ascii=False),
    )
    with written_atomically(folder / FILE_NAME) as file:
        file.write(page.encode())
    return folder / FILE_NAME


def worst_labels(table: Predictions, thresholds: Sequence[float]) -> Array:
    """Returns (row, class) of the known labels that the model contradicts, int64 [M, 2], the most confident first."""
    if table.targets is None:
        raise ValueError("the table has one class for each image, and no labels")
    wrong = (present(table.probabilities, np.array(thresholds)) != (table.targets > 0)) & (table.targets >= 0)
    places = np.argwhere(wrong)
    distances = abs(table.probabilities - table.targets)[wrong]
    ordered: Array = places[np.argsort(-distances, kind="stable")]
    return ordered


def _curves(per_class: Sequence[Mapping[str, Any]], table: Predictions) -> dict[str, Any]:
    """Returns the curves of the classes with the smallest AUC."""
    chosen = [index for index, row in enumerate(per_class) if row["auc"] is not None]
    chosen = sorted(chosen, key=lambda index: float(per_class[index]["auc"]))[: len(figures.COLOURS)]
    if not chosen or table.targets is None:
        return {"legend": []}
    known = [(index, table.targets[:, index] >= 0) for index in chosen]
    classes = [(table.targets[mask, index] > 0, table.probabilities[mask, index]) for index, mask in known]
    named = [(table.class_names[index], per_class[index]["auc"]) for index in chosen]
    legend = [(colour, *one) for colour, one in zip(figures.COLOURS, named, strict=False)]
    return {"roc": figures.roc_of(classes), "precision_recall": figures.precision_recall_of(classes), "legend": legend}


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
                figures.photograph(one, _MAX_SIDE)
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
