"""`tfpipe.evaluate()`: every image of a split once, one table, and all metrics from that table.

    evaluation = evaluate("runs/a", "shards/", "test", "eval/")
    evaluation.metrics["accuracy"], evaluation.metrics["accuracy_interval"]

    OUTPUT/predictions.csv    a row per image, in the catalog's order
    OUTPUT/metrics.json       see `tfpipe.evaluation.metrics.measure`; predictions_sha256 identifies the table
    OUTPUT/receipt.json       what was evaluated, and the proof that it was all of it
    OUTPUT/suspects.csv       images whose label somebody should look at, see `tfpipe.evaluation.suspects`
    OUTPUT/report.html        if requested
    OUTPUT/uncalibrated.csv   with `calibrate`: the model's own probabilities
    OUTPUT/calibration.csv    with `calibrate`: the table of the split that the temperature was fitted on
    OUTPUT/parts/             with `shard`: see `tfpipe.evaluation.partial_tables`

The receipt is written last: where it exists, table and metrics belong to it. One process at a time
writes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfpipe.common import arguments, files
from tfpipe.common.files import clear_folder, clear_up, sha256_of, written_atomically
from tfpipe.common.locking import locked
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import hash_names, html_table
from tfpipe.evaluation import (
    calibration,
    html_report,
    label_metrics,
    metrics,
    partial_tables,
    receipts,
    suspects,
    thresholding,
)
from tfpipe.evaluation.numbers import values
from tfpipe.evaluation.outliers import Outliers
from tfpipe.models import classifiers, predictions
from tfpipe.models import tta as views
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.predictions import Predictions
from tfpipe.models.split_images import read_for
from tfpipe.networks import arithmetic
from tfpipe.records import catalog, folds
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION, SINGLE

_log = logging.getLogger("tfpipe")

UNCALIBRATED_NAME = "uncalibrated.csv"
CALIBRATION_NAME = "calibration.csv"

_EXPORTED_FILES = (".pb", ".tflite", ".onnx", ".xml")
_IN_EXPORTS = ("saved_model.pb", "preprocessing.json")
_NEEDED = ("class_names", "image_size", "resize", "sha256", "predict")  # of a `Predictor`

_MEANS = ("macro_auc", "macro_average_precision", "macro_f1")  # over the classes, of several labels an image

# Files of one evaluation, beside table and receipt: the next one removes them.
_OTHER_FILES = (
    *(metrics.FILE_NAME, html_report.FILE_NAME, html_report.NEAR_DUPLICATES_NAME, suspects.FILE_NAME),
    *(UNCALIBRATED_NAME, CALIBRATION_NAME),
)


class Loaded(Protocol):
    """The part of `tfpipe.load`'s result that is used here."""

    @property
    def predictor(self) -> Predictor:
        """Predicts for images of the right size."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        folder: of its files.
        metrics: the content of metrics.json; with `shard`, empty while parts are missing, or where
            another process is merging them.
        receipt: the content of receipt.json; empty where `metrics` is.
        missing_parts: with `shard`, the tables that other readers have yet to write.
        missing_ids: keys of the images in them, in the catalog's order.
    """

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)
    missing_parts: Sequence[Path] = ()
    missing_ids: Sequence[str] = ()

    def __repr__(self) -> str:
        known = {**self.receipt, **self.metrics}
        names = ("split", "records_seen", "accuracy", "accuracy_interval", *_MEANS)
        facts = [f"{name}={known[name]!r}" for name in names if name in known]
        facts += [f"missing_parts={len(self.missing_parts)}"] if self.missing_parts else []
        return f"Evaluation({', '.join([repr(os.fspath(self.folder)), *facts])})"

    def _repr_html_(self) -> str:
        known = {**self.metrics, **((self.metrics.get("binary") or {}).get("sensitivity_at_specificity") or {})}
        names = ("accuracy", "auc", *_MEANS, "label_accuracy", "exact_match", "log_loss", "ece", "sensitivity", "specificity")
        values = {name: known[name] for name in names if known.get(name) is not None}
        rows = [[name, value, *(known.get(f"{name}_interval") or ("", ""))] for name, value in values.items()]
        return html_table(repr(self), ["metric", "value", "95 % from", "to"], rows)


