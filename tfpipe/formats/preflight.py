"""Checks of models and exports that need no TensorFlow, which takes seconds to load.

    place, form = find_model("export/")       # Path("export/saved_model"), "saved_model"
    check_export("runs/a", "out/", formats=("saved_model", "onnx"))

Commands call them first; the library calls the same functions.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tfpipe.common import arguments, files
from tfpipe.common.errors import DataError
from tfpipe.formats.specifications import FILE_NAME
from tfpipe.models.predictions import check_finished
from tfpipe.records import checksums, folds, manifest
from tfpipe.records.run_folders import LAST_NAME, MODEL_NAME, RUN_NAME, Seen, find_model_file

FORMATS = ("saved_model", "pb", "tflite", "tflite_int8", "onnx", "openvino", "keras")
CHECKPOINTS = {"best": MODEL_NAME, "last": LAST_NAME}
SAVED_MODEL_NAME = "saved_model"  # in an export's folder
KERAS_NAME = "model.keras"  # in an export's folder
EXTRA_NAME = "assets.extra"  # of a SavedModel: files that TensorFlow Serving leaves alone
ONNX_PACKAGES = ("onnx", "tf2onnx", "onnxruntime")
OPENVINO_PACKAGES = ("openvino",)
SPLIT = "val"  # to compare on, where none is named
NO_CALIBRATION = "tflite_int8 is calibrated on training images: give the data set, calibration_data=... (--calibration_data)"

KERAS_FORM = ".keras"
_GRAPH_NAME = "saved_model.pb"
_FORMS = (".pb", ".tflite", ".onnx", ".xml")


def find_model(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Returns a model's path and form: "saved_model" or a suffix, ".xml" of OpenVINO, for example.

    Of an export's folder, the SavedModel is taken. Raises FileNotFoundError if there is no model,
    DataError for a SavedModel of another program, ImportError if a package is missing.
    """
    place = Path(path)
    if (place / SAVED_MODEL_NAME / _GRAPH_NAME).exists():
        place /= SAVED_MODEL_NAME
    if (place / _GRAPH_NAME).exists():
        find_specification(place)
        return place, SAVED_MODEL_NAME
    if not place.exists():
        raise FileNotFoundError(
            f"{place}: no such model: a run's folder, a .keras file, or an export or a file of it is needed"
        )
    if place.suffix in _FORMS and not place.is_dir():
        if place.suffix == ".onnx":
            check_packages("ONNX files need", ("onnxruntime",), "onnx")
        if place.suffix == ".xml":
            check_packages("OpenVINO files need", OPENVINO_PACKAGES, "openvino")
        return place, place.suffix
    if (place / FILE_NAME).exists() and not (place / MODEL_NAME).exists():
        others = sorted(file.name for file in place.iterdir() if file.suffix in _FORMS)
        there = f"give one of its files: {', '.join(others)}" if others else "and there is no other model in it"
        raise FileNotFoundError(f"{place}: an export without {SAVED_MODEL_NAME}; {there}")
    if folds.is_folder(place):
        folds.find_models(place)
        return place, KERAS_FORM
    return find_model_file(place), KERAS_FORM


def find_specification(saved_model: Path) -> Path:
    """Returns the path of a SavedModel's specification; raises DataError if there is none."""
    extra = saved_model / EXTRA_NAME / FILE_NAME
    if not extra.exists():
        raise DataError(f"not a SavedModel of tfpipe: it has no {extra.relative_to(saved_model)}", path=saved_model)
    return extra


