"""The table of predictions, from which every metric comes.

    table = read("eval/predictions.csv")
    table.probabilities[table.labels == 0]

`predictions.csv` has a row per image: key, filename, label, predicted (names of classes; an
unlabelled image's label is empty), then probability_<class> for each class in the model's order,
with nine significant digits, which identify a float32; then group, where the data set has groups,
and fold in out-of-fold predictions, whose model has not seen the image. Names that a spreadsheet
would compute ("=1+1.jpg") are escaped in the file, see `tfpipe.common.tables.escape_formula`.

Of several labels an image, the third column is called labels: "cat|?dog" has a cat, and whether it
has a dog is unknown. Predicted are the classes at their thresholds or above.

Of a regression, the columns are key, filename, target_<name> for each target, empty where it is not
known, and value_<name>, as predicted.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
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
from tfpipe.records import combinations
from tfpipe.records.manifest import MULTILABEL, REGRESSION, SINGLE

FILE_NAME = "predictions.csv"
RECEIPT_NAME = "receipt.json"
METRICS_NAME = "metrics.json"

_COLUMNS = ("key", "filename", "label", "predicted")
_COLUMNS_OF_SEVERAL = ("key", "filename", "labels", "predicted")
PREFIX = "probability_"
TARGET_PREFIX, VALUE_PREFIX = "target_", "value_"  # of a regression
EXTRAS = {"groups": "group", "folds": "fold"}  # fields that are columns at the end, where there are any
_SUM_TOLERANCE = 1e-3  # a softmax in float32 over 10,000 classes is off by 1e-5
DEFAULT_THRESHOLD = 0.5  # of several labels an image
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
        targets: of several labels an image, int8 [N, C]: 1, 0 or -1 (unknown); of a regression,
            float32 [N, D], NaN where they are not known; else None. Labels are then 0, and -1 where
            nothing is known. The probabilities of a regression are its values, and the class names
            those of its targets.
        thresholds: of several labels an image, float [C], at which a class is predicted; None: 0.5.
        groups: of each image; None in a data set without groups.
        folds: of out-of-fold predictions, the fold of each image; else None.
    """

    keys: Sequence[str]
    filenames: Sequence[str]
    labels: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]
    class_names: Sequence[str]
    targets: np.ndarray[Any, Any] | None = None
    thresholds: np.ndarray[Any, Any] | None = None
    groups: Sequence[str] | None = None
    folds: Sequence[str] | None = None

    @property
    def task(self) -> str:
        """One class an image, "single", any number of labels, "multilabel", or numbers, "regression"."""
        if self.targets is None:
            return SINGLE
        return MULTILABEL if self.targets.dtype == np.int8 else REGRESSION

    @property
    def extras(self) -> tuple[str, ...]:
        """The fields that are columns after the probabilities."""
        return tuple(name for name in EXTRAS if getattr(self, name) is not None)

    @property
    def predicted(self) -> np.ndarray[Any, Any]:
        """int64 [N], the index of the largest probability; the first of equal ones."""
        predicted: np.ndarray[Any, Any] = self.probabilities.argmax(axis=1)
        return predicted

    def blocks(self) -> Iterator[slice]:
        """Yields slices of rows, to limit the memory of computations on whole rows."""
        for start in range(0, len(self.keys), _BLOCK_ROWS):
            yield slice(start, start + _BLOCK_ROWS)

    def select(self, rows: slice | np.ndarray[Any, Any]) -> Predictions:
        """Returns some rows, by their numbers, int64 [M]."""
        chosen: dict[str, Any] = {"labels": self.labels[rows], "probabilities": self.probabilities[rows]}
        chosen |= {} if self.targets is None else {"targets": self.targets[rows]}
        for name in ("keys", "filenames", *self.extras):
            values = getattr(self, name)
            chosen[name] = values[rows] if isinstance(rows, slice) else [values[row] for row in rows.tolist()]
        return dataclasses.replace(self, **chosen)

    def by_fold(self) -> dict[str, Predictions]:
        """Returns the rows of each fold, in the order of the folds."""
        names = np.array(self.folds)
        return {str(name): self.select(np.flatnonzero(names == name)) for name in dict.fromkeys(self.folds or ())}


