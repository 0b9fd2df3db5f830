"""Output of `predict`: CSV rows or JSON lines, one per image, and the list of bad images.

    form = choose_form("csv", "probability", ["cat", "dog"], positive_class="dog")
    form.header                 # id,label
    form.row(image, outcome)    # 17,0.998712003

Rows are UTF-8 and end with a line feed. Probabilities have nine significant digits, which identify
a float32. `check_prediction` finds wrong arguments without loading TensorFlow, which takes seconds.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tfpipe.common import arguments
from tfpipe.common.errors import RejectedImage
from tfpipe.common.files import written_atomically
from tfpipe.common.tables import escape_formula
from tfpipe.formats.preflight import find_model
from tfpipe.formats.specifications import FILE_NAME
from tfpipe.listing import selection
from tfpipe.listing.selection import Image
from tfpipe.models import predictions
from tfpipe.records import combinations, manifest
from tfpipe.records.manifest import MULTILABEL, REGRESSION, SINGLE

Columns = Literal["full", "label", "index", "probability", "value", "table"]
COLUMNS: tuple[str, ...] = get_args(Columns)
Format = Literal["csv", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)
TOP_K = 5

COMPETITION = ("label", "index", "probability", "value")  # those with a named column of values and no file names

Array = np.ndarray[Any, Any]
Outcome = Array | RejectedImage


@dataclass(frozen=True)
class Form:
    """Layout of the output.

    Attributes:
        header: bytes before the rows.
        row: makes the line of an image from its probabilities, float32 [C], or its rejection.
        has_reasons: whether the row of a rejected image holds the reason.
    """

    header: bytes
    row: Callable[[Image, Outcome], bytes]
    has_reasons: bool = False
    names_all: bool = False  # of a regression, whose targets all have a value
    labels: Labels | None = None

    def named(self, probabilities: Array) -> list[int]:
        """Returns the indices of the classes that are predicted, or of all targets."""
        if self.names_all:
            return list(range(len(probabilities)))
        if self.labels is None:
            return [int(probabilities.argmax())]
        return np.flatnonzero(predictions.present(probabilities, self.labels.thresholds)).tolist()


def choose_form(
    file_format: str,
    columns: str,
    class_names: Sequence[str],
    top_k: int | None = None,
    positive_class: str | None = None,
    id_column: str = "id",
    value_column: str = "label",
    csv_safe: bool = True,
    task: str = SINGLE,
    thresholds: Array | None = None,
    units: Sequence[str] | None = None,
) -> Form:
    """Returns the layout for the arguments of `tfpipe.predict`.

    Of a model of several labels, with its thresholds; of a regression, with its units.

    Raises:
        ValueError: unknown values, or arguments that exclude each other.
    """
    check_options(file_format, columns)
    if task == REGRESSION:
        given = units or [""] * len(class_names)
        return _of_numbers(file_format, columns, class_names, given, id_column, value_column, csv_safe)
    if columns == "value":
        raise ValueError("columns=value is of a regression; of classes, take label or probability")
    if positive_class is not None and (columns != "probability" or positive_class not in class_names):
        known = f"one of {', '.join(class_names)}, with columns=probability"
        raise ValueError(f"positive_class must be {known} (got {positive_class!r} with columns={columns})")
    if value_column != "label" and columns not in COMPETITION:
        raise ValueError(f"value_column={value_column!r} is for columns={'|'.join(COMPETITION)} (got columns={columns})")
    if top_k is not None and columns != "full":
        raise ValueError(f"top_k must be given with columns=full only (got {top_k!r} with columns={columns})")
    if task == MULTILABEL and columns == "index":
        raise ValueError("columns=index is of one class an image; of several labels, take label or probability")
    labels = None if task != MULTILABEL else Labels(class_names, thresholds)
    names = (id_column, value_column, positive_class)
    form = _layout(file_format, columns, class_names, min(top_k or TOP_K, len(class_names)), *names, csv_safe, labels)
    return dataclasses.replace(form, labels=labels)


def _of_numbers(
    file_format: str,
    columns: str,
    names: Sequence[str],
    units: Sequence[str],
    id_column: str,
    value_column: str,
    csv_safe: bool,
) -> Form:
    """Returns the layout of a regression, of which every target has a column."""
    if columns not in ("full", "value", "table"):
        raise ValueError(f"columns={columns} is of classes; of a regression, take full, value or table")
    cell = escape_formula if csv_safe else str
    if file_format == "jsonl":
        form = Form(b"", lambda image, outcome: _json_line(_numbers_of(image, outcome, names)), has_reasons=True)
    elif columns == "value":
        own = [value_column] if len(names) == 1 and value_column != "label" else list(names)
        form = _competition_table([id_column, *own], _texts, cell)
    elif columns == "table":
        form = Form(predictions.header(names, REGRESSION), lambda image, outcome: _number_row(image, outcome, names))
    else:
        with_units = [f"{name} [{unit}]" if unit else name for name, unit in zip(names, units, strict=True)]

        def row(image: Image, outcome: Outcome) -> bytes:
            rest = [outcome.summary, *[""] * len(names)] if isinstance(outcome, RejectedImage) else ["", *_texts(outcome)]
            return _line([cell(image.id), cell(image.filename), *rest])

        form = Form(_header([id_column, "filename", "reason", *with_units], cell), row, has_reasons=True)
    return dataclasses.replace(form, names_all=True)


def _number_row(image: Image, outcome: Outcome, names: Sequence[str]) -> bytes:
    """Returns a row of evaluation's predictions.csv, without targets."""
    if isinstance(outcome, RejectedImage):
        return _line([*map(escape_formula, (image.key, image.filename)), *[""] * 2 * len(names)])
    unknown = np.full((1, len(names)), np.nan, np.float32)
    return predictions.rows(predictions.of_numbers([image.key], [image.filename], unknown, outcome[np.newaxis], names))


