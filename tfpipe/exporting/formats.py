"""The formats of an export: who writes each of them, and what is then to be asked.

work = Work(model, specification, folder, half=False)
artefacts = WRITERS["pb"].write(work)     # {"frozen_image.pb": Artefact("frozen", path), ...}
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfpipe.exporting import artefacts, freezing, rounding, signatures, sourcing
from tfpipe.exporting.parity import Artefact
from tfpipe.exporting.specifications import Specification
from tfpipe.records.errors import DataError
from tfpipe.transfer.classifiers import NamedModel

_PB_LIMIT_BYTES = 2**31 - 1  # of one protobuf message


class Work:
    """What the writers of formats share: the model and its frozen graph, made once."""

    def __init__(self, model: NamedModel, specification: Specification, folder: Path, half: bool) -> None:
        self.model, self.specification, self.folder, self.half = model, specification, folder, half

    @cached_property
    def plain(self) -> Any:
        """The frozen graph of pixels for other programs' converters, which must see its weights."""
        return self._stored(freezing.freeze_images(self.model, self.specification))

    @cached_property
    def hidden(self) -> Any:
        """The same for TensorFlow, see `freezing.hide_weights`."""
        return self._stored(freezing.hide_weights(freezing.freeze_images(self.model, self.specification, also_nothing=True)))

    def _stored(self, graph: Any) -> Any:
        return rounding.store_half(graph) if self.half else graph

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file of the export."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def _write_saved_model(work: Work) -> dict[str, Artefact]:
    path, network = work.folder / artefacts.SAVED_MODEL_NAME, work.model.network
    answer = signatures.ask(work.model)
    if work.half:  # one function for all signatures, or each would have the weights of its own
        answer = freezing.trace(freezing.as_answer(work.hidden), signatures.image_spec(work.specification))
    functions = signatures.make(answer, work.specification, has_features=work.model.has_features)
    # Not Keras' ExportArchive, which stores every weight twice (3.15.1). With `half`, weights are constants of the graph: a
    # variable cannot be of 16 bits and computed with in 32.
    module = tf.Module()
    module.weights = [] if work.half else [weight.value for weight in network.weights]
    with _quiet():
        concrete = {name: function.get_concrete_function() for name, function in functions.items()}
        tf.saved_model.save(module, os.fspath(path), signatures=concrete)
    return {artefacts.SAVED_MODEL_NAME: Artefact("saved_model", path)}


def _write_frozen(work: Work) -> dict[str, Artefact]:
    graphs = {"frozen_image.pb": work.hidden, "frozen_bytes.pb": freezing.freeze_files(work.hidden, work.specification)}
    found = {}
    for name, graph in graphs.items():
        if graph.ByteSize() > _PB_LIMIT_BYTES:
            raise ValueError(f"{name} would have {graph.ByteSize()} bytes; TensorFlow reads 2 GiB of a .pb: half, or no pb")
        found[name] = Artefact("frozen", work.write(name, freezing.to_bytes(graph)))
    return found


def _write_tflite(work: Work) -> dict[str, Artefact]:
    from tfpipe.exporting import tflite_files

    found = {}
    for name, dynamic_range in (("model.tflite", False), ("model_dynamic_range.tflite", True)):
        # TFLite rounds to 16 bits by itself, and more than the weights that were rounded before.
        is_lossy = dynamic_range or work.half
        given = _other(work.specification, name) if is_lossy else work.specification
        with _quiet(), _converting("tflite"):
            data = tflite_files.convert(work.plain, given, dynamic_range=dynamic_range)
        found[name] = Artefact("tflite", work.write(name, data), is_lossy)
    return found


def _other(specification: Specification, name: str) -> Specification:
    """Returns the specification of a file that gives other answers than the model: it is another model."""
    return dataclasses.replace(specification, sha256=hashlib.sha256(f"{specification.sha256} {name}".encode()).hexdigest())


def _write_onnx(work: Work) -> dict[str, Artefact]:
    from tfpipe.exporting import onnx_files

    with _converting("onnx"):
        data = onnx_files.convert(work.plain, work.specification)
    return {"model.onnx": Artefact("onnx", work.write("model.onnx", data))}


def _check_onnx() -> None:
    from tfpipe.exporting import onnx_files

    onnx_files.check_installed()


def _write_keras(work: Work) -> dict[str, Artefact]:
    """Writes the Keras file and reads it again: the process that compares the others could not, it lacks tfpipe's layers."""
    path = work.folder / "model.keras"
    try:
        work.model.model.save(path)
        again = NamedModel(sourcing.load_keras(path))
    except (DataError, TypeError, ValueError, NotImplementedError) as error:  # of a class that Keras does not know, a lambda
        advice = "register the class (keras.saving.register_keras_serializable) or leave out keras"
        raise DataError(f"format keras: what is saved {_first_line(error)}; {advice}") from error
    if again.sha256 != work.model.sha256:
        raise DataError("format keras: read again, it is not the model that was saved: a layer's get_config may be incomplete")
    return {path.name: Artefact("keras", path)}


@contextlib.contextmanager
def _converting(name: str) -> Iterator[None]:
    """Turns what a converter raises, which may be anything, into one line that says the format."""
    try:
        yield
    except (ImportError, OSError, MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        raise DataError(f"the model cannot be converted to {name}: {_first_line(error)}; leave it out of formats") from error


def _first_line(error: Exception) -> str:
    text = error.message if isinstance(error, DataError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps away what TensorFlow says while it saves: names of nodes and durations, through its own log and absl's."""
    logs = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@dataclass(frozen=True)
class Writer:
    """Of one format.

    Attributes:
        write: writes the files and returns those that are to be compared with the model.
        check: raises ImportError where an extra is missing.
    """

    write: Callable[[Work], dict[str, Artefact]]
    check: Callable[[], None] = lambda: None


WRITERS: Mapping[str, Writer] = {
    "saved_model": Writer(_write_saved_model),
    "pb": Writer(_write_frozen),
    "tflite": Writer(_write_tflite),
    "onnx": Writer(_write_onnx, _check_onnx),
    "keras": Writer(_write_keras),
}
