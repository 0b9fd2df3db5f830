"""Backbones: networks that turn pictures into feature maps, with the names of their blocks and their preprocessing.

    backbone = build("vgg16", image_size=(224, 224), weights="imagenet")
    boundary, trainable = find_trainable(backbone, ["block5"])   # "block4_pool", {"block5_conv1", ...}
    front, back = cut(backbone.network, boundary)

A network of one's own is used by its import path, see `tfpipe.transfer.import_paths`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import keras

from tfpipe.records import arguments
from tfpipe.records.errors import lines_of
from tfpipe.transfer import import_paths, weight_files
from tfpipe.transfer.architectures import TABLE, Architecture
from tfpipe.transfer.cutting import cut as cut
from tfpipe.transfer.cutting import cut_points as cut_points
from tfpipe.transfer.cutting import find_dependents, find_layers
from tfpipe.transfer.cutting import hash_network as hash_network
from tfpipe.transfer.layers import PREPROCESSINGS


@dataclass(frozen=True)
class Backbone:
    """A network and what tfpipe knows of it.

    Attributes:
        name: of the table, or "package.module:function".
        network: Functional, float [B, H, W, C] -> feature map [B, h, w, D].
        preprocessing: what its input is, one of `layers.PREPROCESSINGS`.
        blocks: name of each block -> name of its last layer, from input to output; together they are all layers.
    """

    name: str
    network: keras.Model
    preprocessing: str
    blocks: Mapping[str, str]


_NATIVE_SIZE = 224  # of networks that are not in the table


def names() -> tuple[str, ...]:
    """Returns the names of the table."""
    return tuple(TABLE)


def native_size(name: str) -> tuple[int, int]:
    """Returns the (height, width) that a backbone was made for; 224 x 224 for those by import path.

    Raises:
        ValueError: the name is neither in the table nor an import path.
    """
    size = _NATIVE_SIZE if ":" in name else _architecture(name).native_size
    return size, size


def check_name(name: str) -> str:
    """Returns the name of a backbone; raises ValueError if it is neither in the table nor an import path."""
    if not isinstance(name, str) or not (":" in name or name in TABLE):
        wanted = f"one of {', '.join(TABLE)} or 'package.module:function'"
        raise arguments.wrong("backbone", wanted, name, arguments.nearest(name, TABLE))
    return str(name)


def _architecture(name: str) -> Architecture:
    return TABLE[check_name(name)]


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
        weights: "imagenet" (downloaded by Keras, once), "none" (new ones; a network by import path keeps those that its
            function gave it), or a .h5, .weights.h5 or .keras file, with or without the Dense layers of a classifier.
        preprocessing: one of `layers.PREPROCESSINGS`; by default what the table says, "unit" (0..1) for import paths.
        grey: one channel instead of three, only for lenet and import paths; preprocessing is "grey" then.

    Raises:
        ValueError: a name, a size or a combination that cannot be; a function that does not return what it must.
        ImportError: the module or the function cannot be imported.
        ConnectionError: ImageNet's weights could not be downloaded.
        FileNotFoundError: there is no such weights file.
        DataError: the weights file is of another network, or cannot be read.
    """
    by_path = ":" in name
    mode = _choose_preprocessing("unit" if by_path else _architecture(name).preprocessing, preprocessing, grey=grey)
    shape = (*_checked_size(name, image_size), 1 if mode == "grey" else 3)
    if shape[2] == 1 and not by_path and name != "lenet":
        raise ValueError(f"backbone {name} takes three channels; grey is for lenet and for networks by import path")
    if weights == "imagenet" and (by_path or not TABLE[name].has_imagenet):
        raise ValueError(f"there are no ImageNet weights for {name}; weights must be 'none' or a file")
    network = import_paths.make(name, shape) if by_path else _make(TABLE[name], shape, weights)
    blocks = import_paths.derive_blocks(network) if by_path else _find_blocks(network, TABLE[name].ends)
    if weights not in ("imagenet", "none"):
        weight_files.load(network, weights)
    return Backbone(name, network, mode, MappingProxyType(blocks))


def _choose_preprocessing(default: str, wanted: str | None, *, grey: bool) -> str:
    if wanted is not None:
        arguments.choice("preprocessing", wanted, PREPROCESSINGS)
    if grey and wanted not in (None, "grey"):
        raise ValueError(f"grey means preprocessing 'grey', one channel (got {wanted!r}, which keeps three)")
    return "grey" if grey else wanted or default


def _checked_size(name: str, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    smallest = 1 if ":" in name else TABLE[name].smallest
    if min(height, width) < smallest:
        raise ValueError(f"image_size {height}x{width} is too small for {name}: at least {smallest}x{smallest} is needed")
    return height, width


def _make(row: Architecture, shape: tuple[int, ...], weights: str) -> keras.Model:
    if not row.has_imagenet:
        return row.builder(input_shape=shape)
    if weights != "imagenet":
        return row.builder(include_top=False, weights=None, input_shape=shape)
    try:
        return row.builder(include_top=False, weights="imagenet", input_shape=shape)
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

    The cut point is None where no part of the network stays frozen in front, and the output's layer where nothing is unfrozen.

    Args:
        backbone: whose blocks the words mean.
        unfreeze: a block means all its layers and all blocks behind it; a layer means itself and all layers that depend on
            it. A word that is both means the block.

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
