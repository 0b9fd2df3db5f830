"""The demo page's answers as HTML, with images and the CSV; templates escape every name."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfpipe.common.tables import escape_formula
from tfpipe.models.classifiers import Predictor, task_of, thresholds_of
from tfpipe.page.answers import Answer, FileResult
from tfpipe.prediction.tables import Labels, best_of
from tfpipe.records.manifest import MULTILABEL, ORDINAL
from tfpipe.report import figures
from tfpipe.report.templates import render

_MAX_BARS = 10
_MAX_ROWS = 1000
_TOP = 3
_SIDE = 640  # pixels of images on the page

Array = np.ndarray[Any, Any]


def header(title: str, predictor: Predictor, notes: Sequence[str]) -> str:
    """Returns the head of the page: the model, what to do, and notes on what cannot be shown."""
    return render("page_header.html", title=title, model=predictor, notes=notes)


def answer(name: str, found: Answer, predictor: Predictor, gallery_name: str) -> str:
    """Returns the prediction for one image; `gallery_name`: "train, 1,080 images"."""
    order = best_of(found.probabilities, len(found.probabilities))
    height, width = found.seen.shape[:2]
    inputs = [(figures.png(found.seen), f"the image, resized to {height} x {width}, 8 bits a channel")]
    if found.prepared is not None:
        shown, caption = visible(found.prepared)
        inputs.append((figures.png(shown), caption))
    return render(
        "page_answer.html",
        name=name,
        image=figures.photograph(found.image, _SIDE),
        heat=None if found.heat is None else figures.photograph(found.heat, _SIDE),
        has_heatmap=found.has_heatmap,
        best=predictor.class_names[order[0]],
        explained="a higher class" if task_of(predictor) == ORDINAL else predictor.class_names[order[0]],
        labels=None if (labels := labels_of(predictor)) is None else labels.names(found.probabilities),
        bars=[(predictor.class_names[place], float(found.probabilities[place])) for place in order[:_MAX_BARS]],
        num_others=len(order[_MAX_BARS:]),
        other_share=float(found.probabilities[order[_MAX_BARS:]].sum()),
        neighbours=found.neighbours,
        gallery_name=gallery_name,
        inputs=inputs,
    )


def labels_of(predictor: Predictor) -> Labels | None:
    """Returns which labels the page names, of a model of several labels an image."""
    return None if task_of(predictor) != MULTILABEL else Labels(predictor.class_names, thresholds_of(predictor))


def visible(prepared: Array) -> tuple[Array, str]:
    """Returns a preprocessed input, float32 [H, W, 1 or 3], as uint8 [H, W, 3], and a caption."""
    low, high = float(prepared.min()), float(prepared.max())
    levels = np.rint((prepared - low) / ((high - low) or 1) * 255).astype(np.uint8)
    channels = "as grey" if prepared.shape[-1] == 1 else "the channels, in the network's order, as red, green and blue"
    caption = f"after preprocessing: {low:.4g} to {high:.4g}, drawn from dark to bright, {channels}"
    return np.broadcast_to(levels, (*levels.shape[:2], 3)), caption


def rejection(name: str, reason: str) -> str:
    """Returns why a file has no prediction."""
    return render("page_rejection.html", name=name, reason=reason)


def table(rows: Sequence[FileResult], class_names: Sequence[str], labels: Labels | None = None) -> str:
    """Returns a line per file, and a link to the same as CSV."""
    shown = [
        {
            "name": row.name,
            "problem": row.problem,
            "image": row.thumbnail,
            "labels": None if labels is None or row.probabilities is None else labels.names(row.probabilities),
            "scores": [] if row.probabilities is None else _top(row.probabilities, class_names),
        }
        for row in rows[:_MAX_ROWS]
    ]
    num_bad = sum(1 for row in rows if row.probabilities is None)
    uri = figures.data_uri(to_csv(rows, class_names, labels), "text/csv;charset=utf-8")
    return render("page_table.html", count=len(rows), num_bad=num_bad, csv=uri, rows=shown)


def to_csv(rows: Sequence[FileResult], class_names: Sequence[str], labels: Labels | None = None) -> bytes:
    """Returns the rows as a CSV for spreadsheets: UTF-8 with a byte order mark, every cell quoted.

    A text that a spreadsheet would compute ("=1+1.jpg", "-3", "@x") has an apostrophe before it,
    its sign for text. Scores have 9 significant digits, which give the same float32.
    """
    ranks = range(min(_TOP, len(class_names)))
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)  # quoted: some programs split at ";"
    names = [f"{word}{f' {rank + 1}' if rank else ''}" for rank in ranks for word in ("class", "score")]
    writer.writerow(["file", *(["labels"] if labels else []), *names, "problem"])
    for row in rows:
        best = [] if row.probabilities is None else _top(row.probabilities, class_names)
        answers = [cell for name, share in best for cell in (escape_formula(name), f"{share:.9g}")] or [""] * len(names)
        if labels:
            answers.insert(0, "" if row.probabilities is None else escape_formula(labels.text(row.probabilities)))
        writer.writerow([escape_formula(row.name), *answers, escape_formula(row.problem)])
    return file.getvalue().encode("utf-8-sig", "replace")


def _top(probabilities: Array, class_names: Sequence[str]) -> list[tuple[str, float]]:
    return [(class_names[place], float(probabilities[place])) for place in best_of(probabilities, _TOP)]
