"""`tfpipe.evaluate_folds()`: each image once, by the one model that has never seen it.

    evaluation = evaluate_folds("runs/cv", "shards/", "eval/")
    evaluation.metrics["folds"]["accuracy"]     # {"mean": ..., "deviation": ..., "interval": [...], "values": [...]}

The files are those of `tfpipe.evaluate`. predictions.csv has one more column, fold, and receipt.json
names for each fold the model that predicted it, by its hash, and the splits that this was made of.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.locking import locked
from tfpipe.common.text import hash_names
from tfpipe.evaluation import html_report, metrics, suspects
from tfpipe.evaluation.calibration import SMALLEST_PROBABILITY
from tfpipe.evaluation.clusters import NUM_DRAWS, expanded_tail
from tfpipe.evaluation.evaluator import Evaluation, Pass, clear
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.evaluation.numbers.values import SHOWN
from tfpipe.models import classifiers, predictions
from tfpipe.models.classifiers import Classifier
from tfpipe.models.predictions import Predictions
from tfpipe.records import catalog, folds, manifest, run_folders
from tfpipe.records.folds import Fold
from tfpipe.records.manifest import JOINED, REGRESSION

_METRICS = ("accuracy", "balanced_accuracy", "auc", "log_loss", "ece")
_METRICS_OF_SEVERAL = ("label_accuracy", "macro_auc", "macro_average_precision", "macro_f1", "micro_f1", "log_loss")
_AT_ONCE = 1 << 22  # draws in memory


@dataclass(frozen=True)
class _Member:
    """The model of a fold: what it had seen, and the model itself while it is needed."""

    fold: Fold
    folder: Path
    sha256: str

    def load(self, trust: bool) -> Classifier:
        """Returns the classifier; raises DataError if it is another than before."""
        found = classifiers.load(self.folder, trust=trust)
        if found.sha256 != self.sha256:
            raise DataError("not the model that summary.json names: it was replaced", path=self.folder)
        return found


def evaluate_folds(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    positive_class: str | None = None,
    specificity: float = 0.95,
    report: bool = True,
    progress: bool = True,
    trust: bool = False,
    on_found: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Evaluates the models of `train_folds` out of fold: each image of the folds once.

    An image is predicted by the model of its own fold, which was neither trained on that fold nor
    chosen by it; before the pass, each run's own account of its splits is compared with that.

    metrics["folds"] has the names of the folds, their counts of images, and per metric the value of
    each fold, their mean and their standard deviation (n - 1), and for accuracy and log loss a 95 %
    interval of the mean: by bootstrap, of images, or groups of them, drawn anew within each fold;
    where a fold has a single group, or nothing varies within folds, that of the whole table's
    accuracy, and none of the log loss. It holds the chance of which images were collected, and not
    that of the training: the models share most of their images (Bengio, Grandvalet: No Unbiased
    Estimator of the Variance of K-Fold Cross-Validation, JMLR 5, 2004). All other metrics are of
    the whole table.

    Args:
        model: the folder of `train_folds`, all runs finished.
        data: folder of the data set that they were trained on.
        output: see `tfpipe.evaluate`, as for all that follow.
        batch_size: images that go through a model at once.
        positive_class: see `metrics.measure`.
        specificity: see `metrics.measure`.
        report: write report.html, too.
        progress: show a bar for each fold.
        trust: the models' author, see `tfpipe.load`.
        on_found: called with the result when it is on disk, before the report is written.

    Raises:
        ValueError: an argument is invalid; `data` is another data set than that of the runs, or one
            of them was trained on its own fold.
        FileNotFoundError: it is not the folder of `train_folds`, or a run is not finished.
        OSError, DataError: as `tfpipe.evaluate`.
    """
    (batch_size,) = arguments.check(batch_size=batch_size)
    specificity, progress, trust, report = arguments.check(
        specificity=specificity, progress=progress, trust=trust, report=report
    )
    if on_found is not None:
        arguments.callback("on_found", on_found)
    place, data, folder = arguments.path("model", model), arguments.path("data", data), arguments.path("output", output)
    metrics.check_options(manifest.load(data).class_names, positive_class, specificity)
    members = _members(place, data)
    first = members[0].load(trust)
    # What the models have in common, for the receipt and the report; each predicts its own fold.
    common = {name: getattr(first, name) for name in ("class_names", "image_size", "resize", "samples", "task", "units")}
    together: Any = SimpleNamespace(sha256=hash_names(one.sha256 for one in members), **common)
    options = {"calibrate": None, "positive_class": positive_class, "specificity": specificity}
    split = JOINED.join(one.fold.held_out for one in members)
    run = _Folds(together, data, split, folder, batch_size, progress, options, members=members, trust=trust)
    claim = run.begin()
    claim["folds"] = [_account(one, data) for one in members]
    with locked(folder, "evaluation"):
        clear(folder)
        evaluation = run.finish(run.chunks(split, [(0, 1)]), claim, [classifiers.computation_of(first)])
        if on_found is not None:
            on_found(evaluation)
        if report:
            html_report.write_report(folder, together, data, split, near_duplicates=False, progress=progress)
        elif together.task in (manifest.SINGLE, manifest.ORDINAL):
            suspects.write(folder, suspects.find(predictions.read(folder), data, split))
    return evaluation


