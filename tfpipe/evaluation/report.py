"""The report of an evaluation, one HTML file that needs no other and no network.

    write_report(Path("eval/"), classifier, "shards/", "test")      # eval/report.html, eval/near_duplicates.json

Numbers come from metrics.json, and curves and lists from predictions.csv beside it; nothing is measured in another way.
Of a model that gives no more than probabilities, as an exported one, the page lacks Grad-CAM and near-duplicates, and says so.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.files import read_json, write_json, written_atomically
from tfpipe.common.text import plural
from tfpipe.evaluation import metrics
from tfpipe.evaluation.near_duplicates import Twin, find_twins, usual_splits
from tfpipe.models import explanation, predictions
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.predictions import Predictions
from tfpipe.pipeline.replaying import Replayer
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import Row, read_catalog
from tfpipe.report import figures, fonts
from tfpipe.report.markup import Html, element, image, join, page, table

_log = logging.getLogger("tfpipe")

FILE_NAME = "report.html"
TWINS_NAME = "near_duplicates.json"

_MAX_SHOWN = 24  # pictures, or pairs of pictures, in one list
_MAX_SIDE = 160  # pixels of a picture on the page
_MAX_CURVES = len(figures.COLOURS)
# Sections that stand side by side where there is room, and of how many columns: the others take the whole width.
_KINDS = {"Class balance": "", "Confusion matrix": "", "Classes": "", "ROC and precision-recall": "broad", "Reliability": ""}
_FEW_CLASSES = 8  # whose confusion matrix fits into a column
_MAX_CELLS = 20  # classes whose confusion matrix is a table with counts
_NONE = "\u2013"
_CLOSED = "this model gives probabilities alone, as exported ones do. If it came from a run of tfpipe, evaluate that instead."

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Content:
    """What a page is made of."""

    predictor: Predictor
    directory: str | os.PathLike[str]
    split: str
    manifest: manifests.Manifest
    table: Predictions
    metrics: dict[str, Any]
    receipt: dict[str, Any]
    twins: dict[str, Any] | None

    def pictures(self, keys: Collection[str], split: str | None = None) -> dict[str, tuple[Row, Array]]:
        """Returns records by key: the row of the catalogue, and the picture as the model sees it, uint8 [H, W, 3]."""
        split, wanted = split or self.split, set(keys)
        if not wanted:
            return {}
        size, resize = self.predictor.image_size, self.predictor.resize
        samples = getattr(self.predictor, "samples", None)
        reader = Replayer(self.directory, split, seed=0, image_size=size, resize=resize, augment="none", samples=samples)
        rows = enumerate(read_catalog(self.directory, split=split))
        return {row.key: (row, reader.evaluated(position)) for position, row in rows if row.key in wanted}


def write_report(
    folder: str | os.PathLike[str],
    predictor: Predictor,
    directory: str | os.PathLike[str],
    split: str,
    *,
    near_duplicates: bool = True,
    progress: bool = True,
) -> Path:
    """Writes report.html, and near_duplicates.json, into the folder of an evaluation; returns the report's path.

    Args:
        folder: with predictions.csv, metrics.json and receipt.json, as `tfpipe.evaluate` writes them.
        predictor: the model that was evaluated.
        directory: of the data set.
        split: the one that was evaluated.
        near_duplicates: look for them, in a pass over train, val and the split; by the features of a `Classifier` alone.
        progress: show it.

    Raises:
        ValueError: the model, data or split are not those of the receipt.
        FileNotFoundError: a file of the evaluation is missing.
        DataError: a file of the evaluation or the data set is damaged.
    """
    folder = Path(folder)
    predicted = predictions.read(folder)
    found, receipt = metrics.load(folder), read_json(folder / predictions.RECEIPT_NAME)
    manifest = manifests.load(directory)
    _check_receipt(receipt, predictor, manifest, split)
    twins = None
    if near_duplicates and isinstance(predictor, Classifier):
        pairs = find_twins(predictor, directory, split, progress=progress)
        twins = summarise_twins(predicted, pairs, usual_splits(directory, split))
        write_json(folder / TWINS_NAME, twins)
    _say_lacking(predicted)
    content = _Content(predictor, directory, split, manifest, predicted, found, receipt, twins)
    with written_atomically(folder / FILE_NAME) as file:
        file.write(_page(content).encode())
    return folder / FILE_NAME


def _say_lacking(predicted: Predictions) -> None:
    if missing := fonts.lacking("".join({*predicted.class_names, *predicted.filenames})):
        _log.warning(
            "%s: %s of names in no font found here, %s: a browser on this machine may show boxes; Debian has one in %s",
            FILE_NAME,
            plural(len(missing), "character"),
            "".join(sorted(missing)[:20]),
            fonts.packages(missing),
        )


def _check_receipt(receipt: dict[str, Any], predictor: Predictor, manifest: manifests.Manifest, split: str) -> None:
    given = {"split": split, "data_root_hash": manifest.root_hash, "model_sha256": predictor.sha256}
    for name, value in given.items():
        if receipt.get(name) != value:
            raise ValueError(f"the evaluation is of {name} {receipt.get(name)!r} (got {value!r})")


def summarise_twins(predicted: Predictions, twins: Sequence[Twin], against: Sequence[str]) -> dict[str, Any]:
    """Returns what near_duplicates.json holds: the pairs, and the accuracy on the pictures without a twin.

    Args:
        predicted: the table.
        twins: from `find_twins`.
        against: the splits that were compared with.
    """
    keys = {twin.key for twin in twins}
    rest = np.array([key not in keys for key in predicted.keys], bool)
    right = int((predicted.predicted == predicted.labels)[rest].sum())
    return {
        "against": list(against),
        "count": len(twins),
        "count_identical": sum(twin.identical for twin in twins),
        "count_without": int(rest.sum()),
        "accuracy_without": right / int(rest.sum()) if rest.any() else None,
        "accuracy_without_interval": metrics.wilson(right, int(rest.sum())),
        "pairs": [dataclasses.asdict(twin) for twin in twins],
    }


def worst_mistakes(predicted: Predictions) -> Array:
    """Returns the rows whose predicted class is wrong, int64 [M], the most confident first."""
    wrong = np.flatnonzero(predicted.predicted != predicted.labels)
    return wrong[np.argsort(-predicted.probabilities.max(axis=1)[wrong], kind="stable")]


def likely_label_errors(predicted: Predictions) -> Array:
    """Returns the rows whose label is doubtful, int64 [M], the most doubtful first.

    Confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068): a class is claimed with confidence where its
    probability is at least the mean of what pictures labelled with it are given. A label is doubtful where, of the classes
    claimed, the most probable one is another. Ordered by how much more probable that is.
    """
    labels, classes = predicted.labels, range(len(predicted.class_names))
    own = predicted.probabilities[np.arange(len(labels)), labels].astype(np.float64)
    thresholds = np.array([own[labels == index].mean() if (labels == index).any() else np.inf for index in classes])
    other, largest = np.empty_like(labels), np.empty_like(own)
    for rows in predicted.blocks():
        claimed = np.where(predicted.probabilities[rows] >= thresholds, predicted.probabilities[rows], 0)
        other[rows], largest[rows] = claimed.argmax(axis=1), claimed.max(axis=1)
    doubtful = np.flatnonzero((largest > 0) & (other != labels))
    margin = largest[doubtful] - own[doubtful]
    return doubtful[np.argsort(-margin, kind="stable")]


def _page(content: _Content) -> Html:
    sections: dict[str, Callable[[_Content], Iterable[object]]] = {
        "Result": _headline,
        "Class balance": _balance,
        "Confusion matrix": _confusion,
        "Classes": _classes,
        "ROC and precision-recall": _curves,
        "Reliability": _reliability,
        "Worst mistakes": _mistakes,
        "Likely label errors": _label_errors,
        "Near-duplicates": _near_duplicates,
        "Receipt": _receipt,
    }
    title = f"{content.manifest.name}, split {content.split}"
    header = element("header", element("h1", title), element("p", "Evaluation of an image classifier by tfpipe"))
    kinds = _KINDS if len(content.table.class_names) <= _FEW_CLASSES else {**_KINDS, "Confusion matrix": "wide"}
    made = (
        element("section", element("h2", name), *section(content), class_=kinds.get(name, "wide"))
        for name, section in sections.items()
    )
    return page(title, header, *made)


def _headline(content: _Content) -> Iterable[object]:
    found, twins = content.metrics, content.twins
    cards = [_card(_percent(found["accuracy"]), f"accuracy, 95 %: {_interval(found['accuracy_interval'])}", "card main")]
    cards.append(_card(f"{found['count']:,}", "pictures, each exactly once"))
    if twins and twins["count"]:
        left = f"{plural(twins['count_without'], 'picture')} left ({twins['count']:,} taken away)"
        without = f"accuracy without near-duplicates in {' and '.join(twins['against'])}, on {left}"
        cards.append(_card(_percent(twins["accuracy_without"]), without))
    cards += [
        _card(_percent(found["balanced_accuracy"]), "balanced accuracy"),
        _card(_number(found["auc"]), _auc_name(content)),
    ]
    cards += [_card(_percent(share), f"top-{k}") for k, share in list(found["top_k"].items())[1:][-1:]]
    cards += [_card(_number(found["ece"]), "calibration error"), _card(_number(found["log_loss"]), "log loss")]
    names = f"Data {content.manifest.name} {content.manifest.root_hash[:12]}, split {content.split}"
    model = f"model {content.receipt['model_sha256'][:12]}, {plural(len(content.table.class_names), 'class', 'classes')}"
    return [element("div", *cards, class_="cards"), element("p", f"{names}; {model}.", class_="note")]


def _auc_name(content: _Content) -> str:
    return "AUC" if len(content.table.class_names) == 2 else "AUC, mean of the classes"


def _card(value: str, name: str, kind: str = "card") -> Html:
    return element("div", element("b", value), element("span", name), class_=kind)


def _balance(content: _Content) -> Iterable[object]:
    splits = {name: split for name, split in content.manifest.splits.items() if split.labelled}
    largest = {name: max([1, *split.class_counts.values()]) for name, split in splits.items()}

    def counts(class_name: str) -> Iterable[Html]:
        for name, split in splits.items():
            count = split.class_counts.get(class_name, 0)
            yield join([element("span", class_="bar", style=f"width:{90 * count / largest[name]:.0f}px"), f"{count:,}"])

    header = ["class", *(f"{name} ({split.num_records:,})" for name, split in splits.items())]
    return [table(header, [[name, *counts(name)] for name in content.manifest.class_names])]


def _confusion(content: _Content) -> Iterable[object]:
    matrix, names = metrics.confusion_matrix(content.metrics), content.table.class_names
    yield element("p", "Rows are the true classes, columns the predicted ones; the colour is the share of the row.")
    if len(names) <= _MAX_CELLS:
        counts = matrix.toarray()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows = ([name, *map(_cell, counts[i], shares[i])] for i, name in enumerate(names))
        yield table(["true \\ predicted", *names], rows, kind="matrix")
        return
    yield element("figure", image(figures.matrix_image(matrix), "confusion matrix"), class_="chart")
    pairs = [(count, names[i], names[j]) for i, j, count in content.metrics["confusion"]["cells"] if i != j]
    most = sorted(pairs, key=lambda pair: -pair[0])[:_MAX_SHOWN]
    yield element("h3", "Most frequent confusions" if most else "No picture was taken for another class.")
    if most:
        yield table(["true", "predicted", "pictures"], [[a, element("td", b, class_="text"), count] for count, a, b in most])


def _cell(count: int, share: float) -> Html:
    # The text of a strong colour turns white, where black would be hard to read.
    kind, style = "strong" if share > 0.4 else "weak", f"--share:{float(share) ** 0.7:.3f}"
    return element("td", f"{count:,}" if count else "\u00b7", class_=kind, style=style, title=f"{share:.1%}")


def _classes(content: _Content) -> Iterable[object]:
    columns = ("precision", "recall", "f1", "auc")
    rows = [
        [row["class_name"], i, *(_number(row[column]) for column in columns), f"{row['support']:,}", f"{row['predicted']:,}"]
        for i, row in enumerate(content.metrics["per_class"])
    ]
    return [table(["class", "number", "precision", "recall", "F1", "AUC", "pictures", "times predicted"], rows)]


def _curves(content: _Content) -> Iterable[object]:
    found, predicted = content.metrics, content.table
    per_class, binary = found["per_class"], found["binary"]
    chosen = [index for index, row in enumerate(per_class) if row["auc"] is not None]
    note = "Each class against all others."
    if len(predicted.class_names) == 2 and binary:
        chosen = [index for index in chosen if predicted.class_names[index] == binary["positive_class"]]
        note = "The positive class against the other."
    elif len(chosen) > _MAX_CURVES:
        chosen = sorted(chosen, key=lambda index: float(per_class[index]["auc"]))[:_MAX_CURVES]
        note = f"The {_MAX_CURVES} classes with the smallest AUC, each against all others."
    if not chosen:
        return [element("p", "No curves: no class has both pictures of it and pictures of others.")]
    keys = (
        element(
            "li",
            element("i", style=f"background:{colour}"),
            f"{predicted.class_names[index]}: AUC {_number(per_class[index]['auc'])}",
        )
        for colour, index in zip(figures.COLOURS, chosen, strict=False)
    )
    drawn = (
        draw(predicted.labels, predicted.probabilities, chosen)
        for draw in (figures.roc_curves, figures.precision_recall_curves)
    )
    charts = (
        element("figure", image(uri, name)) for uri, name in zip(drawn, ("ROC curves", "precision-recall curves"), strict=True)
    )
    parts = [element("p", note), element("div", *charts, class_="charts"), element("ul", *keys, class_="legend")]
    return [*parts, *_sensitivity(binary)]


def _sensitivity(binary: dict[str, Any] | None) -> Iterable[Html]:
    if binary is None:
        return
    at = binary["sensitivity_at_specificity"]
    reached = _with_interval(at["specificity"], at["specificity_interval"])
    yield element(
        "p",
        f"{binary['positive_class']}: average precision {_number(binary['average_precision'])}; sensitivity"
        f" {_with_interval(at['sensitivity'], at['sensitivity_interval'])} at specificity {reached},"
        f" threshold {_NONE if at['threshold'] is None else format(at['threshold'], '.9g')}.",
    )


def _reliability(content: _Content) -> Iterable[object]:
    found, calibration = content.metrics, content.metrics.get("calibration")
    yield element(
        "p",
        f"Expected calibration error {_number(found['ece'])}. Points on the dashed line mean what they say: of pictures with"
        " confidence 0.8, eight of ten are right. Below it the model is too sure of itself, above it not sure enough.",
    )
    if calibration:
        yield element(
            "p",
            f"Probabilities were calibrated with temperature {calibration['temperature']:.4g}, fitted on"
            f" {calibration['split']}; before, the error was {_number(calibration['before']['ece'])}.",
        )
    drawn = image(figures.reliability_diagram(found["reliability"]), "reliability diagram")
    yield element("div", element("figure", drawn), class_="charts")


def _mistakes(content: _Content) -> Iterable[object]:
    wrong = worst_mistakes(content.table)
    if not len(wrong):
        yield element("p", "None: every picture was recognised.")
        return
    shown = wrong[:_MAX_SHOWN]
    beside = (
        "Beside each picture, in colour, what spoke for the wrong class (Grad-CAM, Selvaraju et al. 2017)."
        if isinstance(content.predictor, Classifier)
        else f"What spoke for the wrong class (Grad-CAM) is not shown: {_CLOSED}"
    )
    yield element("p", f"{_some(len(shown), len(wrong))}, the most confident first. {beside}")
    yield _gallery(content, shown, content.table.predicted[shown])


def _label_errors(content: _Content) -> Iterable[object]:
    doubtful = likely_label_errors(content.table)
    if not len(doubtful):
        yield element("p", "None: no label is contradicted with confidence.")
        return
    shown = doubtful[:_MAX_SHOWN]
    yield element(
        "p",
        f"{_some(len(shown), len(doubtful))}. Another class is at least as probable as it usually is for its own pictures"
        " (confident learning, Northcutt et al. 2021): either the label is wrong, or the model is. Look, and decide.",
    )
    yield _gallery(content, shown, None)


def _gallery(content: _Content, rows: Array, explained: Array | None) -> Html:
    """Returns pictures of the table, each with Grad-CAM for a class if `explained` says which."""
    predicted = content.table
    keys = [predicted.keys[row] for row in rows]
    pictures = content.pictures(keys)
    images = np.stack([pictures[key][1] for key in keys])
    shown = [[picture] for picture in images]
    if explained is not None and isinstance(content.predictor, Classifier):
        for pair, heat in zip(shown, explanation.explain(content.predictor, images, explained), strict=True):
            pair.append(explanation.overlay(pair[0], heat))
    captions = (partial(_caption, predicted)(row) for row in rows)
    return element("div", *map(_figure, shown, captions), class_="gallery")


def _caption(predicted: Predictions, row: int) -> Html:
    names, label, guess = predicted.class_names, predicted.labels[row], predicted.predicted[row]
    own, other = predicted.probabilities[row, [label, guess]]
    parts = ["label ", element("b", names[label]), f" {own:.3f}, predicted ", element("span", names[guess], class_="wrong")]
    return join([*parts, f" {other:.3f}", element("span", predicted.filenames[row], class_="file")])


def _figure(images: Sequence[Array], caption: Html) -> Html:
    drawn = (image(figures.photograph(picture, _MAX_SIDE), "picture") for picture in images)
    kind = "pair" if len(images) > 1 else "pair one"
    return element("figure", element("div", *drawn, class_=kind), element("figcaption", caption))


def _near_duplicates(content: _Content) -> Iterable[object]:
    twins = content.twins
    if twins is None:
        reason = "" if isinstance(content.predictor, Classifier) else f": {_CLOSED}"
        return [element("p", f"Not looked for{reason or '.'}")]
    if not twins["against"]:
        return [element("p", "Not looked for: there is no train or val split to compare with.")]
    others = " and ".join(twins["against"])
    if not twins["count"]:
        return [element("p", f"None between {content.split} and {others}.")]
    pairs = sorted(twins["pairs"], key=lambda pair: (pair["identical"], -pair["similarity"]))
    shown = pairs[:_MAX_SHOWN]
    said = (
        f"{plural(twins['count'], 'picture')} of {content.split} {'has' if twins['count'] == 1 else 'have'} a near-duplicate in"
        f" {others}, {twins['count_identical']:,} of them byte for byte. {_without(twins)} All are listed in {TWINS_NAME}."
    )
    splits = {pair["split"] for pair in shown}
    found = {split: content.pictures([pair["twin"] for pair in shown if pair["split"] == split], split) for split in splits}
    own = content.pictures([pair["key"] for pair in shown])
    drawn = (_twin(own[pair["key"]], found[pair["split"]][pair["twin"]], pair) for pair in shown)
    shown_note = element("p", f"{_some(len(shown), len(pairs))}, those with different bytes first.", class_="note")
    return [element("p", said), shown_note, element("div", *drawn, class_="gallery")]


def _without(twins: dict[str, Any]) -> str:
    if not twins["count_without"]:
        return "No picture is left without them."
    share = _with_interval(twins["accuracy_without"], twins["accuracy_without_interval"])
    return f"Accuracy without them: {share} on {plural(twins['count_without'], 'picture')} left."


def _twin(one: tuple[Row, Array], other: tuple[Row, Array], pair: dict[str, Any]) -> Html:
    (row, picture), (twin, twin_picture) = one, other
    alike = "identical bytes" if pair["identical"] else f"similarity {pair['similarity']:.4f}"
    contradiction = [] if row.label == twin.label else [", ", element("span", "different labels", class_="wrong")]
    names = (element("span", f"{of.split}: {of.class_name}, {of.filename}", class_="file") for of in (row, twin))
    return _figure([picture, twin_picture], join([alike, *contradiction, *names]))


def _receipt(content: _Content) -> Iterable[object]:
    said = "What was evaluated, and that it was all of it: the ids that came out are the ids of the catalogue."
    return [element("p", said), element("pre", Html(_escaped_lines(json.dumps(content.receipt, indent=1, ensure_ascii=False))))]


def _escaped_lines(lines: str) -> str:
    return "\n".join(join([line]) for line in lines.split("\n"))


def _some(num_shown: int, num_all: int) -> str:
    return f"All {num_all:,}" if num_shown == num_all else f"{num_shown:,} of {num_all:,}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2%}"


def _interval(interval: Sequence[float] | None) -> str:
    return _NONE if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}"


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    return f"{_percent(value)} (95 %: {_interval(interval)})"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"