@arguments.renamed(directory="data")
def evaluate(
    model: str | os.PathLike[str] | Predictor | Loaded,
    data: str | os.PathLike[str],
    split: str,
    output: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    shard: tuple[int, int] | None = None,
    num_readers: int = 1,
    positive_class: str | None = None,
    specificity: float = 0.95,
    calibrate: str | None = None,
    tta: str | int | views.Tta | None = None,
    report: bool = True,
    near_duplicates: bool = True,
    progress: bool = True,
    trust: bool = False,
    on_found: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Evaluates a model on a split: each image once, or an error that names the one that was not.

    Ids, their order, predicted classes and receipt.json are the same for any batch size and number
    of readers; probabilities are within 1e-5. Classes are matched by name: their order in the data
    set does not matter, and the model may know further classes. Memory grows with the table's rows
    alone.

    Args:
        model: a run's folder, a .keras file, or a loaded model of any form:
            `tfpipe.load("export/saved_model")`.
        data: folder of the data set.
        split: its name; labelled.
        output: folder, created if missing; replaces files of an earlier evaluation, and no others.
        batch_size: images that go through the model at once.
        shard: (index, count): only the part of reader `index` of `count`, for several processes or
            machines that share `output`. The one that completes the parts merges them.
        num_readers: read the split as that many contiguous parts, one after another.
        positive_class: see `metrics.measure`.
        specificity: see `metrics.measure`.
        calibrate: another split, on which a temperature is fitted first. The table then holds
            calibrated probabilities, and metrics["calibration"] the metrics before.
        tta: average the probabilities of several views of each image: "flip", "five", or a number
            of views of the run's augmentation; see `tfpipe.models.tta`. Near-duplicates and
            explanations are of the image as it is.
        report: write report.html, too.
        near_duplicates: look for images of the split in train and val, for the report: another pass
            over all three.
        progress: show a bar.
        trust: the model's author, see `tfpipe.load`.
        on_found: called with the result when it is on disk, before the report is written.

    Raises:
        ValueError: an argument is invalid; the split is unlabelled or empty; the model does not
            know a class; or it averages the models of folds, one of which this is.
        FileNotFoundError: there is no such model or data set.
        OSError: `output` cannot be written to, or (BlockingIOError) another evaluation writes
            there; raised before the pass.
        DataError: a record is damaged or missing, the data set was replaced during the pass, or a
            part is damaged.
    """
    batch_size, num_readers = arguments.check(batch_size=batch_size, num_readers=num_readers)
    specificity, progress, trust = arguments.check(specificity=specificity, progress=progress, trust=trust)
    report, near_duplicates = arguments.check(report=report, near_duplicates=near_duplicates)
    (shard,) = arguments.check_given(shard=shard)
    tta = views.check(tta)
    if shard is not None and num_readers != 1:
        raise ValueError(f"shard and num_readers exclude each other (got {shard!r} and {num_readers})")
    if on_found is not None:
        arguments.callback("on_found", on_found)
    data, folder = arguments.path("data", data), arguments.path("output", output)
    predictor = _loaded(model, trust)
    source: Any = getattr(model, "source", model)
    receipts.check_unseen(classifiers.seen_by(predictor), data, split, calibrate)
    averaged = views.averaged(predictor, views.find(tta, source, predictor))
    options: dict[str, Any] = {"calibrate": calibrate, "positive_class": positive_class, "specificity": specificity}
    if way := views.tta_of(averaged):  # absent where it is not used, as in receipts from before there was a choice
        options["tta"] = way.facts()
    run = Pass(averaged, data, split, folder, batch_size, progress, options, classifiers.thresholds_of(predictor))
    outliers = Outliers() if shard is None and isinstance(averaged, Classifier) else None
    claim = run.begin()
    if shard is not None:
        run.write_part(shard, claim)
        if missing := partial_tables.missing_parts(run.folder, shard[1], claim):
            return Evaluation(run.folder, missing_parts=missing, missing_ids=run.ids_of(missing, shard[1]))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, "evaluation"))
        except BlockingIOError as error:
            if shard is None:
                raise
            _log.warning("part %d of %d is complete, and not merged here: %s", *shard, error)
            return Evaluation(run.folder)
        clear(run.folder)
        if shard is None:
            chunks = run.chunks(split, [(index, num_readers) for index in range(num_readers)], outliers)
            computed = [classifiers.computation_of(predictor)]
        else:
            computed = partial_tables.computations(run.folder, shard[1])
            chunks = partial_tables.merge(run.folder, shard[1], run.header(), claim)
        evaluation = run.finish(chunks, claim, computed, outliers)
        if on_found:
            on_found(evaluation)
        if report:
            html_report.write_report(run.folder, predictor, data, split, near_duplicates=near_duplicates, progress=progress)
    return evaluation


@dataclass(frozen=True)
class Pass:
    """One evaluation, or one reader's part of it."""

    predictor: Predictor
    directory: str | os.PathLike[str]
    split: str
    folder: Path
    batch_size: int
    progress: bool
    options: dict[str, Any]
    thresholds: np.ndarray[Any, Any] | None = None  # of several labels an image

    def begin(self) -> receipts.Claim:
        """Checks the arguments before the pass, and returns the claim."""
        calibrate = self.options["calibrate"]
        task = classifiers.task_of(self.predictor)
        if task == REGRESSION and not {self.options["positive_class"], calibrate} <= {None}:
            raise ValueError("positive_class and calibrate are of classes and their probabilities: a regression gives numbers")
        if task == MULTILABEL and self.options["positive_class"] is not None:
            raise ValueError("positive_class is of one class an image; of several labels, each has its own metrics")
        if calibrate is not None and calibrate == self.split:
            raise ValueError(f"calibrate must be another split than the one that is evaluated (got {calibrate!r} for both)")
        metrics.check_options(self.predictor.class_names, self.options["positive_class"], self.options["specificity"])
        manifest = receipts.open_split(self.predictor, self.directory, self.split)
        if calibrate is not None:
            receipts.open_split(self.predictor, self.directory, arguments.choice("calibrate", calibrate, manifest.splits))
        _check_writable(self.folder)
        return receipts.claim(self.predictor, self.directory, manifest, self.split, self.options)

    def header(self) -> bytes:
        """Returns the first line of the table."""
        manifest = manifests.load(self.directory)
        return predictions.header(self.predictor.class_names, manifest.task, self.extras(manifest))

    def extras(self, account: manifests.Manifest) -> tuple[str, ...]:
        """Returns the fields of `Predictions` that are columns at the end."""
        return () if account.groups is None else ("groups",)

    def chunks(self, split: str, shards: Sequence[tuple[int, int]], outliers: Outliers | None = None) -> Iterator[bytes]:
        """Yields the table of a split, or of parts of it, piece by piece; `outliers` get the features."""
        manifest = receipts.open_split(self.predictor, self.directory, split)
        size = manifest.split(split).num_records
        total = sum(size * (index + 1) // count - size * index // count for index, count in shards)
        columns = {name: index for index, name in enumerate(self.predictor.class_names)}
        labels = np.array([columns[name] for name in manifest.class_names])
        groups = None
        if manifest.groups is not None:
            groups = {row.key: row.group for row in catalog.read_checked(self.directory, split=split)}
        yield self.header()
        with ProgressBar(f"evaluate {split}", total, enabled=self.progress) as bar:
            for shard in shards:
                for batch in self._batches(split, shard):
                    table = self._predict(batch, labels, outliers)
                    table = table if groups is None else replace(table, groups=[groups[key] for key in table.keys])
                    yield predictions.rows(table)
                    bar.add(len(batch["key"]), 0)

    def _batches(self, split: str, shard: tuple[int, int]) -> Iterator[dict[str, Any]]:
        options = {"batch_size": self.batch_size, "scaled_decode": False, "shard": shard}
        return read_for(self.predictor, self.directory, split, **options)

    def _predict(self, batch: dict[str, Any], labels: np.ndarray[Any, Any], outliers: Outliers | None) -> Predictions:
        keys, filenames = ([value.decode() for value in batch[name].numpy().tolist()] for name in ("key", "filename"))
        with arithmetic.exact():  # the model may be of another program
            if outliers is not None and isinstance(self.predictor, Classifier):
                # One graph gives both: the probabilities are the same.
                probabilities, features = self.predictor.predict_with_features(batch["image"])
                outliers.add(features)
            else:
                probabilities = self.predictor.predict(batch["image"])
        predictions.check(probabilities, keys, self.predictor)
        if classifiers.task_of(self.predictor) == REGRESSION:
            known = np.full(probabilities.shape, np.nan, np.float32)
            known[:, labels] = batch["label"].numpy()
            return predictions.of_numbers(keys, filenames, known, probabilities, self.predictor.class_names)
        if classifiers.task_of(self.predictor) == MULTILABEL:
            targets = np.full(probabilities.shape, -1, np.int8)  # of classes that the data set lacks nothing is known
            targets[:, labels] = batch["label"].numpy()
            named = keys, filenames, targets, probabilities, self.predictor.class_names
            return predictions.of_several_labels(*named, self.thresholds)
        return Predictions(keys, filenames, labels[batch["label"].numpy()], probabilities, self.predictor.class_names)

    def write_part(self, shard: tuple[int, int], claim: receipts.Claim) -> None:
        """Writes the table of one reader."""
        path = partial_tables.part_path(self.folder, *shard)
        path.parent.mkdir(exist_ok=True)
        with written_atomically(path) as file:
            file.writelines(self.chunks(self.split, [shard]))
            file.flush()
            sha256 = sha256_of(Path(file.name))  # of these rows: under the final name another process may put its own
            partial_tables.withdraw(path)
        receipts.check_unchanged(claim, self.directory)
        partial_tables.bind(path, sha256, claim, classifiers.computation_of(self.predictor))

    def ids_of(self, parts: Sequence[Path], count: int) -> list[str]:
        """Returns the keys of the images of some of `count` parts."""
        keys = [row.key for row in catalog.read_checked(self.directory, split=self.split)]
        bounds = [len(keys) * index // count for index in range(count + 1)]
        chosen = [index for index in range(count) if partial_tables.part_path(self.folder, index, count) in parts]
        return [key for index in chosen for key in keys[bounds[index] : bounds[index + 1]]]

    def finish(
        self,
        chunks: Iterable[bytes],
        claim: receipts.Claim,
        computed: Sequence[Mapping[str, str]],
        outliers: Outliers | None = None,
    ) -> Evaluation:
        """Writes the table, and all files made from it; `computed`: devices and arithmetics."""
        fitted = None
        if self.options["calibrate"] is not None:  # first: what fails here should not cost the longer pass
            fitted = self._fit(claim)
            computed = [*computed, classifiers.computation_of(self.predictor)]
        table = self._write(UNCALIBRATED_NAME if fitted else predictions.FILE_NAME, self.split, chunks, claim)
        before = None
        if fitted and table.targets is not None:
            before = self._measure(table)
            table = dataclasses.replace(table, thresholds=np.array(list(fitted["thresholds"].values())))
            table = self._write(predictions.FILE_NAME, self.split, predictions.chunks(table), claim)
            table = dataclasses.replace(table, thresholds=np.array(list(fitted["thresholds"].values())))
        elif fitted:
            before = self._measure(table)
            scaled = predictions.chunks(calibration.scale(table, fitted["temperature"]))
            table = self._write(predictions.FILE_NAME, self.split, scaled, claim)
        digest = sha256_of(self.folder / predictions.FILE_NAME)
        calibrated = fitted and {**fitted, "before": before}
        found = {**self._measure(table), "calibration": calibrated, "predictions_sha256": digest}
        found |= {"tta": self.options["tta"]} if "tta" in self.options else {}
        receipt = {**receipts.receipt(claim, table, computed), "calibration": fitted}
        files.write_json(self.folder / metrics.FILE_NAME, found)
        if table.task == SINGLE:
            odd = None if outliers is None else outliers.odd()
            suspects.write(self.folder, suspects.find(table, self.directory, self.split, odd=odd))
        files.write_json(self.folder / predictions.RECEIPT_NAME, receipt)
        return Evaluation(self.folder, found, receipt)

    def _fit(self, claim: receipts.Claim) -> dict[str, Any]:
        split = self.options["calibrate"]
        table = self._write(CALIBRATION_NAME, split, self.chunks(split, [(0, 1)]), claim)
        ids = hash_names(table.keys)
        if table.targets is not None:
            thresholds = dict(zip(table.class_names, thresholding.choose_thresholds(table), strict=True))
            return {"split": split, "records_seen": len(table.keys), "ids_sha256": ids, "thresholds": thresholds}
        temperature = calibration.fit_temperature(table)
        return {"split": split, "records_seen": len(table.keys), "ids_sha256": ids, "temperature": temperature}

    def _write(self, name: str, split: str, chunks: Iterable[bytes], claim: receipts.Claim) -> Predictions:
        """Writes a table and reads it back; it gets its name if its ids are the catalog's."""
        path = self.folder / name
        with written_atomically(path) as file:
            file.writelines(chunks)
            file.flush()
            table = predictions.read(file.name)
            receipts.check_unchanged(claim, self.directory)
            receipts.check_ids(table.keys, self.directory, split, path)
            receipts.retract(self.folder, claim, _OTHER_FILES)
        return table

    def _measure(self, table: Predictions) -> dict[str, Any]:
        if table.task == REGRESSION:
            return values.measure(table, classifiers.units_of(self.predictor) or [""] * len(table.class_names))
        if table.targets is not None:
            at = self.thresholds if table.thresholds is None else table.thresholds
            return label_metrics.measure(dataclasses.replace(table, thresholds=at))
        options = {"positive_class": self.options["positive_class"], "specificity": self.options["specificity"]}
        return metrics.measure(table, **options, order=self._order())

    def _order(self) -> Sequence[str] | None:
        """Returns the order of the classes, if the model or the data set has one."""
        if classifiers.task_of(self.predictor) == ORDINAL:
            return self.predictor.class_names
        manifest = manifests.load(self.directory)
        is_known = manifest.task == ORDINAL and set(manifest.class_names) == set(self.predictor.class_names)
        return manifest.class_names if is_known else None


def _loaded(model: str | os.PathLike[str] | Predictor | Loaded, trust: bool) -> Predictor:
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix in _EXPORTED_FILES or any((path / name).exists() for name in _IN_EXPORTS):
            raise ValueError(f"{path}: an exported model is loaded first: evaluate(tfpipe.load({os.fspath(path)!r}), ...)")
        return classifiers.load_named(path, trust=trust) if folds.is_folder(path) else classifiers.load(path, trust=trust)
    given: Any = model
    predictor: Predictor = getattr(given, "predictor", given)
    if missing := [name for name in _NEEDED if not hasattr(predictor, name)]:
        kind = f"a {type(model).__name__}, which has no {' and no '.join(missing)}"
        raise ValueError(f"model must be a path, or a model as tfpipe.load returns it (got {kind})")
    return predictor


def clear(folder: Path) -> None:
    """Removes what killed processes left; needs the folder's lock."""
    for name in (predictions.FILE_NAME, predictions.RECEIPT_NAME, *_OTHER_FILES):
        clear_up(folder / name)
    clear_folder(folder / partial_tables.FOLDER)


def _check_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in (predictions.FILE_NAME, predictions.RECEIPT_NAME, *_OTHER_FILES):
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name}: a folder is in the place of a file to write")
