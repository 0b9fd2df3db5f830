"""Runs the files of an export on images without tfpipe, as production code would.

    python parity_process.py FOLDER

FOLDER holds runs.json, a list of {"kind", "path", "place", "tf32"}, and batch_0.npz, ..., each with
"files" (the bytes of all files in one array of uint8), "lengths" and "pixels". It gets the outputs
of each run and batch: outputs_RUN.BATCH.npz. TensorFlow computes at "place", a device, with float32
multiplied in TF32 if "tf32". It imports TensorFlow, onnxruntime or openvino, and numpy: nothing of tfpipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Outputs = dict[str, Any]
Function = Callable[[list[bytes], Any], Outputs]  # of files and of their pixels


def open_saved_model(path: str) -> Function:
    """Returns a function that calls every signature of a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def run(files: list[bytes], pixels: Any) -> Outputs:
        outputs = {}
        for name, signature in loaded.signatures.items():  # looked up each time: signatures hold their variables weakly
            batch = tf.constant(pixels) if name.startswith("image") else tf.constant(files, tf.string)
            for key, value in signature(batch).items():
                label = "pixels" if (name, key) == ("pixels", "image") else key
                outputs[f"{name}.{label}"] = value.numpy()
        return outputs

    return run


def open_frozen(path: str) -> Function:
    """Returns a function with all outputs of a frozen graph."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
    nodes = {node.name: node.op for node in graph.node if "/" not in node.name}
    names = [name for name, operation in nodes.items() if operation == "Identity"]
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    source = "image_bytes" if "image_bytes" in nodes else "image"
    function = wrapped.prune(f"{source}:0", [f"{name}:0" for name in names])

    def run(files: list[bytes], pixels: Any) -> Outputs:
        found = function(tf.constant(files, tf.string) if source == "image_bytes" else tf.constant(pixels))
        return {f"{source}.{name}": value.numpy() for name, value in zip(names, found, strict=True)}

    return run


def open_tflite(path: str) -> Function:
    """Returns a function with the outputs of a TFLite model."""
    import tensorflow as tf

    runner = tf.lite.Interpreter(model_path=path).get_signature_runner()
    return lambda _, pixels: {f"image.{name}": value for name, value in runner(image=pixels).items()}


def open_onnx(path: str) -> Function:
    """Returns a function with the outputs of an ONNX model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [f"image.{output.name}" for output in session.get_outputs()]
    return lambda _, pixels: dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True))


def open_openvino(path: str) -> Function:
    """Returns a function with the outputs of an OpenVINO model."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(_: list[bytes], pixels: Any) -> Outputs:
        return {f"image.{output.any_name}": value for output, value in compiled(pixels).items()}

    return run


KINDS: dict[str, Callable[[str], Function]] = {
    "saved_model": open_saved_model,
    "frozen": open_frozen,
    "tflite": open_tflite,
    "onnx": open_onnx,
    "openvino": open_openvino,
}


def read_batches(folder: Path) -> Iterator[tuple[list[bytes], Any]]:
    """Yields batches of files with their pixels."""
    for index in range(len(list(folder.glob("batch_*.npz")))):
        with np.load(folder / f"batch_{index}.npz") as batch:
            ends = np.cumsum(batch["lengths"])
            data = batch["files"].tobytes()
            files = [data[end - length : end] for end, length in zip(ends, batch["lengths"], strict=True)]
            yield files, batch["pixels"]


@contextlib.contextmanager
def placed(place: str, tf32: bool) -> Iterator[None]:
    """Makes TensorFlow compute on a device, and multiply float32 in TF32 or not."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        with tf.device(place):
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def run_all(folder: Path) -> None:
    """Writes the outputs of every run for every batch into the folder."""
    for number, run in enumerate(json.loads((folder / "runs.json").read_text("utf-8"))):
        is_tensorflow = run["kind"] in ("saved_model", "frozen")
        with placed(run["place"], run["tf32"]) if is_tensorflow else contextlib.nullcontext():
            function = KINDS[run["kind"]](run["path"])
            for index, (files, pixels) in enumerate(read_batches(folder)):
                np.savez(folder / f"outputs_{number}.{index}.npz", **function(files, pixels))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the model's process has its part of the memory
    run_all(Path(sys.argv[1]))
    if any(name.split(".")[0] == "tfpipe" for name in sys.modules):
        sys.exit("tfpipe was imported: this process must run without it")
