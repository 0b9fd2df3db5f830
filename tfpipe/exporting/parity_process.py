"""Asks the files of an export what they make of images, as a program would that has never heard of tfpipe.

    python parity_process.py FOLDER

FOLDER holds artefacts.json, a list of {"kind", "path", "place", "tf32", "answers"}, and
question_0.npz, ... each with "files" (the bytes of all files in one array of uint8), "lengths" and
"pixels". It gets, per artefact and question, ANSWERS.0.npz, ... with what came out. TensorFlow
computes at "place", a device, with float32 multiplied in TF32 if "tf32". It imports TensorFlow, or
onnxruntime, and numpy: nothing of tfpipe.
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

Answers = dict[str, Any]
Ask = Callable[[list[bytes], Any], Answers]


def open_saved_model(path: str) -> Ask:
    """Asks every signature of a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)

    def ask(files: list[bytes], pixels: Any) -> Answers:
        answers = {}
        for name, signature in loaded.signatures.items():  # looked up each time: signatures hold their variables weakly
            question = tf.constant(pixels) if name == "image" else tf.constant(files, tf.string)
            for key, value in signature(question).items():
                label = "pixels" if (name, key) == ("pixels", "image") else key
                answers[f"{name}.{label}"] = value.numpy()
        return answers

    return ask


def open_frozen(path: str) -> Ask:
    """Asks a frozen graph for all its outputs."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
    names = {node.name: node.op for node in graph.node if "/" not in node.name}
    outputs = [name for name, operation in names.items() if operation == "Identity"]
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    source = "image_bytes" if "image_bytes" in names else "image"
    function = wrapped.prune(f"{source}:0", [f"{name}:0" for name in outputs])

    def ask(files: list[bytes], pixels: Any) -> Answers:
        found = function(tf.constant(files, tf.string) if source == "image_bytes" else tf.constant(pixels))
        return {f"{source}.{name}": value.numpy() for name, value in zip(outputs, found, strict=True)}

    return ask


def open_tflite(path: str) -> Ask:
    """Asks a TFLite model."""
    import tensorflow as tf

    runner = tf.lite.Interpreter(model_path=path).get_signature_runner()

    def ask(files: list[bytes], pixels: Any) -> Answers:  # noqa: ARG001 (all are asked alike)
        return {f"image.{name}": value for name, value in runner(image=pixels).items()}

    return ask


def open_onnx(path: str) -> Ask:
    """Asks an ONNX model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def ask(files: list[bytes], pixels: Any) -> Answers:  # noqa: ARG001 (all are asked alike)
        found = session.run(names, {session.get_inputs()[0].name: pixels})
        return {f"image.{name}": value for name, value in zip(names, found, strict=True)}

    return ask


KINDS: dict[str, Callable[[str], Ask]] = {
    "saved_model": open_saved_model,
    "frozen": open_frozen,
    "tflite": open_tflite,
    "onnx": open_onnx,
}


def read_questions(folder: Path) -> Iterator[tuple[list[bytes], Any]]:
    """Yields batches of files with their pixels."""
    for index in range(len(list(folder.glob("question_*.npz")))):
        with np.load(folder / f"question_{index}.npz") as question:
            ends = np.cumsum(question["lengths"])
            data = question["files"].tobytes()
            files = [data[end - length : end] for end, length in zip(ends, question["lengths"], strict=True)]
            yield files, question["pixels"]


@contextlib.contextmanager
def placed(place: str, tf32: bool) -> Iterator[None]:
    """TensorFlow computes there inside, and multiplies float32 so."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    try:
        with tf.device(place):
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def answer(folder: Path) -> None:
    """Writes the answers of every artefact to every question into the folder that they lie in."""
    for artefact in json.loads((folder / "artefacts.json").read_text("utf-8")):
        is_tensorflow = artefact["kind"] in ("saved_model", "frozen")
        with placed(artefact["place"], artefact["tf32"]) if is_tensorflow else contextlib.nullcontext():
            ask = KINDS[artefact["kind"]](artefact["path"])
            for index, (files, pixels) in enumerate(read_questions(folder)):
                np.savez(folder / f"{artefact['answers']}.{index}.npz", **ask(files, pixels))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the model's process has its part of the memory
    answer(Path(sys.argv[1]))
    if any(name.split(".")[0] == "tfpipe" for name in sys.modules):
        sys.exit("tfpipe was imported: this was to be a process without it")
