"""Records of a split by position, each checked byte for byte against the catalog.

    reader = RecordReader("shards/", "test")
    reader.read(17)                                        # one serialised Example, or DataError
    read_records(reader, batches, num_parallel_calls=2)    # of batches of positions; "" for a failure

What makes a smaller or another data set impossible to miss: the manifest holds the hash of the
split's frames and the size of every shard, all checked on opening; the frames hold the CRC of each
record, checked when it is read. A flipped bit, a swapped record and a swapped shard fail the same
comparison. Random access is by `os.pread`, or by ranges of a store's objects: stored order, the
part of one of several readers and a shuffled order are the same code.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_descriptor, open_regular, size_of
from tfpipe.common.object_cache import CachedObject
from tfpipe.common.text import exactly
from tfpipe.images import jpeg
from tfpipe.records import catalog, combinations, manifest, schema, tfrecord
from tfpipe.records.manifest import MULTILABEL, REGRESSION, Manifest, Split, Traits

_log = logging.getLogger("tfpipe")

_FRAME = np.dtype([("offset", "<i8"), ("length", "<u4"), ("crc32c", "<u4"), ("label", "<i4")])  # as `catalog.FRAME`
_MAX_OPEN_FILES = 32
_MAX_REMEMBERED = 1000
# One call reads several records, since each call into Python costs; not so many that large
# photographs fill the memory.
_READ_RECORDS = 64
_READ_BYTES = 4 << 20
_QUIET_SECONDS = 0.1
_EXIT_SECONDS = 10

_BLANK = schema.Record(jpeg.DARK, "JPEG", 1, 1, 1, 1, "", "", "", schema.UNLABELLED, "")
BLANK_RECORD = schema.encode(_BLANK)
_BLANKS = {
    MULTILABEL: schema.encode(dataclasses.replace(_BLANK, labels=(), unknown=())),
    REGRESSION: schema.encode(dataclasses.replace(_BLANK, targets=())),
}
_LABEL_FEATURES = {MULTILABEL: schema.COMBINATION, REGRESSION: schema.TARGET_ROW}


# A record's position, file, and there offset, length and CRC.
_Place = tuple[int, str, int, int, int]


@functools.cache  # once for each data set
def _log_unchecked(directory: Path) -> None:
    # The decoder writes to the process's own stderr, without a file's name. Capturing that would
    # lose the last messages of a process that dies.
    _log.info(
        '%s: only the headers of its images were checked; if the decoder says "Corrupt JPEG data", tfpipe verify'
        " --decode names the files",
        directory,
    )


class RecordReader:
    """The records of a split, by position in stored order: 0 is the first of the first shard.

    Of splits that are joined ("fold0+fold1"), the shards follow each other in the catalog's order.

    Safe to use from several threads. Files are opened when first read and closed with the reader.

    Attributes:
        manifest: the data set's.
        num_records: how many the split holds.
        labels: int32 [num_records], as the catalog has them.
        combinations: of several labels an image, int8 [K, C]: 1, 0 or -1 (unknown) for each class of
            each label; else None.
        targets: of numbers, float32 [K, D]: those of each label, ascending; else None.
        traits: of the images.
        read_size: how many to read in one call of `read_batch`.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str) -> None:
        """Opens a split: reads its frames, and compares the shards' names and sizes.

        Raises:
            FileNotFoundError: there is no data set.
            ValueError: it has no such split.
            DataError: a shard is missing, truncated, longer or one too many; or the frames (of format
                version 1: catalog and indexes) are not those that the manifest lists.
        """
        directory = stores.absolute(directory)  # the current folder may be another when records are read
        account = manifest.load(directory)
        shards = account.split(split).shards
        if account.options.get("check") != "decode":
            _log_unchecked(directory)
        parts = account.parts(split)
        manifest.check_files(directory, account, splits=parts)
        self.combinations, self.targets = _label_rows(directory, account)
        frames = [_frames(directory, account, part, self.label_rows) for part in parts]
        self.traits = catalog.merged(traits for traits, _ in frames)
        self._frames = frames[0][1] if len(frames) == 1 else np.concatenate([each for _, each in frames])
        self._starts = np.array([0, *itertools.accumulate(shard.num_records for shard in shards)])
        self._paths = [os.fspath(directory / shard.file) for shard in shards]
        self._directory, self._split = directory, split
        self.manifest, self.labels = account, self._frames["label"]
        self.is_remote = stores.is_remote(directory)
        if self.is_remote:
            objects = map(CachedObject, self._paths, (one.num_bytes for one in shards), (one.sha256 for one in shards))
            self._open: Callable[[str], _OpenFile | CachedObject] = dict(zip(self._paths, objects, strict=True)).__getitem__
            self._pool = ThreadPoolExecutor(stores.PARALLEL_REQUESTS, "tfpipe-requests")
        else:
            self._open = functools.lru_cache(maxsize=_MAX_OPEN_FILES)(_OpenFile)
        self._failures: dict[int, str] = {}
        self.num_records = len(self._frames)
        mean_bytes = int(self._frames["length"].mean()) if self.num_records else 1
        self.read_size = max(1, min(_READ_RECORDS, _READ_BYTES // mean_bytes))

    @property
    def label_rows(self) -> np.ndarray[Any, Any] | None:
        """What the labels stand for: `combinations`, `targets`, or None where each is a class."""
        return self.combinations if self.targets is None else self.targets

    @functools.cached_property
    def label_texts(self) -> list[str]:
        """Name of each label: of a class, of a combination of them, or of a row of targets."""
        return combinations.texts(self._directory, self.manifest)

    @property
    def label_feature(self) -> str:
        """Name of the feature that is a record's label."""
        return _LABEL_FEATURES.get(self.manifest.task, schema.LABEL)

    def read(self, position: int) -> bytes:
        """Returns the data of one record.

        Raises:
            DataError: it differs from the catalog; names shard, offset, record and source file.
        """
        try:
            return self._read(self._places(np.array([position]))[0])
        except DataError as error:
            raise self.error(position, error.message) from None

    def check_label(self, position: int, data: bytes) -> None:
        """Raises `DataError` if a record's label is not the one that the catalog lists."""
        try:
            label = schema.decode(data).label
        except DataError:  # left to the decoder
            return
        if label != self.labels[position]:
            raise self.error(position, f"its label is {label}, the catalog has {self.labels[position]}")

    def read_batch(self, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns the data of several records, an object array of bytes: b"" where a check failed.

        An empty string is not an Example, so no decoder takes it for one; `failure` has the reason.
        A negative position gives a record with one dark pixel, no label and no key.
        """
        if _calls.exiting:
            return np.empty(0, object)
        contents: dict[int, bytes] = {}
        try:
            for data in (self._pool.map if self.is_remote else map)(self._read_run, self._runs(positions)):
                contents |= data
        except RuntimeError:  # no thread starts any more
            if not stores.is_exiting():
                raise
            return np.empty(0, object)
        batch = np.empty(len(positions), object)
        blank = _BLANKS.get(self.manifest.task, BLANK_RECORD)
        batch[:] = [contents.get(position, blank) for position in positions.tolist()]
        return batch

    def _runs(self, positions: np.ndarray[Any, Any]) -> Iterator[list[_Place]]:
        """Yields the places of records in runs of neighbours in one file, each read in one go."""
        ordered = np.unique(positions[positions >= 0])
        places = self._places(ordered)
        breaks = (np.diff(ordered) != 1) | np.isin(ordered[1:], self._starts)
        # Runs are about as long as one read, and a long one does not become many single reads.
        breaks |= np.diff(np.cumsum(self._frames["length"][ordered], dtype=np.int64) // _READ_BYTES) > 0
        ends = [*(np.flatnonzero(breaks) + 1).tolist(), len(places)]
        return (places[start:end] for start, end in itertools.pairwise([0, *ends]) if start < end)

    def _places(self, positions: np.ndarray[Any, Any]) -> list[_Place]:
        # For all at once: with Python's lock held, each call of numpy for one record takes longer
        # than to copy the record.
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        frames = zip(positions.tolist(), shards.tolist(), self._frames[positions].tolist(), strict=True)
        return [(position, self._paths[shard], *frame[:3]) for position, shard, frame in frames]

    def _read_run(self, run: list[_Place]) -> dict[int, bytes]:
        _, path, first, _, _ = run[0]
        content = b""
        if len(run) > 1:
            try:
                content = self._open(path).read(sum(place[3] for place in run), first)
            except (OSError, DataError) as error:  # record by record below, for the name of the one that fails
                if self.is_remote and isinstance(error, OSError):  # it was tried for minutes, and none would come
                    return {place[0]: self._failed(place[0], f"cannot be read: {error.strerror}") for place in run}
        data = {}
        for place in run:
            position, _, offset, length, _ = place
            try:
                data[position] = self._read(place, content[offset - first : offset - first + length])
            except DataError as error:
                data[position] = self._failed(position, error.message)
        return data

    def _failed(self, position: int, message: str) -> bytes:
        if len(self._failures) < _MAX_REMEMBERED:
            self._failures[position] = message
        return b""

    def failure(self, position: int) -> str | None:
        """Returns once why `read_batch` could not read a record: a second attempt may succeed."""
        return self._failures.pop(position, None)

    def error(self, position: int, message: str) -> DataError:
        """Returns a `DataError` that names a record's shard, offset, number and source file."""
        shard = self._shard(position)
        record = position - int(self._starts[shard])
        where = f"record {record}{self._source(position)}"
        return DataError(f"{where}: {message}", path=self._paths[shard], offset=int(self._frames[position]["offset"]))

    def _read(self, place: _Place, content: bytes = b"") -> bytes:
        """Returns the data of one record, checked: of its frame, if that has been read."""
        try:
            return _checked(place, content or self._frame(place))
        except DataError:
            if not self.is_remote:
                raise
        _, path, offset, length, _ = place
        self._open(path).forget(length, offset)  # spoilt on the way or in the cache: once more
        return _checked(place, self._frame(place))

    def _frame(self, place: _Place) -> bytes:
        _, path, offset, length, _ = place
        try:
            return self._open(path).read(length, offset)
        except OSError as error:
            advice = "" if self.is_remote else "; put the shard back, or build the data set anew"
            raise DataError(f"cannot be read: {error.strerror}{advice}", path=path, offset=offset) from None

    def _shard(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _source(self, position: int) -> str:
        # Names are looked up when one is needed, and not held in memory.
        try:
            rows = catalog.read_catalog(self._directory, split=self._split)
            return "".join(f" (source {row.filename})" for row in itertools.islice(rows, position, position + 1))
        except (DataError, OSError):
            return ""


def _checked(place: _Place, content: bytes) -> bytes:
    """Returns the data in a record's frame, or raises DataError."""
    _, path, offset, length, crc32c = place
    if len(content) < length:
        message = f"the file ends {exactly(len(content), 'byte')} into the record's {length} (truncated file)"
        raise DataError(message, path=path, offset=offset)
    data = content[tfrecord.HEADER_BYTES : -tfrecord.FOOTER_BYTES]
    header, _, footer = tfrecord.frame(data)
    if not content.startswith(header):
        message = f"the header does not say {exactly(len(data), 'byte')}, as the index does (damaged or swapped)"
        raise DataError(message, path=path, offset=offset)
    if not content.endswith(footer):
        raise DataError("the data does not match its CRC (damaged)", path=path, offset=offset)
    if int.from_bytes(footer, "little") != crc32c:
        message = "an intact record, but not the one that the catalog lists here (swapped)"
        raise DataError(message, path=path, offset=offset)
    return data


def _label_rows(directory: Path, account: Manifest) -> tuple[np.ndarray[Any, Any] | None, np.ndarray[Any, Any] | None]:
    """Returns what the labels stand for: combinations, or rows of targets."""
    values, width = combinations.read(directory, account), len(account.class_names)
    if account.combinations is not None:
        return np.frombuffer(values, np.int8).reshape(account.combinations.count, width), None
    if account.targets is None:
        return None, None
    targets = np.frombuffer(values, "<f4").reshape(account.targets.count, width)
    if not np.isfinite(targets).all():
        raise DataError("a number that is not finite", path=directory / manifest.targets_file(account.name))
    return None, targets


def _frames(
    directory: Path, account: Manifest, name: str, label_rows: np.ndarray[Any, Any] | None
) -> tuple[Traits, np.ndarray[Any, Any]]:
    """Returns what all images of a split have in common, and the frames of its records."""
    split = account.split(name)
    if split.frames is None:
        manifest.check_hashes(directory, account, splits=[name])
        traits, rows = Traits(), catalog.read_split(directory, account, name)
        return traits, np.fromiter(_included(traits, rows), dtype=_FRAME)
    for file, sha256 in manifest.frames_hash(account, name).items():
        if problem := manifest.hash_problem(directory / file, sha256, fresh=False):
            raise problem
    path = directory / manifest.frames_file(account.name, name)
    with open_regular(path) as opened:
        frames = np.frombuffer(opened.read(), _FRAME) if size_of(opened) == split.num_records * _FRAME.itemsize else None
    if frames is None or not _are_possible(frames, split, label_rows):
        raise DataError("not the frames of as many records as the manifest lists", path=path)
    return split.frames.traits, frames


def _included(traits: Traits, rows: Iterator[tuple[catalog.CatalogRow, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    for row, offset, length in rows:
        catalog.include(traits, row)
        yield offset, length, row.crc32c, row.label


def _are_possible(frames: np.ndarray[Any, Any], split: Split, label_rows: np.ndarray[Any, Any] | None) -> bool:
    """True where the frames fill each shard, and each class has as many as the manifest lists."""
    first = 0
    for shard in split.shards:
        of_shard = frames[first : first + shard.num_records]
        ends = np.cumsum(np.append(0, of_shard["length"]), dtype=np.int64)
        if ends[-1] != shard.num_bytes or not np.array_equal(of_shard["offset"], ends[:-1]):
            return False
        first += shard.num_records
    labels, counts = frames["label"], list(split.class_counts.values())
    num_labels = len(counts if label_rows is None else label_rows)
    if (frames["length"] < tfrecord.FRAME_BYTES).any():
        return False
    if not split.labelled:
        return bool((labels == schema.UNLABELLED).all())
    if not ((labels >= 0) & (labels < num_labels)).all():
        return False
    if split.statistics is not None:
        return True
    found = np.bincount(labels, minlength=num_labels)
    if label_rows is None:
        return bool(found.tolist() == counts)
    present, unknown = ((found @ (label_rows == state)).tolist() for state in (1, -1))
    return bool(present == counts and unknown == list((split.unknown_counts or {}).values()))


class _OpenFile:
    """A file that is closed when neither the cache nor a reading thread refers to it.

    The cache may forget a file at any moment, and of two threads that open the same one it keeps
    only the first's. So the number of the descriptor never leaves the object: once closed, it is
    that of the next file that is opened, anywhere.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = open_descriptor(path)
        weakref.finalize(self, os.close, self._descriptor).atexit = False  # threads may still read then

    def forget(self, length: int, offset: int) -> None:
        """Does nothing: no copy of the file is kept."""

    def read(self, length: int, offset: int) -> bytes:
        content = os.pread(self._descriptor, length, offset)
        while len(content) < length:  # a file system may return less than it has; only nothing at all is the end
            more = os.pread(self._descriptor, length - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content


def read_records(reader: RecordReader, batches: tf.data.Dataset, *, num_parallel_calls: int) -> tf.data.Dataset:
    """Adds "serialized", string [N], to elements with "position", int64 [N].

    A record that fails its check comes as "", which no decoder takes; `RecordReader.failure` has
    the reason.
    """
    read_batch = for_graphs(reader.read_batch)

    def read(batch: dict[str, tf.Tensor], _owner: RecordReader = reader) -> dict[str, tf.Tensor]:
        positions = batch["position"]
        serialized = tf.numpy_function(read_batch, [positions], tf.string, stateful=False)
        return {**batch, "serialized": tf.ensure_shape(serialized, positions.shape)}

    data = batches.map(read, num_parallel_calls=num_parallel_calls, deterministic=True)
    return data.take_while(lambda batch: tf.size(batch["serialized"]) > 0)  # nothing comes when Python is about to exit


class _Calls:
    """The calls of graphs into Python, which must have ended when the interpreter does.

    A thread of TensorFlow that waits for the interpreter's lock when Python exits is ended there
    and then, and the iterator that waits for its result hangs the process, its work done or its
    error shown. So at exit no record is read any more, which stalls every pipeline, and Python
    waits until none has called for a while.
    """

    def __init__(self) -> None:
        self.exiting = False
        self._lock = threading.Lock()
        self._running = 0
        self._last = -math.inf

    def __enter__(self) -> None:
        with self._lock:
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            self._last = time.monotonic()

    def finish(self) -> None:
        self.exiting = True
        end = time.monotonic() + _EXIT_SECONDS
        while time.monotonic() < end and (self._running or time.monotonic() < self._last + _QUIET_SECONDS):
            time.sleep(_QUIET_SECONDS / 10)


_calls = _Calls()
atexit.register(_calls.finish)


def is_exiting() -> bool:
    """True when Python is about to end, so that no record is read any more."""
    return _calls.exiting


def for_graphs(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function for `tf.numpy_function` that does not keep a method's object alive.

    TensorFlow keeps every function given to `tf.numpy_function` until the process ends: a method
    would keep its reader, a million offsets and the open files, with it. The function given to
    `Dataset.map` must own the object instead.
    """
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        with _calls:
            bound = reference()
            if bound is None:
                raise ReferenceError("the dataset that reads these records has been deleted")
            return bound(*arguments)

    return call


class Compiled:
    """A stage for `Dataset.map`, compiled once: otherwise each iterator would optimise it anew.

    That takes a tenth of a second, in which a processor of many cores makes a thousand images. It
    computes on the CPU.
    """

    def __init__(self, stage: Callable[..., Any], *specs: Any) -> None:
        """Takes a function of tensors of these specifications, as of `Dataset.element_spec`."""
        with tf.init_scope(), tf.device("/CPU:0"):  # of no graph, so that every graph can use it
            self._function = tf.function(stage, autograph=False).get_concrete_function(*specs)
        self._stage, self._specs = stage, specs  # owned, with all that it needs: see `for_graphs`

    def __call__(self, *given: Any) -> Any:
        """Returns what the function does."""
        made = tf.nest.flatten(self._function.structured_outputs)
        found = tf.py_function(for_graphs(self._call), tf.nest.flatten(given), [tensor.dtype for tensor in made])
        found = [tf.ensure_shape(one, tensor.shape) for one, tensor in zip(found, made, strict=True)]
        return tf.nest.pack_sequence_as(self._function.structured_outputs, found)

    def _call(self, *given: tf.Tensor) -> list[tf.Tensor]:
        with tf.device("/CPU:0"):
            made: list[tf.Tensor] = tf.nest.flatten(self._function(*tf.nest.pack_sequence_as(self._specs, given)))
        return made
