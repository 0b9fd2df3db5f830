"""What `predict` writes: rows of a CSV or lines of JSON, one per image, and the list of images that have no value.

    form = choose_form("csv", "probability", ["cat", "dog"], positive_class="dog")
    form.header()                 # id,label
    form.row(image, answer)     # 17,0.998712003

Rows are bytes, UTF-8, and end with a line feed; cells are quoted where they must be. Numbers have
nine significant digits, which name a float32 uniquely. Names that a spreadsheet would compute are
escaped, see `escape_formula`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from tfpipe.common import arguments
from tfpipe.common.errors import RejectedImage
from tfpipe.common.files import written_atomically
from tfpipe.common.tables import escape_formula
from tfpipe.listing.selection import Image
from tfpipe.models import predictions

Columns = Literal["full", "label", "index", "probability", "table"]
COLUMNS: tuple[str, ...] = get_args(Columns)
Format = Literal["csv", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)
TOP_K = 5

COMPETITION = ("label", "index", "probability")  # those that have a column of values to name, and no file names

Array = np.ndarray[Any, Any]
Answer = Array | RejectedImage


class Form(Protocol):
    """How rows look. `reports` says whether a row has room for the reason why there is no value in it."""

    reports: bool

    def header(self) -> bytes:
        """Returns what comes before the rows."""

    def row(self, image: Image, answer: Answer) -> bytes:
        """Returns the line of an image, whose answer is probabilities, float32 [C], or why there are none."""


def choose_form(
    file_format: str,
    columns: str,
    class_names: Sequence[str],
    top_k: int | None = None,
    positive_class: str | None = None,
    id_column: str = "id",
    value_column: str = "label",
    csv_safe: bool = True,
) -> Form:
    """Returns the form of the rows; arguments as in `tfpipe.prediction.prediction.predict`.

    Raises:
        ValueError: one of them is none of those there are, or has no place in this form.
    """
    check_options(file_format, columns)
    if positive_class is not None and (columns != "probability" or positive_class not in class_names):
        known = f"one of {', '.join(class_names)}, with columns=probability"
        raise ValueError(f"positive_class must be {known} (got {positive_class!r} with columns={columns})")
    if value_column != "label" and columns not in COMPETITION:
        raise ValueError(f"value_column={value_column!r} is for columns={'|'.join(COMPETITION)} (got columns={columns})")
    if top_k is not None and columns != "full":
        raise ValueError(f"top_k must be given with columns=full only (got {top_k!r} with columns={columns})")
    top_k = min(top_k or TOP_K, len(class_names))
    if file_format == "jsonl":
        return _JsonLines(class_names, top_k, id_column)
    if columns == "table":
        return _EvaluationTable(class_names)
    if columns == "full":
        return _FullTable(class_names, top_k, id_column, csv_safe)
    return _CompetitionTable(columns, class_names, positive_class, id_column, value_column, csv_safe)


def check_options(file_format: str, columns: str) -> None:
    """Raises ValueError unless there are such a format and such columns, and they go together."""
    arguments.choice("columns", columns, COLUMNS)
    arguments.choice("format", file_format, FORMATS)
    if file_format == "jsonl" and columns != "full":
        raise ValueError(
            f"columns={columns} is for CSV: lines of JSON have one form (format=csv, or another output than .jsonl)"
        )


def _different(columns: list[str]) -> list[str]:
    if len(set(columns)) < len(columns):
        raise ValueError(f"two columns have the same name: {', '.join(columns)}; id_column and value_column rename them")
    return columns


class _FullTable:
    """Id, filename, reason, the best classes with their scores, and every probability."""

    reports = True

    def __init__(self, class_names: Sequence[str], top_k: int, id_column: str, csv_safe: bool) -> None:
        self._class_names, self._top_k, self._cell = class_names, top_k, _escaping(csv_safe)
        top = [f"{name}_{place}" for place in range(1, top_k + 1) for name in ("class", "score")]
        self._columns = _different(
            [id_column, "filename", "reason", *top, *(predictions.PREFIX + name for name in class_names)]
        )

    def header(self) -> bytes:
        return _line(map(self._cell, self._columns))

    def row(self, image: Image, answer: Answer) -> bytes:
        names = [self._cell(image.id), self._cell(image.filename)]
        if isinstance(answer, RejectedImage):
            return _line([*names, answer.summary] + [""] * (len(self._columns) - 3))
        values = _texts(answer)
        top = [cell for best in best_of(answer, self._top_k) for cell in (self._cell(self._class_names[best]), values[best])]
        # Numbers need no quotes: joined, a thousand take less time than through the csv module.
        return _line([*names, "", *top]).removesuffix(b"\n") + f",{','.join(values)}\n".encode()


class _CompetitionTable:
    """Id and one value, or id and the probability of each class."""

    reports = False

    def __init__(
        self,
        columns: str,
        class_names: Sequence[str],
        positive_class: str | None,
        id_column: str,
        value_column: str,
        csv_safe: bool,
    ) -> None:
        self._kind, self._class_names, self._cell = columns, list(class_names), _escaping(csv_safe)
        if positive_class is None and len(class_names) == 2:
            positive_class = class_names[1]
        chosen = [] if positive_class is None else [self._class_names.index(positive_class)]
        self._chosen = chosen or range(len(class_names))
        several = columns == "probability" and not chosen
        self._columns = _different([id_column, *(self._class_names if several else [value_column])])

    def header(self) -> bytes:
        return _line(map(self._cell, self._columns))

    def row(self, image: Image, answer: Answer) -> bytes:
        name = self._cell(image.id)
        if isinstance(answer, RejectedImage):
            return _line([name] + [""] * (len(self._columns) - 1))
        return _line([name, *self._values(answer)])

    def _values(self, probabilities: Array) -> list[str]:
        if self._kind == "probability":
            return _texts(probabilities[list(self._chosen)])
        best = int(probabilities.argmax())
        return [str(best) if self._kind == "index" else self._cell(self._class_names[best])]


class _EvaluationTable:
    """The columns of evaluation's predictions.csv."""

    reports = False

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names

    def header(self) -> bytes:
        return predictions.header(self._class_names)

    def row(self, image: Image, answer: Answer) -> bytes:
        if isinstance(answer, RejectedImage):
            return _line([*map(escape_formula, (image.key, image.filename)), "", ""] + [""] * len(self._class_names))
        names, unlabelled = ([image.key], [image.filename]), np.array([-1])
        return predictions.rows(predictions.Predictions(*names, unlabelled, answer[np.newaxis], self._class_names))


