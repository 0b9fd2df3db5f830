"""Do two classifiers differ? McNemar's test, on the same images.

    comparison = compare("eval-a/", "eval-b/")
    comparison.difference, comparison.difference_interval, comparison.p_value

Two accuracies on one test set are not independent: the classifiers differ in the images that only
one of them classifies correctly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.files import read_json
from tfpipe.common.text import exactly, html_table
from tfpipe.evaluation.clusters import Groups, agresti_min
from tfpipe.evaluation.numbers import measures
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.evaluation.receipts import some
from tfpipe.models.predictions import METRICS_NAME, RECEIPT_NAME, Predictions, fields, read
from tfpipe.records.manifest import ORDINAL, REGRESSION

_log = logging.getLogger("tfpipe")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """Two classifiers on the same images: how many both, one or neither classify correctly.

    Attributes:
        both_right: correct by both.
        only_a: correct by A alone.
        only_b: correct by B alone.
        both_wrong: correct by neither.
        p_value: of McNemar's exact test: probability that two equally good classifiers differ as
            much, or more, by chance.
        same_data: both were evaluated on the same data set and split, by their receipts; None where
            one has none.
        num_groups: of the images; None in a data set without groups. Else `p_value` and
            `difference_interval` are by group, see `tfpipe.evaluation.clusters`.
        group_interval: 95 % interval of the difference by group.
        distances: of classes in an order, the mean distances of A and B from the right class, in
            classes; else None.
        distance_interval: 95 % interval of their difference, see `numbers.measures`.
        tta: views that A and B average, ("none", "flip") for example, where these differ; else None.
    """

    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    p_value: float
    same_data: bool | None = None
    num_groups: int | None = None
    group_interval: tuple[float, float] | None = None
    tta: tuple[str, str] | None = None
    distances: tuple[float, float] | None = None
    distance_interval: tuple[float, float] | None = None

    def __repr__(self) -> str:
        low, high = self.difference_interval
        facts = f"count={self.count}, accuracy_a={self.accuracy_a:.4f}, accuracy_b={self.accuracy_b:.4f}"
        difference = f"difference={self.difference:+.4f}, 95 % [{low:+.4f}, {high:+.4f}]"
        groups = "" if self.num_groups is None else f", num_groups={self.num_groups}"
        return f"Comparison({facts}, {difference}, p_value={self.p_value:.3g}, same_data={self.same_data}{groups})"

    def _repr_html_(self) -> str:
        rows = [["A right", self.both_right, self.only_a], ["A wrong", self.only_b, self.both_wrong]]
        return html_table(repr(self), ["images", "B right", "B wrong"], rows)

    @property
    def count(self) -> int:
        """Number of images."""
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def accuracy_a(self) -> float:
        """Share that A classifies correctly."""
        return (self.both_right + self.only_a) / self.count

    @property
    def accuracy_b(self) -> float:
        """Share that B classifies correctly."""
        return (self.both_right + self.only_b) / self.count

    @property
    def difference(self) -> float:
        """Accuracy of A less that of B."""
        return (self.only_a - self.only_b) / self.count

    @property
    def difference_interval(self) -> tuple[float, float]:
        """95 % interval: by group where there are groups, or that of Agresti and Min 2005."""
        return self.group_interval or agresti_min(self.only_a, self.only_b, self.count)


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Compares two evaluations, folders or predictions.csv files, of the same images in any order.

    Ids and labels must be equal, images need not be: other sizes of them may be what is compared.
    Folders of other data sets or splits cause a warning, and `same_data` is False. So does another
    averaging of views, which `tta` describes: it may be what is compared.

    Raises:
        FileNotFoundError: there is no table, or its evaluation did not finish.
        DataError: a table is damaged, empty or unlabelled, or the two are of different images or
            labels; then `problems` has an error for each file.
    """
    from scipy.stats import binomtest

    a, b = arguments.path("a", a), arguments.path("b", b)
    tables = read(a), read(b)
    for path, table in zip((a, b), tables, strict=True):
        if table.targets is not None:
            if table.task == REGRESSION:
                message = "of numbers, which McNemar's test of accuracy cannot compare; metrics.json has intervals"
                raise DataError(message, path=path)
            message = "of several labels an image, which McNemar's test of accuracy cannot compare; metrics.json has intervals"
            raise DataError(message, path=path)
        if not len(table.labels) or (table.labels < 0).any():
            raise DataError("a table without images, or with unlabelled ones, cannot be compared", path=path)
    rows = _align(*tables, a, b)
    right_a, right_b = (table.predicted == table.labels for table in tables)
    right_b = right_b[rows]
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    both_right, both_wrong = int((right_a & right_b).sum()), int((~right_a & ~right_b).sum())
    counts, same, other = (both_right, only_a, only_b, both_wrong), _same_data(a, b), _other_tta(a, b)
    names = _groups(*tables, a, b)
    far = _distances(*tables, rows, names, a, b)
    if names is not None:
        groups, apart = Groups(names), (right_a & ~right_b, right_b & ~right_a)
        by_group = groups.count, groups.difference_interval(*apart)
        return Comparison(*counts, groups.p_value(*apart), same, *by_group, tta=other, **far)
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Comparison(*counts, p_value, same, tta=other, **far)


