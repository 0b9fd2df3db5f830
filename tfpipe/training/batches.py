"""Batches of a phase: images, or features from the cache, in the same order.

A batch is (inputs, targets float32 [B, C], weights float32 [B]); a blank row has the weight 0.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfpipe.images.placement import on_cpu
from tfpipe.models.features import Features, JoinedFeatures
from tfpipe.models.split_images import SplitImages, read
from tfpipe.pipeline.loader import Loader

Array = np.ndarray[Any, Any]
Batch = tuple[Any, Any, Any]

# Features of a phase that take no more stay in the memory of the device that trains; of others,
# blocks go there. On the CPU that is one more copy in the same memory: of 1.7 GB it took 4.7 GB
# more, and a fifth more time than blocks of 64 MB.
_RESIDENT_BYTES = {"GPU": 2 << 30, "CPU": 256 << 20}
_BLOCK_BYTES = 64 << 20


class Block(NamedTuple):
    """Consecutive batches, as one compiled call takes them."""

    features: Any  # tensor [N, h, w, D]
    places: Array  # int64 [rows], the index in `features` of each row of the batches
    labels: Array  # int64 [rows]


@dataclass(frozen=True, kw_only=True)
class Batches(abc.ABC):
    """Batches of either kind."""

    train: SplitImages
    val: SplitImages
    batch_size: int  # of one worker; its replicas share it
    num_classes: int
    table: Array | None = None  # of several labels an image: the targets of each label, see `loader.targets_of`
    reader: tuple[int, int] = (0, 1)  # (index, count) of this worker
    equal: bool = False  # fill the last batch of an epoch with blank rows, so that replicas can share it

    @cached_property  # opening the data set takes longer than an epoch of features
    def _loader(self) -> Loader:
        return self.train.training(self.batch_size, shard=self.reader, equal_steps=self.equal)

    def targets_of(self, labels: Any) -> Any:
        """Returns the targets of labels, int64 [B]: float32 [B, C]."""
        if self.table is None:
            return tf.one_hot(labels, self.num_classes)
        return tf.gather(tf.constant(self.table), tf.where(labels < 0, np.int64(len(self.table) - 1), labels))

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return self._loader.rows.schedule.num_steps

    @property
    def num_rows(self) -> int:
        """Images of an epoch, of all workers."""
        return self._loader.rows.order.num_rows

    @property
    def spec(self) -> tuple[tf.TensorSpec, tf.TensorSpec, tf.TensorSpec]:
        """The spec of a batch: of any size, as the last one of an epoch is smaller."""
        targets, weights = tf.TensorSpec([None, self.num_classes]), tf.TensorSpec([None])
        return self.inputs_spec, targets, weights

    @property
    @abc.abstractmethod
    def inputs_spec(self) -> tf.TensorSpec:
        """The spec of a batch's inputs."""

    @abc.abstractmethod
    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the training batches from (epoch, step) on, without end."""

    @abc.abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch of this worker's part once."""


@dataclass(frozen=True, kw_only=True)
class ImageBatches(Batches):
    """Images uint8 [B, H, W, 3], decoded and augmented for every step."""

    @cached_property
    def _val_data(self) -> tf.data.Dataset:
        return self.val.once(self.batch_size, self.reader)

    @property
    def inputs_spec(self) -> tf.TensorSpec:  # noqa: D102 (inherited)
        return tf.TensorSpec([None, *self.train.image_size, 3], tf.uint8)

    def start(self, epoch: int, step: int) -> Iterator[Batch]:  # noqa: D102 (inherited)
        options = {"shard": self.reader, "equal_steps": self.equal, "first_epoch": epoch, "first_step": step}
        for images, labels, *weights in read(self.train.training(self.batch_size, repeat=True, **options).dataset()):
            targets = labels if labels.dtype == tf.float32 else self.targets_of(labels)
            yield images, targets, weights[0] if weights else tf.ones(len(images))

    def validation(self) -> Iterator[Batch]:  # noqa: D102 (inherited)
        for images, labels in read(self._val_data):
            targets = labels if labels.dtype == tf.float32 else self.targets_of(labels)
            yield images, targets, tf.ones(len(images))


