"""The table of predictions, from which every metric comes.

    table = read("eval/predictions.csv")
    table.probabilities[table.labels == 0]

`predictions.csv` has a row per image: key, filename, label, predicted (names of classes; an
unlabelled image's label is empty), then probability_<class> for each class in the model's order,
with nine significant digits, which identify a float32; out-of-fold predictions end with the fold,
whose model has not seen the image. Names that a spreadsheet would compute
("=1+1.jpg") are escaped in the file, see `tfpipe.common.tables.escape_formula`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.files import open_regular, read_json, sha256_of
from tfpipe.common.tables import escape_formula, unescape_formula
from tfpipe.common.text import exactly, hash_names

FILE_NAME = "predictions.csv"
RECEIPT_NAME = "receipt.json"
METRICS_NAME = "metrics.json"

_COLUMNS = ("key", "filename", "label", "predicted")
_FOLD = "fold"
PREFIX = "probability_"
_SUM_TOLERANCE = 1e-3  # a softmax in float32 over 10,000 classes is off by 1e-5
TOLERANCE = 1e-2  # of outputs: a model that ends in 16 bits is off by a few thousandths
_MAX_NAMED = 5  # images, or numbers, in a message
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions for every image of a split, in the order of the catalog.

    Attributes:
        keys: of each image.
        filenames: of each image.
        labels: int64 [N], index in class_names, -1 for unlabelled images.
        probabilities: float32 [N, C], bit-equal to the model's.
        class_names: name of each column, in the model's order.
        folds: of out-of-fold predictions, the fold of each image; else None.
    """

    keys: Sequence[str]
    filenames: Sequence[str]
    labels: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]
    class_names: Sequence[str]
    folds: Sequence[str] | None = None

    @property
    def predicted(self) -> np.ndarray[Any, Any]:
        """int64 [N], the index of the largest probability; the first of equal ones."""
        predicted: np.ndarray[Any, Any] = self.probabilities.argmax(axis=1)
        return predicted

    def blocks(self) -> Iterator[slice]:
        """Yields slices of rows, to limit the memory of computations on whole rows."""
        for start in range(0, len(self.keys), _BLOCK_ROWS):
            yield slice(start, start + _BLOCK_ROWS)

    def by_fold(self) -> dict[str, Predictions]:
        """Returns the rows of each fold, in the order of the folds."""
        names = np.array(self.folds)
        return {str(name): self.select(np.flatnonzero(names == name)) for name in dict.fromkeys(self.folds or ())}

    def select(self, rows: np.ndarray[Any, Any]) -> Predictions:
        """Returns some rows, int64 [M]."""
        chosen: dict[str, Any] = {"labels": self.labels[rows], "probabilities": self.probabilities[rows]}
        for name in ("keys", "filenames", "folds"):
            values = getattr(self, name)
            chosen[name] = values and [values[row] for row in rows.tolist()]
        return dataclasses.replace(self, **chosen)


def are_probabilities(values: np.ndarray[Any, Any], tolerance: float = TOLERANCE) -> np.ndarray[Any, Any]:
    """Returns which rows of outputs, float [B, C], are probabilities, bool [B]; NaN never is.

    All outputs pass this check. `tfpipe.formats.signatures` has it inside the graph.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity
        sums = abs(values.sum(axis=1) - 1) <= tolerance
        good: np.ndarray[Any, Any] = sums & (values >= -tolerance).all(axis=1) & (values <= 1 + tolerance).all(axis=1)
    return good


def check(values: np.ndarray[Any, Any], names: Sequence[str], model: Any = None) -> None:
    """Raises DataError unless a model's outputs, float [B, C], are probabilities.

    Args:
        values: the outputs.
        names: of the images, for the message.
        model: a `Predictor`, for the message.
    """
    broken = np.flatnonzero(~are_probabilities(values)).tolist()
    if broken:
        whose = "the model's" if model is None else f"model {model.sha256[:12]}: its"
        shown = ", ".join(repr(names[row]) for row in broken[:_MAX_NAMED])
        more = f" and {len(broken) - _MAX_NAMED:,} more" if len(broken) > _MAX_NAMED else ""
        first = ", ".join(f"{value:g}" for value in values[broken[0], :_MAX_NAMED])
        raise DataError(f"{whose} probabilities of {shown}{more} are not numbers in 0..1 with the sum 1: {first}")


def header(class_names: Sequence[str]) -> bytes:
    """Returns the file's first line."""
    return lines([[*_COLUMNS, *(f"{PREFIX}{name}" for name in class_names)]])


def with_folds(line: bytes) -> bytes:
    """Returns the first line of a table whose rows end with a fold."""
    return line.removesuffix(b"\n") + f",{_FOLD}\n".encode()


def rows(table: Predictions) -> bytes:
    """Returns the lines of a table, or of a part of one.

    Raises:
        DataError: some values are not probabilities, see `check`.
    """
    values = np.asarray(table.probabilities, np.float32)
    check(values, table.keys)
    names = [*table.class_names, ""]  # -1 takes the last
    labels, predicted = ([names[index] for index in indices] for indices in (table.labels, values.argmax(axis=1)))
    ends = [[]] * len(values) if table.folds is None else [[fold] for fold in table.folds]
    texts = ([*(f"{value:.9g}" for value in row), *end] for row, end in zip(values.tolist(), ends, strict=True))
    return lines(
        [*map(escape_formula, names), *row]
        for *names, row in zip(table.keys, table.filenames, labels, predicted, texts, strict=True)
    )


