"""ONNX: a model for other runtimes, in one file; converted with tf2onnx and run with onnxruntime.

    path.write_bytes(convert(graph, specification))
    open_onnx(path).predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], any B

Images are channels last, as in TensorFlow. Needs `pip install 'tfpipe[onnx]'`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import files
from tfpipe.common.errors import DataError
from tfpipe.common.workers import count_cores
from tfpipe.formats import signatures, specifications
from tfpipe.formats.exported_model import Array, ExportedModel
from tfpipe.formats.preflight import ONNX_PACKAGES
from tfpipe.formats.specifications import Specification
from tfpipe.records import checksums

Graph = Any  # tf.compat.v1.GraphDef

# The default of tf2onnx 1.17, which it tests; onnxruntime reads it since 1.10 (2021). It can write
# up to 18, with which the outputs of all backbones are the same.
OPSET = 15
BATCH_NAME = "batch"  # of the first dimension

# A tensor stored in another file: the field of its path, in any encoding of protobuf's numbers.
_ELSEWHERE = re.compile(rb"(\n|\x8a\x80*\x00)(\x08|\x88\x80*\x00)location")
# Of protobuf: the last of the metadata, StringStringEntryProto(key="sha256", value=...).
CHECKSUM_ENTRY = b"r\x4a\n\x06sha256\x12\x40%b"
_SPECIFICATION_KEY, _CLASS_NAMES_KEY = "tfpipe", "class_names"


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Limits loggers to errors until the block ends."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    # Where the root logger has no handler, absl's first line adds one, and later lines of tfpipe
    # would begin with "INFO:tfpipe:".
    held = logging.NullHandler()
    logging.root.addHandler(held)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.removeHandler(held)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"ONNX files need the package {name} ({error}): pip install 'tfpipe[onnx]'"
        raise ImportError(message, name=name) from error


def convert(graph: Graph, specification: Specification) -> bytes:
    """Returns a frozen graph as an ONNX file; equal bytes for equal arguments.

    Weights that the graph stores as float16 stay so, and are cast when the file is loaded.

    Args:
        graph: `image`, uint8 [B, H, W, 3] -> `probabilities`, float32 [B, C], and perhaps
            `features`, float32 [B, D].
        specification: written into the file's metadata, its class names also as a list in JSON.

    Raises:
        ImportError: a package of the extra is missing.
    """
    onnx, *_ = map(_import, ONNX_PACKAGES)
    open_graph, halves = _take_out_halves(graph)
    model = _translate(open_graph, halves)
    _put_in(model.graph, halves)
    _sort(model.graph)
    _number_names(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME
    names = specifications.dump_json(specification.class_names)
    onnx.helper.set_model_props(model, {_SPECIFICATION_KEY: specification.to_json(), _CLASS_NAMES_KEY: names})
    onnx.checker.check_model(model, full_check=True)
    return checksums.append_entry(model.SerializeToString(deterministic=True), CHECKSUM_ENTRY)


def _take_out_halves(graph: Graph) -> tuple[Graph, dict[str, Array]]:
    """Replaces float16 weights by inputs and returns both: constants would be expanded."""
    halves, taken = {}, tf.compat.v1.GraphDef(versions=graph.versions)
    for node in graph.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float16.as_datatype_enum:
            halves[node.name] = tf.make_ndarray(node.attr["value"].tensor)
            shape = tf.compat.v1.AttrValue(shape=node.attr["value"].tensor.tensor_shape)
            taken.node.add(op="Placeholder", name=node.name, attr={"dtype": node.attr["dtype"], "shape": shape})
        else:
            taken.node.add().CopyFrom(node)
    return taken, halves


def _translate(graph: Graph, more_inputs: Iterable[str]) -> Any:
    tf2onnx = _import("tf2onnx")
    found = {node.name for node in graph.node}
    outputs = [name for name in signatures.OUTPUTS if name in found]
    inputs = ["image", *more_inputs]
    with quiet("tensorflow", "tf2onnx"):  # progress, and deprecations that it causes
        model, _ = tf2onnx.convert.from_graph_def(
            graph,
            name="classifier",
            input_names=[f"{name}:0" for name in inputs],
            output_names=[f"{name}:0" for name in outputs],
            custom_op_handlers={"Erfc": (_translate_erfc, [])},
            opset=OPSET,
            tensors_to_rename={f"{name}:0": name for name in (*inputs, *outputs)},
        )
    return model


def _translate_erfc(context: Any, node: Any, *_: Any) -> None:
    """Writes erfc(x), with which TensorFlow computes GELU and which ONNX lacks, as 1 - erf(x)."""
    inputs, outputs, shape, dtype = node.input[0], node.output, node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    one = context.make_const(f"{node.name}_one", np.array(1.0, np.float32))
    erf = context.make_node("Erf", [inputs], shapes=shape, dtypes=dtype)
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, shapes=shape, dtypes=dtype)


def _put_in(graph: Any, weights: Mapping[str, Array]) -> None:
    """Replaces inputs by constants."""
    onnx = _import("onnx")
    graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in weights.items())
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)


def _sort(graph: Any) -> None:
    """Sorts nodes and constants as the outputs need them: tf2onnx takes some from sets."""
    nodes = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    done: dict[str, None] = {}
    pending = [value.name for value in reversed(graph.output)]
    while pending:
        inputs = nodes[pending[-1]].input if pending[-1] in nodes else ()
        if missing := [name for name in inputs if name not in done]:
            pending.extend(reversed(missing))
        else:
            done[pending.pop()] = None
    for field, values in ((graph.node, nodes), (graph.initializer, constants)):
        ordered = {id(values[name]): values[name] for name in done if name in values}  # once per node
        del field[:]
        field.extend(ordered.values())


def _number_names(graph: Any) -> None:
    """Renumbers inner names, which tf2onnx counts across models."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    names: dict[str, str] = {name: name for name in (*kept, "")}
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"constant_{len(names)}")
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for places in (node.input, node.output):
            for place, name in enumerate(places):
                places[place] = names.setdefault(name, f"value_{len(names)}")
    del graph.value_info[:]  # inner shapes, which every runtime infers


def open_onnx(path: str | os.PathLike[str]) -> ExportedModel:
    """Returns the model of an ONNX file of an export.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: not an ONNX file of tfpipe, or damaged.
        ImportError: onnxruntime is missing.
    """
    onnxruntime = _import("onnxruntime")
    data = files.read_bytes(path)
    if _ELSEWHERE.search(data):
        raise DataError("an ONNX file with weights in other files: not one that tfpipe exported", path=path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()  # its default counts those of the machine
    options.log_severity_level = 3  # errors
    try:
        # Its fallback is the same provider again, and prints.
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=False)
        facts = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # a class for each kind of damage, made in C++
        raise DataError("cannot be run as an ONNX model: it is truncated or another kind of file", path=path) from error
    if _SPECIFICATION_KEY not in facts:
        raise DataError(f"an ONNX file without {_SPECIFICATION_KEY!r} in its metadata: not one that tfpipe exported", path=path)
    if not checksums.has_valid_entry(data, CHECKSUM_ENTRY):
        raise DataError("a damaged ONNX file: it is not what was written", path=path)

    specification = specifications.from_json(facts[_SPECIFICATION_KEY], path)

    def run(images: Array) -> Array:
        found: Array = session.run([specification.output], {"image": images})[0]
        return found

    return ExportedModel(specification, run)