@dataclass(frozen=True, kw_only=True)
class FeatureBatches(Batches):
    """Features [B, h, w, D] in the order of their images; no image is read."""

    views: Sequence[Features | JoinedFeatures]  # of the training split; epoch e takes view e modulo their number
    val_features: Features | JoinedFeatures

    def start(self, epoch: int, step: int) -> Iterator[Batch]:  # noqa: D102 (inherited)
        for number in itertools.count(epoch):
            positions, view = self._positions(number), self.views[number % len(self.views)]
            for first in range(step * self.batch_size, len(positions), self.batch_size):
                batch = positions[first : first + self.batch_size]
                yield self._batch(view, batch, self._labels[np.maximum(batch, 0)])
            step = 0

    def validation(self) -> Iterator[Batch]:  # noqa: D102 (inherited)
        for positions, labels in self._val_chunks(self.batch_size):
            yield self._batch(self.val_features, positions, labels)

    @property
    def inputs_spec(self) -> tf.TensorSpec:  # noqa: D102 (inherited)
        return tf.TensorSpec([None, *self.val_features.shape], self.val_features.dtype)

    def block(self, epoch: int, step: int, num_steps: int) -> Block:
        """Returns at most `num_steps` batches of `start`, as many as fit into memory."""
        num_rows = min(num_steps, self._max_steps) * self.batch_size
        positions = self._positions(epoch)[step * self.batch_size :][:num_rows]
        return self._block(epoch % len(self.views), positions, self._labels[positions])

    def validation_blocks(self) -> Iterator[Block]:
        """Returns the batches of `validation`, many at a time."""
        for positions, labels in self._val_chunks(self._max_steps * self.batch_size):
            yield self._block(None, positions, labels)

    def _batch(self, features: Features | JoinedFeatures, positions: Array, labels: Array) -> Batch:
        rows = features.rows(np.maximum(positions, 0))
        return tf.constant(rows), self.targets_of(labels), tf.constant(positions >= 0, tf.float32)

    def _block(self, view: int | None, positions: Array, labels: Array) -> Block:
        if self._resident is not None:
            return Block(self._resident[view], positions, labels)
        features = self.val_features if view is None else self.views[view]
        return Block(tf.constant(features.rows(positions)), np.arange(len(positions)), labels)

    def _val_chunks(self, size: int) -> Iterator[tuple[Array, Array]]:
        positions, labels = self._val_rows
        for first in range(0, len(positions), size):
            yield positions[first : first + size], labels[first : first + size]

    @cached_property
    def _val_rows(self) -> tuple[Array, Array]:
        index, count = self.reader
        part = slice(*(len(self.val.positions) * number // count for number in (index, index + 1)))
        return self.val.positions[part], self.val.labels[part]

    @property
    def _labels(self) -> Array:
        """Labels of the whole training split."""
        return self._loader.rows.reader.labels

    @cached_property
    def _positions(self) -> Callable[[int], Array]:
        @functools.lru_cache(maxsize=1)
        @on_cpu  # many small operations, one by one
        def of_epoch(epoch: int) -> Array:
            positions = self._loader.positions(epoch)
            return positions if self.equal else positions[positions >= 0]

        return of_epoch

    @cached_property
    def _resident(self) -> dict[int | None, tf.Tensor] | None:
        """The features by view, and of validation under None, on the device; None if too large."""
        most = _RESIDENT_BYTES["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]
        if (len(self.views) * self.train.num_records + self.val.num_records) * self._row_bytes > most:
            return None
        parts = {None: (self.val, self.val_features)} | {view: (self.train, kept) for view, kept in enumerate(self.views)}
        try:
            return {view: tf.constant(kept.rows(np.arange(images.num_records))) for view, (images, kept) in parts.items()}
        except tf.errors.ResourceExhaustedError:
            return None

    @property
    def _max_steps(self) -> int:
        return self.num_steps if self._resident is not None else max(1, _BLOCK_BYTES // (self._row_bytes * self.batch_size))

    @property
    def _row_bytes(self) -> int:
        return int(np.prod(self.val_features.shape) * tf.as_dtype(self.val_features.dtype).size)
