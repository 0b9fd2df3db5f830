"""Writers of an export's formats. Each returns its files for the comparison with the model.

work = Work(model, specification, folder, half=False)
WRITERS["pb"](work)     # {"frozen_image.pb": ExportedFile("frozen", path), ...}
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfpipe.common.errors import DataError, lines_of
from tfpipe.exporting import calibration, half_precision
from tfpipe.exporting.parity import ExportedFile
from tfpipe.formats import frozen_graph, onnx_files, openvino_files, preflight, quantization, signatures, tflite_files
from tfpipe.formats.specifications import Specification
from tfpipe.models import classifiers
from tfpipe.models.classifiers import NamedModel
from tfpipe.networks import keras_files

INT8_NAME = "model_int8.tflite"
INT8_TOLERANCE = 0.5  # of a probability: beyond it, it is another model, not a rounded one
_PB_LIMIT_BYTES = 2**31 - 1  # of one protobuf message
_LOGS = ("tensorflow", "absl")  # where TensorFlow logs names of nodes and durations while it saves


def _derived(specification: Specification, what: str) -> Specification:
    sha256 = hashlib.sha256(f"{specification.sha256} {what}".encode()).hexdigest()
    return dataclasses.replace(specification, sha256=sha256)


class Work:
    """The model and its frozen graphs, which the writers share."""

    def __init__(
        self, model: NamedModel, specification: Specification, folder: Path, half: bool, calibration_data: str = ""
    ) -> None:
        self.calibration_data = calibration_data
        self.model, self.folder, self.half = model, folder, half
        self.whole, self.specification = specification, dataclasses.replace(specification, tta=None)
        # Files have one function, and those of averages are another model; a SavedModel has both.
        self.averages = _derived(specification, f"tta {specification.tta}") if specification.tta else None

    @cached_property
    def plain(self) -> Any:
        """The frozen graph for converters, which must see its weights."""
        return self._stored(frozen_graph.freeze_images(self.model, self.specification, to_convert=True))

    @cached_property
    def hidden(self) -> Any:
        """The frozen graph for TensorFlow, which must not see them."""
        return self._stored(frozen_graph.freeze_images(self.model, self.specification))

    def versions(self) -> Iterator[tuple[str, Any, Specification]]:
        """Yields a part of the file's name, the graph for converters, and the specification."""
        yield "", self.plain, self.specification
        if self.averages is not None:
            yield "_tta", self.freeze_averages(self.averages, to_convert=True), self.averages

    def freeze_averages(self, averages: Specification, *, to_convert: bool = False) -> Any:
        """Returns the frozen graph of the means over views."""
        return self._stored(frozen_graph.freeze_images(self.model, averages, to_convert=to_convert, averages=True))

    def _stored(self, graph: Any) -> Any:
        return half_precision.store_half(graph) if self.half else graph

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file of the export."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def _write_saved_model(work: Work) -> dict[str, ExportedFile]:
    path, network = work.folder / preflight.SAVED_MODEL_NAME, work.model.network
    function = signatures.model_function(work.model)
    if work.half:  # one function for all signatures, or each would have its own weights
        function = frozen_graph.trace(frozen_graph.as_function(work.hidden), signatures.image_spec(work.specification))
    functions = signatures.make(function, work.whole, has_features=work.model.has_features)
    # Not Keras' ExportArchive, which stores every weight twice (3.15.1). With `half`, weights are
    # constants of the graph: a variable cannot be of 16 bits and computed with in 32.
    module = tf.Module()
    module.weights = [] if work.half else [weight.value for weight in network.weights]
    with onnx_files.quiet(*_LOGS):
        concrete = {name: signature.get_concrete_function() for name, signature in functions.items()}
        tf.saved_model.save(module, os.fspath(path), signatures=concrete)
    return {preflight.SAVED_MODEL_NAME: ExportedFile("saved_model", path)}


