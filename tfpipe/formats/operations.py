"""Checks that a graph only computes: a model is a program, and TensorFlow runs all of it.

    check_graph(graph_def, "frozen.pb", trust=False)          # raises for ReadFile
    check_saved_model(Path("export/saved_model"), trust=False)

Allowed are operations from tensors to tensors. All others (files, network, Python, extensions) are
named and refused, unless the caller trusts the author of the model.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfpipe.common import files
from tfpipe.common.errors import DataError
from tfpipe.common.text import TRUST
from tfpipe.formats.preflight import EXTRA_NAME
from tfpipe.records import checksums

_log = logging.getLogger("tfpipe")

# TensorFlow's own modules of operations that only compute, and what in them does more.
_FAMILIES = """array bitwise control_flow functional image linalg list manip math nn parsing ragged_array ragged_conversion
ragged_math random random_index_shuffle resource_variable set sparse special_math spectral stateful_random stateless_random
stateless_random_ops_v2 string"""
_EXCEPT = frozenset(("Abort", "ImmutableConst", "RemoteCall"))  # ends the process, maps a file, calls another machine
# Of other modules; of datasets, those of `pixels.decode_batch`.
_MORE = """Assert DynamicPartition DynamicStitch ParallelDynamicStitch TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3
TensorArrayGatherV3 TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayConcatV3 TensorArrayCloseV3
BatchDatasetV2 ConcatenateDataset DatasetToSingleElement IgnoreErrorsDataset MapDataset ParallelMapDatasetV2 RangeDataset
RewriteDataset TensorDataset TensorSliceDataset ZipDataset"""
_OF_CHECKPOINTS = frozenset(("MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"))  # what a SavedModel saves with
_MAX_NAMED = 10
_WARM_UP = f"{EXTRA_NAME}/tf_serving_warmup_requests"
_FILES = re.compile(r"saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{5}-of-\d{5})|assets(\.extra)?/.*")


def check_graph(graph: Any, path: str | os.PathLike[str], *, trust: bool) -> None:
    """Raises DataError if a GraphDef has operations that do more than compute, unless trusted."""
    check(_foreign(_operations([graph.node, *(function.node_def for function in graph.library.function)])), path, trust=trust)


def check_saved_model(folder: Path, *, trust: bool) -> None:
    """Checks the hashes of a SavedModel's files and its operations before TensorFlow opens it.

    A file that is replaced between the check and the opening is not noticed.

    Raises:
        DataError: a file has changed; or, unless trusted: there is no list of hashes, or files that
            are not in it, or operations that do more than compute.
    """
    folder = folder.absolute()
    lists = (place / checksums.FILE_NAME for place in (folder / EXTRA_NAME, folder.parent))
    is_listed = checksums.check_folder(folder, *lists, may_be_more=lambda name: trust or _is_harmless(name))
    others = [name for name in checksums.names_in(folder) if not (_FILES.fullmatch(name) or _is_harmless(name))]
    if others and not trust:
        raise DataError(f"has {others[0]}, which is not part of a SavedModel; {TRUST}", path=folder)
    found = _foreign(_operations_of_saved_model(folder))
    if not (is_listed or trust):
        what = f"its graph has {_named(found)}" if found else "its graph has no operations that do more than compute"
        raise DataError(
            f"without {EXTRA_NAME}/{checksums.FILE_NAME} it cannot be compared with the export, and {what}; {TRUST}",
            path=folder,
        )
    check(found, folder, trust=trust)


def _is_harmless(name: str) -> bool:
    """True for files that TensorFlow ignores: of file managers, and warm-up requests."""
    return name == _WARM_UP or any(map(files.is_hidden, name.split("/")))


def _operations_of_saved_model(folder: Path) -> Iterator[str]:
    path = folder / "saved_model.pb"
    try:
        (content,) = saved_model_pb2.SavedModel.FromString(files.read_bytes(path)).meta_graphs
        if not content.HasField("object_graph_def"):
            raise ValueError("made by TensorFlow 1")
    except (DecodeError, ValueError) as error:
        raise DataError(f"not a SavedModel with one graph, as TensorFlow 2 writes it: {error}", path=path) from None
    functions = {function.signature.name: function for function in content.graph_def.library.function}
    # Of what is never called but by the graph of version 1, which is not imported, some writes and
    # reads checkpoints.
    called = _reachable(functions, _callable_from_python(content))
    yield from _operations(function.node_def for name, function in functions.items() if name in called)
    rest = [content.graph_def.node, *(function.node_def for name, function in functions.items() if name not in called)]
    yield from (operation for operation in _operations(rest) if operation not in _OF_CHECKPOINTS)


def _callable_from_python(content: Any) -> Iterator[str]:
    yield from content.object_graph_def.concrete_functions
    for node in content.object_graph_def.nodes:
        yield from (node.bare_concrete_function.concrete_function_name, *node.function.concrete_functions)
    for function in content.graph_def.library.function:
        if "api_implements" in function.attr:  # TensorFlow's optimiser may take it in place of another
            yield function.signature.name


def _reachable(functions: dict[str, Any], names: Iterable[str]) -> set[str]:
    pending, found = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in functions and name not in found:
            found.add(name)
            for node in functions[name].node_def:
                pending.append(node.op)  # a function can be called as an operation
                for value in node.attr.values():
                    pending += [value.func.name, *(function.name for function in value.list.func)]
    return found


def _operations(graphs: Iterable[Iterable[Any]]) -> Iterator[str]:
    return (node.op for nodes in graphs for node in nodes)


def _foreign(operations: Iterable[str]) -> list[str]:
    return sorted(set(operations) - _known())


@functools.cache
def _known() -> frozenset[str]:
    modules = [name if "_ops" in name else f"{name}_ops" for name in _FAMILIES.split()]
    names = [name for module in modules for name in vars(importlib.import_module(f"tensorflow.python.ops.gen_{module}"))]
    return (frozenset(name for name in names if name[:1].isupper() and name[:3] != "TV_") | {*_MORE.split()}) - _EXCEPT


def check(found: Sequence[str], path: str | os.PathLike[str], *, trust: bool) -> None:
    """Raises DataError if such operations were found, unless trusted."""
    if found and not trust:
        raise DataError(f"its graph has {_named(found)}; {TRUST}", path=path)
    if found:
        _log.warning("%s: trusted, with %s", os.fspath(path), _named(found))


def _named(found: Sequence[str]) -> str:
    more = f" and {len(found) - _MAX_NAMED:,} more" if len(found) > _MAX_NAMED else ""
    return f"operations that may do more than compute: {', '.join(found[:_MAX_NAMED])}{more}"
