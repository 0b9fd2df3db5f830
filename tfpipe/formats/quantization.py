"""TFLite in whole numbers: weights and values of 8 bits, for chips and phones that compute in them.

    path.write_bytes(convert(graph, specification, images))     # images: uint8 [N, H, W, 3], to calibrate on

The file takes uint8 pixels and gives float32 probabilities, as other TFLite files; all between is
of 8 bits. Ranges of values come from the images. Probabilities are whole numbers of 1/256: their
sum is 1 only after `open_tflite`, which divides by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.formats import tflite_files, tflite_metadata
from tfpipe.formats.specifications import Specification

Array = np.ndarray[Any, Any]
Graph = Any  # tf.compat.v1.GraphDef


def convert(graph: Graph, specification: Specification, images: Array) -> bytes:
    """Returns a frozen graph as a TFLite file of 8 bits; equal bytes for equal arguments.

    Args:
        graph: `image`, uint8 [B, H, W, 3] -> `probabilities`, float32 [B, C].
        specification: written into the file, its class names also as labels.
        images: uint8 [N, H, W, 3], like those that the model will see.

    Raises:
        ValueError: the model computes in 16 bits, or has an operation without a form in 8 bits.
    """
    converter = tflite_files.converter_of(_without_reversals(_with_float_input(graph)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8

    def calibrate() -> Iterator[list[Array]]:
        # Black and white first: with 0..255, a step of the input is one level, and nothing is lost.
        for level in (0, 255):
            yield [np.full((1, *images.shape[1:]), level, np.float32)]
        for image in images:
            yield [image[np.newaxis].astype(np.float32)]

    converter.representative_dataset = calibrate
    return tflite_metadata.attach(converter.convert(), specification)


def _with_float_input(graph: Graph) -> Graph:
    """Returns the graph with float32 as its input: TFLite makes it uint8 again, with a scale."""
    changed = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    changed.node.extend(graph.node)
    for node in changed.node:
        if node.name == "image":
            node.attr["dtype"].type = tf.float32.as_datatype_enum
        elif node.op == "Cast" and node.input[0] == "image" and node.attr["DstT"].type == tf.float32.as_datatype_enum:
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = tf.float32.as_datatype_enum
        elif "image" in node.input:
            if node.op != "Shape":
                raise ValueError(f"it computes with pixels of 8 bits ({node.name}) before it makes numbers of 32 bits of them")
            node.attr["T"].type = tf.float32.as_datatype_enum
    return changed


def _without_reversals(graph: Graph) -> Graph:
    """Returns the graph with slices, [..., ::-1], in place of ReverseV2.

    TFLite gives the output of ReverseV2 a scale of its own, but copies the whole numbers of its
    input (TensorFlow 2.21): what comes after, such as RGB made BGR, is then off by their ratio.
    """
    constants = {node.name: node for node in graph.node if node.op == "Const"}
    changed = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        if node.op != "ReverseV2":
            changed.node.add().CopyFrom(node)
            continue
        constant = constants.get(node.input[1])
        axes = [] if constant is None else tf.make_ndarray(constant.attr["value"].tensor).ravel().tolist()
        if len({axis < 0 for axis in axes}) != 1:
            raise ValueError(f"it reverses axes ({node.name}) that are not constants, or counted from both ends")
        from_end = axes[0] < 0  # an ellipsis stands for all axes before
        steps = [1] * from_end + [-1 if axis in axes else 1 for axis in range(min(0, *axes), max(-1, *axes) + 1)]
        value = tf.compat.v1.AttrValue(tensor=tf.make_tensor_proto(steps, tf.int32))
        integer = tf.compat.v1.AttrValue(type=tf.int32.as_datatype_enum)
        every = tf.compat.v1.AttrValue(i=2 ** len(steps) - 1)  # mask: begins and ends are those of the axes
        ellipsis = tf.compat.v1.AttrValue(i=int(from_end))
        name = f"{node.name}/steps"
        changed.node.add(op="Const", name=name, attr={"value": value, "dtype": integer})
        masks = {"begin_mask": every, "end_mask": every, "ellipsis_mask": ellipsis}
        changed.node.add(
            op="StridedSlice",
            name=node.name,
            input=[node.input[0], name, name, name],
            attr={"T": node.attr["T"], "Index": integer, **masks},
        )
    return changed
