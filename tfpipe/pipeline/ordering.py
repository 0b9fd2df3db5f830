"""Which record comes when: pure functions of (seed, epoch, index), in O(1) memory, from any place.

    order = ShuffledOrder(num_rows=50_000, seed=derive(0, "order"))
    positions, passes = order.positions(epochs, indices)              # int64 [N], int64 [N]

An order is a permutation of the records per epoch, computed index by index: there is no buffer to
fill, none to save in a checkpoint, and the middle of epoch 90 costs what the beginning of epoch 0
costs. A `Schedule` defines which indices of an epoch make up a step of one of several readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfpipe.common import seeds
from tfpipe.common.text import exactly
from tfpipe.pipeline.counter_rng import draw_words

BLANK = -1  # the index and the position of a row that only fills a batch

BLOCKS_PER_WINDOW = 8


class Order(Protocol):
    """The records of every epoch, in order."""

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the records at some indices of some epochs.

        Args:
            epochs: int64 [N], 0 or more.
            indices: int64 [N], in [0, num_rows).

        Returns:
            positions: int64 [N], of the records in stored order.
            passes: int64 [N], which time it is that a record comes, from 0: the epoch of its
                augmentation. That is the epoch itself where every record comes once in every epoch.
        """


@dataclass(frozen=True)
class StoredOrder:
    """The records as they stand in the shards."""

    num_rows: int

    def __str__(self) -> str:
        return "as stored"

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Order`."""
        return indices, epochs


@dataclass(frozen=True)
class ShuffledOrder:
    """A new permutation of all records per epoch.

    The op of `tf.random.experimental.index_shuffle`, a block cipher (Simon) with cycle walking: a
    true permutation of any size. With 6 records and fewer all orders occur, but not equally often.
    Sets of less than a hundred cost more per index.
    """

    num_rows: int
    seed: int

    def __str__(self) -> str:
        return "a new permutation of all records every epoch"

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Order`."""
        return _shuffled(indices, self.num_rows, self.seed, "epoch", epochs), epochs


@dataclass(frozen=True)
class BlockOrder:
    """Blocks of neighbours in random order, the records of 8 blocks at a time shuffled.

    For storage where each access is slow. What it costs in randomness: two records of a block are
    never more than 8 blocks apart. Where blocks begin is drawn anew for each epoch. What it costs
    in memory: 8 blocks of files are read at a time, some of them ahead. Several readers each read
    their own records of every block, so that their reads are smaller.
    """

    num_rows: int
    seed: int
    block: int

    def __str__(self) -> str:
        return (
            f"blocks of {exactly(self.block, 'neighbour')} in a new order every epoch, shuffled"
            f" {BLOCKS_PER_WINDOW} blocks at a time"
        )

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Order`."""
        window = self.block * BLOCKS_PER_WINDOW
        windows = indices // window
        sizes = tf.minimum(tf.constant(window, tf.int64), self.num_rows - windows * window)
        within = _shuffled(indices % window, sizes, self.seed, "window", epochs, windows)
        ranks, offsets = tf.unstack(tf.stack([(windows * window + within) // self.block, within % self.block]))
        num_blocks = self.num_rows // self.block  # whole ones; what is left over comes last, and is others every epoch
        shuffled = _shuffled(tf.minimum(ranks, max(num_blocks - 1, 0)), max(num_blocks, 1), self.seed, "block", epochs)
        blocks = tf.where(ranks < num_blocks, shuffled, ranks)
        start = tf.cast(_words(self.seed, "start", epochs)[:, 0], tf.int64)
        return (blocks * self.block + offsets + start) % self.num_rows, epochs


class BalancedOrder:
    """Every class equally often: an epoch of N records has ceil(N / C) rows of each of C classes.

    The rows of a class go through its records in passes, each a new permutation, on from epoch to
    epoch: small classes come several times in an epoch, large ones in several epochs once; at the
    end of an epoch no record has come two times more often than another of its class.
    """

    def __init__(self, labels: np.ndarray[Any, Any], seed: int) -> None:
        """Groups the records by class.

        Args:
            labels: integers [N] of the records in stored order, 0-based, each class at least once.
            seed: in [0, 2**63).
        """
        counts = np.bincount(labels)
        with tf.init_scope():  # of no graph, so that every graph and every error can use them
            self._by_class = tf.constant(np.argsort(labels, kind="stable"))
            self._starts = tf.constant(np.cumsum(counts) - counts)
            self._counts = tf.constant(counts)
        self._seed, self._num_classes = seed, len(counts)
        self._per_class = -(-len(labels) // len(counts))  # rows of an epoch

    def __str__(self) -> str:
        return f"{self._per_class:,} of each of {exactly(self._num_classes, 'class', 'classes')} every epoch, in a new order"

    @property
    def num_rows(self) -> int:
        """See `Order`."""
        return self._num_classes * self._per_class

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Order`."""
        places = _shuffled(indices, self.num_rows, self._seed, "epoch", epochs)
        classes = places % self._num_classes
        counts = tf.gather(self._counts, classes)
        drawn = epochs * self._per_class + places // self._num_classes
        passes = drawn // counts
        ranks = _shuffled(drawn % counts, counts, self._seed, "pass", passes, classes)
        return tf.gather(self._by_class, tf.gather(self._starts, classes) + ranks), passes


@dataclass(frozen=True)
class SelectedOrder:
    """Another order, of some of the records only."""

    order: Order
    selection: tf.Tensor  # int64 [num_rows], the positions that take part

    def __str__(self) -> str:
        return str(self.order)

    @property
    def num_rows(self) -> int:
        """See `Order`."""
        return self.order.num_rows

    def positions(self, epochs: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Order`."""
        positions, passes = self.order.positions(epochs, indices)
        return tf.gather(self.selection, positions), passes


def _shuffled(
    indices: tf.Tensor, sizes: int | tf.Tensor, seed: int, purpose: str, epochs: tf.Tensor, parts: tf.Tensor | None = None
) -> tf.Tensor:
    # Not tf.random.experimental.index_shuffle, the function before this op: it takes one seed for
    # all indices only.
    words = _words(seed, purpose, epochs, parts)
    return tf.raw_ops.RandomIndexShuffle(index=indices, seed=words, max_index=tf.cast(sizes, tf.int64) - 1, rounds=4)


def _words(seed: int, purpose: str, epochs: tf.Tensor, parts: tf.Tensor | None = None) -> tf.Tensor:
    parts = tf.zeros_like(epochs) if parts is None else parts
    return draw_words(parts, seeds.derive(seed, purpose), epochs, 3)


@dataclass(frozen=True)
class Schedule:
    """The steps of one of several readers: which row of which epoch is which index of the order.

    Rows are numbered through all epochs. Every step has `rows_per_step` of them; those beyond the
    last record are blank. In training, step s of all readers together is the s-th global batch of
    the order: n readers with batches of B see what one reader with batches of n * B sees. In a
    single pass, each reader has a contiguous part of the order.

    Attributes:
        num_rows: of the order, an epoch.
        batch_size: rows of a batch.
        shard: (index, count), this reader and how many there are.
        equal_steps: all readers have the same number of steps.
        contiguous: see above.
        partners: with several readers: the rows of each batch are followed by those that they are
            mixed with.
        seed: draws the partners.
    """

    num_rows: int
    batch_size: int
    shard: tuple[int, int] = (0, 1)
    equal_steps: bool = False
    contiguous: bool = False
    partners: bool = False
    seed: int = 0

    @property
    def rows_per_step(self) -> int:
        """Rows of a batch, with those that they are mixed with."""
        return self.batch_size * (2 if self.partners else 1)

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        index, count = self.shard
        if self.contiguous:
            longest = -(-self.num_rows // count)
            return -(-(longest if self.equal_steps else self._stop - self._start) // self.batch_size)
        whole, rest = divmod(self.num_rows, self._global_size)
        has_rest = rest * index // count < rest * (index + 1) // count
        return whole + (rest > 0 if self.equal_steps else has_rest)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of all steps of an epoch, blank ones included."""
        return self.num_steps * self.rows_per_step

    @property
    def has_blanks(self) -> bool:
        """Whether there can be blank rows."""
        mine = self._stop - self._start if self.contiguous else self.num_rows
        return mine != self.num_steps * (self.batch_size if self.contiguous else self._global_size)

    def indices(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (epochs, indices of the order) of rows, int64 [N]; `BLANK` for a blank row."""
        epochs, within = rows // self.rows_per_epoch, rows % self.rows_per_epoch
        if self.contiguous:
            indices = self._start + within
            return epochs, tf.where(indices < self._stop, indices, BLANK)
        steps, places = within // self.rows_per_step, within % self.rows_per_step
        first = steps * self._global_size
        size = tf.minimum(tf.constant(self._global_size, tf.int64), self.num_rows - first)
        index, count = self.shard
        start, stop = (size * i // count for i in (index, index + 1))
        own = start + places % self.batch_size
        valid = own < stop
        if self.partners:
            others = self.partner_places(epochs, steps, tf.where(valid, own, 0), size)
            own = tf.where(places < self.batch_size, own, others)
        return epochs, tf.where(valid, first + own, BLANK)

    def partner_places(self, epochs: tf.Tensor, steps: tf.Tensor, places: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
        """Returns each row's partner as its place in the global batch, int64 [N] all."""
        return _shuffled(places, sizes, self.seed, "partners", epochs, steps)

    def step(self, row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (epoch, step in its epoch) of a row, int64 of its shape."""
        return row // self.rows_per_epoch, row % self.rows_per_epoch // self.rows_per_step

    @property
    def _global_size(self) -> int:
        return self.batch_size * self.shard[1]

    @property
    def _start(self) -> int:
        return self.num_rows * self.shard[0] // self.shard[1]

    @property
    def _stop(self) -> int:
        return self.num_rows * (self.shard[0] + 1) // self.shard[1]
