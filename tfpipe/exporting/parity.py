"""Whether the files of an export say what the model says that they came from, bit for bit where that can be.

    rows = compare(model, specification, {"saved_model": ExportedFile("saved_model", path)}, specimens.make())
    check(rows)    # DataError that names the first stage that differs

The model is asked here, by the functions of evaluation; the files are asked in a fresh process that
does not import tfpipe. Both see the same images in the same batches, on the same device, because
others round differently: all files on the CPU, those of TensorFlow on the GPU, too, where there is
one. Both compute in true float32; how far TF32 would be off is told. An image of which the model
gives no probabilities must not be `valid` in the files either; what takes pixels is not compared on
it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from tfpipe.exporting.reference_images import Specimen
from tfpipe.formats.specifications import Specification
from tfpipe.images import decoding, headers
from tfpipe.models.classifiers import NamedModel
from tfpipe.models.predictions import are_probabilities
from tfpipe.networks import arithmetic

Array = np.ndarray[Any, Any]

_log = logging.getLogger("tfpipe")

# In the order in which an image passes them: the first that differs explains those after it.
STAGES = ("valid", "pixels", "features", "probabilities", "scores", "classes")
TOLERANCE = 1e-5  # of a probability, where sums are of another order: programs that are not TensorFlow, and GPUs
_DECODED = "decoded"  # whether a file is an image, whatever the model says of it
_KERAS = "keras"
_TENSORFLOW = ("saved_model", "frozen", _KERAS)
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Row:
    """How far one output of one file is from the model.

    Attributes:
        artefact: the file.
        output: its signature or input, and the output's name.
        stage: one of STAGES.
        difference: the largest, in levels, probabilities, or whatever features have; of classes and
            valid, how many differ.
        allowed: the most that it may be; None where it is only told.
        image: where it is largest; empty where there is none.
        num_images: that were compared.
        device: on which both computed.
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
        """Whether the difference is within what is allowed; NaN never is."""
        return self.difference <= (math.inf if self.allowed is None else self.allowed)


@dataclass(frozen=True)
class ExportedFile:
    """A file to be asked; its kind is one of `parity_process.KINDS` or "keras". A lossy one may differ by anything."""

    kind: str
    path: Path
    is_lossy: bool = False


@dataclass(frozen=True)
class _Asked:
    """A file on a device, in an arithmetic; the answers' files begin with `answers`."""

    name: str
    artefact: ExportedFile
    device: str
    place: str
    tf32: bool
    answers: str

    @property
    def is_exact(self) -> bool:
        """Whether TensorFlow computes there as it did for the model: a GPU's kernels are chosen anew in each process."""
        return self.artefact.kind in _TENSORFLOW and self.device == "CPU"


def compare(
    model: NamedModel,
    specification: Specification,
    artefacts: Mapping[str, ExportedFile],
    specimens: Sequence[Specimen],
    tolerance: float = TOLERANCE,
) -> list[Row]:
    """Returns how far every output of every artefact is from what the model says of the same images.

    Args:
        model: that the artefacts were made from.
        specification: of it.
        artefacts: by their names.
        specimens: the images, and what is none.
        tolerance: for the probabilities of programs that are not TensorFlow.

    Raises:
        DataError: an artefact could not be asked.
        ValueError: the specification refuses most of the images.
        DataError: of most of the images the model gives no probabilities.
    """
    batches = [specimens[start : start + _BATCH_SIZE] for start in range(0, len(specimens), _BATCH_SIZE)]
    places = arithmetic.places()
    expected = {name: [_expect(model, specification, batch, place) for batch in batches] for name, place in places.items()}
    _check_valid(specification, specimens, expected["CPU"])
    asked = list(_asked(artefacts, places))
    with temporary_folder("parity") as folder:
        for index, (batch, answer) in enumerate(zip(batches, expected["CPU"], strict=True)):
            _write_question(folder / f"question_{index}.npz", batch, answer["pixels"])
        listed = [
            {"kind": one.artefact.kind, "path": str(one.artefact.path)}
            | {"answers": one.answers, "place": one.place, "tf32": one.tf32}
            for one in asked
            if one.artefact.kind != _KERAS
        ]
        (folder / "artefacts.json").write_text(json.dumps(listed), "utf-8")
        _ask(folder)
        for one in asked:
            if one.artefact.kind == _KERAS:
                _ask_keras(folder, one, expected[one.device])
        return [row for one in asked for row in _rows(folder, one, batches, expected[one.device], tolerance)]


