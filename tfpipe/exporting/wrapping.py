"""Any Keras model as one that takes pixels and names its answers.

model = wrap(network, class_names=("cat", "dog"), preprocessing="tf")
model.predict(images)    # uint8 [B, H, W, 3] -> float32 [B, C]
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tfpipe.pipeline import decoding
from tfpipe.transfer import cutting, layers
from tfpipe.transfer.classifiers import NamedModel

_TOLERANCE = 1e-3  # of a sum of probabilities: bfloat16 has three digits


def wrap(
    network: keras.Model,
    *,
    class_names: Sequence[str],
    preprocessing: str = "none",
    image_size: tuple[int, int] | None = None,
    resize: decoding.Resize = "stretch",
    outputs: str | None = None,
) -> NamedModel:
    """Returns a model with preprocessing before it and names behind it; Dropout and the like are off for good.

    Features are what goes into the last Dense layer, where the model is a graph of layers and that is [B, D].

    Args:
        network: float [B, H, W, 3 or 1] -> [B, C].
        class_names: of the columns.
        preprocessing: what it was trained behind, see `layers.Preprocessing`.
        image_size: (height, width); needed where the network takes any.
        resize: how its pictures were brought to that size.
        outputs: what comes out, one of `layers.OUTPUTS`. If not given, "sigmoid" for one column and two classes, else
            "probabilities", if that is what they look like.

    Raises:
        ValueError: an argument does not fit the network, or its outputs are no probabilities.
    """
    if len(set(class_names)) < len(class_names) or not class_names:
        raise ValueError(f"class_names must be different names, one per column (got {list(class_names)})")
    decoding.check_mode(resize)
    if isinstance(network, keras.Sequential) and network.built:
        network = keras.Model(network.inputs, network.outputs, name=network.name)
    size = _size(network, image_size)
    images = keras.Input((*size, 3), dtype="uint8", name="image")
    values = layers.Preprocessing(preprocessing, resize, name="preprocessing")(images)
    _check_channels(network, values.shape[-1])
    for name, part in _parts(network).items():
        values = layers.Trunk(part, inference=True, name=name)(values)
    source = outputs or ("sigmoid" if values.shape[-1] == 1 and len(class_names) == 2 else "probabilities")
    columns = 2 if source == "sigmoid" and values.shape[-1] == 1 else values.shape[-1]
    if len(values.shape) != 2 or columns != len(class_names):
        raise ValueError(f"{network.name}: outputs of shape {values.shape} for {len(class_names)} class names")
    probabilities = layers.Probabilities(class_names, source=source, name="probabilities")
    model = NamedModel(keras.Model(images, probabilities(values), name="classifier"))
    _check_probabilities(model, network.name, source)
    return model


def _size(network: keras.Model, image_size: tuple[int, int] | None) -> tuple[int, int]:
    shape = getattr(network, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        if shape is not None or image_size is None:
            raise ValueError(f"{network.name}: one input [B, H, W, channels] is expected, or image_size (it has {shape})")
        shape = (None, None, None, 3)
    height, width = shape[1:3]
    if image_size is None and (height is None or width is None):
        raise ValueError(f"{network.name}: takes pictures of any size: say image_size, (height, width)")
    size: tuple[int, int] = image_size or (height or 0, width or 0)
    decoding.check_size(size)
    if (height or size[0], width or size[1]) != tuple(size):
        raise ValueError(f"{network.name}: image_size={size}, but it takes {(height, width)}")
    return size


def _check_channels(network: keras.Model, channels: int) -> None:
    expected = (getattr(network, "input_shape", None) or (None,))[-1]
    if expected not in (None, channels):
        advice = "grey" if expected == 1 else "one of colour"
        raise ValueError(f"{network.name}: takes {expected} channels, not {channels}: preprocessing must be {advice}")


def _parts(network: keras.Model) -> dict[str, keras.Model]:
    """Returns the network in one piece, or in two where the values between them are features."""
    if cutting.is_functional(network):
        points, found = cutting.cut_points(network), cutting.find_layers(network)
        dense = [index for index, name in enumerate(points) if isinstance(found[name], keras.layers.Dense)]
        if dense and dense[-1] > 0:
            front, back = cutting.cut(network, points[dense[-1] - 1])
            if len(front.output_shape) == 2:
                return {"features": front, "outputs": back}
    return {"outputs": network}


def _check_probabilities(model: NamedModel, name: str, source: str) -> None:
    """Looks at answers to noise: logits taken for probabilities would be wrong without a word."""
    noise = np.random.default_rng(0).integers(0, 256, (4, *model.image_size, 3), dtype=np.uint8)
    plain = [np.full_like(noise[:1], level) for level in (0, 64, 128, 255)]
    found = model.predict(np.concatenate([noise, noise // 8 + 100, *plain]))
    in_range = np.isfinite(found).all() and (found >= -_TOLERANCE).all() and (found <= 1 + _TOLERANCE).all()
    if not in_range or (abs(found.sum(axis=1) - 1) > _TOLERANCE).any():
        advice = "say outputs=logits if a softmax is missing" if source == "probabilities" else "the weights may be damaged"
        raise ValueError(f"{name}: its outputs are no probabilities (for noise {found[0].tolist()[:5]}); {advice}")
