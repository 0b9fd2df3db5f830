"""The head: what stands between a feature map and the classes; and the whole classifier put together.

    head = Head(pooling="average", hidden=(1024,), dropout=0.5)
    model = assemble(backbone, head, class_names, image_size=(224, 224))     # uint8 [B, H, W, 3] -> float32 [B, C]

Everything behind the trunk computes in float32, whatever the trunk does: it costs nothing there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras

from tfpipe.records import arguments, seeds
from tfpipe.transfer import layers
from tfpipe.transfer.backbones import Backbone, cut
from tfpipe.transfer.cutting import find_layers

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
        start = keras.initializers.GlorotUniform(seed=draw("logits"))
        return [*stack, keras.layers.Dense(num_classes, kernel_initializer=start, name="logits", **dense)]


def _pooling(kind: Pooling) -> keras.layers.Layer:
    if kind == "average":
        return keras.layers.GlobalAveragePooling2D(dtype="float32", name="pooling")
    if kind == "max":
        return keras.layers.GlobalMaxPooling2D(dtype="float32", name="pooling")
    return keras.layers.Flatten(dtype="float32", name="pooling")


def assemble(
    trunks: Sequence[keras.layers.Layer],
    preprocessing: keras.layers.Layer,
    head: Sequence[keras.layers.Layer],
    class_names: Sequence[str],
    image_size: tuple[int, int],
) -> keras.Model:
    """Returns the classifier that the layers make: uint8 [B, H, W, 3] -> float32 [B, C], probabilities."""
    images = keras.Input((*image_size, 3), dtype="uint8", name="image")
    values = preprocessing(images)
    for layer in (*trunks, *head):
        values = layer(values)
    probabilities = layers.Probabilities(class_names, name="probabilities")(values)
    return keras.Model(images, probabilities, name="classifier")


def truncate(backbone: Backbone, after: str) -> Backbone:
    """Returns the backbone up to a block or a layer, the rest cut away; a word that is both means the block.

    Raises:
        ValueError: there is no such block or layer, or a network cannot end there.
    """
    after = backbone.blocks.get(after, after)
    front, _ = cut(backbone.network, after)
    kept = find_layers(front)
    blocks = {name: last for name, last in backbone.blocks.items() if last in kept}
    if after not in blocks.values():
        blocks[after] = after
    return Backbone(backbone.name, front, backbone.preprocessing, blocks)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers made inside compute in this policy: Keras' applications take no dtype."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
