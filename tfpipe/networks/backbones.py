"""Backbones: networks that turn images into feature maps, with the names of their blocks and their preprocessing.

    backbone = build("vgg16", image_size=(224, 224), weights="imagenet")
    boundary, trainable = find_trainable(backbone, ["block5"])   # "block4_pool", {"block5_conv1", ...}
    front, back = cut(backbone.network, boundary)

A network of one's own is used by its import path, see `tfpipe.networks.import_paths`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import keras
from keras import layers

from tfpipe.common.errors import lines_of
from tfpipe.networks import import_paths, weight_files
from tfpipe.networks.architectures import TABLE, Architecture, choose_input
from tfpipe.networks.architectures import names as names
from tfpipe.networks.architectures import native_size as native_size
from tfpipe.networks.submodels import cut as cut
from tfpipe.networks.submodels import cut_points as cut_points
from tfpipe.networks.submodels import find_dependents, find_layers
from tfpipe.networks.submodels import hash_network as hash_network


@dataclass(frozen=True)
class Backbone:
    """A network and what tfpipe knows of it.

    Attributes:
        name: of the table, or "package.module:function".
        network: Functional, float [B, H, W, C] -> feature map [B, h, w, D].
        preprocessing: what its input is, one of `layers.PREPROCESSINGS`.
        blocks: name of each block -> name of its last layer, from input to output; together they
            are all layers.
    """

    name: str
    network: keras.Model
    preprocessing: str
    blocks: Mapping[str, str]


def build(
    name: str,
    *,
    image_size: tuple[int, int],
    weights: str = "none",
    preprocessing: str | None = None,
    grey: bool = False,
) -> Backbone:
    """Returns a backbone, with new weights or those of a file.

    Args:
        name: of the table (`names()`), or "package.module:function": see `import_paths`.
        image_size: (height, width).
        weights: "imagenet" (downloaded by Keras, once), "none" (new ones; a network by import path
            keeps those that its function gave it), or a .h5, .weights.h5 or .keras file, with or
            without the Dense layers of a classifier.
        preprocessing: one of `layers.PREPROCESSINGS`; by default what the table says, "unit" (0..1)
            for import paths.
        grey: one channel instead of three, only for lenet and import paths; preprocessing is "grey"
            then.

    Raises:
        ValueError: a name, a size or a combination that cannot be; a function that does not return
            what it must.
        ImportError: the module or the function cannot be imported.
        ConnectionError: ImageNet's weights could not be downloaded.
        FileNotFoundError: there is no such weights file.
        DataError: the weights file is of another network, or cannot be read.
    """
    by_path = ":" in name
    mode, shape = choose_input(name, image_size, weights, preprocessing, grey=grey)
    network = import_paths.make(name, shape) if by_path else _make(TABLE[name], shape, weights)
    blocks = import_paths.derive_blocks(network) if by_path else _find_blocks(network, TABLE[name].ends)
    if weights not in ("imagenet", "none"):
        weight_files.load(network, weights)
    return Backbone(name, network, mode, MappingProxyType(blocks))


def make_lenet(input_shape: tuple[int, int, int]) -> keras.Model:
    """Returns convolutions with pooling, after LeCun et al. 1998, with ReLU, smaller kernels and a third one."""
    values = images = keras.Input(input_shape)
    for index, filters in enumerate((32, 64, 128), start=1):
        convolution = layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"block{index}_conv"
        )
        values = convolution(values)
        values = layers.MaxPooling2D(name=f"block{index}_pool")(values)
    return keras.Model(images, values, name="lenet")


def _make(row: Architecture, shape: tuple[int, int, int], weights: str) -> keras.Model:
    if not row.application:
        return make_lenet(shape)
    builder = getattr(keras.applications, row.application)
    if weights != "imagenet":
        return builder(include_top=False, weights=None, input_shape=shape)
    try:
        return builder(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception
        reason = lines_of(error)[-1]
        raise ConnectionError(
            f"ImageNet's weights cannot be downloaded: {reason}. Give a file instead (weights=PATH)"
        ) from error


# -- blocks


def _find_blocks(network: keras.Model, ends: Mapping[str, str]) -> dict[str, str]:
    order = list(find_layers(network))
    places = {name: order.index(name) for name in cut_points(network)}

    def resolve(end: str) -> str:
        if not end.startswith("<"):
            return end
        start = order.index(end[1:])
        return max((name for name in places if places[name] < start), key=places.__getitem__)

    return {block: resolve(end) for block, end in ends.items()}


# -- what trains


def find_trainable(backbone: Backbone, unfreeze: Sequence[str]) -> tuple[str | None, set[str]]:
    """Returns the last cut point before everything that is unfrozen, and the names of the layers to train.

    The cut point is None where no part of the network stays frozen in front, and the output's layer
    where nothing is unfrozen.

    Args:
        backbone: whose blocks the words mean.
        unfreeze: a block means all its layers and all blocks behind it; a layer means itself and
            all layers that depend on it. A word that is both means the block.

    Raises:
        ValueError: a word is neither.
    """
    order = list(find_layers(backbone.network))
    trainable: set[str] = set()
    for word in unfreeze:
        if word in backbone.blocks:
            trainable.update(order[_start_of(backbone, word, order) :])
        elif word in order[1:]:
            trainable |= find_dependents(backbone.network, [word])
        else:
            raise ValueError(_unknown(backbone, word, order))
    first = min((order.index(name) for name in trainable), default=len(order))
    points = [name for name in cut_points(backbone.network) if order.index(name) < first]
    return (points[-1] if points else None), trainable


def _start_of(backbone: Backbone, block: str, order: list[str]) -> int:
    """Returns the position of a block's first layer; the input belongs to no block's training."""
    blocks = list(backbone.blocks)
    index = blocks.index(block)
    return order.index(backbone.blocks[blocks[index - 1]]) + 1 if index else 1


def _unknown(backbone: Backbone, word: str, order: list[str]) -> str:
    close = difflib.get_close_matches(word, order, n=3, cutoff=0.6)
    hint = f"; layers with such a name: {', '.join(close)}" if close else ""
    return f"unfreeze: {backbone.name} has no block or layer {word!r}; its blocks are {', '.join(backbone.blocks)}{hint}"
