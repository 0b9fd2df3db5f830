"""TFLite: a model for phones and small boards, in one file with its labels.

    path.write_bytes(convert(graph, specification, dynamic_range=False))
    open_tflite(path).predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], any B

Probabilities are the only output: programs that read labels from a TFLite file take every output
for scores.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from tfpipe.common import files
from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.workers import count_cores
from tfpipe.formats import operations, tflite_metadata
from tfpipe.formats.exported_model import Array, ExportedModel
from tfpipe.formats.specifications import Specification
from tfpipe.records.manifest import MULTILABEL, PROBABILITIES, REGRESSION, VALUES

_NARROW = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
_PASSING = ("Identity", "Placeholder", "PlaceholderWithDefault")

Graph = Any  # tf.compat.v1.GraphDef


def convert(graph: Graph, specification: Specification, *, dynamic_range: bool) -> bytes:
    """Returns a frozen graph as a TFLite file; equal bytes for equal arguments.

    Where the graph stores weights as float16, so does the file. TFLite's own option does it, which
    rounds biases, and weights into which it folded a BatchNorm, once more: outputs change about as
    much as by the first rounding.

    Args:
        graph: `image`, uint8 [B, H, W, 3] -> `probabilities`, float32 [B, C].
        specification: written into the file, its class names also as labels.
        dynamic_range: weights of 8 bits: a quarter of the size, and other outputs.

    Raises:
        ValueError: the model computes in 16 bits, as with Keras' mixed precision, which TFLite does
            not support.
    """
    converter = converter_of(graph)
    if dynamic_range or _stores_halves(graph):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if not dynamic_range and _stores_halves(graph):
        converter.target_spec.supported_types = [tf.float16]
    return tflite_metadata.attach(converter.convert(), specification)


def converter_of(graph: Graph) -> Any:
    """Returns TFLite's converter of a frozen graph; raises ValueError as `convert`."""
    if found := next(filter(_computes_in_16_bits, graph.node), None):
        raise ValueError(f"it computes in 16 bits ({found.name}), which TFLite does not: build it with the policy float32")
    with tf.Graph().as_default():
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    name = VALUES if any(node.name == VALUES for node in graph.node) else PROBABILITIES
    function = wrapped.prune({"image": "image:0"}, {name: f"{name}:0"})
    return tf.lite.TFLiteConverter.from_concrete_functions([function], wrapped)


def _computes_in_16_bits(node: Any) -> bool:
    # Reading an attribute that a node lacks would add it.
    return "T" in node.attr and node.attr["T"].type in _NARROW and node.op not in _PASSING


def _stores_halves(graph: Graph) -> bool:
    return any(node.op == "Const" and node.attr["dtype"].type == tf.float16.as_datatype_enum for node in graph.node)


def open_tflite(path: str | os.PathLike[str], trust: bool = False) -> ExportedModel:
    """Returns the model of a TFLite file of an export.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: not a TFLite file of tfpipe, damaged, or, without `trust`, with operations of
            others than TFLite, such as TensorFlow's.
    """
    data = files.read_bytes(path)
    specification = tflite_metadata.read(data, path)
    try:
        operations.check(_custom_operations(data), path, trust=trust)
        runner = _Runner(data, specification)
    except (ValueError, RuntimeError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"cannot be run as a TFLite model: {lines_of(error)[0]}", path=path) from error
    return ExportedModel(specification, runner)


def _custom_operations(data: bytes) -> list[str]:
    model = schema.Model.GetRootAs(data, 0)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    custom = [
        code.CustomCode() or b""
        for code in codes
        if schema.BuiltinOperator.CUSTOM in (code.BuiltinCode(), code.DeprecatedBuiltinCode())
    ]
    return sorted({name.decode("utf-8", "backslashreplace") for name in custom})


class _Runner:
    """An interpreter, which has one set of buffers: threads take turns."""

    def __init__(self, data: bytes, specification: Specification) -> None:
        with warnings.catch_warnings():
            # Its successor, the package ai-edge-litert, would be one more to install; TensorFlow
            # 2.21 still has its own.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
            interpreter = tf.lite.Interpreter(model_content=data, num_threads=count_cores())
        self._run = interpreter.get_signature_runner(tflite_metadata.SIGNATURE)
        self._lock, self._num_classes = threading.Lock(), len(specification.class_names)
        self._output = specification.output
        scale, _ = self._run.get_input_details()["image"]["quantization"]
        self._is_rounded = scale != 0 and specification.task not in (MULTILABEL, REGRESSION)  # of which each stands alone

    def __call__(self, images: Array) -> Array:
        if not len(images):  # on which the interpreter may crash
            return np.zeros((0, self._num_classes), np.float32)
        with self._lock:
            found: Array = self._run(image=images)[self._output]
        return _with_sum_1(found) if self._is_rounded else found


def _with_sum_1(probabilities: Array) -> Array:
    """Returns probabilities that were rounded to 1/256; equal ones where all became 0."""
    sums = probabilities.sum(axis=1, keepdims=True, dtype=np.float32)
    equal = np.float32(1 / probabilities.shape[1])
    found: Array = np.where(sums > 0, probabilities / np.where(sums > 0, sums, np.float32(1)), equal)
    return found
