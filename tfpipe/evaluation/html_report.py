"""The report of an evaluation: one self-contained HTML file.

    write_report(Path("eval/"), classifier, "shards/", "test")      # eval/report.html, eval/near_duplicates.json

Numbers come from metrics.json, curves and lists from predictions.csv beside it. For a model that
gives only probabilities, as an exported one, the page lacks Grad-CAM and near-duplicates, and
states so.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.files import read_json, write_json, written_atomically
from tfpipe.common.text import plural
from tfpipe.evaluation import label_report, metrics, suspects
from tfpipe.evaluation.label_report import MAX_SHOWN, MAX_SIDE
from tfpipe.evaluation.near_duplicates import NearDuplicate, find_near_duplicates, reader_of, training_splits
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.evaluation.numbers import report as number_report
from tfpipe.models import explanation, predictions
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.predictions import Predictions
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import CatalogRow, read_checked
from tfpipe.records.manifest import ORDINAL, REGRESSION
from tfpipe.report import figures, fonts, templates

_log = logging.getLogger("tfpipe")

FILE_NAME = "report.html"
NEAR_DUPLICATES_NAME = "near_duplicates.json"

_MAX_CURVES = len(figures.COLOURS)
_MAX_CELLS = 20  # classes whose confusion matrix is a table with counts

Array = np.ndarray[Any, Any]


def write_report(
    folder: str | os.PathLike[str],
    predictor: Predictor,
    directory: str | os.PathLike[str],
    split: str,
    *,
    near_duplicates: bool = True,
    progress: bool = True,
) -> Path:
    """Writes report.html, near_duplicates.json and suspects.csv into an evaluation's folder; returns the first.

    Args:
        folder: with predictions.csv, metrics.json and receipt.json of `tfpipe.evaluate`.
        predictor: the evaluated model.
        directory: of the data set.
        split: the evaluated one.
        near_duplicates: search for them, in a pass over train, val and the split; needs the
            features of a `Classifier`.
        progress: show a bar.

    Raises:
        ValueError: the model, data or split are not those of the receipt.
        FileNotFoundError: a file of the evaluation is missing.
        DataError: a file of the evaluation or the data set is damaged.
    """
    folder = Path(folder)
    table = predictions.read(folder)
    found, receipt = metrics.load(folder), read_json(folder / predictions.RECEIPT_NAME)
    manifest = manifests.load(directory)
    given = {"split": split, "data_root_hash": manifest.root_hash, "model_sha256": predictor.sha256}
    for name, value in given.items():
        if receipt.get(name) != value:
            raise ValueError(f"the evaluation is of {name} {receipt.get(name)!r} (got {value!r})")
    _warn_of_fonts(table)
    if table.task == REGRESSION:
        template, own = "number_report.html", number_report.fields(predictor, directory, split, table, found)
    elif table.targets is not None:
        template, own = "label_report.html", label_report.fields(predictor, directory, split, table, found)
    else:
        template, duplicates = "report.html", None
        if near_duplicates and isinstance(predictor, Classifier):
            duplicates = find_near_duplicates(predictor, directory, split, progress=progress)
        own = _of_one_class(folder, _ReportImages(predictor, directory, split), table, found, duplicates)
    page = templates.render(
        template,
        name=manifest.name,
        split=split,
        root_hash=manifest.root_hash,
        model_sha256=receipt["model_sha256"],
        class_names=table.class_names,
        data_classes=manifest.class_names,
        labelled={name: content for name, content in manifest.splits.items() if content.labelled},
        metrics={"calibration": None, **found},
        folds=metrics.fold_rows(found),
        curves=None if table.task == REGRESSION else _curves(found, table),
        explained=isinstance(predictor, Classifier),
        receipt=json.dumps(receipt, indent=1, ensure_ascii=False),
        **own,
    )
    with written_atomically(folder / FILE_NAME) as file:
        file.write(page.encode())
    return folder / FILE_NAME


def _of_one_class(
    folder: Path,
    images: _ReportImages,
    table: Predictions,
    found: Mapping[str, Any],
    duplicates: Sequence[NearDuplicate] | None,
) -> dict[str, Any]:
    """Returns what a page of one class an image has alone; writes near_duplicates.json and suspects.csv."""
    directory, split, pairs = images.directory, images.split, None
    if duplicates is not None:
        pairs = summarise_pairs(table, duplicates, training_splits(directory, split))
        write_json(folder / NEAR_DUPLICATES_NAME, pairs)
    listed = suspects.read(folder) if (folder / suspects.FILE_NAME).exists() else suspects.find(table, directory, split)
    if pairs:
        listed = suspects.with_pairs(listed, table, directory, pairs["pairs"])
        suspects.write(folder, listed)
    place_of = {key: row for row, key in enumerate(table.keys)}
    odd = np.array([place_of[one.key] for one in listed if one.reason == suspects.ODD], np.int64)
    wrong, (doubtful, *_) = worst_mistakes(table), suspects.label_errors(table)
    return {
        "order_metrics": in_order.SHOWN if found.get("task") == ORDINAL else {},
        "explained_class": "a higher class" if found.get("task") == ORDINAL else "the wrong class",
        "confusion": _confusion(found, table.class_names),
        "reliability": figures.reliability_diagram(found["reliability"]),
        "mistakes": {"count": len(wrong), "shown": images.predictions(table, wrong[:MAX_SHOWN], explained=True)},
        "label_errors": {"count": len(doubtful), "shown": images.predictions(table, doubtful[:MAX_SHOWN])},
        "odd": {"count": len(odd), "shown": images.predictions(table, odd[:MAX_SHOWN])},
        "num_suspects": len(listed),
        "pairs": pairs,
        "pair_figures": images.pairs(pairs["pairs"]) if pairs else [],
    }


def _warn_of_fonts(table: Predictions) -> None:
    if missing := fonts.lacking("".join({*table.class_names, *table.filenames})):
        _log.warning(
            "%s: %s of names in no font found here, %s: a browser on this machine may show boxes; Debian has one in %s",
            FILE_NAME,
            plural(len(missing), "character"),
            "".join(sorted(missing)[:20]),
            fonts.packages(missing),
        )


def summarise_pairs(predicted: Predictions, pairs: Sequence[NearDuplicate], against: Sequence[str]) -> dict[str, Any]:
    """Returns the content of near_duplicates.json: pairs, and accuracy on the other images."""
    keys = {pair.key for pair in pairs}
    rest = np.array([key not in keys for key in predicted.keys], bool)
    right = predicted.predicted == predicted.labels
    num_right = int(right[rest].sum())
    return {
        "against": list(against),
        "count": len(pairs),
        "count_identical": sum(pair.identical for pair in pairs),
        "count_without": int(rest.sum()),
        "accuracy_without": num_right / int(rest.sum()) if rest.any() else None,
        "accuracy_without_interval": metrics.share_interval(predicted, right, rest),
        "pairs": [pair.to_json() for pair in pairs],
    }


def worst_mistakes(predicted: Predictions) -> Array:
    """Returns the rows with a wrong predicted class, int64 [M], the most confident first."""
    wrong = np.flatnonzero(predicted.predicted != predicted.labels)
    return wrong[np.argsort(-predicted.probabilities.max(axis=1)[wrong], kind="stable")]


def _confusion(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns rows of (count, share), or for many classes an image and the largest confusions."""
    matrix = metrics.confusion_matrix(found)
    if len(names) <= _MAX_CELLS:
        counts = matrix.toarray()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return {"rows": [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]}
    wrong = [(count, names[i], names[j]) for i, j, count in found["confusion"]["cells"] if i != j]
    return {"image": figures.matrix_image(matrix), "largest": sorted(wrong, key=lambda one: -one[0])[:MAX_SHOWN]}


