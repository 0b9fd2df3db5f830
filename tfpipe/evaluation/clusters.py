"""Uncertainty by group: images of one patient are no independent evidence.

    groups = Groups(table.groups)
    groups.interval(right)                 # 95 %, of a share, by cluster bootstrap
    groups.p_value(only_a, only_b)         # do two classifiers differ?

Intervals: whole groups are drawn with replacement, and the share is that of all images drawn
(Rutter 2000, "Bootstrap estimation of diagnostic accuracy with patient-clustered data"). The
percentiles are widened for few groups as Student's t is (the expanded percentile interval of
Hesterberg 2015, "What teachers should know about the bootstrap"). Where all groups have one share,
as where every image is right, nothing varies between draws: then Wilson's interval is taken, each
group counting as one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NUM_DRAWS = 2000
BY_GROUP = "cluster bootstrap: expanded percentiles of {:,} draws of groups"
_AT_ONCE = 1 << 22  # drawn groups: 32 MB
_BLOCK_VALUES = 1 << 23  # weights in memory at once
_MOST = 1 << 28  # steps of an exact p-value, about a second


class Groups:
    """The group of each image."""

    def __init__(self, names: Sequence[str]) -> None:
        # By name: nothing here depends on the order of the images.
        _, self.of_image = np.unique(np.array(names, object).astype(str), return_inverse=True)
        self.count = int(self.of_image.max()) + 1 if len(names) else 0

    def sums(self, values: Array) -> Array:
        """Returns the sum over each group's images, int64 [K], of integers or bools [N]."""
        sums = np.zeros(self.count, np.int64)
        np.add.at(sums, self.of_image, values)
        return sums

    def interval(self, hits: Array, among: Array | None = None) -> list[float] | None:
        """Returns the 95 % interval of the share of hits among some images; None without images.

        Args:
            hits: bool [N].
            among: bool [N]; default all.
        """
        among = np.ones(len(hits), bool) if among is None else among
        counts, totals = self.sums(hits & among), self.sums(among)
        counts, totals = counts[totals > 0], totals[totals > 0]
        if len(totals) < 2:
            return [0.0, 1.0] if len(totals) else None  # one group tells nothing of others
        found = self._drawn(counts, totals)
        if found is None:
            return wilson(round(len(totals) * counts.sum() / totals.sum()), len(totals))
        return found

    def difference_interval(self, only_a: Array, only_b: Array) -> tuple[float, float]:
        """Returns the 95 % interval of the difference of two accuracies.

        Args:
            only_a: images that only A classifies correctly, bool [N].
            only_b: images that only B does, bool [N].
        """
        differences, totals = self._differences(only_a, only_b), self.sums(np.ones(len(only_a), np.int64))
        found = self._drawn(differences, totals) if self.count > 1 else [-1.0, 1.0]
        if found is None:
            scale = self.count / len(only_a)
            return agresti_min(only_a.sum() * scale, only_b.sum() * scale, self.count)
        return found[0], found[1]

    def p_value(self, only_a: Array, only_b: Array) -> float:
        """Returns the probability that two equally good classifiers differ as much, or more.

        For each group, the difference between the numbers of images that only A and only B
        classify correctly is as likely as the reverse one. Over all signs, the sum is as far from 0
        as it was, or farther, with this probability. It is exact, and with one image in each group
        McNemar's. For many groups, its limit is taken: the chi-squared test of Yang, Sun and Hardin
        2010, "A note on the tests for clustered matched-pair binary data".
        """
        steps = np.abs(self._differences(only_a, only_b))
        observed, steps = abs(int(self._differences(only_a, only_b).sum())), steps[steps > 0]
        reach = int(steps.sum())
        if len(steps) * reach > _MOST:
            return math.erfc(observed / math.sqrt(2 * float(np.square(steps).sum())))
        chances = np.zeros(2 * reach + 1)  # of the sums -reach to reach
        chances[reach] = 1
        for step in steps:
            half = chances / 2
            chances = np.roll(half, step) + np.roll(half, -step)  # nothing comes around: sums end before
        return float(min(1, chances[: reach - observed + 1].sum() + chances[reach + observed :].sum()))

    def _differences(self, only_a: Array, only_b: Array) -> Array:
        return self.sums(only_a) - self.sums(only_b)

    def _drawn(self, counts: Array, totals: Array) -> list[float] | None:
        """Returns the interval of a ratio of sums over groups, or None where it is always the same."""
        size = len(totals)
        if (counts * totals[0] == counts[0] * totals).all():
            return None
        random, ratios = np.random.default_rng(0), []
        block = max(1, _AT_ONCE // size)
        for start in range(0, NUM_DRAWS, block):
            picks = random.integers(size, size=(min(block, NUM_DRAWS - start), size))
            ratios.append(counts[picks].sum(axis=1) / totals[picks].sum(axis=1))
        return percentile_interval(np.concatenate(ratios), size)


def expanded_tail(size: int, degrees: int) -> float:
    """Returns the quantile, 0.025 for many groups, at which a 95 % interval of `size` drawn groups begins."""
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf(0.025, degrees) * math.sqrt(size / degrees)))


def resamples(count: int, num_images: int, num_resamples: int) -> Iterator[Array]:
    """Yields how often each image (or group) is drawn, int [resamples, count], some at a time."""
    generator = np.random.Generator(np.random.PCG64(0))
    size = max(1, _BLOCK_VALUES // num_images)
    for first in range(0, num_resamples, size):
        rows = min(size, num_resamples - first)
        drawn = generator.integers(0, count, (rows, count)) + np.arange(rows)[:, np.newaxis] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def percentile_interval(values: Array, size: int) -> list[float] | None:
    """Returns the 95 % interval of values drawn from `size` images or groups, widened for few; None where it is unknown."""
    if not len(values) or size < 2:
        return None
    tail = expanded_tail(size, size - 1)
    return [float(value) for value in np.quantile(values, (tail, 1 - tail))]


def wilson(count: int, total: int) -> list[float] | None:
    """Returns the 95 % score interval of a share (Wilson 1927); None for a total of 0."""
    from scipy.stats import binomtest

    if not total:
        return None
    interval = binomtest(int(count), int(total)).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def agresti_min(only_a: float, only_b: float, total: float) -> tuple[float, float]:
    """Returns the 95 % interval of a difference: Wald's with 1/2 added to each count (Agresti and Min 2005)."""
    total, a, b = total + 2, only_a + 0.5, only_b + 0.5
    middle = (a - b) / total
    half = _Z95 * math.sqrt(a + b - (a - b) ** 2 / total) / total
    return max(middle - half, -1.0), min(middle + half, 1.0)
