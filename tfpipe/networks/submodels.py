"""Networks as graphs: cutting one in two, dependents of a layer, and a stable hash.

    front, back = cut(network, "block4_pool")   # back(front(x)) == network(x)

Here, "layer" also means the bare operations between layers (`keras.ops.relu(x)`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np


def is_functional(network: Any) -> bool:
    """Returns whether a model is a graph of layers; Sequential and subclassed models are not."""
    return isinstance(network, keras.Model) and hasattr(network, "operations") and hasattr(network, "_nodes_by_depth")


def _calls(network: keras.Model) -> list[Any]:
    """Returns the nodes of a network, one for each call of a layer, each after all that it reads.

    Keras has no public name for them. `layer.output` would be the tensor of the first network that
    the layer was ever in, and a layer of a part that `cut` returned was in the whole network first.
    """
    by_depth = network._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _sources(calls: list[Any]) -> list[list[int]]:
    """Returns for each call the positions of the calls whose results it reads."""
    positions = {id(tensor): index for index, node in enumerate(calls) for tensor in node.output_tensors}
    return [[positions[id(tensor)] for tensor in node.input_tensors] for node in calls]


def find_layers(network: keras.Model) -> dict[str, Any]:
    """Returns all layers by name, from input to output, each after its inputs."""
    return {node.operation.name: node.operation for node in _calls(network)}


def called_layers(network: keras.Model) -> list[Any]:
    """Returns the layer of each call, each after all that it reads; the last is the output's."""
    return [node.operation for node in _calls(network)]


def cut_points(network: keras.Model) -> list[str]:
    """Returns the names of the layers after which nothing but their output is read, in order.

    The input is not one of them; the last is the layer of the output. A layer that is called twice
    is not a cut point, as its name means two places.
    """
    return [node.operation.name for node in _cut_calls(network)]


def _cut_calls(network: keras.Model) -> list[Any]:
    calls = _calls(network)
    names = [node.operation.name for node in calls]
    furthest = list(range(len(calls)))  # the last call that reads the result of each
    for index, sources in enumerate(_sources(calls)):
        for source in sources:
            furthest[source] = index
    found, reach = [], 0
    for index, node in enumerate(calls):  # in this order, every call not after a cut point is before it
        if reach <= index and not node.is_input and len(node.output_tensors) == 1 and names.count(names[index]) == 1:
            found.append(node)
        reach = max(reach, furthest[index])
    return found


def cut(network: keras.Model, after: str) -> tuple[keras.Model, keras.Model]:
    """Returns the parts up to and after a layer, with shared weights: back(front(x)) == network(x).

    Args:
        network: one input, one output.
        after: a layer of `cut_points(network)`.

    Raises:
        ValueError: the layer is not one of them.
    """
    points = {node.operation.name: node.output_tensors[0] for node in _cut_calls(network)}
    if after not in points:
        known = after in find_layers(network)
        why = "something after it reads past it, or it is called twice" if known else "there is no such layer"
        raise ValueError(f"{network.name} cannot be cut after {after!r}: {why}; it can be after {', '.join(points)}")
    boundary = points[after]
    front = keras.Model(network.inputs[0], boundary)
    if boundary is network.outputs[0]:  # Keras makes no model whose input is its output
        features = keras.Input(batch_shape=boundary.shape, dtype=boundary.dtype)
        return front, keras.Model(features, keras.layers.Identity()(features))
    return front, keras.Model(boundary, network.outputs[0])


def find_dependents(network: keras.Model, names: Iterable[str]) -> set[str]:
    """Returns these layers and all that depend on them."""
    calls = _calls(network)
    wanted = set(names)
    reached: list[bool] = []
    for node, sources in zip(calls, _sources(calls), strict=True):
        reached.append(node.operation.name in wanted or any(reached[source] for source in sources))
    return {node.operation.name for node, is_reached in zip(calls, reached, strict=True) if is_reached}


def hash_network(network: keras.Model) -> str:
    """Returns the SHA-256 of architecture and weights, 64 digits, stable across processes.

    Keras numbers unnamed layers through a session ("conv2d_17"), so names count by their place
    only. Whether layers are trainable does not count; their precision does. Any change of the hash
    makes every cache of features obsolete.
    """
    config = json.loads(network.to_json())["config"]
    places = {name: f"layer {index}" for index, name in enumerate(dict.fromkeys(_names(network)))}
    state = hashlib.sha256(json.dumps(_without_names(config, places), sort_keys=True).encode())
    for weight in network.weights:
        values = np.ascontiguousarray(weight.numpy())
        state.update(f"{values.dtype}{values.shape}".encode())
        state.update(values.tobytes())
    return state.hexdigest()


def _names(network: Any) -> Iterable[str]:
    yield network.name
    inner = network.operations if is_functional(network) else getattr(network, "layers", ())
    parts = [part for name in ("networks", "heads") for part in getattr(network, name, ()) if isinstance(part, keras.Model)]
    for layer in [*inner, getattr(network, "network", None), *parts]:  # a Trunk has one, an Ensemble several
        if layer is not None:
            yield from _names(layer)


_NAMING = frozenset(("name", "keras_history", "input_layers", "output_layers"))  # of a config, with names of layers


def _without_names(value: Any, places: Mapping[str, str], *, naming: bool = False) -> Any:
    if isinstance(value, dict):
        left_out = ("trainable", "build_config", "name") if "trainable" in value else ("build_config",)
        kept = {key: item for key, item in value.items() if key not in left_out}
        return {key: _without_names(item, places, naming=key in _NAMING) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_names(item, places, naming=naming) for item in value]
    return places.get(value, value) if naming and isinstance(value, str) else value