def _distances(
    a: Predictions, b: Predictions, rows: Array, groups: Sequence[str] | None, path_a: Path, path_b: Path
) -> dict[str, Any]:
    """Returns the fields about distances, where an evaluation is of classes in an order."""
    measured = [path / METRICS_NAME for path in (path_a, path_b) if (path / METRICS_NAME).exists()]
    order = next((found["order"] for found in map(read_json, measured) if found.get("task") == ORDINAL), None)
    if order is None or {*a.class_names} != {*order} or {*b.class_names} != {*order}:
        return {}
    far_a, far_b = in_order.distances(a, order), in_order.distances(b, order)[rows]
    found = measures.measure(far_b, far_a, a.keys, groups, ("mean_difference",))
    return {
        "distances": (float(far_a.mean()), float(far_b.mean())),
        "distance_interval": tuple(found["mean_difference_interval"]),
    }


def _groups(a: Predictions, b: Predictions, path_a: Path, path_b: Path) -> Sequence[str] | None:
    """Returns the groups of A's images; tables of older evaluations have none."""
    if a.groups is None or b.groups is None:
        if (table := a if a.groups is not None else b).groups is None:
            return None
        of_key = dict(zip(table.keys, table.groups, strict=True))
        return [of_key[key] for key in a.keys]
    of_key = dict(zip(b.keys, b.groups, strict=True))
    other = [(key, group, of_key[key]) for key, group in zip(a.keys, a.groups, strict=True) if of_key[key] != group]
    if other:
        problems = [
            DataError(", ".join(f"{row[0]!r} is of group {row[place]!r}" for row in other[:3]), path=path)
            for path, place in ((path_a, 1), (path_b, 2))
        ]
        images = exactly(len(other), "image is of another group", "images are of other groups")
        raise DataError(f"{images} in one table than in the other: {'; '.join(map(str, problems))}", problems=problems)
    return a.groups


def _same_data(a: Path, b: Path) -> bool | None:
    if not (a.is_dir() and b.is_dir()):
        return None
    data_a, data_b = (fields(path / RECEIPT_NAME, "data_root_hash", "split") for path in (a, b))
    if data_a != data_b:
        described = [f"{path}: data set {root[:12]}, split {split!r}" for path, (root, split) in ((a, data_a), (b, data_b))]
        _log.warning("not the same data set or split: %s; %s", *described)
    return data_a == data_b


def _other_tta(a: Path, b: Path) -> tuple[str, str] | None:
    if not (a.is_dir() and b.is_dir()):
        return None
    found = [read_json(path / RECEIPT_NAME).get("options", {}).get("tta") for path in (a, b)]
    if found[0] == found[1]:
        return None
    first, second = (_views(facts) for facts in found)
    _log.warning("not the same test-time augmentation: %s: %s; %s: %s", a, first, b, second)
    return first, second


def _views(facts: Any) -> str:
    strengths = [f"{name} {value:.3g}" for name, value in ((facts or {}).get("augmentation") or {}).items() if value]
    return facts["name"] + (f" of {', '.join(strengths)}" if strengths else "") if facts else "none"


def _align(a: Predictions, b: Predictions, path_a: Path, path_b: Path) -> Array:
    """Returns the row of B of each image of A, int64 [N]."""
    rows = {key: row for row, key in enumerate(b.keys)}
    known = set(a.keys)
    only_a, only_b = [key for key in a.keys if key not in rows], [key for key in b.keys if key not in known]
    if only_a or only_b:
        problems = [
            DataError(f"{exactly(len(only), 'id')} only here: {some(only)}", path=path)
            for path, only in ((path_a, only_a), (path_b, only_b))
            if only
        ]
        raise DataError(f"not the same images: {'; '.join(map(str, problems))}", problems=problems)
    order = np.array([rows[key] for key in a.keys])
    names_a, names_b = (np.array(table.class_names, object)[labels] for table, labels in ((a, a.labels), (b, b.labels[order])))
    if len(other := np.flatnonzero(names_a != names_b)):
        problems = [
            DataError(", ".join(f"{a.keys[row]!r} is {names[row]!r}" for row in other[:3]), path=path)
            for path, names in ((path_a, names_a), (path_b, names_b))
        ]
        images = exactly(len(other), "image has another label", "images have other labels")
        raise DataError(f"{images} in one table than in the other: {'; '.join(map(str, problems))}", problems=problems)
    return order