def _asked(artefacts: Mapping[str, ExportedFile], places: Mapping[str, str]) -> Iterator[_Asked]:
    """Yields what is to be asked: TFLite's and ONNX's programs compute on the CPU."""
    numbers = itertools.count()
    for name, artefact in artefacts.items():
        for device, place in places.items() if artefact.kind in _TENSORFLOW else (("CPU", "/CPU:0"),):
            is_told = device != "CPU" and artefact.kind != _KERAS and arithmetic.has_tf32()
            for tf32 in (False, True) if is_told else (False,):
                yield _Asked(name, artefact, device, place, tf32, f"answers_{next(numbers)}")


def _check_valid(specification: Specification, specimens: Sequence[Specimen], expected: Sequence[dict[str, Array]]) -> None:
    decoded, valid = (np.concatenate([answers[name] for answers in expected]) for name in (_DECODED, "valid"))
    counted = f"only {int(valid.sum())} of {exactly(len(specimens), 'file')} could be compared"
    if 2 * decoded.sum() < len(specimens):
        raise ValueError(f"{counted}: max_pixels={specification.max_pixels} refuses the others")
    unsound = ", ".join(specimens[index].name for index in np.flatnonzero(decoded & ~valid).tolist())
    if 2 * valid.sum() < len(specimens):
        raise DataError(f"{counted}: the model gives no probabilities for {unsound}")
    if unsound:
        _log.warning("the model gives no probabilities for %s: in what is exported, such an image is not valid", unsound)


def check(rows: Sequence[Row]) -> None:
    """Raises DataError unless all differences are within what is allowed; it names the first stage that differs."""
    bad = sorted((row for row in rows if not row.is_good), key=lambda row: STAGES.index(row.stage))
    if bad:
        first, rest = bad[0], f"; {exactly(len(bad) - 1, 'more output differs', 'more outputs differ')}" if len(bad) > 1 else ""
        on = "" if first.device == "CPU" else f", on {first.device}"
        allowed = "any number" if first.allowed is None else f"{first.allowed:g}"
        raise DataError(
            f"the export does not say what the model says: {first.artefact} differs at its {first.stage} ({first.output}{on}),"
            f" by {first.difference:g} where {allowed} is allowed, in {first.image}{rest}. Nothing was kept"
        )


def _expect(model: NamedModel, specification: Specification, batch: Sequence[Specimen], place: str) -> dict[str, Array]:
    """Returns what evaluation makes of files: header, decoder, resize, model. One that is not valid is zeros in all."""
    pixels = [_pixels(specimen.data, specification) for specimen in batch]
    decoded = np.array([image is not None for image in pixels])
    blank = np.zeros((*specification.image_size, 3), np.uint8)
    seen = np.stack([blank if image is None else image for image in pixels])
    with arithmetic.exact(), tf.device(place):
        found = {name: tensor.numpy() for name, tensor in model.answer(seen).items()}
    valid = decoded & are_probabilities(found["probabilities"])
    answers = {name: np.where(valid[:, np.newaxis], values, np.zeros_like(values)) for name, values in found.items()}
    order = np.argsort(-answers["probabilities"], axis=1, kind="stable")[:, : specification.top_k]
    names = np.array([name.encode("utf-8", "surrogateescape") for name in specification.class_names], object)
    classes = np.where(valid[:, np.newaxis], names[order], b"")
    scores = np.take_along_axis(answers["probabilities"], order, axis=1)
    return {**answers, "pixels": seen, "valid": valid, _DECODED: decoded, "classes": classes, "scores": scores}


