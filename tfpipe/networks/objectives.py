"""What a phase minimises, and what counts as right: for one class an image, several labels, or numbers.

of_task("multilabel").losses(logits, targets, 0.0, None)     # float32 [B]

Logits and targets are float32 [B, C], and all results float32 [B]. Targets of several labels are 1,
0 or -1 (unknown), which takes no part. Targets of a regression are in their units, NaN in a blank
row, and logits in standard deviations from the mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfpipe.networks.heads import HUBER
from tfpipe.records.manifest import MULTILABEL, ORDINAL

Array = np.ndarray[Any, Any]


class Scale(NamedTuple):
    """Mean and standard deviation of each target in the training images."""

    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, targets: Array) -> Scale:
        """Returns the scale of targets, float32 [N, D]; a deviation of 0 counts as 1."""
        deviations = targets.std(0, dtype=np.float64)
        return cls(tuple(targets.mean(0, dtype=np.float64).tolist()), tuple(np.where(deviations > 0, deviations, 1.0).tolist()))

    def standardised(self, targets: Array) -> Array:
        """Returns targets in deviations from the mean, float64 [N, D]."""
        found: Array = (np.asarray(targets, np.float64) - self.means) / self.deviations
        return found


class Objective(Protocol):
    """Losses of a task, and its right answers."""

    score: str  # what `right` is called
    by_loss: bool  # the best epoch has the least loss; else the most right answers

    def losses(self, logits: Any, targets: Any, smoothing: float, weights: Any) -> Any:
        """Returns the loss of each image in training; `weights` float [C] of the classes, or None."""

    def validation_losses(self, logits: Any, targets: Any, weights: Any) -> Any:
        """Returns the loss of each image in validation."""

    def right(self, logits: Any, targets: Any) -> Any:
        """Returns how much of an image's answer is right, 0 to 1."""


class OneClass:
    """Softmax and cross-entropy."""

    score = "accuracy"
    by_loss = False

    def losses(self, logits: Any, targets: Any, smoothing: float, weights: Any) -> Any:  # noqa: D102 (of the protocol)
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1]
        losses = tf.nn.softmax_cross_entropy_with_logits(smooth, tf.cast(logits, tf.float32))
        return losses if weights is None else losses * tf.linalg.matvec(targets, tf.constant(weights, tf.float32))

    def validation_losses(self, logits: Any, targets: Any, weights: Any) -> Any:  # noqa: ARG002, D102
        return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))

    def right(self, logits: Any, targets: Any) -> Any:  # noqa: D102
        return tf.cast(tf.equal(tf.argmax(logits, -1), tf.argmax(targets, -1)), tf.float32)


class InOrder(OneClass):
    """The same of classes in an order, whose logits know it, see `links.FittedLinks`.

    The best epoch is that of the least loss: accuracy counts a class next to the right one as any.
    """

    by_loss = True


class SeveralLabels:
    """Sigmoids and binary cross-entropy, the mean over all classes; an unknown one adds nothing.

    Weights are those of positive labels. Validation weighs, too: the best epoch is that of the
    least loss, since the share of right labels hardly changes where most are absent.
    """

    score = "accuracy"
    by_loss = True

    def losses(self, logits: Any, targets: Any, smoothing: float, weights: Any) -> Any:  # noqa: D102
        known = tf.cast(targets >= 0, tf.float32)
        smooth = targets * (1 - smoothing) + smoothing / 2
        positive = tf.constant(1.0 if weights is None else weights, tf.float32)
        losses = tf.nn.weighted_cross_entropy_with_logits(smooth, tf.cast(logits, tf.float32), positive)
        return tf.reduce_mean(losses * known, -1)

    def validation_losses(self, logits: Any, targets: Any, weights: Any) -> Any:  # noqa: D102
        return self.losses(logits, targets, 0.0, weights)

    def right(self, logits: Any, targets: Any) -> Any:  # noqa: D102
        known = tf.cast(targets >= 0, tf.float32)
        right = tf.cast(tf.equal(logits > 0, targets > 0.5), tf.float32) * known
        # Of an image of which nothing is known nothing is wrong.
        return tf.where(
            tf.reduce_any(known > 0, -1), tf.math.divide_no_nan(tf.reduce_sum(right, -1), tf.reduce_sum(known, -1)), 1.0
        )


class Numbers:
    """Huber's loss (1964) or half the squared error, in standard deviations, the mean over the targets.

    Huber's grows in proportion beyond an error of one deviation: a wrong target counts less. What is
    logged is R2, with the variance of the training images.
    """

    by_loss = True
    score = "R2"

    def __init__(self, loss: str, scale: Scale) -> None:
        self._loss, self._scale = loss, scale

    def losses(self, logits: Any, targets: Any, smoothing: float, weights: Any) -> Any:  # noqa: ARG002, D102
        errors = self._errors(logits, targets)
        squared = tf.square(errors) / 2
        if self._loss == HUBER:
            squared = tf.where(tf.abs(errors) <= 1, squared, tf.abs(errors) - 0.5)
        return tf.reduce_mean(squared, -1)

    def validation_losses(self, logits: Any, targets: Any, weights: Any) -> Any:  # noqa: D102
        return self.losses(logits, targets, 0.0, weights)

    def right(self, logits: Any, targets: Any) -> Any:  # noqa: D102
        return 1 - tf.reduce_mean(tf.square(self._errors(logits, targets)), -1)

    def _errors(self, logits: Any, targets: Any) -> Any:
        means, deviations = (tf.constant(values, tf.float32) for values in self._scale)
        logits = tf.cast(logits, tf.float32)
        wanted = (targets - means) / deviations
        return logits - tf.where(tf.math.is_nan(wanted), tf.stop_gradient(logits), wanted)  # 0 of a blank row


def of_task(task: str, loss: str | None = None, scale: Scale | None = None) -> Objective:
    """Returns the objective of a task; of a regression, with its loss and the scale of its targets."""
    if scale is not None:
        return Numbers(loss or HUBER, scale)
    if task == MULTILABEL:
        return SeveralLabels()
    return InOrder() if task == ORDINAL else OneClass()
