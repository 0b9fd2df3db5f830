"""Backbones: networks from images to feature maps, with their blocks and preprocessing.

    backbone = build("vgg16", image_size=(224, 224), weights="imagenet")
    boundary, trainable = find_trainable(backbone, ["block5"])   # "block4_pool", {"block5_conv1", ...}
    front, back = cut(backbone.network, boundary)

Besides those of the table, a user's own network by its import path, "package.module:function". The
function is called with the keyword input_shape=(height, width, channels) and returns a new
Functional keras.Model, [B, H, W, C] -> [B, h, w, D], without a head.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras

from tfpipe.common.errors import lines_of
from tfpipe.common.text import exactly
from tfpipe.networks import efficientnet_lite, vision_transformers, weight_files
from tfpipe.networks.architectures import TABLE, choose_input, is_file, is_preset
from tfpipe.networks.submodels import cut, cut_points, find_dependents, find_layers, is_functional


@dataclass(frozen=True)
class Backbone:
    """A network and what tfpipe knows of it.

    Attributes:
        name: in the table, or "package.module:function".
        network: Functional, float [B, H, W, C] -> feature map [B, h, w, D].
        preprocessing: of its input, one of `layers.PREPROCESSINGS`.
        blocks: name of each block -> name of its last layer, from input to output; together they
            hold all layers.
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
        name: in `architectures.TABLE`, or "package.module:function".
        image_size: (height, width).
        weights: "imagenet" (downloaded by Keras, once), "package" (of an extra), "none" (new ones;
            a network by import path keeps those that its function gave it), or a .h5, .weights.h5
            or .keras file, with or without the Dense layers of a classifier. Of vit and dinov2
            also a preset of KerasHub, a folder or the name of one that it downloads.
        preprocessing: one of `layers.PREPROCESSINGS`; by default that of the table, "unit" (0..1)
            for import paths.
        grey: one channel instead of three, only for lenet and import paths; implies preprocessing
            "grey".

    Raises:
        ValueError: an invalid name or size, arguments that exclude each other, or a function that
            does not return such a network.
        ImportError: the module, the function or the package cannot be imported.
        ConnectionError: ImageNet's weights could not be downloaded.
        FileNotFoundError: there is no such weights file.
        DataError: the weights file is of another network, or cannot be read.
    """
    mode, shape = choose_input(name, image_size, weights, preprocessing, grey=grey)
    if ":" in name:
        network = _make_by_path(name, shape)
        blocks = _derive_blocks(network)
    else:
        network = _make_by_name(name, shape, weights, rescales=preprocessing is None)
        blocks = find_blocks(network, TABLE[name].blocks)
    if weights == "package":
        efficientnet_lite.load(network)
    elif is_file(name, weights):
        weight_files.load(network, weights)
    return Backbone(name, network, mode, MappingProxyType(blocks))


def truncate(backbone: Backbone, after: str) -> Backbone:
    """Returns the backbone up to a block or a layer; a word that names both means the block.

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


def find_trainable(backbone: Backbone, unfreeze: Sequence[str]) -> tuple[str | None, set[str]]:
    """Returns the last cut point before all unfrozen layers, and the names of the layers to train.

    The cut point is None where no part of the network stays frozen in front, and the output's layer
    where nothing is unfrozen.

    Args:
        backbone: its blocks are those that `unfreeze` names.
        unfreeze: a block means all its layers and all blocks after it; a layer means itself and all
            layers that depend on it. A word that names both means the block.

    Raises:
        ValueError: a word names neither.
    """
    order, blocks = list(find_layers(backbone.network)), list(backbone.blocks)
    trainable: set[str] = set()
    for word in unfreeze:
        if word in blocks:
            before = blocks.index(word) - 1
            # The first block starts after the input.
            trainable.update(order[1 if before < 0 else order.index(backbone.blocks[blocks[before]]) + 1 :])
        elif word in order[1:]:
            trainable |= find_dependents(backbone.network, [word])
        else:
            close = difflib.get_close_matches(word, order, n=3, cutoff=0.6)
            hint = f"; layers with such a name: {', '.join(close)}" if close else ""
            known = f"its blocks are {', '.join(blocks)}{hint}"
            raise ValueError(f"unfreeze: {backbone.name} has no block or layer {word!r}; {known}")
    first = min((order.index(name) for name in trainable), default=len(order))
    points = [name for name in cut_points(backbone.network) if order.index(name) < first]
    return (points[-1] if points else None), trainable


# -- networks of the table


def make_lenet(input_shape: tuple[int, int, int]) -> keras.Model:
    """Returns a network after LeCun et al. 1998, with ReLU, smaller kernels and a third block."""
    values = images = keras.Input(input_shape)
    for index, filters in enumerate((32, 64, 128), start=1):
        values = keras.layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"block{index}_conv"
        )(values)
        values = keras.layers.MaxPooling2D(name=f"block{index}_pool")(values)
    return keras.Model(images, values, name="lenet")