def _pixels(data: bytes, specification: Specification) -> Array | None:
    try:
        header = headers.read_header(data, max_pixels=specification.max_pixels)
        size, mode = specification.image_size, specification.resize
        pixels: Array = decoding.decode_and_resize(data, header.orientation, size, mode, specification.samples).numpy()
    except (DataError, tf.errors.InvalidArgumentError):
        return None
    return pixels


def _write_question(path: Path, batch: Sequence[Specimen], pixels: Array) -> None:
    lengths = np.array([len(specimen.data) for specimen in batch])
    files = np.frombuffer(b"".join(specimen.data for specimen in batch), np.uint8)
    np.savez(path, files=files, lengths=lengths, pixels=pixels)


def _ask(folder: Path) -> None:
    # -P: the script's folder is tfpipe's own, whose modules must not be found as the packages that
    # they are named after.
    command = [sys.executable, "-P", parity_process.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise DataError(f"the exported files could not be asked in a process without tfpipe: {reason[-1]}")


def _ask_keras(folder: Path, asked: _Asked, expected: Sequence[dict[str, Array]]) -> None:
    """Asks a Keras file here: elsewhere it cannot be read where the model has layers of its maker's classes."""
    model = keras.saving.load_model(asked.artefact.path, compile=False)
    answer = tf.function(lambda images: model(images, training=False), autograph=False)
    with arithmetic.portable(model):  # the first call traces it
        answer.get_concrete_function(tf.TensorSpec(model.inputs[0].shape, tf.uint8))
    for index, answers in enumerate(expected):
        with arithmetic.exact(), tf.device(asked.place):
            found = {"image.probabilities": answer(tf.constant(answers["pixels"])).numpy()}
        np.savez(folder / f"{asked.answers}.{index}.npz", **found)


def _rows(
    folder: Path,
    asked: _Asked,
    batches: Sequence[Sequence[Specimen]],
    expected: Sequence[dict[str, Array]],
    tolerance: float,
) -> Iterator[Row]:
    answers = [dict(np.load(folder / f"{asked.answers}.{index}.npz", allow_pickle=True)) for index in range(len(batches))]
    names = [specimen.name for batch in batches for specimen in batch]
    for output in sorted(answers[0], key=lambda output: (STAGES.index(output.split(".")[-1]), output)):
        stage = output.split(".")[-1]
        if asked.tf32 and stage != "probabilities":
            continue
        # Of pixels, an image that is not valid has an answer, too; of files, it has none.
        is_asked = np.concatenate([np.ones(len(batch), bool) for batch in batches])
        if output.startswith("image."):
            is_asked = np.concatenate([answer["valid"] for answer in expected])
        key = _DECODED if output == "pixels.valid" else stage  # that signature does not ask the model
        found, wanted = (np.concatenate([part[key] for part in parts]) for parts, key in ((answers, output), (expected, key)))
        far = np.where(is_asked, _distances(found, wanted), 0)
        worst = int(np.argmax(np.where(np.isnan(far), np.inf, far)))
        allowed = None if asked.artefact.is_lossy or asked.tf32 else _allowed(asked, stage, tolerance)
        image = names[worst] if far[worst] != 0 else ""
        row = Row(asked.name, output, stage, float(far[worst]), allowed, image, int(is_asked.sum()), asked.device)
        yield dataclasses.replace(row, arithmetic="tf32" if asked.tf32 else "float32")


def _allowed(asked: _Asked, stage: str, tolerance: float) -> float | None:
    """Returns the most that may differ; features have no scale of their own, so elsewhere they are only told."""
    if asked.is_exact or stage in ("valid", "pixels"):
        return 0.0
    return tolerance if stage in ("probabilities", "scores") else None  # of scores that are as good as equal, any may be first


def _distances(found: Array, wanted: Array) -> Array:
    """Returns the largest difference within each row."""
    if found.dtype in (object, bool):
        distances: Array = (found != wanted).astype(np.float64)
    else:
        distances = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    largest: Array = distances.reshape(len(found), -1).max(axis=1)
    return largest