def _curves(found: Mapping[str, Any], table: Predictions) -> dict[str, Any]:
    """Returns curves of the positive class, or of each, or of those with the smallest AUC."""
    per_class, binary = found["per_class"], found.get("binary")
    chosen = [index for index, row in enumerate(per_class) if row["auc"] is not None]
    note = "Each class against all others." if table.targets is None else "Each class, on the images where it is known."
    if len(table.class_names) == 2 and binary:
        chosen = [index for index in chosen if table.class_names[index] == binary["positive_class"]]
        note = "The positive class against the other."
    elif len(chosen) > _MAX_CURVES:
        chosen = sorted(chosen, key=lambda index: float(per_class[index]["auc"]))[:_MAX_CURVES]
        note = f"{note} These are the {_MAX_CURVES} classes with the smallest AUC."
    if not chosen:
        return {"legend": [], "note": "No curves: no class has both images of its own and images of other classes."}
    classes = []
    for index in chosen:
        known = slice(None) if table.targets is None else table.targets[:, index] >= 0
        truth = table.labels == index if table.targets is None else table.targets[:, index] > 0
        classes.append((truth[known], table.probabilities[known, index]))
    named = [(table.class_names[index], per_class[index]["auc"]) for index in chosen]
    return {
        "note": note,
        "roc": figures.roc_curves(classes),
        "precision_recall": figures.precision_recall_curves(classes),
        "legend": [(colour, *one) for colour, one in zip(figures.COLOURS, named, strict=False)],
    }