def _numbers_of(image: Image, outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {"id": image.id, "filename": image.filename, "values": None, "reason": None}
    if isinstance(outcome, RejectedImage):
        return {**content, "reason": {"code": outcome.reason, "message": outcome.message}}
    return {**content, "values": dict(zip(names, map(float, _texts(outcome)), strict=True))}


def _layout(
    file_format: str,
    columns: str,
    class_names: Sequence[str],
    top_k: int,
    id_column: str,
    value_column: str,
    positive_class: str | None,
    csv_safe: bool,
    labels: Labels | None,
) -> Form:
    cell = escape_formula if csv_safe else str
    if file_format == "jsonl":
        if id_column != "id":
            raise ValueError(f"id_column={id_column!r} is for CSV: JSON lines have id")
        return _json_lines(class_names, top_k, labels)
    if columns == "table":
        return _evaluation_table(class_names, labels)
    if columns == "full":
        return _full_table(class_names, top_k, id_column, cell, labels)
    if columns == "probability" and positive_class is None and (len(class_names) != 2 or labels):
        return _competition_table([id_column, *class_names], _texts, cell)
    if columns == "probability":
        column = list(class_names).index(positive_class or class_names[-1])
        return _competition_table([id_column, value_column], lambda values: _texts(values[[column]]), cell)
    if labels is not None:
        return _competition_table([id_column, value_column], lambda values: [cell(labels.text(values))], cell)
    texts = [str(index) if columns == "index" else cell(name) for index, name in enumerate(class_names)]
    return _competition_table([id_column, value_column], lambda values: [texts[values.argmax()]], cell)


def check_options(file_format: str, columns: str) -> None:
    """Raises ValueError for an unknown format or columns, or a pair that does not exist."""
    arguments.choice("columns", columns, COLUMNS)
    arguments.choice("format", file_format, FORMATS)
    if file_format == "jsonl" and columns != "full":
        raise ValueError(f"columns={columns} is for CSV: JSON lines have one form (format=csv, or another output than .jsonl)")


@dataclass(frozen=True)
class Labels:
    """Which labels of an image are named, where it may have several."""

    class_names: Sequence[str]
    thresholds: Array | None

    def names(self, probabilities: Array) -> list[str]:
        """Returns the names of the classes at their thresholds or above, in the model's order."""
        found = predictions.present(probabilities, self.thresholds)
        return [name for name, is_there in zip(self.class_names, found.tolist(), strict=True) if is_there]

    def text(self, probabilities: Array) -> str:
        """Returns the names as one text, "cat|dog"."""
        return combinations.text_of(self.names(probabilities))


def _full_table(
    class_names: Sequence[str], top_k: int, id_column: str, cell: Callable[[str], str], labels: Labels | None
) -> Form:
    top_columns = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("class", "score")]
    named = [] if labels is None else ["labels"]
    columns = [id_column, "filename", "reason", *named, *top_columns, *(predictions.PREFIX + name for name in class_names)]

    def row(image: Image, outcome: Outcome) -> bytes:
        names = [cell(image.id), cell(image.filename)]
        if isinstance(outcome, RejectedImage):
            return _line([*names, outcome.summary] + [""] * (len(columns) - 3))
        values = _texts(outcome)
        top = [text for index in best_of(outcome, top_k) for text in (cell(class_names[index]), values[index])]
        top = top if labels is None else [cell(labels.text(outcome)), *top]
        # Numbers need no quotes: joined, a thousand take less time than through the csv module.
        return _line([*names, "", *top]).removesuffix(b"\n") + f",{','.join(values)}\n".encode()

    return Form(_header(columns, cell), row, has_reasons=True)


def _competition_table(columns: list[str], values: Callable[[Array], list[str]], cell: Callable[[str], str]) -> Form:
    def row(image: Image, outcome: Outcome) -> bytes:
        rest = [""] * (len(columns) - 1) if isinstance(outcome, RejectedImage) else values(outcome)
        return _line([cell(image.id), *rest])

    return Form(_header(columns, cell), row)


