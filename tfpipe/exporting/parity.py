"""Checks that exported files reproduce the model's outputs, bit for bit where possible.

    rows = compare(model, specification, {"saved_model": ExportedFile("saved_model", path)}, reference_images.make())
    check(rows)    # DataError that names the first stage that differs

The model runs here, with the functions of evaluation; the files run in a new process that does not
import tfpipe. Both see the same images in the same batches on the same device: all files on the
CPU, those of TensorFlow also on the GPU, if there is one. Both compute in true float32; the
difference with TF32 is only reported. An image for which the model gives no probabilities must not
be `valid` in the files either; formats that take pixels are not compared on it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.common.files import temporary_folder
from tfpipe.common.text import exactly
from tfpipe.exporting import parity_process
from tfpipe.exporting.reference_images import ReferenceImage
from tfpipe.formats.specifications import Specification
from tfpipe.images import decoding, headers
from tfpipe.models import predictions, tta
from tfpipe.models.classifiers import NamedModel
from tfpipe.models.predictions import are_probabilities
from tfpipe.networks import arithmetic
from tfpipe.records.manifest import MULTILABEL, PROBABILITIES, REGRESSION, VALUES

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

_log = logging.getLogger("tfpipe")

# In the order of computation: the first that differs explains those after it.
STAGES = ("valid", "pixels", "features", "probabilities", "values", "scores", "classes", "labels")
# Of a probability, or of a value in standard deviations, where sums have another order: programs
# other than TensorFlow, and GPUs.
TOLERANCE = 1e-5
_RESULTS = (PROBABILITIES, VALUES)
_DECODED = "decoded"  # whether a file can be decoded, whatever the model computes
_KERAS = "keras"
_TENSORFLOW = ("saved_model", "frozen", _KERAS)
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Row:
    """The difference between one output of one file and the model's.

    Attributes:
        artefact: the file.
        output: its signature or input, and the output's name.
        stage: one of STAGES.
        difference: the largest, in levels, probabilities, standard deviations of values, or the unit
            of features; of classes and valid, the number of differences.
        allowed: the largest allowed; None if it is only reported.
        image: with the largest difference; empty without any.
        num_images: number of images compared.
        device: of both.
        arithmetic: of the file, "float32" or "tf32"; the model's is always float32.
    """

    artefact: str
    output: str
    stage: str
    difference: float
    allowed: float | None
    image: str
    num_images: int
    device: str = "CPU"
    arithmetic: str = "float32"

    @property
    def is_good(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.difference <= (math.inf if self.allowed is None else self.allowed)


@dataclass(frozen=True)
class ExportedFile:
    """A file to compare.

    Attributes:
        kind: one of `parity_process.KINDS`, or "keras".
        path: of the file.
        is_lossy: it may differ.
        averages: its probabilities are means over views.
        tolerance: of its probabilities, in place of the argument; its other outputs may differ.
    """

    kind: str
    path: Path
    is_lossy: bool = False
    averages: bool = False
    tolerance: float | None = None


@dataclass(frozen=True)
class _Run:
    """A file on a device, in an arithmetic."""

    name: str
    file: ExportedFile
    device: str
    place: str
    tf32: bool

    def allowed(self, stage: str, tolerance: float) -> float | None:
        """Returns the largest allowed difference; None for features, which have no scale."""
        if self.file.is_lossy or self.tf32:
            return None
        if self.file.tolerance is not None:
            return self.file.tolerance if stage in _RESULTS else None
        # A GPU's kernels are chosen anew in each process.
        if (self.file.kind in _TENSORFLOW and self.device == "CPU") or stage in ("valid", "pixels"):
            return 0.0
        return tolerance if stage in (*_RESULTS, "scores") else None  # of equal scores, any may be first


def compare(
    model: NamedModel,
    specification: Specification,
    files: Mapping[str, ExportedFile],
    images: Sequence[ReferenceImage],
    tolerance: float = TOLERANCE,
) -> list[Row]:
    """Returns the differences between the outputs of files and of the model they were made from.

    Args:
        model: from which the files were made.
        specification: of the model.
        files: by name.
        images: to compare on, and files that are not images.
        tolerance: for probabilities of programs other than TensorFlow.

    Raises:
        DataError: a file could not be run, or the model gives no probabilities for most images.
        ValueError: the specification refuses most of the images.
    """
    batches = [images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE)]
    places = arithmetic.places()
    functions = {False: model.answer}
    if specification.tta is not None:
        functions[True] = tta.averaging(model.answer, specification.tta)
    expected = {
        device: {
            averages: _joined([_expected(function, specification, batch, place) for batch in batches])
            for averages, function in functions.items()
        }
        for device, place in places.items()
    }
    plain = expected["CPU"][False]
    _check_valid(specification, images, plain)
    runs = list(_runs(files, places))
    outside = [run for run in runs if run.file.kind != _KERAS]
    outputs = iter(_run_outside(outside, batches, plain["pixels"]))
    names = [image.name for image in images]
    rows: list[Row] = []
    for run in runs:
        found = _run_keras(run, plain["pixels"], specification) if run.file.kind == _KERAS else next(outputs)
        rows += _rows(run, found, expected[run.device], names, tolerance, specification.deviations)
    return rows


def _joined(parts: Sequence[Mapping[str, Array]]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _runs(files: Mapping[str, ExportedFile], places: Mapping[str, str]) -> Iterator[_Run]:
    """Yields the runs of all files: programs of TFLite and ONNX compute on the CPU."""
    for name, file in files.items():
        for device, place in places.items() if file.kind in _TENSORFLOW else (("CPU", "/CPU:0"),):
            with_tf32 = device != "CPU" and file.kind != _KERAS and arithmetic.has_tf32()
            for tf32 in (False, True) if with_tf32 else (False,):
                yield _Run(name, file, device, place, tf32)


def _check_valid(specification: Specification, images: Sequence[ReferenceImage], expected: Outputs) -> None:
    decoded, valid = expected[_DECODED], expected["valid"]
    counted = f"only {int(valid.sum())} of {exactly(len(images), 'file')} could be compared"
    if 2 * decoded.sum() < len(images):
        raise ValueError(f"{counted}: max_pixels={specification.max_pixels} refuses the others")
    unsound = ", ".join(images[index].name for index in np.flatnonzero(decoded & ~valid).tolist())
    if 2 * valid.sum() < len(images):
        raise DataError(f"{counted}: the model gives no probabilities for {unsound}")
    if unsound:
        _log.warning("the model gives no probabilities for %s: in exported files, such an image is not valid", unsound)


def check(rows: Sequence[Row]) -> None:
    """Raises DataError, with the first stage that differs, unless all differences are allowed."""
    bad = sorted((row for row in rows if not row.is_good), key=lambda row: STAGES.index(row.stage))
    if bad:
        first, rest = bad[0], f"; {exactly(len(bad) - 1, 'more output differs', 'more outputs differ')}" if len(bad) > 1 else ""
        on = "" if first.device == "CPU" else f", on {first.device}"
        allowed = "any number" if first.allowed is None else f"{first.allowed:g}"
        raise DataError(
            f"the export does not reproduce the model: {first.artefact} differs at its {first.stage} ({first.output}{on}),"
            f" by {first.difference:g} where {allowed} is allowed, in {first.image}{rest}. Nothing was kept"
        )


def _expected(
    function: Callable[[Any], dict[str, Any]], specification: Specification, batch: Sequence[ReferenceImage], place: str
) -> Outputs:
    """Returns the outputs as in evaluation; zeros for images that are not valid."""
    pixels = [_pixels(image.data, specification) for image in batch]
    decoded = np.array([image is not None for image in pixels])
    blank = np.zeros((*specification.image_size, 3), np.uint8)
    seen = np.stack([blank if image is None else image for image in pixels])
    with arithmetic.exact(), tf.device(place):
        found = {name: tensor.numpy() for name, tensor in function(tf.constant(seen)).items()}
    valid = decoded & are_probabilities(found[specification.output], task=specification.task)
    outputs = {name: np.where(valid[:, np.newaxis], values, np.zeros_like(values)) for name, values in found.items()}
    if specification.task == REGRESSION:
        return {**outputs, "pixels": seen, "valid": valid, _DECODED: decoded}
    order = np.argsort(-outputs["probabilities"], axis=1, kind="stable")[:, : specification.top_k]
    names = np.array([name.encode("utf-8", "surrogateescape") for name in specification.class_names], object)
    classes = np.where(valid[:, np.newaxis], names[order], b"")
    scores = np.take_along_axis(outputs["probabilities"], order, axis=1)
    if specification.task == MULTILABEL:
        present = predictions.present(outputs["probabilities"], np.array(specification.thresholds))
        outputs["labels"] = np.where(present & valid[:, np.newaxis], names, b"")
    return {**outputs, "pixels": seen, "valid": valid, _DECODED: decoded, "classes": classes, "scores": scores}


def _pixels(data: bytes, specification: Specification) -> Array | None:
    try:
        header = headers.read_header(data, max_pixels=specification.max_pixels)
        size, mode = specification.image_size, specification.resize
        pixels: Array = decoding.decode_and_resize(data, header.orientation, size, mode, specification.samples).numpy()
    except (DataError, tf.errors.InvalidArgumentError):
        return None
    return pixels


def _run_outside(runs: Sequence[_Run], batches: Sequence[Sequence[ReferenceImage]], pixels: Array) -> list[Outputs]:
    """Returns the outputs of each run, from a process without tfpipe."""
    with temporary_folder("parity") as folder:
        for index, batch in enumerate(batches):
            files = np.frombuffer(b"".join(image.data for image in batch), np.uint8)
            lengths = np.array([len(image.data) for image in batch])
            start = index * _BATCH_SIZE
            np.savez(folder / f"batch_{index}.npz", files=files, lengths=lengths, pixels=pixels[start : start + _BATCH_SIZE])
        listed = [{"kind": run.file.kind, "path": str(run.file.path), "place": run.place, "tf32": run.tf32} for run in runs]
        (folder / "runs.json").write_text(json.dumps(listed), "utf-8")
        _run_process(folder)
        paths = [[folder / f"outputs_{number}.{index}.npz" for index in range(len(batches))] for number in range(len(runs))]
        return [_joined([dict(np.load(path, allow_pickle=True)) for path in each]) for each in paths]


def _run_process(folder: Path) -> None:
    # -P: the script's folder is tfpipe's own, whose modules must not be found as the packages that
    # they are named after.
    command = [sys.executable, "-P", parity_process.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise DataError(f"the exported files could not be run in a process without tfpipe: {reason[-1]}")


def _run_keras(run: _Run, pixels: Array, specification: Specification) -> Outputs:
    """Runs a Keras file here: another process lacks the classes of custom layers."""
    model = keras.saving.load_model(run.file.path, compile=False)
    function = tf.function(lambda images: model(images, training=False), autograph=False)
    with arithmetic.portable(model):  # the first call traces it
        function.get_concrete_function(tf.TensorSpec(model.inputs[0].shape, tf.uint8))
    with arithmetic.exact(), tf.device(run.place):
        parts = [
            function(tf.constant(pixels[start : start + _BATCH_SIZE])).numpy() for start in range(0, len(pixels), _BATCH_SIZE)
        ]
    return {f"image.{specification.output}": np.concatenate(parts)}


def _rows(
    run: _Run,
    outputs: Outputs,
    by_averages: Mapping[bool, Outputs],
    names: Sequence[str],
    tolerance: float,
    deviations: Sequence[float] | None,
) -> Iterator[Row]:
    for output in sorted(outputs, key=lambda output: (STAGES.index(output.split(".")[-1]), output)):
        signature, stage = output.split(".")
        expected = by_averages[run.file.averages or signature in ("tta", "image_tta")]
        if run.tf32 and stage not in _RESULTS:
            continue
        # The other signatures have outputs only for valid images; those of pixels for all.
        is_compared = expected["valid"] if signature in ("image", "image_tta") else np.ones(len(names), bool)
        key = _DECODED if output == "pixels.valid" else stage  # that signature does not run the model
        scale = np.array(deviations) if deviations and stage == VALUES else 1.0
        far = np.where(is_compared, _distances(outputs[output], expected[key], scale), 0)
        worst = int(np.argmax(np.where(np.isnan(far), np.inf, far)))
        image = names[worst] if far[worst] != 0 else ""
        allowed = run.allowed(stage, tolerance)
        row = Row(run.name, output, stage, float(far[worst]), allowed, image, int(is_compared.sum()), run.device)
        yield dataclasses.replace(row, arithmetic="tf32" if run.tf32 else "float32")


def _distances(found: Array, wanted: Array, scale: Array | float = 1.0) -> Array:
    """Returns the largest difference within each row, in units of `scale`."""
    if found.dtype in (object, bool):
        distances: Array = (found != wanted).astype(np.float64)
    else:
        distances = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) / scale
    largest: Array = distances.reshape(len(found), -1).max(axis=1)
    return largest