def _write_frozen(work: Work) -> dict[str, ExportedFile]:
    graphs = {"frozen_image.pb": work.hidden, "frozen_bytes.pb": frozen_graph.freeze_files(work.hidden, work.specification)}
    if work.averages is not None:
        graphs["frozen_image_tta.pb"] = work.freeze_averages(work.averages)
    found = {}
    for name, graph in graphs.items():
        if graph.ByteSize() > _PB_LIMIT_BYTES:
            raise ValueError(
                f"{name} would have {graph.ByteSize()} bytes; TensorFlow reads 2 GiB of a .pb: half=True, or no pb"
            )
        found[name] = ExportedFile("frozen", work.write(name, frozen_graph.to_bytes(graph)), averages="_tta" in name)
    return found


def _write_tflite(work: Work) -> dict[str, ExportedFile]:
    found = {}
    files = [(f"model{suffix}.tflite", *rest, False) for suffix, *rest in work.versions()]
    for name, graph, specification, dynamic_range in [
        *files,
        ("model_dynamic_range.tflite", work.plain, work.specification, True),
    ]:
        # TFLite rounds to 16 bits itself, and more than the weights that were rounded before. A
        # lossy file is another model, with a hash of its own.
        is_lossy = dynamic_range or work.half
        own = _derived(specification, name) if is_lossy else specification
        with onnx_files.quiet(*_LOGS), _converting("tflite"):
            data = tflite_files.convert(graph, own, dynamic_range=dynamic_range)
        found[name] = ExportedFile("tflite", work.write(name, data), is_lossy, specification is work.averages)
    return found


def _write_tflite_int8(work: Work) -> dict[str, ExportedFile]:
    specification = _derived(work.specification, INT8_NAME)
    images = calibration.draw_images(work.calibration_data, specification)
    with onnx_files.quiet(*_LOGS), _converting("tflite_int8"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs were expected")  # for int8 as the input
        data = quantization.convert(work.plain, specification, images)
    return {INT8_NAME: ExportedFile("tflite", work.write(INT8_NAME, data), tolerance=INT8_TOLERANCE)}


def _write_onnx(work: Work) -> dict[str, ExportedFile]:
    found = {}
    for suffix, graph, specification in work.versions():
        with _converting("onnx"):
            data = onnx_files.convert(graph, specification)
        name = f"model{suffix}.onnx"
        found[name] = ExportedFile("onnx", work.write(name, data), averages=bool(suffix))
    return found


def _write_openvino(work: Work) -> dict[str, ExportedFile]:
    found = {}
    for suffix, graph, specification in work.versions():
        path = work.folder / f"model{suffix}.xml"
        with _converting("openvino"):
            openvino_files.write(graph, specification, path)
        found[path.name] = ExportedFile("openvino", path, averages=bool(suffix))
    return found


def _write_keras(work: Work) -> dict[str, ExportedFile]:
    """Writes the Keras file and reads it again: it must be the same model."""
    path = work.folder / preflight.KERAS_NAME
    try:
        keras_files.save(work.model.model, path)
        again = classifiers.load_named(path)
    except (DataError, TypeError, ValueError, NotImplementedError) as error:  # of a class that Keras does not know, a lambda
        advice = "register the class (keras.saving.register_keras_serializable) or leave out keras"
        raise DataError(f"format keras: what is saved {lines_of(error)[0]}; {advice}") from error
    if again.sha256 != work.model.sha256:
        raise DataError("format keras: read again, it is not the model that was saved: a layer's get_config may be incomplete")
    return {path.name: ExportedFile("keras", path)}


@contextlib.contextmanager
def _converting(name: str) -> Iterator[None]:
    """Turns a converter's error of any kind into one line that names the format."""
    try:
        yield
    except (ImportError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        raise DataError(f"the model cannot be converted to {name}: {lines_of(error)[0]}; leave it out of formats") from error


WRITERS: Mapping[str, Callable[[Work], dict[str, ExportedFile]]] = {
    "saved_model": _write_saved_model,
    "pb": _write_frozen,
    "tflite": _write_tflite,
    "tflite_int8": _write_tflite_int8,
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "keras": _write_keras,
}
