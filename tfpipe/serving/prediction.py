"""`tfpipe.predict()`: a CSV with one row per picture, whatever becomes of the picture.

    predict("runs/a", "test1/", "submission.csv")                              # id,label: 1,dog
    predict("runs/a", "test1/", "submission.csv", columns="probability")       # id,label: 1,0.998712003
    predict("runs/a", "shards/", "table.csv", split="test1", columns="table")  # the columns of evaluate's predictions.csv

Pixels are those that evaluation sees: the same decoder, orientation and resize. Which rows there are, and in which order,
is known before the model runs, so rows are written as they come and memory does not grow with them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfpipe.pipeline import decoding
from tfpipe.pipeline.reading import RecordReader, read_records
from tfpipe.records import images, manifest, schema
from tfpipe.records.errors import DataError, RejectedImage
from tfpipe.records.files import written_atomically
from tfpipe.records.progress import ProgressBar
from tfpipe.serving import artefacts, sources
from tfpipe.serving.sources import Picture
from tfpipe.serving.tables import COLUMNS, Columns, Table, write_rejected
from tfpipe.transfer.classifiers import Predictor

_log = logging.getLogger("tfpipe")
_SHOWN = 10


@dataclass(frozen=True)
class Summary:
    """What was written.

    Attributes:
        num_rows: of the output, one per picture.
        counts: pictures by predicted class, in the model's order.
        rejected: reason by picture, for those whose row is empty.
        rejected_path: where those are listed, None where there are none.
        passed_over: names in folders and globs that were not taken for pictures.
    """

    num_rows: int
    counts: Mapping[str, int]
    rejected: Mapping[str, str]
    rejected_path: Path | None
    passed_over: Sequence[str]


def predict(
    model: Predictor | str | os.PathLike[str],
    inputs: sources.Inputs,
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: Columns = "label",
    positive_class: str | None = None,
    id_column: str = "id",
    value_column: str = "label",
    on_error: Literal["fail", "report"] = "fail",
    batch_size: int = 64,
    max_pixels: int = images.DEFAULT_MAX_PIXELS,
    progress: bool = True,
) -> Summary:
    """Writes one row per picture, ordered by id (1, 2, 10), and replaces the output when all rows are there.

    Args:
        model: a run's folder, a .keras file of `tfpipe.train`, a file or folder of an export, or a loaded model.
        inputs: files, folders (with all folders below) and globs; or one data set.
        output: the CSV file.
        split: of the data set; needed where it has several.
        columns: "label": id and predicted class. "index": id and its number, 0-based. "probability": id and that of
            `positive_class`, or of every class where there are more than two and none is named. "table": key, filename, label
            (empty), predicted and every probability, as evaluation writes them. Probabilities have 9 significant digits.
        positive_class: whose probability to write; of two classes the second if not given.
        id_column: header of the ids.
        value_column: header of the one value beside them.
        on_error: "fail": bad pictures are named and nothing is written. "report": they have a row without a value, and are
            listed in OUTPUT.rejected.jsonl, without OUTPUT's ".csv".
        batch_size: pictures that the model sees at once. Probabilities depend on it by about 1e-6.
        max_pixels: height times width above which a picture is bad.
        progress: show a bar.

    Raises:
        ValueError: an argument is not what it should be, two pictures have the same id, a picture has two, or there are none.
        FileNotFoundError: there is no such model or input.
        DataError: a picture is bad; all that can be seen to be so without decoding them are named at once.
        OSError: the output cannot be written.
    """
    path = _check_output(Path(output))
    _check_options(columns, on_error, batch_size)
    listing = sources.list_pictures(inputs, split)
    _check_replaced(path, listing.pictures)
    _say_passed_over(listing.passed_over)
    predictor = artefacts.load(model) if isinstance(model, str | os.PathLike) else model
    table = Table(columns, predictor.class_names, positive_class, id_column, value_column)
    errors: dict[int, DataError] = {}
    counts = dict.fromkeys(predictor.class_names, 0)
    with written_atomically(path) as file:  # opened first: a folder that cannot be written to fails here
        file.write(table.header())
        audited = _audit(listing.pictures, errors, max_pixels, progress)
        if errors and on_error == "fail":
            raise _all_bad(errors)
        pictures = _Pictures(listing, audited, errors, predictor, batch_size)
        with ProgressBar("predict", len(audited), enabled=progress) as bar, closing(pictures.predict()) as predictions:
            for index, probabilities in predictions:
                if probabilities is not None:
                    counts[predictor.class_names[int(probabilities.argmax())]] += 1
                elif on_error == "fail":
                    raise errors[index]
                file.write(table.row(listing.pictures[index], probabilities))
                bar.add(1, audited[index].num_bytes)
        rejected_path = write_rejected(path, listing.pictures, errors)
    rejected = {listing.pictures[index].key: errors[index].message for index in sorted(errors)}
    return Summary(len(listing.pictures), counts, rejected, rejected_path, listing.passed_over)


def _check_output(path: Path) -> Path:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: output must be a file (this is a folder or a device)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write to")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", os.fspath(path))
    if (path.parent / manifest.FILE_NAME).is_file():
        raise ValueError(f"{path}: output must be outside of the data set's folder {path.parent}")
    return path


def _check_replaced(path: Path, pictures: Sequence[Picture]) -> None:
    if not path.exists():
        return
    for picture in pictures:
        if picture.path and os.path.exists(picture.path) and os.path.samefile(picture.path, path):
            raise ValueError(f"{path}: output must be another file than the inputs, of which this is one")


def _check_options(columns: str, on_error: str, batch_size: int) -> None:
    if columns not in COLUMNS:
        raise ValueError(f"columns must be one of {', '.join(COLUMNS)} (got {columns!r})")
    if on_error not in ("fail", "report"):
        raise ValueError(f"on_error must be fail or report (got {on_error!r})")
    if not decoding.is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer (got {batch_size!r})")


def _say_passed_over(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        _log.info("passed over, by their names no pictures or walked already: %s%s", ", ".join(names[:_SHOWN]), more)


def _audit(pictures: Sequence[Picture], errors: dict[int, DataError], max_pixels: int, progress: bool) -> list[sources.Audited]:
    """Returns what the headers say, and adds those of bad pictures to the errors."""
    audited = []
    with ProgressBar("look at the headers", len(pictures), enabled=progress) as bar:
        for index, picture in enumerate(pictures):
            try:
                audited.append(sources.audit(picture, max_pixels))
            except DataError as error:
                errors[index] = error
                audited.append(sources.Audited())
            bar.add(1, audited[-1].num_bytes)
    return audited


def _all_bad(errors: Mapping[int, DataError]) -> DataError:
    count = "1 input cannot" if len(errors) == 1 else f"{len(errors):,} inputs cannot"
    advice = "mend or remove them, choose with a glob ('test1/**/*.jpg'), or give them rows without a value (on_error=report)"
    return DataError(f"{count} be predicted; {advice}:" + "".join(f"\n  {error}" for error in errors.values()))


class _Pictures:
    """The pictures of a listing on their way through the model.

    Attributes:
        errors: why a picture has no probabilities, by its place in the listing; grows with what the decoder refuses.
    """

    def __init__(
        self,
        listing: sources.Listing,
        audited: Sequence[sources.Audited],
        errors: dict[int, DataError],
        predictor: Predictor,
        batch_size: int,
    ) -> None:
        self.pictures, self.audited, self.errors = listing.pictures, audited, errors
        self.predictor, self.batch_size = predictor, batch_size
        self.reader = RecordReader(*listing.data_set) if listing.data_set else None

    def predict(self) -> Generator[tuple[int, np.ndarray[Any, Any] | None], None, None]:
        """Yields every picture's place in the listing, in order, with its probabilities or, where there is an error, None."""
        following = 0
        for batch in self._batches():
            indices, probabilities = batch["index"].numpy().tolist(), self.predictor.predict(batch["image"])
            for index, values in zip(indices, probabilities, strict=True):
                yield from self._lost(following, index)
                if not np.isfinite(values).all():
                    raise DataError(f"the model's probabilities are not numbers: {values.tolist()}", path=self._name(index))
                yield index, values
                following = index + 1
        yield from self._lost(following, len(self.pictures))

    def _lost(self, start: int, stop: int) -> Iterator[tuple[int, None]]:
        for index in range(start, stop):
            if index not in self.errors:
                self.errors[index] = self._explain(index)
            yield index, None

    def _batches(self) -> tf.data.Dataset:
        """Returns batches of "index" and "image". What cannot be decoded is missing: `predict` counts, and asks why."""
        chosen = [index for index in range(len(self.pictures)) if index not in self.errors]
        data = self._encoded_records(self.reader, chosen) if self.reader else self._encoded_files(chosen)
        data = data.map(self._decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        data = data.ignore_errors()
        return data.batch(self.batch_size).prefetch(tf.data.AUTOTUNE)

    def _encoded_files(self, chosen: Sequence[int]) -> tf.data.Dataset:
        columns = {
            "index": tf.constant(chosen, tf.int64),
            "path": tf.constant([os.fsencode(self.pictures[index].path) for index in chosen], tf.string),
            "orientation": tf.constant([self.audited[index].orientation for index in chosen], tf.int64),
        }
        data = tf.data.Dataset.from_tensor_slices(columns)
        return data.map(_read_file, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()

    def _encoded_records(self, reader: RecordReader, chosen: Sequence[int]) -> tf.data.Dataset:
        positions = [self.pictures[index].position for index in chosen]
        columns = {"index": tf.constant(chosen, tf.int64), "position": tf.constant(positions, tf.int64)}
        data = tf.data.Dataset.from_tensor_slices(columns).batch(reader.read_size)
        data = read_records(reader, data, num_parallel_calls=tf.data.AUTOTUNE)
        return data.map(_parse_records).ignore_errors().unbatch()

    def _decode(self, row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        image = decoding.decode_image(row["encoded"], row["orientation"])
        return {"index": row["index"], "image": decoding.resize_image(image, self.predictor.image_size, self.predictor.resize)}

    def _name(self, index: int) -> str:
        return self.pictures[index].path or self.pictures[index].key

    def _explain(self, index: int) -> DataError:
        """Returns why a picture did not arrive, by trying again: the graph could not say it."""
        picture = self.pictures[index]
        try:
            if self.reader is not None:
                row = decoding.parse_example(self.reader.read(picture.position))
                encoded, orientation = row[schema.ENCODED], row[schema.ORIENTATION]
            else:
                encoded, orientation = tf.io.read_file(os.fsencode(picture.path)), self.audited[index].orientation
            self._decode({"index": tf.constant(index), "encoded": encoded, "orientation": orientation})
        except DataError as error:
            return error
        except tf.errors.OpError as error:
            return RejectedImage("undecodable", f"cannot be decoded: {decoding.plain_reason(error)}", path=self._name(index))
        return DataError("was lost on the way; a second attempt read and decoded it", path=self._name(index))


def _read_file(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"index": row["index"], "encoded": tf.io.read_file(row["path"]), "orientation": row["orientation"]}


def _parse_records(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    features = decoding.parse_batch(batch["serialized"])
    return {"index": batch["index"], "encoded": features[schema.ENCODED], "orientation": features[schema.ORIENTATION]}