def check_packages(what: str, names: Sequence[str], extra: str) -> None:
    """Raises ImportError for a missing package of an extra, with the command that installs it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{what} the package {name}: pip install 'tfpipe[{extra}]'", name=name)


def check_export(
    model: Any,
    output: str | os.PathLike[str],
    *,
    formats: str | Sequence[str],
    checkpoint: str,
    data: str | os.PathLike[str] | None,
    calibration_data: str | os.PathLike[str] | None,
    split: str | None,
    half: bool,
    evaluations: Iterable[str | os.PathLike[str]],
    overwrite: bool,
    ensemble: bool = False,
) -> tuple[tuple[str, ...], Path]:
    """Checks the arguments of `tfpipe.export`, and returns the formats and the folder to write.

    Raises:
        ValueError, FileNotFoundError, DataError, ImportError, OSError: as `tfpipe.export`.
    """
    wanted = f"some of {', '.join(FORMATS)}, each once"
    names = arguments.texts("formats", [formats] if isinstance(formats, str) else formats, wanted)
    if unknown := [name for name in names if name not in FORMATS]:
        raise arguments.wrong("formats", wanted, unknown[0], arguments.nearest(unknown[0], FORMATS))
    target = Path(os.path.realpath(arguments.path("output", output)))  # of a link, its target is replaced
    files.check_folder(target.parent)
    check_target(target, overwrite)
    checkpoints = [] if checkpoint in CHECKPOINTS else [checkpoint]
    for path in (model, *checkpoints, data, calibration_data, *evaluations):
        if isinstance(path, str | os.PathLike) and target in (real := Path(os.path.realpath(path)), *real.parents):
            raise ValueError(f"{target}: output must be another folder than that of {os.fspath(path)}, which is needed")
    if "onnx" in names:
        check_packages("ONNX files need", ONNX_PACKAGES, "onnx")
    if "openvino" in names:
        check_packages("OpenVINO files need", OPENVINO_PACKAGES, "openvino")
    run, file = None, Path()
    if isinstance(model, str | os.PathLike):
        file, run = find_checkpoint(Path(model), checkpoint)
        if ensemble and not folds.is_folder(file):
            raise ValueError(f"{file}: ensemble averages the models of the folder of train_folds, which this is not")
        if folds.is_folder(file) and not ensemble:
            raise ValueError(f"{file}: holds several models: export their mean with ensemble, or one, {run}")
        if not ensemble:
            find_model_file(file)
    elif ensemble:
        raise ValueError("ensemble is of the folder of train_folds, not of a model")
    if calibration_data is not None and "tflite_int8" not in names:
        raise ValueError("calibration_data is for the format tflite_int8, which is not wanted here")
    if "tflite_int8" in names and calibration_data is data is run is None:
        raise ValueError(NO_CALIBRATION)
    if (images := calibration_data or data) is not None and "tflite_int8" in names:
        calibration_splits(images, folds.seen_by(file) if run is not None else ())
    if data is not None:
        manifest.load(data).split(split or SPLIT)
    elif run is None and (half or split is not None):
        raise ValueError("half=True, and a split, need images: give the data set, data=...")
    for folder in evaluations:
        check_finished(folder)
    return names, target


def calibration_splits(data: str | os.PathLike[str], seen: Iterable[Seen]) -> tuple[str, str]:
    """Returns the splits of a data set that tflite_int8 is calibrated on, and its loss measured on.

    They are those that trained and chose the model, the first of several; else "train" and "val".
    Without one that chose it, because a part was held out for that, both are the same.

    Raises:
        ValueError: there is no such split.
        FileNotFoundError, DataError: not a data set.
    """
    account = manifest.load(data)
    made_of = [(one.train, one.val) for one in seen if one.root_hash == account.root_hash]
    train, val = made_of[0] if made_of else ("train", SPLIT)
    account.split(train)
    return train, val if account.splits.keys() >= set(val.split(manifest.JOINED)) else train


def check_target(target: Path, overwrite: bool) -> None:
    """Raises ValueError if the target has other files, is a mount point or the current folder."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: output must be a folder (this is a file)")
    if target.is_mount():
        raise ValueError(f"{target}: is a mount point, which cannot be replaced: choose a folder in it")
    if target == Path.cwd():
        raise ValueError(f"{target}: output must be another folder than the one that you are in")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        what = "an export; replace it with overwrite=True, or" if (target / checksums.FILE_NAME).exists() else "files;"
        raise ValueError(f"{target}: holds {what} choose another folder")
    _check_replaceable(target)


def _check_replaceable(target: Path) -> None:
    """Raises ValueError unless a folder is an unchanged export, as with a filled-in card."""
    try:
        known = checksums.read(target / checksums.FILE_NAME)
    except (OSError, DataError):
        known = {}
    if FILE_NAME not in known:
        raise ValueError(f"{target}: has other files than an export, which overwrite would delete; choose another folder")
    found = {name: sha256 for name, _, sha256 in checksums.list_files(target) if name != checksums.FILE_NAME}
    changed = sorted(name for name, sha256 in found.items() if known.get(name) != sha256)
    if changed:
        raise ValueError(f"{target}: overwrite would delete what was added or changed: {', '.join(changed[:5])}; move it first")


def find_checkpoint(path: Path, checkpoint: str) -> tuple[Path, Path | None]:
    """Returns the .keras file of a checkpoint, and the run's folder, if it is of a run.

    Of the folder of `train_folds`, that folder, and the first run's.

    Raises ValueError for a checkpoint of a file, FileNotFoundError if there is no such checkpoint.
    """
    if folds.is_folder(path):
        members = folds.find_models(path)
        if checkpoint != "best":
            raise ValueError(f"checkpoint={checkpoint!r} is of one run: of {path}, the best models are averaged")
        return path, members[0].parent
    if not path.is_dir():
        if checkpoint != "best":
            raise ValueError(f"checkpoint={checkpoint!r} is of a run's folder, which {path} is not")
        return path, None
    if checkpoint in CHECKPOINTS:
        file = path / CHECKPOINTS[checkpoint]
        if not file.exists():
            raise FileNotFoundError(f"{path}: no {file.name} in this folder: not a run, or one that is not finished")
        return file, path if (path / RUN_NAME).exists() else None
    file = Path(checkpoint)
    if not file.exists():
        raise FileNotFoundError(f"{checkpoint}: no such file; checkpoint must be best, last or the path of a .keras file")
    return file, path if path.resolve() in file.resolve().parents and (path / RUN_NAME).exists() else None
