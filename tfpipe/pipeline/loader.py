"""`tfpipe.dataset()`: a split as a `tf.data.Dataset`, each record exactly once or an error that says why not.

    for images, labels in dataset("shards/", "test", batch_size=64, image_size=(224, 224)): ...
    for batch in dataset("shards/", "test", as_dict=True): batch["image"], batch["label"], batch["key"]

How a missing record is noticed, whatever went wrong with it: rows carry the position they were read from. Rows that
fail to be read, parsed or decoded are dropped, and what is left is zipped with the positions that were asked for. The
first difference is the culprit: only then is that one record read and decoded again, in Python, for an error in words.
The graph alone could not say them: a decoder that fails knows nothing about the file its bytes came from.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.pipeline import decoding
from tfpipe.pipeline.reading import RecordReader, for_graphs, is_exiting, read_records
from tfpipe.records import schema
from tfpipe.records.errors import DataError

_PADDING = -1  # the position of a row that only fills a batch
_MISSING = -2  # the position of the rows that follow when too few have come


def dataset(
    directory: str | os.PathLike[str],
    split: str,
    *,
    batch_size: int | None = 32,
    image_size: tuple[int, int] = (224, 224),
    resize: decoding.Resize = "stretch",
    as_dict: bool = False,
    shard: tuple[int, int] | None = None,
    equal_steps: bool = False,
    num_parallel_calls: int | None = None,
) -> tf.data.Dataset:
    """Reads a split once, in stored order: every record, exactly once, or an error.

    Equal arguments give equal elements, for any number of threads. `len()` of the result is its number of steps; the
    last batch may be smaller.

    Args:
        directory: of a data set that `build_tfrecords` wrote.
        split: its name.
        batch_size: records per element, or None for single records without a batch axis.
        image_size: (height, width).
        resize: "stretch", "crop" or "pad", see `resize_image`.
        as_dict: elements are dictionaries instead of tuples.
        shard: (index, count): only the part of reader `index` of `count`, 0-based. The parts are contiguous, disjoint,
            together the split, and differ in size by one record at most, whatever the number of files.
        equal_steps: fill up with blank rows: all batches are full and all readers have the same number of steps.
        num_parallel_calls: threads that decode, default (None or tf.data.AUTOTUNE) as many as tf.data finds useful. Changes
            nothing but speed.

    Returns:
        Elements (image, label), or (image, label, weight) with `equal_steps`: uint8 [B, height, width, 3], RGB, 0..255;
        int64 [B], -1 in an unlabelled split; float32 [B], 0 for blank rows and 1 for the others, Keras' sample_weight.
        With `as_dict`, {"image", "label", "key", "filename", "mask"}: key and filename string [B], mask bool [B], False
        for blank rows. Blank rows are zeros with key and filename ""; their label is -1 in a dictionary, and 0 in a
        tuple, where Keras' losses refuse a negative one whatever its weight. Keras' `weighted_metrics` are then those of
        the records; its `loss` is divided by the number of rows, blank ones included.

    Raises:
        ValueError: an argument is not what it should be.
        FileNotFoundError: there is no data set.
        DataError: on opening, a shard is missing, cut, longer or one too many, or the manifest, the catalogue or an index
            was changed or cannot be read.
        tf.errors.InvalidArgumentError: while iterating, a record is not what the catalogue says or cannot be decoded;
            the message names shard, offset and source file.

    TensorFlow does not survive a fork of the process: start readers in processes of their own before using it.
    """
    num_parallel_calls = None if num_parallel_calls == tf.data.AUTOTUNE else num_parallel_calls
    _check_arguments(batch_size, shard, num_parallel_calls)
    decoding.check_size(image_size)
    decoding.check_mode(resize)
    reader = RecordReader(directory, split)
    rows = _Rows(reader, image_size, resize)
    index, count = shard or (0, 1)
    start, stop = (reader.num_records * i // count for i in (index, index + 1))
    longest = -(-reader.num_records // count) if equal_steps else stop - start
    num_steps = -(-longest // (batch_size or 1))
    num_padding = num_steps * (batch_size or 1) - (stop - start) if equal_steps else 0
    parallel = num_parallel_calls or tf.data.AUTOTUNE

    positions = tf.data.Dataset.range(start, stop)
    data = read_records(reader, positions, num_parallel_calls=parallel)
    data = data.map(rows.decode, num_parallel_calls=parallel, deterministic=True)
    data = data.ignore_errors()  # until `check`
    data = data.concatenate(rows.blank(_PADDING).repeat(num_padding))
    data = data.concatenate(rows.blank(_MISSING).repeat())  # without end: too few rows must never end a batch early
    expected = positions.concatenate(tf.data.Dataset.from_tensors(np.int64(_PADDING)).repeat(num_padding))
    data = tf.data.Dataset.zip(expected, data)
    if batch_size is not None:
        data = data.batch(batch_size, drop_remainder=equal_steps)  # nothing is dropped then, and the shape is static
    data = data.map(rows.check)
    data = data.map(lambda row: row if as_dict else _as_tuple(row, weighted=equal_steps))
    data = data.apply(tf.data.experimental.assert_cardinality(num_steps))
    data = data.prefetch(tf.data.AUTOTUNE)
    if not tf.executing_eagerly():  # in a function or another dataset's: its graph outlives this call, and needs the reader
        setattr(tf.compat.v1.get_default_graph(), f"_tfpipe_rows_{id(rows)}", rows)
    return data if shard is None else data.with_options(_not_divided_again())


def _not_divided_again() -> tf.data.Options:
    # A distribution strategy with several workers would take every n-th record of this reader's part, and lose the others.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


class _Rows:
    """The steps between a record's bytes and a row; owns the reader for the functions that `Dataset.map` is given."""

    def __init__(self, reader: RecordReader, image_size: tuple[int, int], resize: decoding.Resize) -> None:
        self._reader, self._image_size, self._resize = reader, image_size, resize

    def decode(self, position: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        features = decoding.parse_example(serialized)
        image = decoding.decode_image(features[schema.ENCODED], features[schema.ORIENTATION])
        return {
            "position": position,
            "image": decoding.resize_image(image, self._image_size, self._resize),
            "label": features[schema.LABEL],
            "key": features[schema.KEY],
            "filename": features[schema.FILENAME],
            "mask": tf.constant(True),
        }

    def blank(self, position: int) -> tf.data.Dataset:
        row = {"position": np.int64(position), "label": np.int64(schema.UNLABELLED), "key": "", "filename": "", "mask": False}
        # The image is made when it is needed: a constant would stand in every graph.
        data = tf.data.Dataset.from_tensors(row)
        return data.map(lambda row: {**row, "image": tf.zeros([*self._image_size, 3], tf.uint8)})

    def check(self, expected: tf.Tensor, row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the row or batch without its positions, which must be the expected ones."""
        explain = for_graphs(self.explain)
        wrong = tf.reshape(expected != row["position"], [-1])
        intact = ~tf.reduce_any(wrong)

        def why() -> tf.Tensor:
            first = tf.boolean_mask(tf.reshape(expected, [-1]), wrong)[0]
            return tf.ensure_shape(tf.numpy_function(explain, [first], tf.string, stateful=False), [])

        # The text of Assert reaches the user whole, of an exception in a numpy_function with two tracebacks around it.
        reason = tf.cond(intact, lambda: tf.constant(""), why)
        with tf.control_dependencies([tf.debugging.Assert(intact, [reason])]):
            return {name: tf.identity(value) for name, value in row.items() if name != "position"}

    def explain(self, position: np.int64) -> bytes:
        """Returns why a record did not arrive, by trying again."""
        if is_exiting():
            return b"Python is exiting: nothing is read any more"
        if position < 0:
            return b"rows are missing: an error before them was passed over"
        first_failure = self._reader.failure(int(position))
        try:
            serialized = self._reader.read(int(position))
        except DataError as error:
            return str(error).encode()
        try:
            self.decode(tf.constant(position), tf.constant(serialized))
        except Exception as error:  # whatever it is, it is the answer (bytes in TensorFlow's message can be no UTF-8)
            return str(self._reader.error(int(position), f"cannot be decoded: {_plain(error)}")).encode()
        reason = first_failure or "lost on the way, or an error before it was passed over"
        return str(self._reader.error(int(position), f"{reason}; a second attempt read and decoded it")).encode()


def _plain(error: Exception) -> str:
    # "{{function_node __wrapped__DecodeJpeg_device_...}} jpeg::Uncompress failed. ... [Op:DecodeJpeg]"
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", str(error), flags=re.DOTALL)


def _as_tuple(row: dict[str, tf.Tensor], *, weighted: bool) -> tuple[tf.Tensor, ...]:
    if not weighted:
        return row["image"], row["label"]
    return row["image"], tf.where(row["mask"], row["label"], 0), tf.cast(row["mask"], tf.float32)


def _check_arguments(batch_size: Any, shard: Any, num_parallel_calls: Any) -> None:
    for name, value in (("batch_size", batch_size), ("num_parallel_calls", num_parallel_calls)):
        if value is not None and not (decoding.is_integer(value) and value > 0):
            raise ValueError(f"{name} must be a positive integer or None (got {value!r})")
    if shard is None:
        return
    valid = isinstance(shard, tuple | list) and len(shard) == 2 and all(map(decoding.is_integer, shard))
    if not valid or not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count (got {shard!r})")