def _members(place: Path, data: str | os.PathLike[str]) -> list[_Member]:
    """Returns the models by fold, after a check that none has seen its own."""
    if not folds.is_folder(place):
        raise FileNotFoundError(f"{place}: no {folds.FILE_NAME} in this folder: not one of train_folds (train --folds)")
    root_hash, planned = folds.load(place)
    account, members = manifest.load(data), []
    if account.root_hash != root_hash:
        raise ValueError(f"{data}: not the data set whose folds {place} was trained on")
    for fold, file in zip(planned, folds.find_models(place), strict=True):
        folder, seen = file.parent, run_folders.seen_by(file)
        if seen is None or seen.root_hash != root_hash:
            raise ValueError(f"{folder}: not a run on this data set")
        used = {*account.parts(seen.train), *account.parts(seen.val)}
        if fold.held_out in used or (seen.train, seen.val) != (fold.train, fold.val):
            raise ValueError(f"{folder}: was made of {' and '.join(sorted(used))}, not of {fold.train} and {fold.val} alone")
        members.append(_Member(fold, folder, run_folders.trained_sha256(folder)))
    # The names in the table are in the order of the catalog, whatever the folds' own.
    order = list(account.splits)
    return sorted(members, key=lambda one: order.index(one.fold.held_out))


