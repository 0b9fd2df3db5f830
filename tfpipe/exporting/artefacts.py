"""Models in whatever form they left: a run, a .keras file, a SavedModel, a frozen graph, TFLite, ONNX.

    predictor = load("export/frozen_image.pb")
    predictor.predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], in the order of predictor.class_names

Callers need not know which it is: all answer alike.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.exporting import freezing, specifications
from tfpipe.exporting.onnx_files import open_onnx
from tfpipe.exporting.predictors import Artefact
from tfpipe.exporting.preflight import EXTRA_NAME as EXTRA_NAME
from tfpipe.exporting.preflight import SAVED_MODEL_NAME as SAVED_MODEL_NAME
from tfpipe.exporting.preflight import find_model, find_specification
from tfpipe.exporting.tflite_files import open_tflite
from tfpipe.records import arguments
from tfpipe.records.errors import DataError, lines_of
from tfpipe.transfer import classifiers
from tfpipe.transfer.classifiers import Predictor

Array = np.ndarray[Any, Any]


def load(path: str | os.PathLike[str], argument: str = "model") -> Predictor:
    """Returns the model of a run's folder, a .keras file, or a file or folder of an export.

    Of an export's folder, the SavedModel is taken. In errors, the path is called by the caller's `argument`.

    Raises:
        ValueError: this is no path.
        FileNotFoundError: there is none.
        DataError: it cannot be read, or is no model of tfpipe.
        ImportError: its format needs an extra that is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        advice = "export a Keras model first: tfpipe.export(model, output, class_names=[...])"
        raise ValueError(f"{argument} must be the path of a model (got {type(path).__name__}); {advice}")
    place, form = find_model(arguments.path(argument, path))
    if form == SAVED_MODEL_NAME:
        return dataclasses.replace(open_saved_model(place), form=form)
    if form in _OPENERS:
        return dataclasses.replace(_OPENERS[form](place), form=form)
    return classifiers.load_named(place)


def open_saved_model(path: Path) -> Artefact:
    """Returns the signature of pixels of a SavedModel.

    Raises:
        DataError: it cannot be loaded, or is none that `tfpipe.export` wrote.
    """
    extra = find_specification(path)
    specification = specifications.from_json(extra.read_bytes(), extra)
    try:
        loaded = tf.saved_model.load(os.fspath(path))
        loaded.signatures["image"]
    except Exception as error:  # of a damaged folder TensorFlow raises anything
        raise DataError(f"cannot be loaded as a SavedModel: {lines_of(error)[0]}", path=path) from error

    def run(images: Any) -> Array:
        # Looked up each time: a signature holds its variables weakly, so the whole model must live as long as this does.
        probabilities: Array = loaded.signatures["image"](tf.convert_to_tensor(images))["probabilities"].numpy()
        return probabilities

    return Artefact(specification, run)


def _open_frozen(path: Path) -> Artefact:
    graph = freezing.load_frozen(path)
    return Artefact(graph.specification, graph.classify)


_OPENERS: dict[str, Callable[[Path], Artefact]] = {".pb": _open_frozen, ".tflite": open_tflite, ".onnx": open_onnx}
