"""The head: what stands between a feature map and the classes; and the whole classifier put together.

    head = Head(pooling="average", hidden=(1024,), dropout=0.5)
    model = assemble(backbone, head, class_names, image_size=(224, 224))     # uint8 [B, H, W, 3] -> float32 [B, C]

Everything behind the trunk computes in float32, whatever the trunk does: it costs nothing there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras

from tfpipe.networks import layers
from tfpipe.networks.backbones import Backbone, cut
from tfpipe.networks.head_options import Head as Head
from tfpipe.networks.submodels import find_layers


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
