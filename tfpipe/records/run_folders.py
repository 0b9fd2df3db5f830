"""The files of a run's folder, by name; `tfpipe.training.runs` writes them.

locate_data("runs/a")    # the folder of the data set that it was trained on
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from tfpipe.common.errors import DataError
from tfpipe.common.files import is_hidden, load_json, open_regular
from tfpipe.common.text import exactly
from tfpipe.records import manifest

MODEL_NAME = "model.keras"  # the best weights
LAST_NAME = "last.keras"  # those of the last step
RUN_NAME = "run.json"
SUMMARY_NAME = "summary.json"
BACKBONE_NAME = "backbone.json"
HEAD_NAME = "head.json"  # the heads that were tried, and the best
HEAD_IMAGE = "head.png"
STATE_FOLDER = "state"  # a file for each phase, from which the run resumes


def state_file(folder: Path, phase: str) -> Path:
    """Returns the path of the state of a phase."""
    return folder / STATE_FOLDER / f"{phase}.npz"


_MAX_INFLATED, _MIN_INFLATED_BYTES = 10, 1 << 24  # Keras does not compress; others might have
_HDF5 = b"\x89HDF\r\n\x1a\n"
EXPORT = "tfpipe.export(keras.models.load_model(path), output, class_names=[...])"


def find_model_file(path: str | os.PathLike[str]) -> Path:
    """Returns the .keras file of a run's folder, or the given file.

    Raises FileNotFoundError, or DataError if it is not a .keras file.
    """
    file = Path(path)
    if file.is_dir():
        file = file / MODEL_NAME
        if not file.exists():
            raise FileNotFoundError(f"{path}: no {MODEL_NAME} in this folder: not a run, or one that is not finished")
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file: a run's folder or a .keras file is needed")
    with open_regular(file) as opened:
        try:
            members = zipfile.ZipFile(opened).infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            opened.seek(0)
            why = _why_no_archive(file, opened.read(len(_HDF5)))
            raise DataError(f"cannot be loaded as a Keras model: {why}", path=file) from None
    for member in members:
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise DataError(f"its member {member.filename!r} leads out of it", path=file)
        if member.file_size > _MAX_INFLATED * member.compress_size + _MIN_INFLATED_BYTES:
            raise DataError(
                f"its member {member.filename!r} would have {exactly(member.file_size, 'byte')}: none of Keras'",
                path=file,
            )
    return file


def _why_no_archive(file: Path, start: bytes) -> str:
    if start == _HDF5:
        return f"it is an HDF5 file; export it first: {EXPORT}"
    if file.suffix == ".keras" or start.startswith(b"PK"):
        return "it is not a .keras file, or is truncated"
    return "a run's folder, a .keras file, or a file or folder of an export is needed"


def check_vacant(folder: Path) -> None:
    """Raises ValueError for a folder that holds files and no run."""
    if folder.is_dir() and not (folder / RUN_NAME).exists():
        others = sorted(entry.name for entry in folder.iterdir() if not is_hidden(entry.name))
        if others:
            raise ValueError(f"{folder}: has other files ({', '.join(others[:5])}) and no run; choose another folder")


def state_files(folder: Path) -> list[Path]:
    """Returns the existing states, by name."""
    return sorted((folder / STATE_FOLDER).glob("*.npz"))


class _DataSet(TypedDict):
    root_hash: str
    train_split: NotRequired[str]
    val_split: NotRequired[str]


class _Trained(TypedDict):
    data: _DataSet
    directory: NotRequired[str | None]


def locate_data(model: str | os.PathLike[str]) -> Path:
    """Returns the folder of the training data of a run (its folder, or a .keras file in it).

    Raises:
        FileNotFoundError: there is no run.json, it does not name the data, or they have gone.
        DataError: it cannot be read, or there is another data set at that place now.
    """
    path = Path(model) / RUN_NAME if Path(model).is_dir() else Path(model).parent / RUN_NAME
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, which would name the training data's folder")
    facts = load_json(path, _Trained)
    directory, root_hash = facts.get("directory"), facts["data"]["root_hash"]
    if not directory:
        raise FileNotFoundError(f"{path}: does not name the training data's folder")
    if manifest.load(directory).root_hash != root_hash:
        raise DataError(f"the model was trained on another data set than the one that is there now ({path})", path=directory)
    return Path(directory)


class _Summary(TypedDict):
    model_sha256: str


@dataclass(frozen=True)
class Seen:
    """The data that a model was made from: the data set, and the splits that trained and chose it."""

    root_hash: str
    train: str
    val: str


def seen_by(model: str | os.PathLike[str]) -> Seen | None:
    """Returns the data of a run (its folder, or a .keras file in it); None without its run.json."""
    path = (Path(model) if Path(model).is_dir() else Path(model).parent) / RUN_NAME
    if not path.exists():
        return None
    facts = load_json(path, _Trained)["data"]
    return Seen(facts["root_hash"], facts.get("train_split", "train"), facts.get("val_split", "val"))


def trained_sha256(folder: Path) -> str:
    """Returns the hash of a finished run's classifier; raises FileNotFoundError or DataError."""
    return load_json(folder / SUMMARY_NAME, _Summary)["model_sha256"]


def check_weights_file(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a weights file; raises FileNotFoundError, or ValueError for a folder."""
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"weights: {file} is a directory; a .h5, .weights.h5 or .keras file is needed")
    if not file.exists():
        raise FileNotFoundError(
            f"weights: {file}: no such file; 'imagenet', 'none' or a .h5, .weights.h5 or .keras file is needed"
        )
    return file
