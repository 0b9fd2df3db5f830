"""What a training step is fed with: images, or features from the cache, in the same order.

A batch is (inputs, targets float32 [B, C], weights float32 [B]); a blank row has the weight 0.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tfpipe.images.placement import on_cpu
from tfpipe.models.features import Features
from tfpipe.models.split_images import SplitImages, read
from tfpipe.pipeline.loader import Loader

Batch = tuple[Any, Any, Any]

# Of all features of a phase: what is no larger stays in the memory of the device that trains; of
# others, blocks go there. On the CPU that is one more copy in the same memory: of 1.7 GB it took
# 4.7 GB more, and a fifth more time than blocks of 64 MB.
_RESIDENT_BYTES = {"GPU": 2 << 30, "CPU": 256 << 20}
_BLOCK_BYTES = 64 << 20


class Block(NamedTuple):
    """Batches that follow each other, as one compiled call takes them.

    Attributes:
        features: tensor [N, h, w, D].
        places: int64 [rows], which of them each row of the batches has.
        labels: int64 [rows].
    """

    features: Any
    places: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Batches(abc.ABC):
    """Where a phase's batches come from: what both kinds share.

    Attributes:
        train: of training.
        val: of validation.
        batch_size: of one worker; its replicas share it.
        num_classes: columns of the targets.
        reader: (index, count) of this worker.
        equal: fill the last batch of an epoch with blank rows, so that replicas can share it.
        is_cached: whether they are features.
    """

    train: SplitImages
    val: SplitImages
    batch_size: int
    num_classes: int
    reader: tuple[int, int] = (0, 1)
    equal: bool = False
    is_cached: ClassVar[bool]

    @cached_property  # opening the data set takes longer than an epoch of features
    def _loader(self) -> Loader:
        return self.train.training(self.batch_size, shard=self.reader, equal_steps=self.equal)

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self._loader.rows.schedule.num_steps

    @property
    def num_rows(self) -> int:
        """Images of an epoch, of all workers."""
        return self._loader.rows.order.num_rows

    @abc.abstractmethod
    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the training batches from (epoch, step) on, without end."""

    @abc.abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch once."""


@dataclass(frozen=True, kw_only=True)
class ImageBatches(Batches):
    """Images, decoded and augmented for every step."""

    is_cached: ClassVar[bool] = False

    @cached_property
    def _val_data(self) -> tf.data.Dataset:
        return self.val.once(self.batch_size)

    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the batches from (epoch, step) on, without end; inputs are uint8 [B, H, W, 3]."""
        given = {"repeat": True, "shard": self.reader, "equal_steps": self.equal, "first_epoch": epoch, "first_step": step}
        for images, labels, *weights in read(self.train.training(self.batch_size, **given).dataset()):
            targets = labels if labels.dtype == tf.float32 else tf.one_hot(labels, self.num_classes)
            yield images, targets, weights[0] if weights else tf.ones(len(images))

    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch once."""
        for images, labels in read(self._val_data):
            yield images, tf.one_hot(labels, self.num_classes), tf.ones(len(images))


@dataclass(frozen=True, kw_only=True)
class FeatureBatches(Batches):
    """Features, in the order in which their images would come; no image is read.

    Attributes:
        views: features of the training split; epoch e takes view e modulo their number.
        val_features: of the validation split.
    """

    views: Sequence[Features]
    val_features: Features
    is_cached: ClassVar[bool] = True

    @cached_property
    def _val_loader(self) -> Loader:
        return self.val.evaluation(self.batch_size)

    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the batches from (epoch, step) on, without end; inputs are features [B, h, w, D]."""
        size = self._loader.rows.schedule.rows_per_step
        labels = self._loader.rows.reader.labels
        for number in itertools.count(epoch):
            positions = self._loader.positions(number)
            view = self.views[number % len(self.views)]
            for first in range(step * size, len(positions), size):
                batch = positions[first : first + size]
                yield self._batch(view, batch if self.equal else batch[batch >= 0], labels)
            step = 0

    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch once."""
        positions, labels = self._val_positions, self._val_loader.rows.reader.labels
        for first in range(0, len(positions), self.batch_size):
            yield self._batch(self.val_features, positions[first : first + self.batch_size], labels)

    @property
    def features_spec(self) -> tf.TensorSpec:
        """What the features of a block are like."""
        return tf.TensorSpec([None, *self.val_features.shape], self.val_features.dtype)

    def block(self, epoch: int, step: int, num_steps: int) -> Block:
        """Returns the batches of an epoch from a step on: as many as are asked for, or as fit into memory, one at least.

        They are those of `start`, of one reader and without blank rows.
        """
        positions = self._positions(epoch)
        first = step * self.batch_size
        last = first + min(num_steps, self._most_steps) * self.batch_size
        return self._block(epoch % len(self.views), positions[first:last], self._loader.rows.reader.labels)

    def validation_blocks(self) -> Iterator[Block]:
        """Returns the batches of `validation`, many at a time."""
        positions, labels = self._val_positions, self._val_loader.rows.reader.labels
        size = self._most_steps * self.batch_size
        for first in range(0, len(positions), size):
            yield self._block(None, positions[first : first + size], labels)

    def _block(self, view: int | None, positions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Block:
        if self._resident is not None:
            return Block(self._resident[view], positions, labels[positions])
        features = self.val_features if view is None else self.views[view]
        return Block(tf.constant(features.rows(positions)), np.arange(len(positions)), labels[positions])

    @cached_property
    def _positions(self) -> Callable[[int], np.ndarray[Any, Any]]:
        @on_cpu  # many small operations, one by one
        def of_epoch(epoch: int) -> np.ndarray[Any, Any]:
            positions = self._loader.positions(epoch)
            return positions[positions >= 0]

        return functools.lru_cache(maxsize=1)(of_epoch)

    @cached_property
    def _val_positions(self) -> np.ndarray[Any, Any]:
        positions = self._val_loader.positions(0)
        return positions[positions >= 0]

    @cached_property
    def _resident(self) -> dict[int | None, tf.Tensor] | None:
        """All features on the device, of each view and, under None, of validation; None if they take too much of its memory."""
        most = _RESIDENT_BYTES["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]
        if (len(self.views) * self.train.num_records + self.val.num_records) * self._row_bytes > most:
            return None
        found = {None: (self.val, self.val_features)} | {view: (self.train, kept) for view, kept in enumerate(self.views)}
        try:
            return {view: tf.constant(kept.rows(np.arange(images.num_records))) for view, (images, kept) in found.items()}
        except tf.errors.ResourceExhaustedError:
            return None

    @property
    def _most_steps(self) -> int:
        return self.num_steps if self._resident is not None else max(1, _BLOCK_BYTES // (self._row_bytes * self.batch_size))

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.val_features.shape) * tf.as_dtype(self.val_features.dtype).size)

    def _batch(self, features: Features, positions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Batch:
        mask = positions >= 0
        found = features.rows(np.maximum(positions, 0))
        targets = tf.one_hot(labels[np.maximum(positions, 0)], self.num_classes)
        return tf.constant(found), targets, tf.constant(mask, tf.float32)
