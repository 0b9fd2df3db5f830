"""`tfpipe.export()`: a trained model as files that give the same answer elsewhere, or no files at all.

    export("runs/a", "export/", formats=("saved_model", "pb"))

    OUTPUT/saved_model/               signatures: see `tfpipe.serving.signatures`
    OUTPUT/frozen_image.pb            pixels -> probabilities and features; no functions, no variables
    OUTPUT/frozen_bytes.pb            files -> all that a SavedModel says of them
    OUTPUT/model.tflite, model_dynamic_range.tflite, model.onnx, model.keras
    OUTPUT/preprocessing.json         the `Specification`, which is inside every file, too
    OUTPUT/labels.txt                 a class name per line
    OUTPUT/model_card.md, parity.json, SHA256SUMS

The folder appears when all of it is there and every file has said what the model says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfpipe
from tfpipe.records import files
from tfpipe.records.errors import DataError
from tfpipe.records.images import DEFAULT_MAX_PIXELS
from tfpipe.serving import freezing, model_card, parity, rounding, signatures, sourcing, specifications, specimens
from tfpipe.serving.parity import Artefact, Row
from tfpipe.serving.specifications import Specification
from tfpipe.transfer.classifiers import NamedModel

_log = logging.getLogger("tfpipe")

FORMATS = ("saved_model", "pb", "tflite", "onnx", "keras")
LABELS_NAME = "labels.txt"
PARITY_NAME = "parity.json"
CHECKSUMS_NAME = "SHA256SUMS"
_EXTRA = "assets.extra"  # of a SavedModel: files that TensorFlow Serving leaves alone
_PB_LIMIT_BYTES = 2**31 - 1  # of one protobuf message


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where.
        files: path below the folder, bytes, SHA-256.
        parity: how far each output of each file is from the model.
        half: what float16 weights cost, see `rounding.measure_cost`; None if they were not asked for.
    """

    folder: Path
    files: Sequence[tuple[str, int, str]]
    parity: Sequence[Row]
    half: Mapping[str, Any] | None


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
    top_k: int = 5,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    half: bool = False,
    data: str | os.PathLike[str] | None = None,
    split: str = "val",
    evaluations: Sequence[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    report: Callable[[str], None] = _log.info,
) -> Export:
    """Writes a model in several formats, and compares each with the model before any of them gets its name.

    Args:
        model: a run's folder, a .keras file, or a Keras model.
        output: the folder; it must not exist, or be empty, or hold an export and `overwrite` be set.
        formats: out of FORMATS. "tflite" writes two files, of floats and with weights of 8 bits; "onnx" needs an extra.
        checkpoint: of a run: "best", "last" (weights of the last step), or the path of a .keras file.
        class_names: of a Keras model that is none of tfpipe's; see `wrapping.wrap`, as for the next four.
        preprocessing: what the model was trained behind; "none" if not given.
        image_size: (height, width), where the model takes any.
        resize: how pictures were brought to that size; "stretch" if not given.
        outputs: "probabilities", "logits" or "sigmoid".
        top_k: how many classes "classes" and "scores" name; no more than there are.
        max_pixels: height times width above which a file is refused: it bounds the memory that a file can ask for.
        half: store weights in float16, half the bytes; what that costs is measured on `data`.
        data: a data set: eight pictures of `split` join those that files are compared on. If not given, the run's, where it is
            still there.
        split: of `data`.
        evaluations: folders of `tfpipe.evaluate`, for the model card.
        overwrite: replace an export that is there, when the new one is complete.
        report: called with lines that say what is being done.

    Raises:
        ValueError: an argument is not what it should be.
        FileNotFoundError, DataError: the model cannot be found or read.
        DataError: a file does not say what the model says; nothing is kept.
        ImportError: a format needs an extra that is not installed.
        OSError: the output cannot be written.
    """
    target = Path(output)
    _check(target, formats, overwrite)
    for name in formats:
        _WRITERS[name].check()
    given = {"class_names": class_names, "preprocessing": preprocessing, "image_size": image_size, "resize": resize}
    source = sourcing.find(model, checkpoint, {**given, "outputs": outputs})
    pictures = sourcing.find_pictures(source, data, split, is_needed=half)
    cost = None
    served = source.model
    if half:
        report(f"rounding weights to float16, and counting what that costs on {pictures.directory}, split {split}")
        served = rounding.round_weights(source.model)
        cost = rounding.measure_cost(source.model, served, pictures.directory, split)
    specification = _specify(served, top_k, max_pixels)
    with _made_whole(target, overwrite) as folder:
        work = _Work(served, specification, folder, half)
        artefacts: dict[str, Artefact] = {}
        for name in formats:
            report(f"writing {name}")
            artefacts |= _WRITERS[name].write(work)
        _write_words(folder, specification)
        compared = [*specimens.make(), *pictures.specimens()]
        report(f"comparing with the model on {len(compared)} files, in a process without tfpipe")
        rows = parity.compare(served, specification, artefacts, compared)
        _write_parity(folder, rows, cost)
        parity.check(rows)
        listed = _list_files(folder)
        described = dataclasses.replace(specification, sha256=source.model.sha256)
        card = model_card.render(
            described,
            run=source.run,
            evaluations=[Path(path) for path in evaluations],
            parity=[dataclasses.asdict(row) for row in rows],
            files=listed,
            half=cost,
        )
        (folder / model_card.FILE_NAME).write_text(card, "utf-8")
        listed = _list_files(folder)
        sums = "".join(f"{sha256}  {name}\n" for name, _, sha256 in listed)
        (folder / CHECKSUMS_NAME).write_text(sums, "utf-8")
    return Export(target, listed, rows, cost)


