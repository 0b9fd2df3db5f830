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
from tfpipe.exporting.tflite_files import open_tflite
from tfpipe.records import arguments
from tfpipe.records.errors import DataError, lines_of
from tfpipe.transfer import classifiers, run_folders
from tfpipe.transfer.classifiers import Predictor

Array = np.ndarray[Any, Any]

SAVED_MODEL_NAME = "saved_model"  # in an export's folder
EXTRA_NAME = "assets.extra"  # of a SavedModel: files that TensorFlow Serving leaves alone
_GRAPH_NAME = "saved_model.pb"


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
    place = arguments.path(argument, path)
    if (place / SAVED_MODEL_NAME / _GRAPH_NAME).exists():
        place /= SAVED_MODEL_NAME
    if (place / _GRAPH_NAME).exists():
        return dataclasses.replace(open_saved_model(place), form=SAVED_MODEL_NAME)
    if not place.exists():
        raise FileNotFoundError(
            f"{place}: no such model: a run's folder, a .keras file, or an export or a file of it is needed"
        )
    if place.suffix in _OPENERS and not place.is_dir():
        return dataclasses.replace(_OPENERS[place.suffix](place), form=place.suffix)
    _check_folder(place)
    return classifiers.load_named(place)


def _check_folder(place: Path) -> None:
    """Raises FileNotFoundError for the folder of an export that has neither a SavedModel nor a Keras file."""
    if (place / specifications.FILE_NAME).exists() and not (place / run_folders.MODEL_NAME).exists():
        files = sorted(file.name for file in place.iterdir() if file.suffix in _OPENERS)
        there = f"give one of its files: {', '.join(files)}" if files else "and there is no other model in it"
        raise FileNotFoundError(f"{place}: an export without {SAVED_MODEL_NAME}; {there}")


def open_saved_model(path: Path) -> Artefact:
    """Returns the signature of pixels of a SavedModel.

    Raises:
        DataError: it cannot be loaded, or is none that `tfpipe.export` wrote.
    """
    extra = path / EXTRA_NAME / specifications.FILE_NAME
    if not extra.exists():
        raise DataError(f"not a SavedModel of tfpipe: it has no {extra.relative_to(path)}", path=path)
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
