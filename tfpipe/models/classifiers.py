"""A trained classifier: a Keras model with preprocessing, class names and way of resizing.

    classifier = load("runs/a")
    probabilities = classifier.predict(images)   # uint8 [B, H, W, 3] -> float32 [B, C]

Its layers have fixed names: "preprocessing", "trunk", the head from "pooling" to "logits", and
"probabilities".
"""

from __future__ import annotations

import dataclasses
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
from tfpipe.networks import arithmetic, ensembles, keras_files, layers, weight_files
from tfpipe.networks.submodels import hash_network
from tfpipe.records import checksums, folds, run_folders
from tfpipe.records.manifest import PROBABILITIES, REGRESSION, SINGLE, VALUES
from tfpipe.records.run_folders import Seen
from tfpipe.records.samples import USUAL, Samples

_ENDS = {"preprocessing": layers.Preprocessing, PROBABILITIES: layers.Probabilities}  # of every model
_ENDS_OF_NUMBERS = {"preprocessing": layers.Preprocessing, VALUES: layers.Values}
_HEAD = {"pooling": keras.layers.Layer, "logits": keras.layers.Layer}  # of a `Classifier`, too
_FEATURES = ("pooling", "features")  # of a classifier of `tfpipe.train`, and of one that was wrapped


class Predictor(Protocol):
    """What evaluation and prediction need: a `Classifier`, an exported model and others have it."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the columns of `predict`."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input."""

    @property
    def resize(self) -> Any:
        """How images are resized to that size, see `tfpipe.dataset`."""

    @property
    def sha256(self) -> str:
        """Hash of the trained model, in any format: 64 hexadecimal digits."""

    def predict(self, images: Any) -> np.ndarray[Any, Any]:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3]."""


def samples_of(predictor: Predictor) -> Samples:
    """Returns a predictor's treatment of 16 bits and of alpha; the usual one if it has none."""
    found: Samples = getattr(predictor, "samples", USUAL)
    return found


def task_of(predictor: Predictor) -> str:
    """Returns what a predictor predicts: "single" if it does not tell."""
    found: str = getattr(predictor, "task", SINGLE)
    return found


def units_of(predictor: Predictor) -> tuple[str, ...] | None:
    """Returns the units of the targets of a regression; None of classes."""
    found = getattr(predictor, "units", None)
    return None if found is None else tuple(found)


def thresholds_of(predictor: Predictor) -> np.ndarray[Any, Any] | None:
    """Returns at which probabilities a predictor of several labels names a class, float64 [C]."""
    found = getattr(predictor, "thresholds", None)
    return None if found is None else np.asarray(found, np.float64)


def seen_by(predictor: Predictor) -> tuple[Seen, ...]:
    """Returns the splits that a predictor was made from, as far as they are known."""
    found: tuple[Seen, ...] = getattr(predictor, "seen", ())
    return found


def computation_of(predictor: Predictor) -> dict[str, str]:
    """Returns device and arithmetic of a predictor, as far as they are known."""
    found: dict[str, str] = getattr(predictor, "computation", arithmetic.UNKNOWN)
    return found


