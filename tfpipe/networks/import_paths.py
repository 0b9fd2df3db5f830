"""Networks by import path, "package.module:function", whose code is not ours.

The function is called with the keyword input_shape=(height, width, channels) and returns a new
Functional keras.Model,
[B, H, W, C] -> [B, h, w, D], without a head.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfpipe.common.text import exactly
from tfpipe.networks.submodels import cut_points, find_layers, is_functional


def make(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Returns the network of a function, checked.

    Raises:
        ValueError: it is not what the contract says, or the function raised.
        ImportError: the module or the function cannot be imported.
    """
    function = _import(name)
    try:
        network = function(input_shape=shape)
    except Exception as error:  # of code that is not ours, which may raise anything
        raise ValueError(f"backbone {name}: with input_shape={shape} it raised {type(error).__name__}: {error}") from error
    _check_network(name, network, shape)
    return network


def _import(name: str) -> Callable[..., Any]:
    """Returns a function by its path; modules of the current directory are found, as by `python -m`."""
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
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        raise ImportError(f"backbone {name}: {module.__file__} has no function {function_name}")
    return function


def _check_network(name: str, network: Any, shape: tuple[int, ...]) -> None:
    problem = None
    if not is_functional(network):
        kind = "a Sequential model" if isinstance(network, keras.Sequential) else f"{type(network).__name__}"
        problem = f"it returned {kind}, not a Functional keras.Model, made as keras.Model(inputs, outputs)"
    elif len(network.inputs) != 1 or len(network.outputs) != 1:
        problem = (
            f"its model has {exactly(len(network.inputs), 'input')} and {exactly(len(network.outputs), 'output')},"
            " not one of each"
        )
    elif network.inputs[0].shape != (None, *shape):
        problem = f"its model takes {network.inputs[0].shape}, not the input_shape that it was given, {(None, *shape)}"
    elif len(network.outputs[0].shape) != 4 or not all(network.outputs[0].shape[1:]):
        problem = f"its model returns {network.outputs[0].shape}, not a feature map [B, h, w, D]: leave pooling and head out"
    elif network.outputs[0]._keras_history.operation.name not in cut_points(network):
        problem = "the layer of its output is called twice, or is its input: blocks could not end there"
    if problem:
        raise ValueError(f"backbone {name}: {problem}")


def derive_blocks(network: keras.Model) -> dict[str, str]:
    """Returns blocks that end at cut points and hold a kernel each, so that BatchNorm and ReLU stay with what they follow.

    A block has the name of its last layer, or a number where Keras made that name up, since then it
    is another one in another session.
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
    automatic = type(members[end]).__name__.lower().replace("_", "")
    if re.sub(r"_\d+$", "", end).replace("_", "") != automatic:
        return end
    name = f"block{index}"
    while name in members:
        name += "_"
    return name
