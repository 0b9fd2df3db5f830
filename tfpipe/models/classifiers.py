"""A trained classifier: one Keras model that carries its preprocessing, its class names and how its images are resized.

    classifier = load("runs/a")
    probabilities = classifier.predict(images)   # uint8 [B, H, W, 3] -> float32 [B, C]

Its layers have fixed names: "preprocessing", "trunk", the head from "pooling" to "logits", and
"probabilities".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.networks import arithmetic, keras_files, layers, memory, weight_files
from tfpipe.networks.submodels import hash_network
from tfpipe.records import checksums, run_folders
from tfpipe.records.samples import USUAL, Samples

_ENDS, _HEAD = ("preprocessing", "probabilities"), ("pooling", "logits")  # layers of every model, and of a `Classifier`'s
_FEATURES = ("pooling", "features")  # of a classifier of `tfpipe.train`, and of one that was wrapped


class Predictor(Protocol):
    """What a model must be able to do to be asked and evaluated: `Classifier` is one, an exported model another."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the columns of `predict`."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input."""

    @property
    def resize(self) -> Any:
        """How images are brought to that size, see `tfpipe.dataset`."""

    @property
    def sha256(self) -> str:
        """Hash of the trained model, whatever form it has: 64 hexadecimal digits."""

    def predict(self, images: Any) -> np.ndarray[Any, Any]:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3]."""


def samples_of(predictor: Predictor) -> Samples:
    """Returns what becomes of 16 bits and of alpha in a predictor's images; of one that does not tell, as usual."""
    found: Samples = getattr(predictor, "samples", USUAL)
    return found


def computation_of(predictor: Predictor) -> dict[str, str]:
    """Returns device and arithmetic of a predictor, as far as it tells."""
    found: dict[str, str] = getattr(predictor, "computation", arithmetic.UNKNOWN)
    return found


@dataclass(frozen=True)
class NamedModel:
    """A Keras model from pixels to probabilities whose columns have names; a `Predictor`.

    Attributes:
        model: uint8 [B, H, W, 3], RGB, 0..255 -> float32 [B, C], probabilities.
    """

    model: keras.Model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        names: tuple[str, ...] = self.model.get_layer("probabilities").class_names
        return names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input."""
        height, width = self.model.input_shape[1:3]
        return height, width

    @property
    def resize(self) -> Any:
        """How images are brought to that size, see `tfpipe.dataset`."""
        return self.model.get_layer("preprocessing").resize

    @property
    def samples(self) -> Samples:
        """What becomes of 16 bits and of alpha in its images."""
        samples: Samples = self.model.get_layer("preprocessing").samples
        return samples

    @property
    def preprocessing(self) -> str:
        """What the model does with the pixels first, one of `layers.PREPROCESSINGS`."""
        mode: str = self.model.get_layer("preprocessing").mode
        return mode

    @property
    def outputs(self) -> str:
        """What comes out of its last layer but one, one of `layers.OUTPUTS`."""
        source: str = self.model.get_layer("probabilities").source
        return source

    @property
    def sha256(self) -> str:
        """Hash of architecture, class names and weights, as they are now: equal for equal models.

        The .keras file cannot be hashed instead: it holds the date of its making.
        """
        return hash_network(self.model)

    @cached_property
    def network(self) -> keras.Model:
        """Images -> {"probabilities"} and, where a layer is known to have them, "features" [B, D]."""
        outputs = {"probabilities": self.model.output}
        if self._feature_layers:
            features = self._feature_layers[0].output
            outputs["features"] = features if features.dtype == "float32" else keras.ops.cast(features, "float32")
        return keras.Model(self.model.input, outputs, name="network")

    @property
    def has_features(self) -> bool:
        """Whether `network` gives features."""
        return bool(self._feature_layers)

    @property
    def _feature_layers(self) -> list[Any]:
        return [layer for layer in self.model.layers if layer.name in _FEATURES]

    def trace(self, images: Any) -> dict[str, Any]:
        """Returns what `network` gives, with operations for any device where it is called in a graph."""
        with arithmetic.portable(self.model):
            found: dict[str, Any] = self.network(images, training=False)
            return found

    @cached_property
    def answer(self) -> Any:
        """The network as one function of a graph: uint8 [B, H, W, 3] -> tensors by name, as `network`'s."""
        return tf.function(
            self.trace,
            input_signature=[tf.TensorSpec([None, *self.image_size, 3], tf.uint8)],
            autograph=False,
        )

    @property
    def computation(self) -> dict[str, str]:
        """The device and the arithmetic of `predict`."""
        return arithmetic.describe(arithmetic.products_of(self.answer.get_concrete_function().graph.as_graph_def()))

    @arithmetic.exact()
    def predict(self, images: Any) -> np.ndarray[Any, Any]:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3]."""
        with memory.needing(len(images)):
            probabilities: np.ndarray[Any, Any] = self.answer(images)["probabilities"].numpy()
        return probabilities


@dataclass(frozen=True)
class Classifier(NamedModel):
    """A model that `tfpipe.train` made, and what its parts are. It computes in float32."""

    @cached_property
    def trunk(self) -> keras.Model:
        """Images -> feature map [B, h, w, D] that goes into the head."""
        return keras.Model(self.model.input, self.model.get_layer("pooling").input, name="trunk")

    @cached_property
    def head(self) -> keras.Model:
        """Feature map -> logits [B, C]."""
        return keras.Model(self.model.get_layer("pooling").input, self.model.get_layer("logits").output, name="head")

    @arithmetic.exact()
    def predict_with_features(self, images: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns probabilities, float32 [B, C], and pooled features, float32 [B, D], of uint8 images [B, H, W, 3]."""
        with memory.needing(len(images)):
            found = self.answer(images)
        return found["probabilities"].numpy(), found["features"].numpy()


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Classifier:
    """Returns the classifier of a run's folder or of a .keras file that `tfpipe.train` wrote.

    Raises:
        FileNotFoundError: there is none.
        DataError: the file cannot be read, or holds another kind of model, or code, and is not to
            be trusted.
    """
    model, file = load_model(path, trust=trust)
    return check(model, file)