def chunks(table: Predictions) -> Iterator[bytes]:
    """Yields the whole file of a table, piece by piece."""
    yield header(table.class_names)
    for part in table.blocks():
        columns = {name: getattr(table, name)[part] for name in ("keys", "filenames", "labels", "probabilities")}
        yield rows(dataclasses.replace(table, **columns))


class _Lines(list[bytes]):
    """A file for csv.writer, which quotes only line breaks of its own line end (Python 3.11)."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n").encode() + b"\n")


def lines(records: Iterable[Iterable[str]]) -> bytes:
    """Returns rows as CSV, UTF-8, each ending with a line feed."""
    found = _Lines()
    csv.writer(found, lineterminator="\r\n").writerows(records)
    return b"".join(found)


def read(path: str | os.PathLike[str]) -> Predictions:
    """Reads the table of an evaluation: its folder, or a predictions.csv alone.

    A folder's table is compared with receipt.json and metrics.json beside it.

    Raises:
        FileNotFoundError: there is none, or its evaluation did not finish.
        DataError: the file is damaged, with the line; or receipt or metrics are of another table.
    """
    file = Path(path)
    if not file.is_dir():
        return _read_file(file)
    receipt_path = check_finished(file)
    seen, ids, names = fields(receipt_path, "records_seen", "ids_sha256", "class_names_sha256")
    table = _read_file(file / FILE_NAME)
    if hash_names(table.keys) != ids:
        raise DataError(
            f"{exactly(len(table.keys), 'row')} with other ids than the {seen} of {RECEIPT_NAME}", path=file / FILE_NAME
        )
    if hash_names(table.class_names) != names:
        raise DataError(f"other classes, or in another order, than those of {RECEIPT_NAME}", path=file / FILE_NAME)
    if (file / METRICS_NAME).exists() and [sha256_of(file / FILE_NAME)] != fields(file / METRICS_NAME, "predictions_sha256"):
        raise DataError(f"not the table that {METRICS_NAME} was made from: evaluate anew", path=file / FILE_NAME)
    return table


def check_finished(folder: str | os.PathLike[str]) -> Path:
    """Returns the receipt of an evaluation's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(folder) / RECEIPT_NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no {RECEIPT_NAME} in this folder: not an evaluation, or one that did not finish")
    return path


def fields(path: Path, *names: str) -> list[Any]:
    """Returns values of receipt.json or metrics.json.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged.
    """
    try:
        content = read_json(path)
        return [content[name] for name in names]
    except (KeyError, TypeError, DataError) as error:
        raise DataError(f"not a {path.name} as tfpipe writes it ({lines_of(error)[0]})", path=path) from None


def _read_file(path: Path) -> Predictions:
    with open_regular(path) as binary, io.TextIOWrapper(binary, "utf-8", newline="") as file:
        if size := binary.seek(0, os.SEEK_END):
            binary.seek(size - 1)
            if binary.read(1) != b"\n":
                raise DataError("its last line has no end: the file is truncated", path=path)
        binary.seek(0)
        lines = csv.reader(file, strict=True)
        try:
            folds: list[str] = []
            columns = next(lines, [])
            if columns[-1:] != [_FOLD]:
                return _parse(_class_names(columns), lines)
            return dataclasses.replace(_parse(_class_names(columns[:-1]), _without_folds(lines, folds)), folds=folds)
        except (ValueError, csv.Error) as error:
            raise DataError(f"line {lines.line_num} is not one of a table of predictions: {error}", path=path) from None


def _class_names(columns: list[str]) -> list[str]:
    first, others = tuple(columns[: len(_COLUMNS)]), columns[len(_COLUMNS) :]
    if first != _COLUMNS or not others or not all(name.startswith(PREFIX) for name in others):
        raise ValueError(f"the columns must be {','.join(_COLUMNS)}, then {PREFIX}<class> for each class")
    if len(set(others)) < len(others):
        raise ValueError("two columns are of the same class")
    return [name.removeprefix(PREFIX) for name in others]


def _without_folds(lines: Iterable[list[str]], folds: list[str]) -> Iterator[list[str]]:
    """Yields lines without their last field, which goes to `folds`."""
    for line in lines:
        folds += line[-1:]
        yield line[:-1]


def _parse(class_names: list[str], lines: Iterable[list[str]]) -> Predictions:
    indices = {"": -1, **{name: index for index, name in enumerate(class_names)}}
    keys: dict[str, None] = {}  # a set that keeps their order
    filenames, labels, values = [], array("q"), array("f")
    for line in lines:
        if len(line) != len(_COLUMNS) + len(class_names):
            raise ValueError(f"{exactly(len(line), 'field')}, expected {len(_COLUMNS) + len(class_names)}")
        key, filename, label, predicted = map(unescape_formula, line[: len(_COLUMNS)])
        if key in keys:
            raise ValueError(f"{key!r} is there twice")
        if label not in indices:
            raise ValueError(f"no class is called {label!r}")
        row = [float(text) for text in line[len(_COLUMNS) :]]
        _check_row(row, predicted, class_names)
        keys[key] = None
        filenames.append(filename)
        labels.append(indices[label])
        values.extend(row)
    probabilities = np.frombuffer(values, np.float32).reshape(len(keys), len(class_names))  # no copy: 10,000 classes are large
    return Predictions(list(keys), filenames, np.array(labels, np.int64), probabilities, class_names)


def _check_row(row: list[float], predicted: str, class_names: list[str]) -> None:
    if not all(0 <= value <= 1 for value in row) or abs(sum(row) - 1) > _SUM_TOLERANCE:
        raise ValueError("its probabilities are not in 0..1 with the sum 1")
    if predicted != (largest := class_names[row.index(max(row))]):
        raise ValueError(f"{predicted!r} is predicted, the largest probability is that of {largest!r}")
