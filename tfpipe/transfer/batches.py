"""What a training step is fed with: pictures, or features from the cache, in the same order.

A batch is (inputs, targets float32 [B, C], weights float32 [B]); a blank row
has the weight 0.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfpipe.pipeline.loader import Loader
from tfpipe.transfer import reading_errors
from tfpipe.transfer.features import Features
from tfpipe.transfer.pictures import Pictures

Batch = tuple[Any, Any, Any]


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

    train: Pictures
    val: Pictures
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
        """Pictures of an epoch, of all workers."""
        return self._loader.rows.order.num_rows

    @abc.abstractmethod
    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the training batches from (epoch, step) on, without end."""

    @abc.abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch once."""


@dataclass(frozen=True, kw_only=True)
class PictureBatches(Batches):
    """Pictures, decoded and augmented for every step."""

    is_cached: ClassVar[bool] = False

    @cached_property
    def _val_data(self) -> tf.data.Dataset:
        return self.val.once(self.batch_size)

    def start(self, epoch: int, step: int) -> Iterator[Batch]:
        """Returns the batches from (epoch, step) on, without end; inputs are uint8 [B, H, W, 3]."""
        given = {"shard": self.reader, "equal_steps": self.equal, "first_epoch": epoch, "first_step": step}
        for images, labels, *weights in reading_errors.read(self.train.batches(self.batch_size, **given)):
            targets = labels if labels.dtype == tf.float32 else tf.one_hot(labels, self.num_classes)
            yield images, targets, weights[0] if weights else tf.ones(len(images))

    def validation(self) -> Iterator[Batch]:
        """Returns each validation batch once."""
        for images, labels in reading_errors.read(self._val_data):
            yield images, tf.one_hot(labels, self.num_classes), tf.ones(len(images))


@dataclass(frozen=True, kw_only=True)
class FeatureBatches(Batches):
    """Features, in the order in which their pictures would come; no picture is read.

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
        loader = self._val_loader
        positions = loader.positions(0)
        positions = positions[positions >= 0]
        for first in range(0, len(positions), self.batch_size):
            yield self._batch(self.val_features, positions[first : first + self.batch_size], loader.rows.reader.labels)

    def _batch(self, features: Features, positions: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Batch:
        mask = positions >= 0
        found = features.rows(np.maximum(positions, 0))
        targets = tf.one_hot(labels[np.maximum(positions, 0)], self.num_classes)
        return tf.constant(found), targets, tf.constant(mask, tf.float32)
