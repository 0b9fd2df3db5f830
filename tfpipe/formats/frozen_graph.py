"""Frozen graphs: one `.pb` file with all weights, which TensorFlow runs without Python code.

    images = freeze_images(model, specification)
    path.write_bytes(to_bytes(freeze_files(images, specification)))
    load_frozen(path)(image_bytes=[file])["probabilities"]

Inputs and outputs are nodes of these names. Equal models give equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfpipe.common import arguments, files
from tfpipe.common.errors import DataError, lines_of
from tfpipe.formats import operations, signatures, specifications
from tfpipe.formats.exported_model import Array, ExportedModel
from tfpipe.formats.signatures import Function
from tfpipe.formats.specifications import Specification
from tfpipe.models import predictions, tta
from tfpipe.models.classifiers import NamedModel
from tfpipe.networks import arithmetic
from tfpipe.records import checksums

Graph = Any  # tf.compat.v1.GraphDef

_SPECIFICATION = "specification"  # the node that carries it
_MIN_WEIGHT_BYTES = 16
# Of protobuf: a last node without effect, NodeDef(name="sha256_...", op="NoOp").
_CHECKSUM_ENTRY = b"\n\x4f\n\x47sha256_%b\x12\x04NoOp"


def freeze_images(
    model: NamedModel, specification: Specification, *, to_convert: bool = False, averages: bool = False
) -> Graph:
    """Returns a model without variables and functions: `image` -> `probabilities`, `features`.

    With `to_convert`, the graph is for other programs' converters: weights are plain constants, and
    empty batches are not supported. Without, TensorFlow computes the model's outputs bit for bit.
    With `averages`, `probabilities` are means over the views of the specification's `tta`, and the
    only output.
    """
    function, spec = signatures.model_function(model, allow_empty=not to_convert), signatures.image_spec(specification)
    if averages and specification.tta is not None:
        function = tta.averaging(function, specification.tta)
    concrete = tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()
    graph = _named(convert_variables_to_constants_v2(concrete), concrete, specification)
    return graph if to_convert else _hide_weights(graph)


def freeze_files(images: Graph, specification: Specification) -> Graph:
    """Returns a decoder and `images`: `image_bytes` -> `signatures.apply_to_files`."""
    function = as_function(images)
    concrete = trace(lambda files: signatures.apply_to_files(function, specification, files), signatures.bytes_spec())
    return _named(concrete, concrete, specification)


def as_function(images: Graph) -> Function:
    """Returns the graph of `freeze_images` as a function, see `signatures.model_function`."""
    names = [name for name in signatures.OUTPUTS if any(node.name == name for node in images.node)]
    tensors = [f"{name}:0" for name in names]
    return lambda image: dict(
        zip(names, tf.graph_util.import_graph_def(images, {"image:0": image}, tensors, name="model"), strict=True)
    )


def trace(function: Function, spec: tf.TensorSpec) -> Any:
    """Returns a concrete function of one that contains a frozen graph.

    `tf.function` would make the outputs depend on all stateful operations: the datasets of the
    decoder and, in a model with a loop, operations inside it, for which nothing outside may wait.
    """
    return tf.compat.v1.wrap_function(function, [spec])


def _named(function: Any, traced: Any, specification: Specification) -> Graph:
    """Returns a function's graph with the traced names of its input and outputs."""
    (source,) = function.inputs
    names = sorted(traced.structured_outputs)  # tf.nest flattens dictionaries in this order
    (spec,) = traced.structured_input_signature[0]
    with tf.Graph().as_default() as graph:
        placeholder = tf.compat.v1.placeholder(spec.dtype, spec.shape, name=spec.name)
        definition, tensors = function.graph.as_graph_def(), [tensor.name for tensor in function.outputs]
        found = tf.graph_util.import_graph_def(definition, {source.name: placeholder}, tensors, name="model")
        for name, tensor in zip(names, found, strict=True):
            tf.identity(tensor, name=name)
        tf.constant(specification.to_json(), name=_SPECIFICATION)
    return _canonical(_pruned(graph.as_graph_def(), [*names, spec.name, _SPECIFICATION]))


def _canonical(graph: Graph) -> Graph:
    """Removes numbers that Keras and TensorFlow count through a session from names.

    Functions are named by their content: a process has one library for all graphs, without two
    functions of one name.
    """
    _renumber_nodes(graph)
    library = {function.signature.name: function for function in graph.library.function}
    renamed: dict[str, Any] = {}  # by the old name

    def rename_references(nodes: Iterable[Any]) -> None:
        for node in nodes:
            for attribute in ("_gradient_op_type", "_class"):
                node.attr.pop(attribute, None)
            for reference in _references(node):
                if reference.name in library:
                    reference.name = rename(reference.name).signature.name

    def rename(name: str) -> Any:
        if name not in renamed:
            function = library[name]
            rename_references(function.node_def)
            _rename_arguments(function)
            function.signature.name = ""
            digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()
            function.signature.name = f"function_{digest[:24]}"
            renamed[name] = function
        return renamed[name]

    rename_references(graph.node)
    functions = {function.signature.name: function for function in renamed.values()}
    content = tf.compat.v1.GraphDef(versions=graph.versions, node=graph.node)
    content.library.function.extend(functions[name] for name in sorted(functions))
    return content


