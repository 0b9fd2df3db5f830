"""Odd images: those that a classifier's features place far from all others.

    outliers = Outliers()
    for batch in ...:
        outliers.add(features)           # float32 [B, D], of an evaluation's pass
    outliers.odd()                       # rows and distances, the largest first

The distance of an image is 1 less the mean cosine with its five nearest neighbours among the first
4,096 images, which are a random sample: a split is stored in random order. Odd is what lies beyond
the outer fence, the third quartile and three times the range between the quartiles (Tukey,
Exploratory Data Analysis, 1977: "far out").
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfpipe.evaluation.feature_index import unit_vectors

MAX_COMPARED = 4096  # images: of 1,280 features each, 21 MB, and less than 1 % of a network's time
_NUM_NEIGHBOURS = 5
_FEWEST = 20  # images that have quartiles worth the name
_FENCE = 3
_BLOCK_ROWS = 512

Array = np.ndarray[Any, Any]


class Outliers:
    """Distances of images to their neighbours, in the order in which they come."""

    def __init__(self, max_compared: int = MAX_COMPARED) -> None:
        self._room = max_compared
        self._compared: list[Array] = []
        self._later: list[Array] = []  # distances of images beyond those

    def add(self, features: Array) -> None:
        """Takes features, float [B, D]."""
        with np.errstate(invalid="ignore", over="ignore"):
            vectors = np.nan_to_num(unit_vectors(features), nan=0.0)
        first, rest = vectors[: self._room], vectors[self._room :]
        self._room -= len(first)
        if len(first):
            self._compared.append(first)
        if len(rest):
            self._compared = [np.concatenate(self._compared)]
            self._later.append(_distances(rest, self._compared[0]))

    def distances(self) -> Array:
        """Returns the distance of each image, float32 [N], 0 for those that look like others to 2."""
        if not self._compared:
            return np.zeros(0, np.float32)
        compared = np.concatenate(self._compared)
        return np.concatenate([_distances(compared, compared, is_same=True), *self._later])

    def odd(self) -> tuple[Array, Array]:
        """Returns the rows of odd images, int64 [M], and their distances; the largest first."""
        distances = self.distances()
        if len(distances) < _FEWEST:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        low, high = np.quantile(distances, (0.25, 0.75))
        rows = np.flatnonzero(distances > high + _FENCE * (high - low))
        rows = rows[np.argsort(-distances[rows], kind="stable")]
        return rows, distances[rows]


def _distances(vectors: Array, compared: Array, *, is_same: bool = False) -> Array:
    found = []
    for start in range(0, len(vectors), _BLOCK_ROWS):
        cosines = vectors[start : start + _BLOCK_ROWS] @ compared.T
        if is_same:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf  # no image is its own neighbour
        count = max(1, min(_NUM_NEIGHBOURS, len(compared) - is_same))
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        found.append((1 - nearest.mean(axis=1)).astype(np.float32))
    return np.concatenate(found)