@dataclass(frozen=True)
class _ReportImages:
    """Images of a data set, as the model sees them and as the page shows them."""

    predictor: Predictor
    directory: str | os.PathLike[str]
    split: str

    def read(self, keys: Collection[str], split: str) -> dict[str, tuple[CatalogRow, Array]]:
        """Returns catalog row and model input, uint8 [H, W, 3], by key."""
        if not keys:
            return {}
        reader = reader_of(self.predictor, self.directory, split)
        rows = enumerate(read_checked(self.directory, split=split))
        return {row.key: (row, reader.evaluated(position)) for position, row in rows if row.key in keys}

    def predictions(self, table: Predictions, rows: Array, *, explained: bool = False) -> list[dict[str, Any]]:
        """Returns rows for the page; if explained, with Grad-CAM for the predicted class."""
        keys = [table.keys[row] for row in rows]
        found = self.read(set(keys), self.split)
        shown = [[found[key][1]] for key in keys]
        if shown and explained and isinstance(self.predictor, Classifier):
            heats = explanation.explain(self.predictor, np.stack([image for (image,) in shown]), table.predicted[rows])
            shown = [[image, explanation.overlay(image, heat)] for (image,), heat in zip(shown, heats, strict=True)]
        return [
            {
                "images": _encoded(images),
                "label": table.class_names[table.labels[row]],
                "own": float(table.probabilities[row, table.labels[row]]),
                "predicted": table.class_names[table.predicted[row]],
                "other": float(table.probabilities[row, table.predicted[row]]),
                "filename": table.filenames[row],
            }
            for row, images in zip(rows, shown, strict=True)
        ]

    def pairs(self, pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns near-duplicates for the page, those with different bytes first."""
        chosen = sorted(pairs, key=lambda pair: (pair["identical"], -pair["similarity"]))[:MAX_SHOWN]
        own = self.read({pair["key"] for pair in chosen}, self.split)
        splits = {pair["split"] for pair in chosen}
        others = {split: self.read({pair["twin"] for pair in chosen if pair["split"] == split}, split) for split in splits}
        shown = []
        for pair in chosen:
            members = own[pair["key"]], others[pair["split"]][pair["twin"]]
            shown.append({**pair, "rows": [row for row, _ in members], "images": _encoded(image for _, image in members)})
        return shown


def _encoded(images: Iterable[Array]) -> list[str]:
    return [figures.photograph(image, MAX_SIDE) for image in images]
