"""Names in a graph that depend on the graph alone, so that equal models give equal bytes in any session.

    graph = canonical(graph)

Keras and TensorFlow count through a session: networks that are called again, functions, the arguments of loops.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

Graph = Any  # tf.compat.v1.GraphDef


def canonical(graph: Graph) -> Graph:
    """Returns the graph without what depends on the session: numbers in names of nodes, functions and arguments.

    Functions are named by their content: a process has one library for all graphs that it loads, and refuses two functions
    of the same name.
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
    """Numbers what has a number in its name anew: Keras calls a network that is called again network_1, network_2."""
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
            source = node_of(reference)
            node.input[index] = reference.replace(source, names[source], 1)


def _rename_arguments(function: Any) -> None:
    """Numbers a function's arguments: those of loops are called after the loop's number in the session."""
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


def node_of(source: str) -> str:
    """Returns the node that an input comes from: "^a" and "a:1" are of "a"."""
    return source.removeprefix("^").split(":")[0]
