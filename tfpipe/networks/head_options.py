"""The options of a classifier's head, and its layers. `tfpipe.networks.heads` puts it on a backbone.

layers = Head(pooling="average", hidden=(1024,), dropout=0.5).layers(num_classes=2, seed=0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tfpipe.common import arguments, seeds

if TYPE_CHECKING:
    import keras

Pooling = Literal["average", "max", "flatten"]


@dataclass(frozen=True, slots=True)
class Head:
    """What is trained on top of the features.

    Attributes:
        pooling: "average", "max" or "flatten".
        hidden: units of hidden layers, each followed by ReLU and dropout.
        dropout: rate after pooling and after every hidden layer, 0 to less than 1.
        l2: penalty on every kernel, added to the loss as l2 * sum(kernel ** 2).
    """

    pooling: Pooling = "average"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        arguments.choice("pooling", self.pooling, get_args(Pooling))
        arguments.check(hidden=self.hidden, dropout=self.dropout, l2=self.l2)

    def layers(self, num_classes: int, seed: int) -> list[keras.layers.Layer]:
        """Returns the layers from "pooling" to "logits", new ones, whose weights and dropout are drawn from the seed."""
        import keras  # here: options are read and checked without it

        def draw(*names: str | int) -> int:
            return seeds.derive(seed, "head", *names) >> 32  # Keras' seeds have 32 bits

        regularizer = keras.regularizers.L2(self.l2) if self.l2 else None
        dense: dict[str, Any] = {"kernel_regularizer": regularizer, "dtype": "float32"}
        stack = [_pooling(self.pooling)]
        if self.dropout:
            stack.append(keras.layers.Dropout(self.dropout, seed=draw("dropout"), dtype="float32", name="dropout"))
        for index, units in enumerate(self.hidden, 1):
            start = keras.initializers.HeNormal(seed=draw("hidden", index))
            hidden = keras.layers.Dense(units, activation="relu", kernel_initializer=start, name=f"hidden_{index}", **dense)
            stack.append(hidden)
            if self.dropout:
                name = f"dropout_{index}"
                stack.append(keras.layers.Dropout(self.dropout, seed=draw("dropout", index), dtype="float32", name=name))
        # From zero: random weights times features of any size (34 for VGG16's maxima) are logits of
        # tens before the first step, and what was left of them at the end cost 1 to 10 % of
        # accuracy.
        return [*stack, keras.layers.Dense(num_classes, kernel_initializer="zeros", name="logits", **dense)]


def _pooling(kind: Pooling) -> keras.layers.Layer:
    import keras

    if kind == "average":
        return keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooling")
    if kind == "max":
        return keras.layers.GlobalMaxPooling2D(dtype="float32", name="pooling")
    return keras.layers.Flatten(dtype="float32", name="pooling")