def _renumber_nodes(graph: Graph) -> None:
    """Renumbers nodes: Keras names the second call of a network network_1."""
    scopes: dict[tuple[str, str], str] = {}  # (new parent, old part) -> new part
    counts: dict[tuple[str, str], int] = {}
    names: dict[str, str] = {}
    for node in graph.node:
        parent = ""
        for part in node.name.split("/"):
            if (parent, part) not in scopes:
                base = re.sub(r"(_\d+)+$", "", part) or "part"
                count = counts[parent, base] = counts.get((parent, base), -1) + 1
                scopes[parent, part] = f"{base}_{count}" if count else base
            parent = f"{parent}/{scopes[parent, part]}".lstrip("/")
        names[node.name] = parent
    for node in graph.node:
        node.name = names[node.name]
        for index, reference in enumerate(node.input):
            source = _node_of(reference)
            node.input[index] = reference.replace(source, names[source], 1)


def _rename_arguments(function: Any) -> None:
    """Renumbers a function's arguments: those of a loop contain its number in the session."""
    order = {argument.name: f"argument_{index}" for index, argument in enumerate(function.signature.input_arg)}
    for argument in function.signature.input_arg:
        argument.name = order[argument.name]
    for node in function.node_def:
        for index, name in enumerate(node.input):
            node.input[index] = order.get(name, name)
    for result, name in list(function.ret.items()):
        function.ret[result] = order.get(name, name)


def _references(node: Any) -> Iterator[Any]:
    for _, value in sorted(node.attr.items()):
        if value.HasField("func"):
            yield value.func
        yield from value.list.func


def _node_of(source: str) -> str:
    """Returns the source node of an input: "a" of "^a" and "a:1"."""
    return source.removeprefix("^").split(":")[0]


def _pruned(graph: Graph, needed: Sequence[str]) -> Graph:
    """Returns the needed nodes with all inputs, also control inputs of constants in loops."""
    nodes = {node.name: node for node in graph.node}
    pending, kept = list(needed), set[str]()
    while pending:
        name = pending.pop()
        if name not in kept:
            kept.add(name)
            pending += [_node_of(source) for source in nodes[name].input]
    return tf.compat.v1.GraphDef(
        versions=graph.versions, library=graph.library, node=[node for node in graph.node if node.name in kept]
    )


def _hide_weights(graph: Graph) -> Graph:
    """Puts a PlaceholderWithDefault after each weight, which hides that it is constant.

    TensorFlow's optimiser would fold constants (a BatchNorm into the convolution before it, say)
    and prepare others for oneDNN, which changes probabilities by up to 2e-6.
    """
    hidden = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        hidden.node.add().CopyFrom(node)
        if _is_weight(node):
            constant = hidden.node[-1]
            constant.name = f"{node.name}/value"
            shape = node.attr["value"].tensor.tensor_shape
            attributes = {"dtype": node.attr["dtype"], "shape": tf.compat.v1.AttrValue(shape=shape)}
            hidden.node.add(op="PlaceholderWithDefault", name=node.name, input=[constant.name], attr=attributes)
    return hidden


def _is_weight(node: Any) -> bool:
    if node.op != "Const" or not tf.dtypes.as_dtype(node.attr["dtype"].type).is_floating:
        return False
    return len(node.attr["value"].tensor.tensor_content) > _MIN_WEIGHT_BYTES


