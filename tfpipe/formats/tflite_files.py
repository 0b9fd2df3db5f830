"""TFLite: a model for phones and small boards, in one file with its labels; written here, and run.

    path.write_bytes(convert(graph, specification, dynamic_range=False))
    open_tflite(path).predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], any B

The file gives probabilities alone: what reads labels from a TFLite file takes every output for one
of scores.
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
from tfpipe.formats.exported_model import Artefact
from tfpipe.formats.specifications import Specification

_NARROW = (tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum)
_PASSING = ("Identity", "Placeholder", "PlaceholderWithDefault")

Graph = Any  # tf.compat.v1.GraphDef
Array = np.ndarray[Any, Any]


def convert(graph: Graph, specification: Specification, *, dynamic_range: bool) -> bytes:
    """Returns a frozen graph as a TFLite file; equal bytes for equal arguments.

    Where the graph stores weights as float16, so does the file. TFLite's own means does it, which
    rounds biases, and weights into which it folded a BatchNorm, once more: answers change about as
    much as by the first rounding.

    Args:
        graph: `image`, uint8 [B, H, W, 3] -> `probabilities`, float32 [B, C].
        specification: of the model; it goes into the file, and its class names as labels.
        dynamic_range: weights of 8 bits, for a quarter of the size and other numbers in each
            answer.

    Raises:
        ValueError: the model computes in 16 bits, as Keras' mixed precision does; TFLite's
            operations do not.
    """
    if found := next(filter(_computes_in_16_bits, graph.node), None):
        raise ValueError(f"it computes in 16 bits ({found.name}), which TFLite does not: build it with the policy float32")
    with tf.Graph().as_default():
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    function = wrapped.prune({"image": "image:0"}, {"probabilities": "probabilities:0"})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], wrapped)
    if dynamic_range or _stores_halves(graph):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if not dynamic_range and _stores_halves(graph):
        converter.target_spec.supported_types = [tf.float16]
    return tflite_metadata.attach(converter.convert(), specification)


def _computes_in_16_bits(node: Any) -> bool:
    # Asked for an attribute that it lacks, a node gets it.
    return "T" in node.attr and node.attr["T"].type in _NARROW and node.op not in _PASSING


def _stores_halves(graph: Graph) -> bool:
    return any(node.op == "Const" and node.attr["dtype"].type == tf.float16.as_datatype_enum for node in graph.node)


def open_tflite(path: str | os.PathLike[str], trust: bool = False) -> Artefact:
    """Returns the model of a TFLite file of an export.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no TFLite file, was cut or damaged, is not from tfpipe, or has operations
            that are none of TFLite's, as those of TensorFlow, and is not to be trusted.
    """
    data = files.read_bytes(path)
    specification = tflite_metadata.read(data, path)
    try:
        operations.check(_custom_operations(data), path, trust=trust)
        runner = _Runner(data, specification.image_size, len(specification.class_names))
    except (ValueError, RuntimeError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"cannot be run as a TFLite model: {lines_of(error)[0]}", path=path) from error
    return Artefact(specification, runner)


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

    def __init__(self, data: bytes, image_size: tuple[int, int], num_classes: int) -> None:
        with warnings.catch_warnings():
            # Its successor, the package ai-edge-litert, would be one more to install; TensorFlow
            # 2.21 still has its own.
            warnings.filterwarnings("ignore", message=".*tf.lite.Interpreter is deprecated", category=UserWarning)
            interpreter = tf.lite.Interpreter(model_content=data, num_threads=count_cores())
        self._shape, self._num_classes = (*image_size, 3), num_classes
        self._ask = interpreter.get_signature_runner(tflite_metadata.SIGNATURE)
        self._lock = threading.Lock()

    def __call__(self, images: Array) -> Array:
        if not len(images):  # of which the interpreter may crash
            return np.zeros((0, self._num_classes), np.float32)
        with self._lock:
            probabilities: Array = self._ask(image=images)["probabilities"]
        return probabilities
