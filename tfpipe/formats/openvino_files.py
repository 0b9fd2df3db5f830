"""OpenVINO IR: a model for Intel's runtime, in two files: .xml (the graph) and .bin (its weights).

    write(graph, specification, Path("model.xml"))      # and model.bin
    open_openvino(Path("model.xml")).predict(images)    # uint8 [B, H, W, 3] -> float32 [B, C], any B

Images are channels last, as in TensorFlow. Needs `pip install 'tfpipe[openvino]'`. Graphs are read
by the runtime itself; the package's function for conversion would send usage data.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common import files
from tfpipe.common.errors import DataError
from tfpipe.common.workers import count_cores
from tfpipe.formats import signatures, specifications
from tfpipe.formats.exported_model import Array, ExportedModel
from tfpipe.formats.preflight import OPENVINO_PACKAGES
from tfpipe.formats.specifications import Specification
from tfpipe.records import checksums

Graph = Any  # tf.compat.v1.GraphDef

_KEY = "tfpipe"
# The last two lines of the .xml file: hashes of the other file, and of all before.
_WEIGHTS_ENTRY, _CHECKSUM_ENTRY = b"<!-- weights sha256 %b -->\n", b"<!-- sha256 %b -->\n"
# Processors with AMX would compute in bfloat16 by default.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


def _import() -> Any:
    try:
        return importlib.import_module(*OPENVINO_PACKAGES)
    except ImportError as error:
        message = f"OpenVINO files need the package openvino ({error}): pip install 'tfpipe[openvino]'"
        raise ImportError(message, name="openvino") from error


def write(graph: Graph, specification: Specification, path: Path) -> None:
    """Writes a frozen graph as two files; equal bytes for equal arguments.

    Weights that the graph stores as float16 stay so, and are cast when the file is loaded.

    Args:
        graph: `image`, uint8 [B, H, W, 3] -> `probabilities`, float32 [B, C], and perhaps
            `features`, float32 [B, D].
        specification: written into the .xml file.
        path: of the .xml file; the other one is beside it.

    Raises:
        ImportError: the extra is missing.
        OSError: the disk is full.
    """
    openvino = _import()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        frozen = folder / "graph.pb"
        frozen.write_bytes(graph.SerializeToString(deterministic=True))
        model = openvino.Core().read_model(frozen)
        _name(model)
        model.set_rt_info(specification.to_json(), [_KEY])
        frozen.unlink()
        try:
            openvino.save_model(model, folder / path.name, compress_to_fp16=False)
        except RuntimeError as error:
            if "iostream" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error
        text, weights = ((folder / path.name).with_suffix(suffix).read_bytes() for suffix in (".xml", ".bin"))
    path.with_suffix(".bin").write_bytes(weights)
    path.write_bytes(checksums.append_entry(text + _hashed(weights), _CHECKSUM_ENTRY))


def _hashed(weights: bytes) -> bytes:
    return _WEIGHTS_ENTRY % hashlib.sha256(weights).hexdigest().encode()


def _name(model: Any) -> None:
    """Names inputs and outputs, and renumbers inner names, which are counted across models."""
    outputs = {name: value for value in model.outputs for name in signatures.OUTPUTS if f"{name}:0" in value.names}
    for index, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{index}")
        for value in operation.outputs():
            value.set_names(set())
    for name, value in {"image": model.input(), **outputs}.items():
        value.set_names({name})


def open_openvino(path: Path) -> ExportedModel:
    """Returns the model of the two files of an export.

    Raises:
        FileNotFoundError: one of them is missing.
        DataError: not a model of tfpipe, or damaged.
        ImportError: openvino is missing.
    """
    openvino = _import()
    beside = path.with_suffix(".bin")
    text, weights = files.read_bytes(path), files.read_bytes(beside)
    # First: a damaged file can end the process that reads it.
    if not checksums.has_valid_entry(text, _CHECKSUM_ENTRY):
        raise DataError("not an OpenVINO model that tfpipe exported, or damaged", path=path)
    if _hashed(weights) not in text:
        raise DataError(f"not the weights that {path.name} was written with: damaged or replaced", path=beside)
    try:
        core = openvino.Core()
        model = core.read_model(model=text, weights=weights)
        specification = specifications.from_json(model.get_rt_info([_KEY]).astype(str), path)
        compiled = core.compile_model(model, "CPU", {**_EXACT, "INFERENCE_NUM_THREADS": count_cores()})
    except RuntimeError as error:
        raise DataError(f"cannot be run as an OpenVINO model: {str(error).splitlines()[-1]}", path=path) from error

    def run(images: Array) -> Array:
        if not len(images):  # which some operations refuse
            return np.zeros((0, len(specification.class_names)), np.float32)
        # A request of its own for each call: threads may call at once.
        found: Array = compiled.create_infer_request().infer([images])[specification.output]
        return found

    return ExportedModel(specification, run)
