"""Regression on cached features: the heads that a run chooses among, in seconds.

    found = search(train, val, ["average", "max", "flatten"])
    found.best.pooling, found.kernel, found.bias

Every pooling is tried with every decay. The pooling of the least log loss on the validation rows
wins, and of it the strongest decay whose loss is within one standard error of that (Breiman et al.
1984): it generalises as well as can be seen, and leaves fine-tuning something to learn. Log loss,
and not accuracy, which in a small split differs by an image or two.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from tfpipe.common.errors import DataError
from tfpipe.common.text import plural
from tfpipe.models.features import Features, JoinedFeatures
from tfpipe.networks.heads import HUBER, Pooling
from tfpipe.networks.links import PACE
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION, SINGLE
from tfpipe.training import linear_regression, proportional_odds

Array = np.ndarray[Any, Any]

# scikit-learn's C, for rows whose root mean square is 1: the loss of one row against half the
# squared norm of the kernel.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
_MOST_BYTES = 1 << 30  # of the rows of a pooling; larger ones are left out
_CHUNK = 256  # feature maps in memory at once
_MAX_ITERATIONS, _TOLERANCE = 300, 1e-5  # where classes overlap, a weak decay would take thousands, for nothing
# Rows of less are fitted by one thread of BLAS: several wait for each other more than they compute
# (864 rows of 864 numbers took 27 times the processor's time, on two busy cores).
_SHARED_BYTES = 64 << 20

KINDS = {  # what a head of a task is fitted by
    SINGLE: "logistic regression",
    MULTILABEL: "logistic regression",
    ORDINAL: "regression by proportional odds",
    REGRESSION: "linear regression",
}

_POOL: dict[Pooling, Callable[[Array], Array]] = {
    "average": lambda maps: maps.mean((1, 2)),
    "max": lambda maps: maps.max((1, 2)),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
}


@dataclass(frozen=True)
class Rows:
    """Labelled feature maps: some positions int64 [N] of one or more views of a split.

    Labels are int64 [N], weights float [N], of classes which may be in an order (task "ordinal"). Of
    several labels an image, they are targets float32 [N, C], which are 1, 0 or -1 (unknown), and the
    weights of positive ones, float [C]; of numbers, targets [N, D] of the mean 0 and the deviation 1.
    """

    views: Sequence[Features | JoinedFeatures]
    positions: Array
    labels: Array
    weights: Array | None = None
    task: str = SINGLE
    loss: str | None = None  # of numbers

    @property
    def count(self) -> int:
        """Rows of all views."""
        return len(self.views) * len(self.positions)

    def repeated(self, values: Array) -> Array:
        """Returns a value of each position for each row."""
        return np.tile(values, (len(self.views), *[1] * (values.ndim - 1)))

    def pooled(self, pooling: Pooling) -> Array:
        """Returns the features as float32 [views * N, D]."""
        firsts = range(0, len(self.positions), _CHUNK)
        chunks = (view.rows(self.positions[first : first + _CHUNK]) for view in self.views for first in firsts)
        return np.concatenate([_POOL[pooling](chunk.astype(np.float32)) for chunk in chunks])


@dataclass(frozen=True)
class Candidate:
    """A head that was tried: its mean loss on the validation rows, the standard error, and the accuracy, of numbers R2."""

    pooling: Pooling
    strength: float
    val_loss: float
    val_error: float
    val_accuracy: float


@dataclass(frozen=True)
class Search:
    """All candidates in order, the best, its kernel float32 [D, C] and bias float32 [C].

    Of classes in an order, the kernel is of one score, [D, 1], and the bias the numbers of the
    thresholds, float32 [C - 1], see `links.FittedLinks`.
    """

    best: Candidate
    candidates: Sequence[Candidate]
    kernel: Array
    bias: Array
    task: str = SINGLE

    def facts(self) -> dict[str, Any]:
        """Returns the best and all candidates as JSON can hold them."""
        return {"best": asdict(self.best), "candidates": [asdict(candidate) for candidate in self.candidates]}

    def __str__(self) -> str:
        best, poolings = self.best, {candidate.pooling for candidate in self.candidates}
        score = "R2" if self.task == REGRESSION else "accuracy"
        return (
            f"{KINDS[self.task]} on {best.pooling} pooling with C={best.strength:g}: validation loss {best.val_loss:.4f},"
            f" {score} {best.val_accuracy:.4f}, the best of {len(self.candidates)} ({plural(len(poolings), 'pooling')} with"
            f" {plural(len(STRENGTHS), 'decay')} each)"
        )


def fitting(rows: Rows, poolings: Sequence[Pooling]) -> list[Pooling]:
    """Returns the first pooling, and others that differ and whose rows fit into memory."""
    height, width, depth = rows.views[0].shape
    if height * width == 1:  # they are all the same
        return list(poolings[:1])
    width_of = {"average": depth, "max": depth, "flatten": height * width * depth}
    return [name for name in poolings if name == poolings[0] or rows.count * width_of[name] * 4 <= _MOST_BYTES]


def search(train: Rows, val: Rows, poolings: Sequence[Pooling], report: Callable[[Candidate], None] | None = None) -> Search:
    """Fits a logistic regression for every pooling and decay; returns the best on validation.

    The same rows give the same head, whatever the seed of the run. `train` has at least one row of
    every class, `val` a single view; `report` is called with each candidate.

    Raises:
        DataError: a feature is not finite.
    """
    candidates: list[Candidate] = []
    best: list[tuple[Candidate, Array, Array]] = []  # the fits of the best pooling so far
    for pooling in poolings:
        val_rows = val.pooled(pooling)
        fits = []
        for strength, kernel, bias in _path_of(train, pooling):
            of_labels, accuracy = _measured(_logits(val_rows, kernel, bias, val), val)
            error = float(of_labels.std() / math.sqrt(len(of_labels)))
            candidates.append(Candidate(pooling, strength, float(of_labels.mean()), error, accuracy))
            fits.append((candidates[-1], kernel, bias))
            if report is not None:
                report(candidates[-1])
        best = min(best or fits, fits, key=_least_loss)
    least = min((candidate for candidate, *_ in best), key=lambda candidate: candidate.val_loss)
    chosen = next(fit for fit in best if fit[0].val_loss <= least.val_loss + least.val_error)
    return Search(chosen[0], candidates, *chosen[1:], train.task)


def _least_loss(fits: Sequence[tuple[Candidate, Array, Array]]) -> float:
    return min(candidate.val_loss for candidate, *_ in fits)


def _logits(rows: Array, kernel: Array, bias: Array, val: Rows) -> Array:
    if val.task == ORDINAL:
        return proportional_odds.log_probabilities((rows @ kernel[:, 0]).astype(np.float64), PACE * bias)
    return (rows @ kernel + bias).astype(np.float64)


def _measured(logits: Array, val: Rows) -> tuple[Array, float]:
    """Returns the loss of each row, float64 [N], and the share of right labels."""
    if val.task == REGRESSION:
        errors = np.square(logits - val.labels).mean(1)  # R2 with the variance of training, as `objectives`
        return linear_regression.losses(logits, val.labels, val.loss or HUBER), float(1 - errors.mean())
    if val.task != MULTILABEL:
        losses = -log_softmax(logits, axis=1)
        return losses[np.arange(len(losses)), val.labels], float((losses.argmin(1) == val.labels).mean())
    known, positive = val.labels >= 0, val.labels > 0
    weights = 1.0 if val.weights is None else val.weights
    losses = np.where(positive, weights * np.logaddexp(0, -logits), np.logaddexp(0, logits)) * known  # as `objectives`
    return losses.mean(axis=1), float(((logits > 0) == positive)[known].mean()) if known.any() else 1.0


def _path_of(train: Rows, pooling: Pooling) -> Iterator[tuple[float, Array, Array]]:
    rows, labels = train.pooled(pooling), train.repeated(train.labels)
    if train.task == REGRESSION:
        return _path_of_numbers(rows, labels, train.loss or HUBER)
    if train.task == MULTILABEL:
        return _path_of_several(rows, labels, train.weights)
    path = _path_in_order if train.task == ORDINAL else _path
    return path(rows, labels, None if train.weights is None else train.repeated(train.weights))


def _path_of_several(rows: Array, targets: Array, weights: Array | None) -> Iterator[tuple[float, Array, Array]]:
    """Does as `_path`, with a regression for each class on the rows where it is known."""
    mean, scale, points, basis = _prepared(rows)
    num_classes = targets.shape[1]
    models = [LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True) for _ in range(num_classes)]
    for strength in STRENGTHS:
        kernel, bias = np.zeros((points.shape[1], num_classes)), np.zeros(num_classes)
        for index, model in enumerate(models):
            known, positive = targets[:, index] >= 0, targets[:, index] > 0
            if positive[known].all() or not positive[known].any():  # nothing to fit: as likely as seen, and a row of each more
                bias[index] = math.log((positive[known].sum() + 1) / ((~positive[known]).sum() + 1))
                continue
            own = None if weights is None else np.where(positive[known], weights[index], 1.0)
            model.set_params(C=strength)
            _fit(model, points[known], positive[known], own)
            kernel[:, index], bias[index] = model.coef_[0], model.intercept_[0]
        kernel = (kernel if basis is None else basis @ kernel) / scale
        yield strength, kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def _path_of_numbers(rows: Array, wanted: Array, loss: str) -> Iterator[tuple[float, Array, Array]]:
    """Does as `_path`, with linear regressions."""
    mean, scale, points, basis = _prepared(rows)
    found = linear_regression.start(wanted, points.shape[1])
    for strength in STRENGTHS:
        with _few_threads(points):
            found = linear_regression.fit(points, wanted, strength, loss, found, _MAX_ITERATIONS, _TOLERANCE)
        kernel = (found[0] if basis is None else basis @ found[0]) / scale
        yield strength, kernel.astype(np.float32), (found[1] - mean @ kernel).astype(np.float32)


def _path_in_order(rows: Array, labels: Array, weights: Array | None) -> Iterator[tuple[float, Array, Array]]:
    """Does as `_path`, with one score, and the numbers of its thresholds in place of the bias."""
    mean, scale, points, basis = _prepared(rows)
    found = proportional_odds.start(labels, points.shape[1])
    for strength in STRENGTHS:
        with _few_threads(points):
            found = proportional_odds.fit(points, labels, strength, weights, found, _MAX_ITERATIONS, _TOLERANCE)
        kernel, free = (found[0] if basis is None else basis @ found[0]) / scale, found[1].copy()
        free[0] += mean @ kernel  # of the first threshold; the others are distances
        yield strength, kernel[:, np.newaxis].astype(np.float32), (free / PACE).astype(np.float32)


def _path(rows: Array, labels: Array, weights: Array | None) -> Iterator[tuple[float, Array, Array]]:
    """Yields (strength, kernel float32 [D, C], bias float32 [C]) for each strength."""
    mean, scale, doubled, basis = _prepared(rows)
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True)
    for strength in STRENGTHS:
        model.set_params(C=strength)
        _fit(model, doubled, labels, weights)
        kernel = (model.coef_.T if basis is None else basis @ model.coef_.T) / scale
        bias = model.intercept_ - mean @ kernel
        if kernel.shape[1] == 1:  # of two classes scikit-learn fits the difference
            kernel, bias = np.hstack([-kernel, kernel]) / 2, np.concatenate([-bias, bias]) / 2
        yield strength, kernel.astype(np.float32), bias.astype(np.float32)


def _prepared(rows: Array) -> tuple[Array, float, Array, Array | None]:
    """Returns the rows' mean [D], their scale, the rows to fit, float64, and their basis, see `_reduce`."""
    if not np.isfinite(rows).all():
        raise DataError("features are not finite: the backbone's weights are damaged, or overflow in this precision")
    mean = rows.mean(0, dtype=np.float64)
    points = rows - mean.astype(np.float32)  # changes the bias alone, and takes a tenth of the iterations
    # One scale for all features: divided each by its own, those that are nearly always zero would
    # count as much as the rest.
    scale = math.sqrt(float(np.mean(np.square(points, dtype=np.float64)))) or 1.0
    points, basis = _reduce(points / np.float32(scale))
    return mean, scale, points.astype(np.float64), basis


def _fit(model: LogisticRegression, points: Array, labels: Array, weights: Array | None) -> None:
    with warnings.catch_warnings(), _few_threads(points):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the loss counts, however far the fit came
        model.fit(points, labels, sample_weight=weights)


def _few_threads(points: Array) -> Any:
    return threadpool_limits(1 if points.nbytes < _SHARED_BYTES else None, "blas")  # None: as many as BLAS takes


def _reduce(rows: Array) -> tuple[Array, Array | None]:
    """Returns the rows in fewer coordinates, and their basis [D, coordinates], or None."""
    # A penalised regression does not see a rotation, and its kernel lies in the span of the rows:
    # the fit is the same.
    if rows.shape[1] <= len(rows):
        return rows, None
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > values[-1] * 1e-6  # the precision of float32
    lengths = np.sqrt(values[kept])
    return vectors[:, kept] * lengths, rows.T @ (vectors[:, kept] / lengths)