def of_several_labels(
    keys: Sequence[str],
    filenames: Sequence[str],
    targets: np.ndarray[Any, Any],
    probabilities: np.ndarray[Any, Any],
    class_names: Sequence[str],
    thresholds: np.ndarray[Any, Any] | None = None,
) -> Predictions:
    """Returns the table of several labels an image."""
    labels = np.where((targets >= 0).any(axis=1), 0, -1)
    return Predictions(keys, filenames, labels, probabilities, class_names, targets, thresholds)


def of_numbers(
    keys: Sequence[str],
    filenames: Sequence[str],
    targets: np.ndarray[Any, Any],
    values: np.ndarray[Any, Any],
    names: Sequence[str],
) -> Predictions:
    """Returns the table of a regression, from targets and values, float32 [N, D]."""
    labels = np.where(np.isfinite(targets).all(axis=1), 0, -1)
    return Predictions(keys, filenames, labels, values, names, np.asarray(targets, np.float32))


def present(probabilities: np.ndarray[Any, Any], thresholds: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Returns which classes are predicted, bool [N, C], where an image may have several."""
    at = np.float32(DEFAULT_THRESHOLD) if thresholds is None else np.asarray(thresholds, np.float32)
    found: np.ndarray[Any, Any] = np.asarray(probabilities, np.float32) >= at
    return found


def are_probabilities(values: np.ndarray[Any, Any], tolerance: float = TOLERANCE, task: str = SINGLE) -> np.ndarray[Any, Any]:
    """Returns which rows of outputs, float [B, C], are probabilities, bool [B]; NaN never is.

    Of several labels an image, they need not add up to 1; of a regression, they are finite.

    All outputs pass this check. `tfpipe.formats.signatures` has it inside the graph.
    """
    if task == REGRESSION:
        finite: np.ndarray[Any, Any] = np.isfinite(values).all(axis=1)
        return finite
    with np.errstate(invalid="ignore"):  # infinity less infinity
        sums = (abs(values.sum(axis=1) - 1) <= tolerance) | (task == MULTILABEL)
        good: np.ndarray[Any, Any] = sums & (values >= -tolerance).all(axis=1) & (values <= 1 + tolerance).all(axis=1)
    return good


def check(values: np.ndarray[Any, Any], names: Sequence[str], model: Any = None, task: str | None = None) -> None:
    """Raises DataError unless a model's outputs, float [B, C], are probabilities.

    Args:
        values: the outputs.
        names: of the images, for the message.
        model: a `Predictor`, for the message.
        task: what it predicts; default: as the model tells.
    """
    task = getattr(model, "task", SINGLE) if task is None else task
    broken = np.flatnonzero(~are_probabilities(values, task=task)).tolist()
    if broken:
        whose = "the model's" if model is None else f"model {model.sha256[:12]}: its"
        shown = ", ".join(repr(names[row]) for row in broken[:_MAX_NAMED])
        more = f" and {len(broken) - _MAX_NAMED:,} more" if len(broken) > _MAX_NAMED else ""
        first = ", ".join(f"{value:g}" for value in values[broken[0], :_MAX_NAMED])
        what = (
            "values of {} are not finite"
            if task == REGRESSION
            else f"probabilities of {{}} are not numbers in 0..1{_sum_of(task)}"
        )
        raise DataError(f"{whose} {what.format(shown + more)}: {first}")


def _sum_of(task: str) -> str:
    return "" if task == MULTILABEL else " with the sum 1"


def header(class_names: Sequence[str], task: str = SINGLE, extras: Iterable[str] = ()) -> bytes:
    """Returns the first line of a table; `extras` as those of `Predictions`."""
    first = {REGRESSION: _COLUMNS[:2], MULTILABEL: _COLUMNS_OF_SEVERAL}.get(task, _COLUMNS)
    prefixes = (TARGET_PREFIX, VALUE_PREFIX) if task == REGRESSION else (PREFIX,)
    named = [f"{prefix}{name}" for prefix in prefixes for name in class_names]
    return lines([[*first, *named, *(EXTRAS[name] for name in extras)]])


def rows(table: Predictions) -> bytes:
    """Returns the lines of a table, or of a part of one.

    Raises:
        DataError: some values are not probabilities, see `check`.
    """
    values = np.asarray(table.probabilities, np.float32)
    check(values, table.keys, task=table.task)
    if table.task == REGRESSION:
        return _rows_of_numbers(table, values)
    if table.targets is None:
        names = [*table.class_names, ""]  # -1 takes the last
        labels, predicted = ([names[index] for index in indices] for indices in (table.labels, values.argmax(axis=1)))
    else:
        found = present(values, table.thresholds).astype(int)
        labels, predicted = (
            [combinations.text_of_values(row, table.class_names) for row in rows.tolist()] for rows in (table.targets, found)
        )
    texts = ([f"{value:.9g}" for value in row] for row in values.tolist())
    extras = [map(escape_formula, getattr(table, name)) for name in table.extras]
    ends = zip(*extras, strict=True) if extras else itertools.repeat(())
    columns = zip(table.keys, table.filenames, labels, predicted, texts, strict=True)
    return lines([*map(escape_formula, names), *row, *end] for (*names, row), end in zip(columns, ends, strict=False))


def _rows_of_numbers(table: Predictions, values: np.ndarray[Any, Any]) -> bytes:
    both = np.hstack([np.asarray(table.targets, np.float32), values]).tolist()
    texts = [["" if math.isnan(value) else f"{value:.9g}" for value in row] for row in both]
    names = (map(escape_formula, names) for names in zip(table.keys, table.filenames, strict=True))
    ends = zip(*(map(escape_formula, getattr(table, name)) for name in table.extras), strict=True)
    return lines(
        [*name, *row, *end]
        for name, row, end in zip(names, texts, ends if table.extras else itertools.repeat(()), strict=False)
    )


def chunks(table: Predictions) -> Iterator[bytes]:
    """Yields the whole file of a table, piece by piece."""
    yield header(table.class_names, table.task, table.extras)
    for part in table.blocks():
        yield rows(table.select(part))


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
            columns = next(lines, [])
            extras = [next(name for name, column in EXTRAS.items() if column == found) for found in _extra_columns(columns)]
            columns = columns[: len(columns) - len(extras)] if extras else columns
            if columns[2:3] and columns[2].startswith(TARGET_PREFIX):
                return _parse_numbers(columns, lines, extras)
            class_names = _class_names(columns)
            return _parse(class_names, lines, MULTILABEL if columns[2:3] == ["labels"] else SINGLE, extras)
        except (ValueError, csv.Error) as error:
            raise DataError(f"line {lines.line_num} is not one of a table of predictions: {error}", path=path) from None


def _class_names(columns: list[str]) -> list[str]:
    first, others = tuple(columns[: len(_COLUMNS)]), columns[len(_COLUMNS) :]
    if first not in (_COLUMNS, _COLUMNS_OF_SEVERAL) or not others or not all(name.startswith(PREFIX) for name in others):
        raise ValueError(f"the columns must be {','.join(_COLUMNS)}, then {PREFIX}<class> for each class")
    if len(set(others)) < len(others):
        raise ValueError("two columns are of the same class")
    return [name.removeprefix(PREFIX) for name in others]


def _extra_columns(columns: list[str]) -> list[str]:
    return [name for name in columns[len(_COLUMNS) :] if name in EXTRAS.values()]


def _parse(class_names: list[str], lines: Iterable[list[str]], task: str, extras: Sequence[str]) -> Predictions:
    num_columns = len(_COLUMNS) + len(class_names) + len(extras)
    targets = array("b")
    indices = {"": -1, **{name: index for index, name in enumerate(class_names)}}
    keys: dict[str, None] = {}  # a set that keeps their order
    filenames, labels, values = [], array("q"), array("f")
    found: list[list[str]] = [[] for _ in extras]
    for line in lines:
        if len(line) != num_columns:
            raise ValueError(f"{exactly(len(line), 'field')}, expected {num_columns}")
        key, filename, label, predicted = map(unescape_formula, line[: len(_COLUMNS)])
        if key in keys:
            raise ValueError(f"{key!r} is there twice")
        if task == MULTILABEL:
            targets.extend(_values_of(label, class_names))
            _values_of(predicted, class_names)
            label = ""
        if label not in indices:
            raise ValueError(f"no class is called {label!r}")
        row = [float(text) for text in line[len(_COLUMNS) : num_columns - len(extras)]]
        _check_row(row, predicted if task != MULTILABEL else None, class_names)
        keys[key] = None
        filenames.append(filename)
        for column, text in zip(found, line[num_columns - len(extras) :], strict=True):
            column.append(unescape_formula(text))
        labels.append(indices[label])
        values.extend(row)
    probabilities = np.frombuffer(values, np.float32).reshape(len(keys), len(class_names))  # no copy: 10,000 classes are large
    more: dict[str, Any] = dict(zip(extras, found, strict=True))
    if task == MULTILABEL:
        values_of_labels = np.frombuffer(targets, np.int8).reshape(probabilities.shape)
        table = of_several_labels(list(keys), filenames, values_of_labels, probabilities, class_names)
        return dataclasses.replace(table, **more)
    return Predictions(list(keys), filenames, np.array(labels, np.int64), probabilities, class_names, **more)


def _parse_numbers(columns: list[str], lines: Iterable[list[str]], extras: Sequence[str]) -> Predictions:
    names = [name.removeprefix(TARGET_PREFIX) for name in columns[2 : 2 + (len(columns) - 2) // 2]]
    if [*_COLUMNS[:2], *(f"{prefix}{name}" for prefix in (TARGET_PREFIX, VALUE_PREFIX) for name in names)] != columns:
        raise ValueError(f"the columns must be key,filename, {TARGET_PREFIX}<name> for each target, and {VALUE_PREFIX}<name>")
    found: dict[str, tuple[str, list[float], list[str]]] = {}
    for line in lines:
        if len(line) != len(columns) + len(extras):
            raise ValueError(f"{exactly(len(line), 'field')}, expected {len(columns) + len(extras)}")
        key, filename, *more = map(unescape_formula, (*line[:2], *line[len(columns) :]))
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        numbers = [float(text) if text else math.nan for text in line[2 : len(columns)]]
        if not all(map(math.isfinite, numbers[len(names) :])):
            raise ValueError("its values are not finite")
        found[key] = filename, numbers, more
    both = np.array([numbers for _, numbers, _ in found.values()], np.float32).reshape(len(found), 2 * len(names))
    table = of_numbers(list(found), [name for name, *_ in found.values()], both[:, : len(names)], both[:, len(names) :], names)
    kept: dict[str, Any] = {name: [more[place] for *_, more in found.values()] for place, name in enumerate(extras)}
    return dataclasses.replace(table, **kept)


def _values_of(text: str, class_names: list[str]) -> list[int]:
    if unknown := {name for part in combinations.names_of(text) for name in part} - set(class_names):
        raise ValueError(f"no class is called {min(unknown)!r}")
    return combinations.values_of(text, class_names)


def _check_row(row: list[float], predicted: str | None, class_names: list[str]) -> None:
    """Checks probabilities and, of one class an image, that the largest is predicted."""
    is_whole = predicted is None or abs(sum(row) - 1) <= _SUM_TOLERANCE
    if not all(0 <= value <= 1 for value in row) or not is_whole:
        raise ValueError(f"its probabilities are not in 0..1{_sum_of(MULTILABEL if predicted is None else SINGLE)}")
    if predicted is not None and predicted != (largest := class_names[row.index(max(row))]):
        raise ValueError(f"{predicted!r} is predicted, the largest probability is that of {largest!r}")
