"""Weights from a file into a network, all of them or an error that says where file and network part ways.

    load(network, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")

Three kinds of file: Keras' old HDF5 (layers in their order), its new .weights.h5 (layers by class
and number) and .keras (whole models, those that `tfpipe.train` wrote among them). Dense layers that
the file has beyond the network, a classifier's top, are left out; anything else that does not fit
is an error. Keras' own loader takes any file that has more.
"""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, temporary_folder
from tfpipe.networks import keras_files
from tfpipe.networks.layers import Trunk
from tfpipe.records.run_folders import check_weights_file

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """The weights of one layer of a file."""

    name: str
    weights: Sequence[Any]  # arrays or HDF5 data sets

    @property
    def shapes(self) -> Shapes:
        return [tuple(weight.shape) for weight in self.weights]

    @property
    def is_top(self) -> bool:
        """A Dense layer, or the state of a Dropout, which is no weight."""
        return self.shapes in ([(2,)], []) or [len(shape) for shape in self.shapes] in ([2], [2, 1])


def load(network: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fills all weights of a network from a file; all its layers are trainable afterwards.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a directory.
        DataError: it cannot be read, holds a weight that is not finite, or is of another network;
            the first layer that differs is named.
    """
    file = check_weights_file(path)
    _unfreeze(network)
    try:
        with open_regular(file) as opened:
            is_archive = zipfile.is_zipfile(opened)
        if is_archive:
            _fill_in_order(network, _saved_layers(file), file)
        else:
            with h5py.File(file, "r") as content:
                _load_hdf5(network, content, file)
    except OSError as error:
        raise DataError(f"cannot be read as HDF5, the format of weights ({error})", path=file) from error
    check_finite(network, file)


def check_finite(model: keras.Model, file: Path) -> None:
    """Raises DataError for a weight that is not finite: ReLU makes zeros of NaN, and sure answers come of it."""
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and not np.isfinite(weight.numpy().astype(np.float32)).all():
            raise DataError(f"its weight {weight.path} is not finite: the training that wrote it diverged", path=file)


def _load_hdf5(network: keras.Model, content: Any, file: Path) -> None:
    group = content.get("model_weights", content)  # a whole model has them one level down
    if "layer_names" in group.attrs or "layer_names0" in group.attrs:
        _fill_in_order(network, _old_layers(group, file), file)
    elif "layers" in group:
        _load_new(network, group, file)
    else:
        raise DataError(f"HDF5, but not weights as Keras saves them: it holds {', '.join(group) or 'nothing'}", path=file)


# -- old files and whole models: layers in their order


def _old_layers(group: Any, file: Path) -> list[_Entry]:
    try:
        return [
            _Entry(name, [group[name][weight] for weight in _strings(group[name], "weight_names")])
            for name in _strings(group, "layer_names")
        ]
    except KeyError as error:
        raise DataError(f"its list of layers names what is not in it: {error.args[0]}", path=file) from error


def _strings(group: Any, name: str) -> list[str]:
    """Returns a list among a group's attributes, which Keras writes in pieces where it is long."""
    pieces = [name] if name in group.attrs else [f"{name}{index}" for index in range(len(group.attrs))]
    found = itertools.chain.from_iterable(group.attrs[piece] for piece in pieces if piece in group.attrs)
    return [text.decode() if isinstance(text, bytes) else str(text) for text in found]


def _saved_layers(file: Path) -> list[_Entry]:
    model = keras_files.load(file)
    _unfreeze(model)
    trunks = [layer.network for layer in model.layers if isinstance(layer, Trunk)]  # a model that tfpipe wrote
    return [_Entry(layer.name, _variables(layer)) for part in trunks or [model] for layer in part.layers]


def _unfreeze(network: keras.Model) -> None:
    """Makes all layers trainable, since `_variables` orders by it.

    TensorFlow skips an assignment that changes nothing, so True on a model that is trainable leaves
    frozen layers in it frozen.
    """
    network.trainable = False
    network.trainable = True


def _variables(layer: Any) -> list[Any]:
    return [*layer.trainable_weights, *layer.non_trainable_weights]  # the order of the old format


def _fill_in_order(network: keras.Model, entries: Iterable[_Entry], file: Path) -> None:
    layers = [(layer.name, _variables(layer)) for layer in network.layers if layer.weights]
    found = [entry for entry in entries if entry.weights]
    for index, (name, variables) in enumerate(layers):
        entry = found[index] if index < len(found) else None
        _check(network, name, [tuple(variable.shape) for variable in variables], entry, file)
    _check_rest(network, found[len(layers) :], file)
    for (_, variables), given in zip(layers, found, strict=False):
        for variable, values in zip(variables, given.weights, strict=True):
            variable.assign(values[()] if isinstance(values, h5py.Dataset) else values)


# -- new files: layers by the number within their class


def _load_new(network: keras.Model, group: Any, file: Path) -> None:
    """Compares the file with what Keras would write for the network, and has Keras load it if they agree."""
    with temporary_folder("weights") as folder:
        example = folder / "network.weights.h5"
        network.save_weights(example)
        with h5py.File(example, "r") as content:
            needed = _new_layers(content)
            found = _new_layers(group)
            for key in sorted(needed, key=_by_place(network, needed)):
                _check(network, needed[key].name, needed[key].shapes, found.get(key), file)
            rest = [found[key] for key in found if key not in needed]
            _check_rest(network, sorted(rest, key=lambda entry: -max(map(len, entry.shapes))), file)  # kernels say most
        if group.name != "/":
            raise DataError("not weights as Keras saves them: a whole model in the new format is a .keras file", path=file)
        example.unlink()
        example.symlink_to(file.resolve())  # Keras knows the format by the end of the name alone
        network.load_weights(example)


def _new_layers(group: Any) -> dict[str, _Entry]:
    """Returns the groups that hold weights, by their names in the file."""
    entries: dict[str, _Entry] = {}

    def take(key: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and key.rpartition("/")[2] == "vars" and len(item):
            ordered = sorted(item, key=lambda index: (len(index), index))
            entries[key] = _Entry(item.attrs.get("name", key), [item[index] for index in ordered])

    group.visititems(take)
    return entries


def _by_place(network: keras.Model, needed: dict[str, _Entry]) -> Any:
    places = {layer.name: place for place, layer in enumerate(network.layers)}
    return lambda key: places.get(needed[key].name, len(places))


# -- what differs


def _check(network: keras.Model, name: str, shapes: Shapes, entry: _Entry | None, file: Path) -> None:
    if entry is None:
        raise DataError(f"not the weights of {network.name}: layer {name} {shapes} is missing in the file", path=file)
    if entry.shapes != shapes:
        there = f"the file has {entry.shapes}" + (f" there, its layer {entry.name}" if entry.name != name else "")
        raise DataError(f"not the weights of {network.name}: layer {name} has the shapes {shapes}, {there}", path=file)


def _check_rest(network: keras.Model, entries: Sequence[_Entry], file: Path) -> None:
    for entry in entries:
        if not entry.is_top:
            raise DataError(
                f"not the weights of {network.name}: layer {entry.name} {entry.shapes} of the file is missing in the network",
                path=file,
            )