def _evaluation_table(class_names: Sequence[str], labels: Labels | None) -> Form:
    """Returns the columns of evaluation's predictions.csv."""

    def row(image: Image, outcome: Outcome) -> bytes:
        if isinstance(outcome, RejectedImage):
            return _line([*map(escape_formula, (image.key, image.filename)), "", ""] + [""] * len(class_names))
        names, unlabelled = ([image.key], [image.filename]), np.array([-1])
        if labels is not None:
            unknown = np.full((1, len(class_names)), -1, np.int8)
            table = predictions.of_several_labels(*names, unknown, outcome[np.newaxis], class_names, labels.thresholds)
            return predictions.rows(table)
        return predictions.rows(predictions.Predictions(*names, unlabelled, outcome[np.newaxis], class_names))

    return Form(predictions.header(class_names, SINGLE if labels is None else MULTILABEL), row)


def _json_lines(class_names: Sequence[str], top_k: int, labels: Labels | None) -> Form:
    def row(image: Image, outcome: Outcome) -> bytes:
        content: dict[str, Any] = {"id": image.id, "filename": image.filename, "class": None, "score": None}
        content |= {"top": [], "probabilities": None, "reason": None}
        if isinstance(outcome, RejectedImage):
            content["reason"] = {"code": outcome.reason, "message": outcome.message}
        else:
            values = dict(zip(class_names, map(float, _texts(outcome)), strict=True))
            top = [{"class": class_names[index], "score": values[class_names[index]]} for index in best_of(outcome, top_k)]
            content |= {**top[0], "top": top, "probabilities": values}
            if labels is not None:
                content["labels"] = labels.names(outcome)
        return _json_line(content)

    return Form(b"", row, has_reasons=True)


def best_of(probabilities: Array, count: int) -> list[int]:
    """Returns the indices of the largest probabilities in falling order; of equals the first."""
    order: list[int] = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return order


def _texts(values: Array) -> list[str]:
    return ("%.9g " * len(values) % tuple(values.tolist())).split()  # twice as fast as one by one


def _header(columns: list[str], cell: Callable[[str], str]) -> bytes:
    if len(set(columns)) < len(columns):
        raise ValueError(f"two columns have the same name: {', '.join(columns)}; id_column and value_column rename them")
    return _line(map(cell, columns))


def _line(values: Iterable[str]) -> bytes:
    return predictions.lines([values])


def _json_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def rejected_path(output: Path) -> Path:
    """Returns "a.rejected.jsonl" for "a.csv", and for "a.jsonl" unless "a.csv" exists."""
    name = output.name.removesuffix(".csv")
    if output.suffix == ".jsonl" and not output.with_suffix(".csv").exists():
        name = output.stem
    return output.with_name(f"{name}.rejected.jsonl")


def write_rejected(output: Path, rejected: Iterable[tuple[Image, RejectedImage]]) -> Path | None:
    """Writes the list of bad images and returns its path; without any, deletes an old list."""
    path, lines = rejected_path(output), list(rejected)
    if not lines:
        path.unlink(missing_ok=True)
        return None
    with written_atomically(path) as file:
        for image, problem in lines:
            line = {"id": image.id, "key": image.key, "reason": problem.reason, "message": problem.message}
            file.write(_json_line(line))
    return path


def check_prediction(
    model: str | os.PathLike[str],
    inputs: Sequence[str],
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: str = "full",
    format: str | None = None,  # noqa: A002
) -> None:
    """Checks the arguments of a prediction.

    Raises:
        ValueError, FileNotFoundError, DataError, ImportError, OSError: as `tfpipe.predict`.
    """
    path = check_output(Path(output), model)
    check_options(format or format_of(path), columns)
    selection.check_given(inputs, split)
    find_model(model)


def format_of(path: Path) -> str:
    """Returns the format of an extension; raises ValueError for .json, a single object."""
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path}: JSON lines have the extension .jsonl: rename the output, or give format=jsonl or csv")
    return "jsonl" if path.suffix.lower() == ".jsonl" else "csv"


def check_output(path: Path, model: Any) -> Path:
    """Returns the path; raises ValueError or OSError if it must not or cannot be written."""
    if path == Path("-"):
        raise ValueError("-: output must be the name of a file: rows are not written to standard output")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: output must be a file (this is a folder or a device)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write to")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", os.fspath(path))
    for name, owner in ((manifest.FILE_NAME, "data set"), (FILE_NAME, "export")):
        if (path.parent / name).is_file():
            raise ValueError(f"{path}: output must be outside of the {owner}'s folder {path.parent}")
    if isinstance(model, str | os.PathLike):
        real, own = path.resolve(), Path(model).resolve()
        if real == own or (own.is_dir() and real.is_relative_to(own)):
            raise ValueError(f"{path}: output must be another file than the model, and outside of its folder ({model})")
    return path
