"""Files of Keras: read without running their code, written to be read without tfpipe.

    save(model, path)                               # keras.saving.load_model(path) needs no class of tfpipe
    load(path)                                      # the model that was saved, with tfpipe's layers

A file that `save` wrote holds the model as Keras' own operations, and its architecture with
tfpipe's layers in another member, which Keras ignores. Both have the same weights in the same
order.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.text import TRUST
from tfpipe.networks import layers
from tfpipe.networks.ensembles import Ensemble
from tfpipe.records.run_folders import find_model_file

_ARCHITECTURE = "tfpipe.json"


def save(model: keras.Model, path: Path) -> None:
    """Writes a model that is a chain of layers: of `tfpipe.train`, or wrapped."""
    values = images = keras.Input(model.input_shape[1:], dtype=model.input.dtype, name=model.layers[0].name)
    for layer in model.layers[1:]:
        if isinstance(layer, layers.Trunk):
            values = layer.network(values, training=False)
        elif isinstance(layer, layers.Preprocessing | layers.Probabilities | layers.Values | Ensemble):
            values = layer.call(values)  # its operations alone, and the layers of Keras in it
        else:
            values = layer(values)
    keras.Model(images, values, name=model.name).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(_ARCHITECTURE, json.dumps(keras.saving.serialize_keras_object(model)))


def load(file: Path, *, trust: bool = False) -> keras.Model:
    """Returns the model of a .keras file, of Keras' layers and of registered classes.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read; or, without `trust`, it holds Python code (a Lambda layer) or
            would read other files.
    """
    find_model_file(file)  # which looks at the archive
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=not trust)
        with zipfile.ZipFile(file) as archive:
            if _ARCHITECTURE not in archive.namelist():
                return model
            config = json.loads(archive.read(_ARCHITECTURE))
        named: Any = keras.saving.deserialize_keras_object(config, safe_mode=not trust)
        if not isinstance(named, keras.Model):
            raise TypeError(f"its member {_ARCHITECTURE} is not a model but {type(named).__name__}")
        named.set_weights(model.get_weights())
        return named
    except Exception as error:  # of a damaged file Keras, zipfile and h5py raise anything
        # Keras wraps the reason in the whole architecture, layer by layer; for weights, it lists
        # layers without any before it.
        first, *others = filter(None, lines_of(error))
        reason = (others or [first])[0 if first.startswith("A total of ") else -1]
        if not trust and "safe_mode=False" in str(error):
            reason = f"it holds Python code, or would read other files; {TRUST}"
        raise DataError(f"cannot be loaded as a Keras model: {reason}", path=file) from error
