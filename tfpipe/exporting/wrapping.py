"""Wraps any Keras classifier with preprocessing and class names.

model = wrap(network, class_names=("cat", "dog"), preprocessing="tf")
model.predict(images)    # uint8 [B, H, W, 3] -> float32 [B, C]
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tfpipe.common import arguments
from tfpipe.common.text import exactly
from tfpipe.images import decoding
from tfpipe.models.classifiers import NamedModel
from tfpipe.models.predictions import TOLERANCE, are_probabilities
from tfpipe.networks import arithmetic, layers, submodels
from tfpipe.records.samples import BACKGROUNDS, PNG16, USUAL, Samples

_TOLERANCE = 1e-3  # of a sum of probabilities of 32 bits
_NO_SIGNS = ("Cc", "Cs", "Zl", "Zp")  # of Unicode: control, surrogate, line separator, paragraph separator
_TENSOR = keras.KerasTensor


def wrap(
    network: keras.Model,
    *,
    class_names: Sequence[str],
    preprocessing: str = "none",
    image_size: tuple[int, int] | None = None,
    resize: decoding.Resize = "stretch",
    outputs: str | None = None,
    png16: str = USUAL.png16,
    background: str = USUAL.background,
) -> NamedModel:
    """Returns a model from pixels to named probabilities; Dropout and the like are off for good.

    Features are the input of the last Dense layer, if the model is a graph of layers and they are
    [B, D].

    Args:
        network: float [B, H, W, 3 or 1] -> [B, C].
        class_names: of the columns, in their order; two for one column, the probability of the
            second.
        preprocessing: that it was trained with, see `layers.Preprocessing`.
        image_size: (height, width); needed if the network takes any.
        resize: how its images were resized.
        outputs: one of `layers.OUTPUTS`. By default "sigmoid" for one column and two classes, if that
            is the last layer's activation; else "probabilities", if the last layer has an
            activation and they look like it.
        png16: how 16-bit PNG that it was trained on were read, see `Samples`.
        background: of transparent images.

    Raises:
        ValueError: an argument does not fit the network, or its outputs are not probabilities.
    """
    class_names = _read_names(class_names)
    check_options(preprocessing=preprocessing, resize=resize, outputs=outputs, png16=png16, background=background)
    network = _with_one_input_and_output(network)
    size = _size(network, image_size)
    images = keras.Input((*size, 3), dtype="uint8", name="image")
    values = layers.Preprocessing(preprocessing, resize, Samples(png16, background), name="preprocessing")(images)
    _check_channels(network, values.shape[-1])
    for name, part in _parts(network).items():
        values = layers.Trunk(part, inference=True, name=name)(values)
    if not isinstance(values, _TENSOR):
        kinds = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{network.name}: one tensor [B, C] is expected (it gives {kinds})")
    outputs = outputs or _guess_outputs(network, is_binary=values.shape[-1] == 1 and len(class_names) == 2)
    _check_columns(values.shape, len(class_names), network.name, outputs)
    if outputs == "logits" and values.shape[-1] == 1 and _is_sigmoid(_last_layer(network)):
        raise ValueError(f"{network.name}: its outputs are probabilities already, of a sigmoid; omit outputs=logits")
    probabilities = layers.Probabilities(class_names, source=outputs, name="probabilities")(values)
    model = NamedModel(keras.Model(images, probabilities, name="classifier"))
    _check_outputs(keras.Model(images, [values, probabilities]), network.name, outputs)
    return model


def _read_names(class_names: Iterable[str]) -> tuple[str, ...]:
    names = arguments.class_names(class_names)
    for name in names:
        if not name.strip() or any(unicodedata.category(sign) in _NO_SIGNS for sign in name):
            raise arguments.wrong("class_names", "texts that are not empty, of one line and UTF-8", name)
    return names


_OPTIONS = {
    "preprocessing": layers.PREPROCESSINGS,
    "resize": decoding.RESIZES,
    "outputs": layers.OUTPUTS,
    "png16": PNG16,
    "background": BACKGROUNDS,
}


def check_options(**given: str | None) -> None:
    """Raises ValueError for an unknown value; None is not given."""
    for name, value in given.items():
        if value is not None:
            arguments.choice(name, value, _OPTIONS[name])


def _with_one_input_and_output(network: keras.Model) -> keras.Model:
    """Returns a network of one input and output tensor; unpacks lists and dictionaries of one."""
    if not getattr(network, "inputs", None) or not getattr(network, "outputs", None):
        return network  # subclassed
    if len(network.inputs) > 1:
        names = ", ".join(tensor.name for tensor in network.inputs)
        raise ValueError(f"{network.name}: has {exactly(len(network.inputs), 'input')} ({names}); one is expected")
    if len(network.outputs) > 1:
        names = ", ".join(getattr(network, "output_names", ()))
        raise ValueError(
            f"{network.name}: has {exactly(len(network.outputs), 'output')} ({names}); give a model of the one to export"
        )
    if submodels.is_functional(network) and isinstance(network.input, _TENSOR) and isinstance(network.output, _TENSOR):
        return network
    return keras.Model(network.inputs[0], network.outputs[0], name=network.name)


def _size(network: keras.Model, image_size: tuple[int, int] | None) -> tuple[int, int]:
    shape = getattr(network, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        if shape is not None or image_size is None:
            raise ValueError(f"{network.name}: one input [B, H, W, channels] is expected, or image_size (it has {shape})")
        shape = (None, None, None, 3)
    height, width = shape[1:3]
    if image_size is None and (height is None or width is None):
        raise ValueError(f"{network.name}: takes images of any size: give image_size, (height, width)")
    size: tuple[int, int]
    (size,) = arguments.check(image_size=(height, width) if image_size is None else image_size)
    if (height or size[0], width or size[1]) != tuple(size):
        raise ValueError(f"{network.name}: image_size={size}, but it takes {(height, width)}")
    return size


def _check_channels(network: keras.Model, channels: int) -> None:
    expected = (getattr(network, "input_shape", None) or (None,))[-1]
    if expected not in (None, channels):
        advice = "grey" if expected == 1 else "one of colour"
        raise ValueError(
            f"{network.name}: takes {exactly(expected, 'channel')}, not {channels}: preprocessing must be {advice}"
        )


def _parts(network: keras.Model) -> dict[str, keras.Model]:
    """Returns the network, or two parts of it with features between them."""
    if submodels.is_functional(network):
        points, found = submodels.cut_points(network), submodels.find_layers(network)
        dense = [index for index, name in enumerate(points) if isinstance(found[name], keras.layers.Dense)]
        if dense and dense[-1] > 0:
            front, back = submodels.cut(network, points[dense[-1] - 1])
            if len(front.output_shape) == 2:
                return {"features": front, "outputs": back}
    return {"outputs": network}


def _guess_outputs(network: keras.Model, *, is_binary: bool) -> str:
    """Returns the kind of a network's outputs from the activation of its last layer.

    The outputs alone cannot tell it for one column: BinaryCrossentropy(from_logits=True) leaves
    logits between 0 and 1 for many images.
    """
    last = _last_layer(network)
    if getattr(last, "activation", None) is keras.activations.linear:
        missing = "sigmoid" if is_binary else "softmax"
        advice = f"give outputs=logits if a {missing} is missing, or the right outputs"
        raise ValueError(f"{network.name}: its last layer, {last.name}, has no activation; {advice}")
    if is_binary and not _is_sigmoid(last):
        raise ValueError(f"{network.name}: one column of unknown outputs: give outputs=sigmoid or outputs=logits")
    return "sigmoid" if is_binary else "probabilities"


def _is_sigmoid(layer: Any) -> bool:
    return getattr(layer, "activation", None) is keras.activations.sigmoid or type(layer).__name__ == "Sigmoid"  # keras.ops'


def _last_layer(network: Any) -> Any:
    """Returns the last layer that changes its input."""
    if isinstance(network, keras.Sequential):
        called = network.layers
    elif submodels.is_functional(network):
        called = submodels.called_layers(network)
    else:
        return network
    found = next((layer for layer in reversed(called) if not _passes_on(layer)), None)
    return network if found is None else _last_layer(found)


def _passes_on(layer: Any) -> bool:
    # The last one is how mixed precision is brought back to float32.
    is_cast = isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    return is_cast or isinstance(
        layer, keras.layers.Identity | keras.layers.Flatten | keras.layers.Reshape | keras.layers.Dropout
    )


def _check_columns(shape: Sequence[int | None], num_names: int, name: str, outputs: str) -> None:
    fitting = {"probabilities": [num_names], "sigmoid": [1], "logits": [num_names, 1]}[outputs]
    if len(shape) != 2 or shape[-1] not in fitting or (shape[-1] == 1 and num_names != 2):
        raise ValueError(f"{name}: outputs of shape {shape} for {exactly(num_names, 'class name')}, as outputs={outputs}")


@arithmetic.exact()
def _check_outputs(model: keras.Model, name: str, outputs: str) -> None:
    """Checks outputs for noise: logits taken for probabilities would raise no error."""
    noise = np.random.default_rng(0).integers(0, 256, (4, *model.input_shape[1:]), dtype=np.uint8)
    plain = [np.full_like(noise[:1], level) for level in (0, 64, 128, 255)]
    tensors = model(np.concatenate([noise, noise // 8 + 100, *plain]), training=False)
    tolerance = _TOLERANCE if tensors[0].dtype == "float32" else TOLERANCE
    values, found = (np.asarray(tensor, np.float32) for tensor in tensors)
    if outputs == "logits" and values.shape[1] > 1 and are_probabilities(values, tolerance).all():
        raise ValueError(
            f"{name}: its outputs are probabilities already (for noise {values[0].tolist()[:5]}); omit outputs=logits"
        )
    if not (good := are_probabilities(found, tolerance)).all():
        bad = values[~good]
        advice = "the weights may be damaged"
        if np.isfinite(bad).all():
            in_range = (values >= 0).all() and (values <= 1).all()
            several = "tfpipe exports classifiers of one label per image, whose outputs sum to 1"
            advice = several if in_range else "give outputs=logits if an activation is missing"
        raise ValueError(f"{name}: its outputs are not probabilities (for noise {bad[0].tolist()[:5]}); {advice}")