def _account(member: _Member, data: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what the receipt states of a fold: its model, what that was made of, and the ids."""
    keys = [row.key for row in catalog.read_checked(data, split=member.fold.held_out)]
    return {**member.fold._asdict(), "model_sha256": member.sha256, "records": len(keys), "ids_sha256": hash_names(keys)}


@dataclass(frozen=True, kw_only=True)
class _Folds(Pass):
    """The pass over all folds, each with its own model."""

    members: Sequence[_Member]
    trust: bool

    def chunks(self, split: str, shards: Sequence[tuple[int, int]], *given: Any) -> Iterator[bytes]:  # noqa: ARG002
        """Yields the table of all folds, in the catalog's order."""
        for number, member in enumerate(self.members):
            own = member.load(self.trust), self.directory, member.fold.held_out, self.folder
            pieces = _OneFold(*own, self.batch_size, self.progress, self.options).chunks(member.fold.held_out, shards)
            header = next(pieces)
            if not number:
                yield header
            yield from pieces

    def _measure(self, table: Predictions) -> dict[str, Any]:
        for member in self.members:
            keys = [row.key for row in catalog.read_checked(self.directory, split=member.fold.held_out)]
            if table.by_fold()[member.fold.held_out].keys != keys:
                raise DataError(f"not the images of {member.fold.held_out!r}", path=self.folder)
        of_folds = {name: super(_Folds, self)._measure(part) for name, part in table.by_fold().items()}
        return {**super()._measure(table), "folds": _spread(table, of_folds)}


class _OneFold(Pass):
    """The pass over one fold."""

    def extras(self, account: manifest.Manifest) -> tuple[str, ...]:
        """Returns the fields of `Predictions` that are columns at the end."""
        return (*super().extras(account), "folds")

    def _predict(self, *given: Any) -> Predictions:
        found = super()._predict(*given)
        return dataclasses.replace(found, folds=[self.split] * len(found.keys))


def _spread(table: Predictions, of_folds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns values by fold, mean, deviation and, of means over images, an interval, by metric."""
    intervals: dict[str, list[float] | None] = {}
    counts = [measured["count"] for measured in of_folds.values()]
    if table.task == REGRESSION:
        of_folds = {name: _by_target(measured) for name, measured in of_folds.items()}
    if table.targets is None:
        own = np.maximum(table.probabilities[np.arange(len(table.labels)), table.labels], SMALLEST_PROBABILITY)
        right = table.predicted == table.labels
        intervals["accuracy"] = bootstrap(right, table) or metrics.share_interval(table, right)
        intervals["log_loss"] = bootstrap(-np.log(own.astype(np.float64)), table)
    found: dict[str, Any] = {"names": list(of_folds), "counts": counts}
    names = (*_METRICS, *in_order.NAMES) if table.targets is None else _METRICS_OF_SEVERAL
    if table.task == REGRESSION:
        names = tuple(next(iter(of_folds.values())))
    for metric in (name for name in names if all(name in measured for measured in of_folds.values())):
        values = [measured[metric] for measured in of_folds.values()]
        defined = [value for value in values if value is not None]
        found[metric] = {
            "values": values,
            "mean": statistics.fmean(defined) if defined else None,
            "deviation": statistics.stdev(defined) if len(defined) > 1 else None,
            "interval": intervals.get(metric),
        }
    return found


def _by_target(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{text} of {row['name']}": row[metric] for row in measured["per_target"] for metric, text in SHOWN.items()}


def bootstrap(values: np.ndarray[Any, Any], table: Predictions) -> list[float] | None:
    """Returns the 95 % interval of the mean over folds of the mean of their values, [N].

    Images, or groups of them where there are any, are drawn anew within each fold (Efron,
    Tibshirani: An Introduction to the Bootstrap, 1993, chapter 8); percentiles are widened for few of
    them as in `clusters`. Draws are those of one seed: equal tables have equal intervals.

    None where draws tell nothing: a fold has a single group, or the groups of no fold differ.
    """
    random, of_fold = np.random.default_rng(0), np.array(table.folds)
    drawn_by = np.array(table.keys if table.groups is None else table.groups)
    means, names, num_units, varies = np.zeros(NUM_DRAWS), np.unique(of_fold), 0, False
    for name in names:
        _, units = np.unique(drawn_by[of_fold == name], return_inverse=True)  # by name, whatever the order of the rows
        sums, counts = np.bincount(units, values[of_fold == name]), np.bincount(units)
        if len(counts) < 2:
            return None
        num_units, varies = num_units + len(counts), varies or bool((sums * counts[0] != sums[0] * counts).any())
        step = max(1, _AT_ONCE // len(counts))
        for first in range(0, NUM_DRAWS, step):
            picks = random.integers(len(counts), size=(min(step, NUM_DRAWS - first), len(counts)))
            means[first : first + step] += sums[picks].sum(axis=1) / counts[picks].sum(axis=1) / len(names)
    tail = expanded_tail(num_units, num_units - len(names))
    return [float(value) for value in np.quantile(means, (tail, 1 - tail))] if varies else None
