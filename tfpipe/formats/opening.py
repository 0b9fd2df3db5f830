"""Models of any format: a run, a .keras file, a SavedModel, a frozen graph, TFLite, ONNX, OpenVINO.

predictor = load("export/frozen_image.pb")
predictor.predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], in the order of predictor.class_names
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from tfpipe.common import arguments, files
from tfpipe.common.errors import DataError, lines_of
from tfpipe.formats import operations, specifications
from tfpipe.formats.exported_model import Array, ExportedModel
from tfpipe.formats.frozen_graph import open_frozen
from tfpipe.formats.onnx_files import open_onnx
from tfpipe.formats.openvino_files import open_openvino
from tfpipe.formats.preflight import SAVED_MODEL_NAME, find_model, find_specification
from tfpipe.formats.tflite_files import open_tflite
from tfpipe.models import classifiers
from tfpipe.models.classifiers import Predictor
from tfpipe.networks import arithmetic
from tfpipe.records import checksums


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Predictor:
    """Returns the model of a run's folder, a .keras file, or a file or folder of an export.

    Of an export's folder, the SavedModel is taken. A model that would do more than compute, when
    opened or called, is refused without `trust`.

    Raises:
        ValueError: not a path.
        FileNotFoundError: there is no such model.
        DataError: it cannot be read, is not a model of tfpipe, has changed since it was written, or
            must not be opened without `trust`.
        ImportError: its format needs an extra that is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        advice = "export a Keras model first: tfpipe.export(model, output, class_names=[...])"
        raise ValueError(f"model must be the path of a model (got {type(path).__name__}); {advice}")
    place, form = find_model(arguments.path("model", path))
    if form not in _OPENERS:
        return classifiers.load_named(place, trust=trust)
    if form != SAVED_MODEL_NAME:
        checksums.check_file(place)
    if form == ".xml":
        checksums.check_file(place.with_suffix(".bin"))
    return dataclasses.replace(_OPENERS[form](place, trust), form=form)


def _open_saved_model(path: Path, trust: bool) -> ExportedModel:
    extra = find_specification(path)
    specification = specifications.from_json(files.read_bytes(extra), extra)
    operations.check_saved_model(path, trust=trust)
    try:
        loaded = tf.saved_model.load(os.fspath(path))
        products = arithmetic.products_of(loaded.signatures["image"].graph.as_graph_def())
    except Exception as error:  # of a damaged folder TensorFlow raises anything
        raise DataError(f"cannot be loaded as a SavedModel: {lines_of(error)[0]}", path=path) from error

    def run(images: Array) -> Array:
        # Looked up each time: a signature holds its variables weakly, so the whole model must live
        # as long as this does.
        found: Array = loaded.signatures["image"](tf.convert_to_tensor(images))[specification.output].numpy()
        return found

    return ExportedModel(specification, run, products=products)


_OPENERS: dict[str, Callable[[Path, bool], ExportedModel]] = {
    SAVED_MODEL_NAME: _open_saved_model,
    ".pb": open_frozen,
    ".tflite": open_tflite,
    ".onnx": lambda path, _: open_onnx(path),
    ".xml": lambda path, _: open_openvino(path),
}
