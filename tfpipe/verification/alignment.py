"""Alignment of small grey images: are two of them the same, but for a shift and brightness?

    queries = Queries([(keys, test_images)])
    for pair in queries.compare(training_images): ...       # (row, column, similarity)

A pair counts when two things agree:

1. In grey, 64 x 64, the images correlate by 0.97 or more at their best shift of up to 3 pixels (a
   twentieth of the side), compared in 14 x 14 cells.
2. With the rest of the shift, a fraction of a pixel, taken out by least squares over brightness and
   both gradients (Lucas and Kanade 1981), they correlate by 0.9972 or more.

Few pairs are tried: an upper bound over all shifts of a pair (see `_bounds`) costs a thirtieth of
trying all 49, and loses none.

The last threshold was chosen on SIGNS, knowing its answer; its series of almost equal photographs
make it hard. Of 120 test images, 12 have a byte-identical copy in train or val and 2 one that was
taken a moment later, with 0.9980 and 0.9983; the next, in which the hand has moved visibly, reaches
0.9966. Elsewhere, over all pairs: cats and dogs, 300 images against 1,702, reach 0.88, and
scikit-learn's digits, 360 against 1,437, reach 0.9960. Of 100 cats and dogs shifted by up to 3
pixels of 96, all are found. Turned, mirrored or further cropped copies are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

COARSE = 0.97
SIMILARITY = 0.9972

SIDE, _MARGIN, _CELL = 64, 4, 4  # pixels of the grey image, of the margin for shifts, and of an averaged cell
_SHIFTS = [(y, x) for y in range(1 - _MARGIN, _MARGIN) for x in range(1 - _MARGIN, _MARGIN)]
_GROUPS = [  # of shifts that look alike, by their places
    [place for place, (y, x) in enumerate(_SHIFTS) if (np.sign(int(y / 2)), np.sign(int(x / 2))) == (down, right)]
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
]
_NUM_CELLS, _NUM_WAVES = (SIDE - 2 * _MARGIN) // _CELL, 6  # of a side of the window
_COSINES = np.cos(np.pi / _NUM_CELLS * np.outer(np.arange(_NUM_CELLS) + 0.5, np.arange(_NUM_WAVES)))
# [196, 35], orthonormal: the coarse waves of the discrete cosine transform, but the mean, which is
# 0.
_WAVES = (np.kron(_COSINES, _COSINES) / np.linalg.norm(np.kron(_COSINES, _COSINES), axis=0))[:, 1:].astype(np.float32)
_ROUNDING = 1e-4  # more than float32 loses in a bound
_MAX_PAIRS = 4096  # refined at once: some arrays of 20 MB
_MIN_DEVIATION = 0.5  # levels: an image of one colour correlates with nothing

Array = np.ndarray[Any, Any]
Pair = tuple[int, int, float]
"""Position among the queries, place in a batch of others, similarity."""


class Queries:
    """Images that are ready to be compared with many others."""

    def __init__(self, batches: Iterable[tuple[Sequence[str], Array]]) -> None:
        """Takes batches of (keys, grey images [B, 64, 64], 0..255)."""
        self.keys: list[str] = []
        cells = []
        for keys, grey in batches:
            self.keys += keys
            cells.append(_standardised(_window(grey, 0, 0)))
        self._cells = np.concatenate(cells)
        self._screened = _project(self._cells, np.ones((len(self._cells), 1), np.float32))

    def compare(self, grey: Array) -> Iterator[Pair]:
        """Yields the pairs of similar images among these and others, [B, 64, 64]."""
        windows = _windows(grey)
        bounds = _bounds(windows)
        for start in range(0, len(self.keys), _MAX_PAIRS):
            part = slice(start, start + _MAX_PAIRS)
            most = (self._screened[part] @ bounds).reshape(-1, len(_GROUPS), len(grey)).max(axis=1)
            likely = most >= COARSE - _ROUNDING
            rows = start + np.flatnonzero(likely.any(axis=1))
            yield from self._compare(grey, windows, rows, likely[rows - start])

    def _compare(self, grey: Array, windows: Array, rows: Array, near: Array) -> Iterator[Pair]:
        """Yields the pairs among some rows and a batch; near: those that may be, bool [N, B]."""
        coarse, shifts = _align(self._cells[rows], windows, near)
        pairs = np.argwhere(coarse >= COARSE)
        for start in range(0, len(pairs), _MAX_PAIRS):
            row, column = pairs[start : start + _MAX_PAIRS].T
            found = _refine(self._cells[rows[row]], grey, column, shifts[row, column])
            for pair in np.flatnonzero(found >= SIMILARITY):
                yield int(rows[row[pair]]), int(column[pair]), float(found[pair])


def _window(grey: Array, down: int, right: int) -> Array:
    """Returns the cells [..., 196] of the part of an image at a shift."""
    return _cells(_boxes(grey), down, right)


def _boxes(grey: Array) -> Array:
    """Returns the mean of the cell that begins at each pixel, [..., 61, 61]."""
    boxes: Array = np.lib.stride_tricks.sliding_window_view(grey, (_CELL, _CELL), axis=(-2, -1)).mean(axis=(-2, -1))
    return boxes


def _cells(boxes: Array, down: int, right: int) -> Array:
    ends = SIDE - _MARGIN
    shown = boxes[..., _MARGIN + down : ends + down : _CELL, _MARGIN + right : ends + right : _CELL]
    return shown.reshape(*boxes.shape[:-2], -1)


def _windows(grey: Array) -> Array:
    """Returns the standardised cells of images at every one of `_SHIFTS`, [B, 49, 196]."""
    boxes = _boxes(grey)
    return _standardised(np.stack([_cells(boxes, *shift) for shift in _SHIFTS], axis=1))


def _bounds(windows: Array) -> Array:
    """Returns float32 [37, 9 B]; times `_project` of a query, a bound of its correlations by group.

    The windows of a group lie in a ball: none correlates with a query by more than its centre does,
    plus the radius. Of the centre, coarse waves are multiplied as they are, and of the rest the
    lengths (Cauchy-Schwarz). So the largest of nine products of 37 numbers is no less than the
    largest of 49 of 196.
    """
    centres = np.stack([windows[:, group].mean(axis=1) for group in _GROUPS])
    radii = [
        np.linalg.norm(windows[:, group] - centre[:, np.newaxis], axis=-1).max(axis=1)
        for group, centre in zip(_GROUPS, centres, strict=True)
    ]
    projected = _project(centres, np.stack(radii)[..., np.newaxis])
    return projected.reshape(-1, projected.shape[-1]).T


def _project(cells: Array, last: Array) -> Array:
    """Returns coarse waves of cells [..., 196], length of the rest, `last`: float32 [..., 37]."""
    coarse = cells @ _WAVES
    rest = np.sqrt(np.maximum(np.square(cells).sum(-1) - np.square(coarse).sum(-1), 0))
    return np.concatenate([coarse, rest[..., np.newaxis], last], axis=-1, dtype=np.float32)


def _standardised(cells: Array) -> Array:
    """Returns cells of mean 0 and length 1: products are correlations; zeros for one colour."""
    centred = cells - cells.mean(-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True)
    plain = lengths < _MIN_DEVIATION * cells.shape[-1] ** 0.5
    standardised: Array = np.where(plain, 0, centred / np.where(plain, 1, lengths))
    return standardised


def _align(cells: Array, windows: Array, near: Array) -> tuple[Array, Array]:
    """Returns correlation and index of the best of `_SHIFTS`, float32 and int64 [N, B].

    Args:
        cells: standardised, [N, 196].
        windows: from `_windows`, [B, 49, 196].
        near: pairs to compare, bool [N, B]; of the others the correlation is minus infinity.
    """
    best = np.full(near.shape, -np.inf, np.float32)
    shifts = np.zeros(near.shape, np.int64)
    for column in np.flatnonzero(near.any(axis=0)):
        rows = np.flatnonzero(near[:, column])
        found = cells[rows] @ windows[column].T
        shifts[rows, column] = found.argmax(axis=1)
        best[rows, column] = found.max(axis=1)
    return best, shifts


def _refine(cells: Array, grey: Array, columns: Array, shifts: Array) -> Array:
    """Returns the correlation at the best fraction of a pixel beside a shift, float64 [P].

    Args:
        cells: standardised, [P, 196].
        grey: images, [B, 64, 64].
        columns: the image of each pair, int64 [P].
        shifts: the index in `_SHIFTS` of each pair's shift, int64 [P].
    """
    seen, places = np.unique(np.stack([shifts, columns]), axis=1, return_inverse=True)
    designs = np.empty((seen.shape[1], cells.shape[1], 3))
    for shift in np.unique(seen[0]):
        chosen = seen[0] == shift
        designs[chosen] = _design(grey[seen[1, chosen]], *_SHIFTS[shift])
    # Columns of length 1, so that a dark image is not ill-conditioned; parallel gradients give the
    # least solution.
    scales = np.maximum(np.linalg.norm(designs, axis=1), np.finfo(np.float64).tiny)
    plain = scales[:, 0] < _MIN_DEVIATION * cells.shape[1] ** 0.5
    designs /= scales[:, np.newaxis]
    inverses = np.linalg.pinv(designs.transpose(0, 2, 1) @ designs, rcond=1e-10, hermitian=True)
    designs, scales, inverses, plain = (of_one[places.ravel()] for of_one in (designs, scales, inverses, plain))
    products = np.einsum("pc,pci->pi", cells, designs)
    solutions = np.einsum("pij,pj->pi", inverses, products)
    weights = solutions / scales
    whole = np.where(plain, 0, products[:, 0])
    fitted = np.einsum("pci,pi->pc", designs, solutions)
    fits = np.einsum("pc,pc->p", cells, fitted) / np.maximum(np.linalg.norm(fitted, axis=1), np.finfo(np.float64).tiny)
    # A larger shift, or an image of one colour: something else was fitted.
    small = np.abs(weights[:, 1:]).max(axis=1) < weights[:, 0] / 2
    refined: Array = np.minimum(1, np.where(small, np.maximum(whole, fits), whole))
    return refined


def _design(grey: Array, down: int, right: int) -> Array:
    """Returns centred brightness and gradients of images at a shift, float64 [B, 196, 3]."""
    boxes = _boxes(grey.astype(np.float64))
    # Twice the gradients: up to half the brightness' coefficient is a shift by less than a pixel.
    gradients = [_cells(boxes, down + y, right + x) - _cells(boxes, down - y, right - x) for y, x in ((1, 0), (0, 1))]
    columns = np.stack([_cells(boxes, down, right), *gradients], axis=-1)
    centred: Array = columns - columns.mean(axis=1, keepdims=True)
    return centred