def load_named(path: str | os.PathLike[str], *, trust: bool = False) -> NamedModel:
    """Returns the classifier of a run's folder or .keras file, or the model of another program that `tfpipe.export` wrapped.

    Raises:
        FileNotFoundError, DataError: as `load`.
    """
    model, file = load_model(path, trust=trust)
    return NamedModel(model) if is_named(model) and _missing(model, _HEAD) else check(model, file)


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> tuple[keras.Model, Path]:
    """Returns the Keras model of a run's folder or of any .keras file, and the file's path.

    Raises:
        FileNotFoundError, DataError: as `load`; DataError, too, for weights that are not finite.
    """
    file = run_folders.find_model_file(path)
    checksums.check_file(file)
    model = keras_files.load(file, trust=trust)
    weight_files.check_finite(model, file)
    return model, file


def check(model: keras.Model, path: str | os.PathLike[str] | None = None) -> Classifier:
    """Returns the classifier of a model.

    Raises:
        DataError: it lacks the layers that make it one.
    """
    if missing := _missing(model, (*_ENDS, *_HEAD)):
        advice = "" if path is None or is_named(model) else f"; export it first: {run_folders.EXPORT}"
        raise DataError(f"not a classifier of tfpipe: it has no layer {' and no '.join(missing)}{advice}", path=path)
    return Classifier(model)


def is_named(model: keras.Model) -> bool:
    """True for a model whose input and output are known: `NamedModel(model)` works."""
    return not _missing(model, _ENDS)


def _missing(model: keras.Model, needed: Sequence[str]) -> list[str]:
    found = {layer.name: layer for layer in getattr(model, "layers", [])}
    kinds = {"preprocessing": layers.Preprocessing, "probabilities": layers.Probabilities}
    return [name for name in needed if not isinstance(found.get(name), kinds.get(name, keras.layers.Layer))]