_OWN = {"lenet": make_lenet, "efficientnetlite0": efficientnet_lite.make}


def _make_by_name(name: str, shape: tuple[int, int, int], weights: str, *, rescales: bool) -> keras.Model:
    if name in _OWN:
        return _OWN[name](shape)
    if TABLE[name].pretrained == "preset":
        preset = weights if is_preset(name, weights) else None
        return vision_transformers.build(name, shape[:2], preset, rescales=rescales)
    builder = getattr(keras.applications, TABLE[name].application)
    if weights != "imagenet":
        return builder(include_top=False, weights=None, input_shape=shape)
    try:
        return builder(include_top=False, weights="imagenet", input_shape=shape)
    except Exception as error:  # Keras raises a bare Exception
        advice = "Give a file instead (weights=PATH)"
        raise ConnectionError(f"ImageNet's weights cannot be downloaded: {lines_of(error)[-1]}. {advice}") from error


def find_blocks(network: keras.Model, rule: str | Mapping[str, str]) -> dict[str, str]:
    """Returns the name of each block -> name of its last layer, from input to output.

    Args:
        network: one that Keras built.
        rule: a pattern; a block starts where it finds a new name at the start of a layer's (its
            group 1, if it has one), and ends at the last cut point before the next. What comes
            before the first is the block "stem", if it has weights. Or the last layer of each
            block, "" for the output.
    """
    layers = find_layers(network)
    order = list(layers)
    if not isinstance(rule, str):
        return {block: end or order[-1] for block, end in rule.items()}
    starts: dict[str, int] = {}
    for place, name in enumerate(order):
        if match := re.match(rule, name):
            starts.setdefault(match[match.re.groups], place)
    if any(getattr(layers[name], "weights", ()) for name in order[: min(starts.values())]):
        starts = {"stem": 0, **starts}
    points = [order.index(name) for name in cut_points(network)]
    following = [*list(starts.values())[1:], len(order)]
    return {block: order[max(point for point in points if point < end)] for block, end in zip(starts, following, strict=True)}


# -- networks by import path


def _make_by_path(name: str, shape: tuple[int, int, int]) -> keras.Model:
    function = _import(name)
    try:
        network = function(input_shape=shape)
    except Exception as error:  # a user's code may raise anything
        raise ValueError(f"backbone {name}: with input_shape={shape} it raised {type(error).__name__}: {error}") from error
    if problem := _find_problem(network, shape):
        raise ValueError(f"backbone {name}: {problem}")
    return network


def _import(name: str) -> Any:
    """Returns a function by its path; the current directory is searched, as by `python -m`."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ValueError(f"backbone must be a name of the table or 'package.module:function' (got {name!r})")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module's own code may raise anything
        raise ImportError(
            f"backbone {name}: module {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ImportError(f"backbone {name}: {module.__file__} has no function {function_name}")
    return function


def _find_problem(network: Any, shape: tuple[int, int, int]) -> str | None:
    if not is_functional(network):
        kind = "a Sequential model" if isinstance(network, keras.Sequential) else type(network).__name__
        return f"it returned {kind}, not a Functional keras.Model, made as keras.Model(inputs, outputs)"
    inputs, outputs = network.inputs, network.outputs
    if len(inputs) != 1 or len(outputs) != 1:
        return f"its model has {exactly(len(inputs), 'input')} and {exactly(len(outputs), 'output')}, not one of each"
    if inputs[0].shape != (None, *shape):
        return f"its model takes {inputs[0].shape}, not the input_shape that it was given, {(None, *shape)}"
    if len(outputs[0].shape) != 4 or not all(outputs[0].shape[1:]):
        return f"its model returns {outputs[0].shape}, not a feature map [B, h, w, D]: leave pooling and head out"
    if outputs[0]._keras_history.operation.name not in cut_points(network):
        return "the layer of its output is called twice, or is its input: blocks could not end there"
    return None


def _derive_blocks(network: keras.Model) -> dict[str, str]:
    """Returns blocks that end at cut points and hold a kernel each, with its BatchNorm and ReLU.

    A block has the name of its last layer, or a number where Keras generated that name, as then it
    differs between sessions.
    """
    members, boundaries = find_layers(network), set(cut_points(network))
    ends, last, block_has_kernel, has_kernel = list[str](), "", False, False
    for name, layer in members.items():
        has_kernel |= any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ()))
        if name not in boundaries:
            continue
        if has_kernel and block_has_kernel:
            ends.append(last)
        block_has_kernel |= has_kernel
        last, has_kernel = name, False
    return {_name_block(members, end, index): end for index, end in enumerate([*ends, last], start=1)}


def _name_block(members: Mapping[str, Any], end: str, index: int) -> str:
    generated = type(members[end]).__name__.lower().replace("_", "")
    if re.sub(r"_\d+$", "", end).replace("_", "") != generated:
        return end
    name = f"block{index}"
    while name in members:
        name += "_"
    return name
