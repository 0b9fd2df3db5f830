"""The head of a classifier, from feature map to logits, and the assembly of the whole.

    head = Head(pooling="average", hidden=(1024,), dropout=0.5).layers(num_classes=2, seed=0)
    model = assemble(trunks, preprocessing, head, class_names, image_size=(224, 224))

All layers after the trunk compute in float32, whatever the trunk computes in: it costs nothing
there. Options are read and checked without Keras, which is loaded by the functions that need it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tfpipe.common import arguments, seeds

if TYPE_CHECKING:
    import keras

Pooling = Literal["average", "max", "flatten"]
HUBER, SQUARED = NUMERIC_LOSSES = ("huber", "squared")  # of a regression


@dataclass(frozen=True, slots=True)
class Head:
    """The layers that are trained on top of the features.

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

    def layers(self, num_logits: int, seed: int, *, use_bias: bool = True) -> list[keras.layers.Layer]:
        """Returns new layers from "pooling" to "logits"; the seed sets weights and dropout.

        Logits have no bias where thresholds follow.
        """
        import keras

        def draw(*names: str | int) -> int:
            return seeds.derive(seed, "head", *names) >> 32  # Keras' seeds have 32 bits

        def add_dropout(*index: int) -> None:
            if self.dropout:
                name = "_".join(map(str, ("dropout", *index)))
                stack.append(keras.layers.Dropout(self.dropout, seed=draw("dropout", *index), dtype="float32", name=name))

        kinds = {"average": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D", "flatten": "Flatten"}
        stack = [getattr(keras.layers, kinds[self.pooling])(dtype="float32", name="pooling")]
        add_dropout()
        regularizer = keras.regularizers.L2(self.l2) if self.l2 else None
        dense: dict[str, Any] = {"kernel_regularizer": regularizer, "dtype": "float32"}
        for index, units in enumerate(self.hidden, 1):
            start = keras.initializers.HeNormal(seed=draw("hidden", index))
            dense_layer = keras.layers.Dense(
                units, activation="relu", kernel_initializer=start, name=f"hidden_{index}", **dense
            )
            stack.append(dense_layer)
            add_dropout(index)
        # From zero: random weights times features of any size (34 for VGG16's maxima) are logits of
        # tens before the first step, and their remains at the end cost 1 to 10 % of accuracy.
        dense |= {"kernel_initializer": "zeros", "use_bias": use_bias}
        return [*stack, keras.layers.Dense(num_logits, name="logits", **dense)]


def assemble(
    trunks: Sequence[keras.layers.Layer],
    preprocessing: keras.layers.Layer,
    head: Sequence[keras.layers.Layer],
    class_names: Sequence[str],
    image_size: tuple[int, int],
    last: keras.layers.Layer | None = None,
) -> keras.Model:
    """Returns the whole classifier: uint8 [B, H, W, 3] -> float32 [B, C], probabilities.

    Its last layer is one of one class an image, unless it is given.
    """
    import keras

    from tfpipe.networks.layers import Probabilities

    values = images = keras.Input((*image_size, 3), dtype="uint8", name="image")
    last = last or Probabilities(class_names, name="probabilities")
    for layer in (preprocessing, *trunks, *head, last):
        values = layer(values)
    return keras.Model(images, values, name="classifier")


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers made inside compute in this policy: Keras' applications take no dtype."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