class FrozenGraph:
    """A callable frozen graph.

    `frozen([file, ...])` or `frozen(image_bytes=[file, ...])` returns arrays by name.

    Attributes:
        specification: of the model.
        inputs: names of its inputs.
        outputs: names of its outputs.
        products: dtypes in which it multiplies, see `arithmetic.products_of`.
    """

    def __init__(self, graph: Graph, path: str | os.PathLike[str]) -> None:
        everything, self._path = {node.name: node for node in graph.node}, os.fspath(path)
        nodes = {name: node for name, node in everything.items() if "/" not in name}
        if _SPECIFICATION not in nodes:
            raise DataError(f"not a frozen graph of tfpipe: it has no node {_SPECIFICATION!r}", path=path)
        text = b"".join(nodes[_SPECIFICATION].attr["value"].tensor.string_val)
        self.specification = specifications.from_json(text, path)
        self.inputs = tuple(name for name, node in nodes.items() if node.op == "Placeholder")
        self.outputs = tuple(name for name, node in nodes.items() if node.op == "Identity")
        self._sources = {name: _source(everything, name) for name in self.outputs}
        try:
            self._graph = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
        except Exception as error:  # of a graph that was made by another program, or with operations of a later TensorFlow
            raise DataError(f"cannot be loaded as a frozen graph: {lines_of(error)[0]}", path=path) from error
        self.products = arithmetic.products_of(graph)
        self._pruned: dict[tuple[str, ...], Any] = {}

    def __repr__(self) -> str:
        return f"FrozenGraph({self._path!r}, {', '.join(self.inputs)} -> {', '.join(self.outputs)})"

    def __call__(self, *values: Any, **inputs: Any) -> dict[str, Array]:
        """Returns all outputs.

        Args:
            *values: the input, by position.
            **inputs: or by name: `image_bytes`, string [B], or `image`, uint8 [B, H, W, 3].

        Raises:
            ValueError: an input of another name, type or shape.
            DataError: the model gives no probabilities for an `image`; of `image_bytes`, it is not
                `valid`.
        """
        if len(values) + len(inputs) != len(self.inputs) or not set(inputs) <= set(self.inputs[len(values) :]):
            got = ", ".join([*(f"number {place}" for place in range(1, len(values) + 1)), *inputs])
            raise ValueError(f"inputs are {', '.join(self.inputs)} (got {got or 'none'})")
        inputs |= dict(zip(self.inputs, values, strict=False))
        feeds = {f"{name}:0": self._checked(name, value) for name, value in inputs.items()}
        found = dict(zip(self.outputs, self._run(feeds, self.outputs), strict=True))
        if "valid" not in found:
            results: Array = found[self.specification.output]
            predictions.check(results, [f"input {row}" for row in range(len(results))], self.specification)
        return found

    def _checked(self, name: str, value: Any) -> tf.Tensor:
        expected = self._graph.graph.get_tensor_by_name(f"{name}:0")
        items = value.ravel() if isinstance(value, np.ndarray) else value if isinstance(value, list | tuple) else (value,)
        if expected.dtype == tf.string and any(isinstance(item, str) for item in items):
            raise ValueError(f"{name} must be the bytes of files, not their paths: open(path, 'rb').read()")
        tensor = tf.convert_to_tensor(value, expected.dtype if len(items) == 0 else None)
        if tensor.dtype != expected.dtype or not expected.shape.is_compatible_with(tensor.shape):
            wanted, got = (f"{each.dtype.name} {each.shape}" for each in (expected, tensor))
            raise ValueError(f"{name} must be {wanted}, with the batch first (got {got})")
        return tensor

    def classify(self, images: Any) -> Array:
        """Returns float32 [B, C] for uint8 images [B, H, W, 3]; takes files, too."""
        feeds = {"image:0": images}
        if "image" not in self.inputs:  # feed where the pixels come out
            feeds = {self._sources["pixels"]: images, self._sources["valid"]: np.ones(len(images), bool)}
        return self._run(feeds, (self.specification.output,))[0]

    @arithmetic.exact()
    def _run(self, feeds: dict[str, Any], outputs: tuple[str, ...]) -> list[Array]:
        key = (*feeds, *outputs)
        if key not in self._pruned:
            self._pruned[key] = self._graph.prune(list(feeds), [f"{name}:0" for name in outputs])
        return [tensor.numpy() for tensor in self._pruned[key](*map(tf.convert_to_tensor, feeds.values()))]


def _source(nodes: Mapping[str, Any], name: str) -> str:
    """Returns the tensor that a chain of Identity nodes passes on."""
    while nodes[_node_of(name)].op == "Identity":
        name = nodes[_node_of(name)].input[0]  # control inputs follow
    return name if ":" in name else f"{name}:0"


def to_bytes(graph: Graph) -> bytes:
    """Returns the content of a graph's file, with its checksum at the end."""
    return checksums.append_entry(graph.SerializeToString(deterministic=True), _CHECKSUM_ENTRY)


@arguments.renamed(path="model")
def load_frozen(model: str | os.PathLike[str], *, trust: bool = False) -> FrozenGraph:
    """Returns a frozen graph of an export.

    Args:
        model: path of the file.
        trust: open it also if it has operations that do more than compute, on files, say.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: not a graph of tfpipe, damaged, or not to be opened without `trust`.
    """
    (trust,) = arguments.check(trust=trust)
    path = arguments.path("model", model)
    graph, data = tf.compat.v1.GraphDef(), files.read_bytes(path)
    try:
        graph.ParseFromString(data)
    except Exception as error:  # protobuf has one class for it in each of its implementations
        raise DataError("not a frozen graph: the file is truncated or is another kind of file", path=path) from error
    if any(node.name == _SPECIFICATION for node in graph.node) and not checksums.has_valid_entry(data, _CHECKSUM_ENTRY):
        raise DataError("a damaged frozen graph: it is not what was written", path=path)
    operations.check_graph(graph, path, trust=trust)
    return FrozenGraph(graph, path)


def open_frozen(path: Path, trust: bool) -> ExportedModel:
    """Returns the model of a frozen graph, as `load_frozen`."""
    graph = load_frozen(path, trust=trust)
    return ExportedModel(graph.specification, graph.classify, products=graph.products)