def _check(target: Path, formats: Sequence[str], overwrite: bool) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or len(set(formats)) < len(formats):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, each once (got {', '.join(formats) or 'none'})")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: output must be a folder (this is a file)")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / CHECKSUMS_NAME).exists():
        raise ValueError(f"{target}: has other files than an export; choose another folder")
    if not overwrite:
        raise ValueError(f"{target}: holds an export; replace it with overwrite, or choose another folder")


def _specify(model: NamedModel, top_k: int, max_pixels: int) -> Specification:
    if top_k < 1 or max_pixels < 1:
        raise ValueError(f"top_k and max_pixels must be 1 or more (got {top_k} and {max_pixels})")
    names = model.class_names
    size, top_k = model.image_size, min(top_k, len(names))
    facts = (names, size, model.resize, model.preprocessing, model.sha256, top_k, max_pixels, tfpipe.__version__)
    return Specification(*facts)


@contextlib.contextmanager
def _made_whole(target: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a folder to write into that becomes `target` when the block ends without an error, and else vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    old = folder.with_suffix(".old")
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())  # a temporary folder is its owner's alone
        _sync(folder)
        if target.is_dir() and any(target.iterdir()):
            if not overwrite:
                raise ValueError(f"{target}: came into being meanwhile; nothing was replaced")
            os.rename(target, old)
        os.rename(folder, target)
        files.sync_directory(target.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        if isinstance(error, OSError) and str(folder) in str(error.filename or folder):  # a name that the user never gave
            raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _list_files(folder: Path) -> list[tuple[str, int, str]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, files.sha256_of(path)) for path in paths]


def _write_words(folder: Path, specification: Specification) -> None:
    """Writes what a program needs to know beside the model, into a SavedModel, too: it travels alone."""
    labels = "".join(f"{name}\n" for name in specification.class_names).encode("utf-8", "surrogateescape")
    places = [folder, folder / "saved_model" / _EXTRA] if (folder / "saved_model").exists() else [folder]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / specifications.FILE_NAME).write_text(specification.to_json(), "utf-8")
        (place / LABELS_NAME).write_bytes(labels)


def _write_parity(folder: Path, rows: Sequence[Row], half: Mapping[str, Any] | None) -> None:
    listed = [dataclasses.asdict(row) for row in rows]
    files.write_json(folder / PARITY_NAME, {"parity": listed, "half": half})


