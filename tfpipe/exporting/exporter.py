"""`tfpipe.export()`: a trained model as files with the same outputs, or no files at all.

    export("runs/a", "export/", formats=("saved_model", "pb"))

    OUTPUT/saved_model/               signatures: see `tfpipe.formats.signatures`
    OUTPUT/frozen_image.pb            pixels -> probabilities and features; no functions, no variables
    OUTPUT/frozen_bytes.pb            files -> all outputs of a SavedModel
    OUTPUT/model.tflite, model_dynamic_range.tflite, model.onnx, model.keras
    OUTPUT/model_int8.tflite          whole numbers of 8 bits, calibrated on images of a data set
    OUTPUT/model.xml, model.bin       OpenVINO
    OUTPUT/frozen_image_tta.pb, model_tta.*    with `tta`: means over views
    OUTPUT/preprocessing.json         the `Specification`, which is inside every file, too
    OUTPUT/labels.txt                 a class name per line
    OUTPUT/model_card.md, parity.json, SHA256SUMS

The folder appears when it is complete and every file has reproduced the model's outputs.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfpipe
from tfpipe.common import arguments, files, stores
from tfpipe.common.progress import log_line
from tfpipe.common.text import exactly, format_bytes, html_table
from tfpipe.exporting import half_precision, model_card, model_source, parity, reference_images, wrapping
from tfpipe.exporting.formats import INT8_NAME, WRITERS, Work
from tfpipe.exporting.parity import ExportedFile, Row
from tfpipe.formats import preflight, specifications, tflite_files
from tfpipe.formats.preflight import EXTRA_NAME, SAVED_MODEL_NAME
from tfpipe.formats.preflight import FORMATS as FORMATS
from tfpipe.formats.specifications import Specification
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.models import predictions
from tfpipe.models import tta as views
from tfpipe.models.classifiers import NamedModel
from tfpipe.networks import layers
from tfpipe.records import checksums, manifest
from tfpipe.records.samples import Samples

PARITY_NAME = "parity.json"


@dataclass(frozen=True)
class Export:
    """A written export.

    Attributes:
        folder: of the export.
        files: path below the folder, bytes, SHA-256.
        parity: differences between each output of each file and the model's.
        half: the cost of float16 weights, see `half_precision.measure_cost`; None without them.
        int8: that of 8 bits, with "tflite_int8".
    """

    folder: Path
    files: Sequence[tuple[str, int, str]]
    parity: Sequence[Row]
    half: Mapping[str, Any] | None
    int8: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        size = format_bytes(sum(num_bytes for _, num_bytes, _ in self.files))
        furthest = max((row.difference for row in self.parity), default=0.0)
        names = reprlib.repr(sorted({row.artefact for row in self.parity}))
        return f"Export({os.fspath(self.folder)!r}, {names}, {size}, largest difference {furthest:.3g})"

    def _repr_html_(self) -> str:
        rows = [[name, format_bytes(num_bytes), sha256[:12]] for name, num_bytes, sha256 in self.files]
        return html_table(repr(self), ["file", "size", "SHA-256"], rows)


@arguments.renamed(evaluations="evaluation", report="log")
def export(
    model: str | os.PathLike[str] | keras.Model | NamedModel,
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("saved_model", "pb"),
    checkpoint: str = "best",
    class_names: Sequence[str] | None = None,
    preprocessing: str | None = None,
    image_size: tuple[int, int] | None = None,
    resize: str | None = None,
    outputs: str | None = None,
    png16: str | None = None,
    background: str | None = None,
    top_k: int = 5,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    half: bool = False,
    tta: str | int | views.Tta | None = None,
    data: str | os.PathLike[str] | None = None,
    calibration_data: str | os.PathLike[str] | None = None,
    split: str | None = None,
    evaluation: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    tolerance: float = parity.TOLERANCE,
    ensemble: bool = False,
    overwrite: bool = False,
    trust: bool = False,
    log: Callable[[str], None] = log_line,
) -> Export:
    """Writes a model in several formats, compares each with the model, and moves them in place.

    Args:
        model: a run's folder, a .keras file, or a Keras model.
        output: the folder; it must not exist, or be empty, or hold an export and `overwrite` be
            set.
        formats: out of FORMATS. "tflite" writes two files, of floats and with weights of 8 bits;
            "tflite_int8" one that computes in whole numbers of 8 bits; "onnx" and "openvino" need an
            extra.
        checkpoint: of a run: "best", "last" (weights of the last step), or the path of a .keras file.
        class_names: of a Keras model of another program; see `wrapping.wrap`, as for the next six.
        preprocessing: that the model was trained with; "none" by default.
        image_size: (height, width) or the side of a square, if the model takes any.
        resize: how images were resized; "stretch" by default.
        outputs: "probabilities", "logits" or "sigmoid".
        png16: how 16-bit PNG were read, see `tfpipe.build_tfrecords`; by default that of `data`, else
            "high_byte".
        background: behind transparent images; by default that of `data`, else "keep".
        top_k: number of classes in "classes" and "scores", at most all.
        max_pixels: height times width above which a file is refused: limits the memory per file.
        half: store weights in float16, half the bytes; the cost is measured on `data`.
        tta: add the mean of the probabilities of several views of an image, see `tfpipe.evaluate`: to
            the SavedModel as signatures, to others as files of their own. Not to "keras" and 8 bits.
        data: a data set: eight images of `split` are added to the images of the comparison. By
            default the run's, if it is still there.
        calibration_data: for "tflite_int8": a data set. Of its split "train" 128 images, drawn by a
            fixed seed, give the ranges of values, and the loss of accuracy is measured on "val"; of
            the model's own data set, the splits that it was trained on and chosen by. By default
            `data`, or the run's data set.
        split: of `data`; "val" by default.
        evaluation: folder of `tfpipe.evaluate`, or several, for the model card; of an ensemble, also
            of `tfpipe.evaluate_folds`. Of several labels an image, the last with `calibrate` gives
            the thresholds.
        tolerance: largest difference allowed in probabilities of TFLite, ONNX and OpenVINO; TensorFlow's
            formats must be equal, and 8 bits within 0.5.
        ensemble: `model` is the folder of `train_folds`: export the mean of its models as one.
        overwrite: replace an existing export when the new one is complete.
        trust: trust the author of the model, see `tfpipe.load`.
        log: called with a line for each step; default the logger "tfpipe", see `tfpipe.train`.

    Raises:
        ValueError: an invalid argument.
        FileNotFoundError, DataError: the model cannot be found or read.
        DataError: a file does not reproduce the model; nothing is kept.
        ImportError: a format needs an extra that is not installed.
        OSError: the output cannot be written.
    """
    (ensemble,) = arguments.check(ensemble=ensemble)
    top_k, max_pixels, half, overwrite, trust, tolerance, checkpoint = arguments.check(
        top_k=top_k,
        max_pixels=max_pixels,
        half=half,
        overwrite=overwrite,
        trust=trust,
        tolerance=tolerance,
        checkpoint=os.fspath(checkpoint) if isinstance(checkpoint, Path) else checkpoint,
    )
    (image_size,) = arguments.check_given(image_size=image_size)
    tta = views.check(tta)
    arguments.callback("log", log)
    given: dict[str, Any] = {"preprocessing": preprocessing, "resize": resize, "outputs": outputs}
    given |= {"png16": png16, "background": background}
    wrapping.check_options(**given)
    folders = [arguments.path("evaluation", path) for path in _listed(evaluation)]
    if data is not None:
        data = arguments.path("data", data)
    if calibration_data is not None:
        calibration_data = arguments.path("calibration_data", calibration_data)
    names, target = preflight.check_export(
        model,
        output,
        formats=formats,
        checkpoint=checkpoint,
        data=data,
        calibration_data=calibration_data,
        split=split,
        half=half,
        evaluations=folders,
        overwrite=overwrite,
        ensemble=ensemble,
    )
    files.clear_up(target)
    if class_names is not None and data is not None:
        usual = dataclasses.asdict(Samples.of(manifest.load(data).options))
        given |= {name: given[name] or value for name, value in usual.items()}
    options = {**given, "class_names": class_names, "image_size": image_size}
    original, run = model_source.find(model, checkpoint, options, trust=trust)
    if class_names is not None:  # a wrong guess makes a wrong model without any error, here and everywhere else
        log(f"assumed, given or by default: {_assumed(original)}; nothing can check it")
    if original.task == manifest.REGRESSION and (half or "tflite_int8" in names):
        what = "half" if half else "tflite_int8"
        raise ValueError(f"{what}: the cost of rounding is measured in accuracy, which a regression has not: leave it out")
    images = model_source.find_images(run, data, split, is_needed=half)
    calibrated_on = ""
    if "tflite_int8" in names:
        calibrated_on = os.fspath(calibration_data or images.directory) or model_source.trained_on(run)
    if "tflite_int8" in names and not calibrated_on:
        raise ValueError(preflight.NO_CALIBRATION)
    cost, exported = None, original
    if half:
        log(f"rounding weights to float16, and measuring the cost on {images}")
        exported = half_precision.round_weights(original)
        cost = half_precision.measure_cost(original, exported, images.directory, images.split)
        cost["sha256"] = exported.sha256
    way = views.find(tta, run if run is not None else model)
    specification = dataclasses.replace(_specify(exported, top_k, max_pixels, folders), tta=way)
    described = dataclasses.replace(specification, sha256=original.sha256)
    card = functools.partial(model_card.render, described, run=run, evaluations=folders, half=cost, ensemble=ensemble)
    card()  # errors in the evaluations are raised before the work
    own = images.references()
    compared = [*reference_images.make(), *own]
    with files.folder_written_atomically(target, replace=overwrite) as folder:
        written = _write(Work(exported, specification, folder, half, calibrated_on), names, log)
        _write_metadata(folder, specification)
        of_data = f", {len(own)} of them of {images}" if own else ""
        log(f"comparing with the model on {exactly(len(compared), 'file')}{of_data}, in a process without tfpipe")
        rows = parity.compare(exported, specification, written, compared, tolerance)
        parity.check(rows)
        int8 = _measure_int8(exported, folder, calibrated_on, log) if calibrated_on else None
        _write_parity(folder, rows, cost, int8)
        text = card(int8=int8, parity=[_described(row) for row in rows], files=checksums.list_files(folder))
        (folder / model_card.FILE_NAME).write_text(text, "utf-8")
        listed = checksums.write(folder, folder / checksums.FILE_NAME)
        preflight.check_target(target, overwrite)  # again: minutes have gone by, in which a card may have been filled in
    return Export(target, listed, rows, cost, int8)


def _assumed(model: NamedModel) -> str:
    one = layers.last_of(model.model).input.shape[-1] == 1
    of_class = f" of {model.class_names[1]!r}" if one else ""
    facts = {"preprocessing": model.preprocessing, "resize": model.resize, "outputs": f"{model.outputs}{of_class}"}
    return ", ".join(f"{name}={value}" for name, value in {**facts, **dataclasses.asdict(model.samples)}.items())


def _listed(paths: Any) -> Iterable[Any]:
    return [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else paths


def _write(work: Work, formats: Sequence[str], log: Callable[[str], None]) -> dict[str, ExportedFile]:
    written: dict[str, ExportedFile] = {}
    for name in formats:
        log(f"writing {name}")
        try:
            written |= WRITERS[name](work)
        except (tf.errors.ResourceExhaustedError, tf.errors.OutOfRangeError) as error:  # TensorFlow's errors for a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(work.folder)) from error
    return written


def _specify(model: NamedModel, top_k: int, max_pixels: int, evaluations: Sequence[Path] = ()) -> Specification:
    names = model.class_names
    size, top_k = model.image_size, min(top_k, len(names))
    facts = (names, size, model.resize, model.preprocessing, model.sha256, top_k, max_pixels, tfpipe.__version__, model.samples)
    own: dict[str, Any] = {}
    if isinstance(last := layers.last_of(model.model), layers.Values):
        own = {"units": last.units, "deviations": last.deviations}
    elif model.task == manifest.MULTILABEL:
        own = {"thresholds": tuple(_thresholds(names, evaluations))}
    return Specification(*facts, model.task, **own, seen=model.seen)


def _thresholds(class_names: Sequence[str], evaluations: Sequence[Path]) -> list[float]:
    """Returns those of the last evaluation that chose any, else 0.5."""
    for folder in reversed(evaluations):
        if found := (predictions.fields(folder / predictions.METRICS_NAME, "calibration")[0] or {}).get("thresholds"):
            return [float(found[name]) for name in class_names]
    return [predictions.DEFAULT_THRESHOLD] * len(class_names)


def _described(row: Row) -> dict[str, Any]:
    """Returns a row of the model card."""
    return {
        "file": row.artefact,
        "output": row.output,
        "on": f"{row.device}, {row.arithmetic}",
        "largest difference": f"{row.difference:.3g}",
        "allowed": "any" if row.allowed is None else f"{row.allowed:g}",
        "in": row.image,
        "images": row.num_images,
    }


def _write_metadata(folder: Path, specification: Specification) -> None:
    """Writes specification and labels, into a SavedModel too, which may be copied alone."""
    labels = "".join(f"{name}\n" for name in specification.class_names).encode("utf-8", "surrogateescape")
    places = [folder, folder / SAVED_MODEL_NAME / EXTRA_NAME] if (folder / SAVED_MODEL_NAME).exists() else [folder]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / specifications.FILE_NAME).write_text(specification.to_json(), "utf-8")
        (place / specifications.LABELS_NAME).write_bytes(labels)
        if place != folder:
            checksums.write(place.parent, place / checksums.FILE_NAME)


def _measure_int8(model: NamedModel, folder: Path, directory: str, log: Callable[[str], None]) -> dict[str, Any]:
    _, split = preflight.calibration_splits(directory, model.seen)
    log(f"measuring the cost of 8 bits on split {split} of {stores.url(directory)}")
    rounded = tflite_files.open_tflite(folder / INT8_NAME)
    return {"split": split, **half_precision.measure_cost(model, rounded, directory, split)}


def _write_parity(folder: Path, rows: Sequence[Row], half: Mapping[str, Any] | None, int8: Mapping[str, Any] | None) -> None:
    keys = {"image": "picture", "num_images": "num_pictures"}  # in the file, since its first version
    listed = [{keys.get(name, name): value for name, value in dataclasses.asdict(row).items()} for row in rows]
    files.write_json(folder / PARITY_NAME, {"parity": listed, "half": half} | ({"int8": int8} if int8 else {}))