@dataclass(frozen=True)
class NamedModel:
    """A Keras model from pixels to probabilities whose columns have names; a `Predictor`.

    Attributes:
        model: uint8 [B, H, W, 3], RGB, 0..255 -> float32 [B, C], probabilities.
        seen: the splits that it was made from, see `folds.seen_by`.
    """

    model: keras.Model
    seen: tuple[Seen, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the columns: of classes, or of the targets of a regression."""
        names: tuple[str, ...] = layers.last_of(self.model).class_names
        return names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input."""
        height, width = self.model.input_shape[1:3]
        return height, width

    @property
    def resize(self) -> Any:
        """How images are resized to that size, see `tfpipe.dataset`."""
        return self.model.get_layer("preprocessing").resize

    @property
    def samples(self) -> Samples:
        """Treatment of 16 bits and of alpha."""
        samples: Samples = self.model.get_layer("preprocessing").samples
        return samples

    @property
    def preprocessing(self) -> str:
        """One of `layers.PREPROCESSINGS`."""
        mode: str = self.model.get_layer("preprocessing").mode
        return mode

    @property
    def outputs(self) -> str:
        """Kind of output of its last layer but one, one of `layers.OUTPUTS`."""
        source: str = layers.last_of(self.model).source
        return source

    @property
    def task(self) -> str:
        """What it predicts, see `Manifest`."""
        task: str = layers.last_of(self.model).task
        return task

    @property
    def output(self) -> str:
        """The name of what `predict` gives."""
        return VALUES if self.task == REGRESSION else PROBABILITIES

    @property
    def units(self) -> tuple[str, ...] | None:
        """Of a regression, the unit of each target, "" where it is not known; else None."""
        last = layers.last_of(self.model)
        return last.units if isinstance(last, layers.Values) else None

    @property
    def sha256(self) -> str:
        """Hash of architecture, class names and present weights: equal for equal models.

        The hash of a .keras file would not do: it holds its date.
        """
        return hash_network(self.model)

    @property
    def has_features(self) -> bool:
        """Whether `network` gives features."""
        return any(layer.name in _FEATURES for layer in self.model.layers)

    @cached_property
    def network(self) -> keras.Model:
        """Images -> {"probabilities"}, or {"values"}, and, with `has_features`, "features" [B, D]."""
        outputs = {self.output: self.model.output}
        if self.has_features:
            features = next(layer.output for layer in self.model.layers if layer.name in _FEATURES)
            outputs["features"] = features if features.dtype == "float32" else keras.ops.cast(features, "float32")
        return keras.Model(self.model.input, outputs, name="network")

    def trace(self, images: Any) -> dict[str, Any]:
        """Returns the outputs of `network`; in a graph, with operations for any device."""
        with arithmetic.portable(self.model):
            found: dict[str, Any] = self.network(images, training=False)
            return found

    @cached_property
    def answer(self) -> Any:
        """`trace` as one graph: uint8 [B, H, W, 3] -> tensors by name."""
        return tf.function(self.trace, input_signature=[tf.TensorSpec([None, *self.image_size, 3], tf.uint8)], autograph=False)

    @property
    def computation(self) -> dict[str, str]:
        """The device and the arithmetic of `predict`."""
        return arithmetic.describe(arithmetic.products_of(self.answer.get_concrete_function().graph.as_graph_def()))

    @arithmetic.exact()
    def _compute(self, images: Any, *names: str) -> tuple[np.ndarray[Any, Any], ...]:
        with arithmetic.within_memory(len(images)):
            found = self.answer(images)
            return tuple(found[name].numpy() for name in names)

    def predict(self, images: Any) -> np.ndarray[Any, Any]:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3], or numbers [B, D]."""
        return self._compute(images, self.output)[0]


@dataclass(frozen=True)
class Classifier(NamedModel):
    """A model that `tfpipe.train` made, with its parts. It computes in float32."""

    @cached_property
    def trunk(self) -> keras.Model:
        """Images -> feature map [B, h, w, D], the input of the head."""
        return keras.Model(self.model.input, self.model.get_layer("pooling").input, name="trunk")

    @cached_property
    def head(self) -> keras.Model:
        """Feature map -> logits [B, C]."""
        return keras.Model(self.model.get_layer("pooling").input, self.model.get_layer("logits").output, name="head")

    def predict_with_features(self, images: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns probabilities, float32 [B, C], and pooled features, float32 [B, D]."""
        probabilities, features = self._compute(images, self.output, "features")
        return probabilities, features


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Classifier:
    """Returns the classifier of a run's folder or of a .keras file that `tfpipe.train` wrote.

    Raises:
        FileNotFoundError: there is none.
        DataError: the file cannot be read, or holds another kind of model, or code without `trust`.
    """
    return dataclasses.replace(check(*load_model(path, trust=trust)), seen=folds.seen_by(path))


def load_named(path: str | os.PathLike[str], *, trust: bool = False) -> NamedModel:
    """Returns the same as `load`, or the model of another program that `tfpipe.export` wrapped.

    Raises:
        FileNotFoundError, DataError: as `load`.
    """
    model, file = load_model(path, trust=trust)
    named = NamedModel(model) if is_named(model) and _missing(model, _HEAD) else check(model, file)
    return dataclasses.replace(named, seen=folds.seen_by(path))


def load_model(path: str | os.PathLike[str], *, trust: bool = False) -> tuple[keras.Model, Path]:
    """Returns the Keras model of a run's folder or of any .keras file, and the file's path.

    Of the folder of `train_folds`, the model that averages all of its classifiers.

    Raises:
        FileNotFoundError, DataError: as `load`; DataError, too, for weights that are not finite.
    """
    if folds.is_folder(path):
        members = [load_model(file, trust=trust)[0] for file in folds.find_models(path)]
        return ensembles.average(members), Path(path) / folds.FILE_NAME
    file = run_folders.find_model_file(path)
    checksums.check_file(file)
    model = keras_files.load(file, trust=trust)
    weight_files.check_finite(model, file)
    return model, file


def check(model: keras.Model, path: str | os.PathLike[str] | None = None) -> Classifier:
    """Returns the classifier of a model.

    Raises:
        DataError: it lacks layers of a classifier.
    """
    if missing := _missing(model, _ends(model) | _HEAD):
        advice = "" if path is None or is_named(model) else f"; export it first: {run_folders.EXPORT}"
        raise DataError(f"not a classifier of tfpipe: it has no layer {' and no '.join(missing)}{advice}", path=path)
    return Classifier(model)


def is_named(model: keras.Model) -> bool:
    """Returns whether a model has the layers of a `NamedModel`."""
    return not _missing(model, _ends(model))


def _ends(model: keras.Model) -> dict[str, type]:
    return _ENDS_OF_NUMBERS if VALUES in [layer.name for layer in getattr(model, "layers", [])] else _ENDS


def _missing(model: keras.Model, needed: dict[str, type]) -> list[str]:
    found = {layer.name: layer for layer in getattr(model, "layers", [])}
    return [name for name, kind in needed.items() if not isinstance(found.get(name), kind)]