class _Work:
    """What the writers of formats share: the model and its frozen graph, made once."""

    def __init__(self, model: NamedModel, specification: Specification, folder: Path, half: bool) -> None:
        self.model, self.specification, self.folder, self.half = model, specification, folder, half

    @cached_property
    def _frozen(self) -> Any:
        return freezing.freeze_images(self.model, self.specification)

    @cached_property
    def plain(self) -> Any:
        """The frozen graph of pixels, its weights visible: other programs' converters must see them."""
        return self._stored(self._frozen)

    @cached_property
    def hidden(self) -> Any:
        """The same for TensorFlow, see `freezing.hide_weights`."""
        return self._stored(freezing.hide_weights(self._frozen))

    def _stored(self, graph: Any) -> Any:
        return rounding.store_half(graph) if self.half else graph

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file of the export."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def _write_saved_model(work: _Work) -> dict[str, Artefact]:
    path, network = work.folder / "saved_model", work.model.network
    answer = signatures.ask(work.model)
    if work.half:  # one function for all signatures, or each would have the weights of its own
        answer = tf.function(freezing.as_answer(work.hidden), [signatures.image_spec(work.specification)], autograph=False)
    functions = signatures.make(answer, work.specification, has_features=len(network.outputs) > 1)
    # Not Keras' ExportArchive, which stores every weight twice (3.15.1). With `half`, weights are constants of the graph: a
    # variable cannot be of 16 bits and computed with in 32.
    module = tf.Module()
    module.weights = [] if work.half else [weight.value for weight in network.weights]
    with _quiet():
        concrete = {name: function.get_concrete_function() for name, function in functions.items()}
        tf.saved_model.save(module, os.fspath(path), signatures=concrete)
    return {"saved_model": Artefact("saved_model", path)}


def _write_frozen(work: _Work) -> dict[str, Artefact]:
    graphs = {"frozen_image.pb": work.hidden, "frozen_bytes.pb": freezing.freeze_files(work.hidden, work.specification)}
    artefacts = {}
    for name, graph in graphs.items():
        if graph.ByteSize() > _PB_LIMIT_BYTES:
            raise ValueError(f"{name} would have {graph.ByteSize()} bytes; TensorFlow reads 2 GiB of a .pb: half, or no pb")
        artefacts[name] = Artefact("frozen", work.write(name, graph.SerializeToString(deterministic=True)))
    return artefacts


def _write_tflite(work: _Work) -> dict[str, Artefact]:
    from tfpipe.serving import tflite_files

    artefacts = {}
    for name, dynamic_range in (("model.tflite", False), ("model_dynamic_range.tflite", True)):
        data = tflite_files.convert(work.plain, work.specification, dynamic_range=dynamic_range)
        artefacts[name] = Artefact("tflite", work.write(name, data), is_lossy=dynamic_range)
    return artefacts


def _write_onnx(work: _Work) -> dict[str, Artefact]:
    from tfpipe.serving import onnx_files

    path = work.write("model.onnx", onnx_files.convert(work.plain, work.specification))
    return {"model.onnx": Artefact("onnx", path)}


def _check_onnx() -> None:
    from tfpipe.serving import onnx_files

    onnx_files.check_installed()


def _write_keras(work: _Work) -> dict[str, Artefact]:
    """Writes the Keras file and reads it again: the process that compares the others could not, it lacks tfpipe's layers."""
    path = work.folder / "model.keras"
    work.model.model.save(path)
    again = NamedModel(sourcing.load_keras(path))
    if again.sha256 != work.model.sha256:
        raise DataError("read again, it is not the model that was saved: a layer's get_config may be incomplete", path=path)
    return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps away what TensorFlow says while it saves: names of nodes and durations, through its own log and absl's."""
    logs = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@dataclass(frozen=True)
class _Writer:
    write: Callable[[_Work], dict[str, Artefact]]
    check: Callable[[], None] = lambda: None


_WRITERS = {
    "saved_model": _Writer(_write_saved_model),
    "pb": _Writer(_write_frozen),
    "tflite": _Writer(_write_tflite),
    "onnx": _Writer(_write_onnx, _check_onnx),
    "keras": _Writer(_write_keras),
}
