"""Images whose label, or whose place in the data set, somebody should look at: `suspects.csv`.

    write(folder, find(table, "shards/", "test"))
    for suspect in read(folder): ...

The surest come first. Images with the bytes of another image that has another label, then near-
duplicates of such: one of the two labels is wrong, whatever the model gives; both images are listed.
Then likely label errors, by how much more probable another class is than the label, and, in the
same order, the other images for which the model gives another class. At last odd images, which are
far from all others in the model's features: perhaps of none of the classes.

A model that was trained on an image gives its label back: use the table of a split that it was not
trained on, or one of out-of-fold predictions.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, written_atomically
from tfpipe.common.tables import escape_formula, unescape_formula
from tfpipe.models.predictions import Predictions
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import CatalogRow, read_checked

FILE_NAME = "suspects.csv"
SAME_BYTES, NEAR_DUPLICATE, LABEL_ERROR, MISTAKE, ODD = REASONS = (
    "same_bytes",
    "near_duplicate",
    "label_error",
    "mistake",
    "odd",
)

Array = np.ndarray[Any, Any]


class Suspect(NamedTuple):
    """One row of suspects.csv.

    Attributes:
        rank: from 1.
        key: of the image, as filename and split.
        label: the name of its class.
        suggested: the class that it may be of; "" for odd images.
        score: by reason: 1; the similarity, 0.9972 to 1; for the next two the probability of the
            suggested class less that of the label, 0 to 1; the distance to other images, 0 to 2.
        reason: one of `REASONS`.
        other: key of the image with the same bytes, or nearly the same pixels, else "".
    """

    rank: int
    key: str
    filename: str
    split: str
    label: str
    suggested: str
    score: float
    reason: str
    other: str = ""


def label_errors(predicted: Predictions) -> tuple[Array, Array, Array]:
    """Returns the rows with a doubtful label, int64 [M], the most doubtful first, and why.

    Confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068): the model claims a
    class where its probability is at least the mean that images labelled with it receive. A label
    is doubtful where the most probable of the claimed classes is another. Ordered by the difference
    of the two probabilities.

    Returns:
        Rows; the claimed class of each, int64 [M]; the differences, float64 [M].
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
    order = np.argsort(-margin, kind="stable")
    return doubtful[order], other[doubtful][order], margin[order]


def find(
    table: Predictions, directory: str | os.PathLike[str], split: str, *, odd: tuple[Array, Array] | None = None
) -> list[Suspect]:
    """Returns the suspects of an evaluation, each image once, for the surest of its reasons.

    Args:
        table: of the split.
        directory: of the data set.
        split: the evaluated one.
        odd: rows of the table and distances, see `outliers.Outliers.odd`.

    Raises:
        FileNotFoundError, DataError: as `catalog.read_checked`.
    """
    return _ranked([*_duplicates(table.keys, directory), *_of_table(table, _splits(directory, split), odd)])


def with_pairs(
    listed: Iterable[Suspect], table: Predictions, directory: str | os.PathLike[str], pairs: Iterable[Mapping[str, Any]]
) -> list[Suspect]:
    """Returns suspects together with near-duplicates, as in near_duplicates.json, that have other labels."""
    return _ranked([*_duplicates(table.keys, directory, pairs), *listed])


def _ranked(suspects: Iterable[Suspect]) -> list[Suspect]:
    found: dict[str, Suspect] = {}
    for suspect in suspects:
        found.setdefault(suspect.key, suspect)
    return [suspect._replace(rank=rank) for rank, suspect in enumerate(found.values(), 1)]


def _splits(directory: str | os.PathLike[str], split: str) -> Callable[[str], str]:
    """Returns the function from key to split, for a split that may be several."""
    parts = manifests.load(directory).parts(split)
    if len(parts) == 1:
        return lambda _: split
    return {row.key: part for part in parts for row in read_checked(directory, split=part)}.__getitem__


def _duplicates(
    keys: Collection[str], directory: str | os.PathLike[str], pairs: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Suspect]:
    manifest, own = manifests.load(directory), set(keys)
    conflicts = [group for group in manifest.conflicts if own.intersection(group)]
    pairs = [pair for pair in pairs if not pair["identical"]]
    wanted = {key for group in conflicts for key in group} | {pair[name] for pair in pairs for name in ("key", "twin")}
    if not wanted:
        return
    rows = {row.key: row for split in manifest.splits for row in read_checked(directory, split=split) if row.key in wanted}
    for group in conflicts:
        for row in (rows[key] for key in group):
            yield from _pair(row, next(rows[key] for key in group if rows[key].label != row.label), 1.0, SAME_BYTES)
    for pair in sorted(pairs, key=lambda pair: (-pair["similarity"], pair["key"])):
        row, other = rows[pair["key"]], rows[pair["twin"]]
        if row.label != other.label:
            yield from _pair(row, other, pair["similarity"], NEAR_DUPLICATE)
            yield from _pair(other, row, pair["similarity"], NEAR_DUPLICATE)


def _pair(row: CatalogRow, other: CatalogRow, score: float, reason: str) -> Iterator[Suspect]:
    yield Suspect(0, row.key, row.filename, row.split, row.class_name, other.class_name, score, reason, other.key)


def _of_table(table: Predictions, split_of: Callable[[str], str], odd: tuple[Array, Array] | None) -> Iterator[Suspect]:
    names = table.class_names

    def suspect(row: int, suggested: str, score: float, reason: str) -> Suspect:
        key, label = table.keys[row], names[table.labels[row]]
        return Suspect(0, key, table.filenames[row], split_of(key), label, suggested, score, reason)

    for row, claimed, margin in zip(*label_errors(table), strict=True):
        yield suspect(row, names[claimed], float(margin), LABEL_ERROR)
    wrong = np.flatnonzero(table.predicted != table.labels)  # those above are among them, and come first
    margins = table.probabilities[wrong].max(axis=1) - table.probabilities[wrong, table.labels[wrong]]
    for place in np.argsort(-margins, kind="stable"):
        yield suspect(wrong[place], names[table.predicted[wrong[place]]], float(margins[place]), MISTAKE)
    for row, distance in zip(*(odd or ((), ())), strict=True):
        yield suspect(row, "", float(distance), ODD)


def write(folder: Path, suspects: Iterable[Suspect]) -> None:
    """Writes suspects.csv, whole or not at all."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(Suspect._fields)
    for suspect in suspects:
        writer.writerow(escape_formula(f"{cell:.6g}" if isinstance(cell, float) else str(cell)) for cell in suspect)
    with written_atomically(folder / FILE_NAME) as file:
        file.write(content.getvalue().encode())


def read(folder: Path) -> list[Suspect]:
    """Returns the rows of suspects.csv.

    Raises:
        FileNotFoundError: there is none.
        DataError: a line is not one that `write` writes.
    """
    path = folder / FILE_NAME
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            if next(lines, None) != list(Suspect._fields):
                raise DataError(f"the first line must be {','.join(Suspect._fields)}", path=path)
            return [msgspec.convert([unescape_formula(cell) for cell in line], Suspect, strict=False) for line in lines]
        except (ValueError, csv.Error, msgspec.ValidationError):
            raise DataError(f"line {lines.line_num} is not a row of {FILE_NAME}", path=path) from None
