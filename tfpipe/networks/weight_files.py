"""Loads all weights of a network from a file, or reports the first layer that differs.

    load(network, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")

Three formats: Keras' old HDF5 (layers in their order), its new .weights.h5 (layers by class and
number) and .keras (whole models, also those of `tfpipe.train`). Dense layers at the end of the
file, a classifier's top, are left out; any other difference is an error. Keras' own loader accepts
any file that has more.
"""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, temporary_folder
from tfpipe.networks import keras_files
from tfpipe.networks.layers import Trunk
from tfpipe.records.run_folders import check_weights_file


class _Layer(NamedTuple):
    name: str
    weights: Sequence[Any]  # variables or HDF5 data sets

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(weight.shape) for weight in self.weights]

    @property
    def is_top(self) -> bool:
        """A Dense layer, or the state of a Dropout, which is not a weight."""
        return self.shapes in ([(2,)], []) or [len(shape) for shape in self.shapes] in ([2], [2, 1])


def load(network: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fills all weights of a network from a file; all its layers are trainable afterwards.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a directory.
        DataError: it cannot be read, holds a weight that is not finite, or is of another network.
    """
    file = check_weights_file(path)
    _unfreeze(network)
    try:
        with open_regular(file) as opened:
            is_archive = zipfile.is_zipfile(opened)
        if is_archive:
            model = keras_files.load(file)
            _unfreeze(model)
            trunks = [layer.network for layer in model.layers if isinstance(layer, Trunk)]  # of `tfpipe.train`
            _fill_in_order(network, [layer for part in trunks or [model] for layer in _layers(part)], file)
        else:
            with h5py.File(file, "r") as content:
                _load_hdf5(network, content, file)
    except OSError as error:
        raise DataError(f"cannot be read as HDF5, the format of weights ({error})", path=file) from error
    check_finite(network, file)


def check_finite(model: keras.Model, file: Path) -> None:
    """Raises DataError for a weight that is not finite, which ReLU would turn into zeros."""
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and not np.isfinite(weight.numpy().astype(np.float32)).all():
            raise DataError(f"its weight {weight.path} is not finite: the training that wrote it diverged", path=file)


def _unfreeze(network: keras.Model) -> None:
    """Makes all layers trainable, as `_layers` depends on it.

    An assignment of the present value is ignored: True on a trainable model would leave frozen
    layers in it frozen.
    """
    network.trainable = False
    network.trainable = True


def _layers(network: keras.Model) -> list[_Layer]:
    """Returns the layers that have weights, with those in the order of the old format."""
    layers = [layer for layer in network.layers if layer.weights]
    return [_Layer(layer.name, [*layer.trainable_weights, *layer.non_trainable_weights]) for layer in layers]


def _load_hdf5(network: keras.Model, content: Any, file: Path) -> None:
    group = content.get("model_weights", content)  # a whole model has them one level down
    if "layer_names" in group.attrs or "layer_names0" in group.attrs:
        try:
            names = _strings(group, "layer_names")
            saved = [_Layer(name, [group[name][weight] for weight in _strings(group[name], "weight_names")]) for name in names]
        except KeyError as error:
            raise DataError(f"its list of layers names what is not in it: {error.args[0]}", path=file) from error
        _fill_in_order(network, [layer for layer in saved if layer.weights], file)
    elif "layers" in group:
        _load_new(network, group, file)
    else:
        raise DataError(f"HDF5, but not weights as Keras saves them: it holds {', '.join(group) or 'nothing'}", path=file)


def _strings(group: Any, name: str) -> list[str]:
    """Returns a list among a group's attributes; Keras divides a long one into several."""
    pieces = [name] if name in group.attrs else [f"{name}{index}" for index in range(len(group.attrs))]
    found = itertools.chain.from_iterable(group.attrs[piece] for piece in pieces if piece in group.attrs)
    return [text.decode() if isinstance(text, bytes) else str(text) for text in found]


def _fill_in_order(network: keras.Model, saved: Sequence[_Layer], file: Path) -> None:
    layers = _layers(network)
    _compare(network, itertools.zip_longest(layers, saved[: len(layers)]), saved[len(layers) :], file)
    for layer, given in zip(layers, saved, strict=False):
        for variable, values in zip(layer.weights, given.weights, strict=True):
            variable.assign(values[()] if isinstance(values, h5py.Dataset) else values)


def _load_new(network: keras.Model, group: Any, file: Path) -> None:
    """Compares the file with the one that Keras writes for the network, then has Keras load it."""
    with temporary_folder("weights") as folder:
        example = folder / "network.weights.h5"
        network.save_weights(example)
        with h5py.File(example, "r") as content:
            needed, found = _new_layers(content), _new_layers(group)
            places = {layer.name: place for place, layer in enumerate(network.layers)}
            keys = sorted(needed, key=lambda key: places.get(needed[key].name, len(places)))
            rest = [layer for key, layer in found.items() if key not in needed]
            rest.sort(key=lambda layer: -max(map(len, layer.shapes)))  # kernels are the most telling
            _compare(network, [(needed[key], found.get(key)) for key in keys], rest, file)
        if group.name != "/":
            raise DataError("not weights as Keras saves them: a whole model in the new format is a .keras file", path=file)
        example.unlink()
        example.symlink_to(file.resolve())  # Keras recognizes the format by the end of the name alone
        network.load_weights(example)


def _new_layers(group: Any) -> dict[str, _Layer]:
    """Returns the groups that hold weights, by their names in the file."""
    layers: dict[str, _Layer] = {}

    def visit(key: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and key.rpartition("/")[2] == "vars" and len(item):
            ordered = sorted(item, key=lambda index: (len(index), index))
            layers[key] = _Layer(item.attrs.get("name", key), [item[index] for index in ordered])

    group.visititems(visit)
    return layers


def _compare(network: keras.Model, pairs: Iterable[tuple[_Layer, _Layer | None]], rest: Iterable[_Layer], file: Path) -> None:
    """Raises DataError for the first layer that differs or that one of the two lacks."""

    def error(layer: _Layer, problem: str) -> DataError:
        return DataError(f"not the weights of {network.name}: layer {layer.name} {problem}", path=file)

    for layer, saved in pairs:
        if saved is None:
            raise error(layer, f"{layer.shapes} is missing in the file")
        if saved.shapes != layer.shapes:
            there = f"the file has {saved.shapes}" + (f" there, its layer {saved.name}" if saved.name != layer.name else "")
            raise error(layer, f"has the shapes {layer.shapes}, {there}")
    for saved in rest:
        if not saved.is_top:
            raise error(saved, f"{saved.shapes} of the file is missing in the network")
