"""Cumulative links in training: from one score to the probabilities of classes in an order.

    FittedLinks(3)(score)            # float32 [B, 1] -> logits float32 [B, 3]
    links.thresholds                 # for `layers.Probabilities`, the same in a finished classifier

The probability that a class is above the k-th is the sigmoid of the score less the k-th of rising
thresholds (the proportional odds model of McCullagh 1980). Logits are the logarithms of the
probabilities of the classes: a loss of one class an image need not know of an order.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

Array = np.ndarray[Any, Any]

# Adam moves each weight about as far, and a score is the sum of many: thresholds would come after.
PACE = 16.0


class FittedLinks(keras.layers.Layer):  # type: ignore[misc]
    """Thresholds as numbers of any value: the first one, then what softplus makes a distance of, over PACE.

    Before the first step, all classes are as likely where the score is 0.
    """

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32"})
        self.num_classes = num_classes

    def build(self, shape: Any) -> None:  # noqa: ARG002 (one score)
        """Makes the numbers."""
        shares = np.arange(1, self.num_classes) / self.num_classes
        start = keras.initializers.Constant(free_of(np.log(shares / (1 - shares))) / PACE)
        self.numbers = self.add_weight(shape=(self.num_classes - 1,), initializer=start, name="bias")  # which has no decay

    def call(self, score: Any) -> Any:
        """Returns the logits, float32 [B, C]."""
        distances = ops.softplus(PACE * self.numbers[1:])
        thresholds = ops.cumsum(ops.concatenate([PACE * self.numbers[:1], distances]))
        below, above = ops.log_sigmoid(thresholds - score), ops.log_sigmoid(score - thresholds)
        # Of thresholds a < b, sigmoid(b - s) - sigmoid(a - s) is
        # sigmoid(b - s) sigmoid(s - a) (1 - exp(a - b)): no difference of near numbers is taken.
        inner = below[:, 1:] + above[:, :-1] + ops.log(-ops.expm1(-distances))
        return ops.concatenate([below[:, :1], inner, above[:, -1:]], axis=-1)

    @property
    def thresholds(self) -> list[float]:
        """The present thresholds."""
        found: list[float] = thresholds_of(PACE * self.numbers.numpy()).tolist()
        return found


def thresholds_of(free: Array) -> Array:
    """Returns the thresholds of free numbers, float64 [C - 1]."""
    values = np.asarray(free, np.float64)
    return np.cumsum(np.concatenate([values[:1], np.logaddexp(0, values[1:])]))


def free_of(thresholds: Array) -> Array:
    """Returns the free numbers of rising thresholds, float32 [C - 1]."""
    values = np.asarray(thresholds, np.float64)
    distances = np.diff(values)
    # The inverse of softplus, for small and for large distances.
    return np.concatenate([values[:1], distances + np.log(-np.expm1(-distances))]).astype(np.float32)