class _JsonLines:
    """An object for each image."""

    reports = True

    def __init__(self, class_names: Sequence[str], top_k: int, id_column: str) -> None:
        if id_column != "id":
            raise ValueError(f"id_column={id_column!r} is for CSV: lines of JSON say id")
        self._class_names, self._top_k = class_names, top_k

    def header(self) -> bytes:
        return b""

    def row(self, image: Image, answer: Answer) -> bytes:
        content: dict[str, Any] = {"id": image.id, "filename": image.filename, "class": None, "score": None}
        content |= {"top": [], "probabilities": None, "reason": None}
        if isinstance(answer, RejectedImage):
            content["reason"] = {"code": answer.reason, "message": answer.message}
        else:
            values = dict(zip(self._class_names, map(float, _texts(answer)), strict=True))
            names = [self._class_names[best] for best in best_of(answer, self._top_k)]
            content |= {"class": names[0], "score": values[names[0]], "probabilities": values}
            content["top"] = [{"class": name, "score": values[name]} for name in names]
        return _json_line(content)


def best_of(probabilities: Array, count: int) -> list[int]:
    """Returns the indices of the largest probabilities, the largest first; of equal ones the first."""
    order: list[int] = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return order


def _texts(values: Array) -> list[str]:
    return ("%.9g " * len(values) % tuple(values.tolist())).split()  # in half the time that one by one takes


def _escaping(csv_safe: bool) -> Callable[[str], str]:
    return escape_formula if csv_safe else str


def _line(values: Iterable[str]) -> bytes:
    return predictions.lines([values])


def _json_line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def rejected_path(output: Path) -> Path:
    """Returns where bad images are listed: "a.rejected.jsonl" for "a.csv", and for "a.jsonl" where that is not beside it."""
    name = output.name.removesuffix(".csv")
    if output.suffix == ".jsonl" and not output.with_suffix(".csv").exists():
        name = output.stem
    return output.with_name(f"{name}.rejected.jsonl")


def write_rejected(output: Path, rejected: Iterable[tuple[Image, RejectedImage]]) -> Path | None:
    """Writes the list of bad images beside the output and returns its path; without any, removes that of an output before."""
    path, lines = rejected_path(output), list(rejected)
    if not lines:
        path.unlink(missing_ok=True)
        return None
    with written_atomically(path) as file:
        for image, problem in lines:
            line = {"id": image.id, "key": image.key, "reason": problem.reason, "message": problem.message}
            file.write(_json_line(line))
    return path
