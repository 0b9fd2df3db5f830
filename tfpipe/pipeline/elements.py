"""From a row's number to the row: record, features, pixels; and why a row was lost.

Each method is a stage of `tfpipe.pipeline.loader.Loader`, for `Dataset.map`. From a row's number
follow its epoch, its record and its augmentation, so that any thread can make any row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.images import decoding
from tfpipe.images.placement import on_cpu
from tfpipe.pipeline.augmentation import finish
from tfpipe.pipeline.imaging import Imaging, Tensors
from tfpipe.pipeline.mixing import mix
from tfpipe.pipeline.ordering import BLANK, Order, Schedule
from tfpipe.pipeline.reading import RecordReader, for_graphs, is_exiting

_NONE = -2  # the number of rows after the last, and of those that only fill up a piece

_LOST = "lost on the way, or an error before it was passed over"
_AGAIN = "a second attempt read and decoded it"


@dataclass(frozen=True)
class Rows:
    """How a row is made.

    Attributes:
        new_labels: int64 [C], the label that replaces each of the data set's; None keeps them.
        targets: of several labels an image or numbers, float32 [K + 1, C], what is given for each
            label, and last for -1; else None.
        read_size: records that may be read together.
    """

    reader: RecordReader
    order: Order
    schedule: Schedule
    imaging: Imaging
    new_labels: np.ndarray[Any, Any] | None
    targets: tf.Tensor | None
    num_classes: int
    read_size: int

    @property
    def num_pieces(self) -> int:
        """Pieces that a step is decoded in, one at a time, to limit memory."""
        return -(-self.schedule.rows_per_step // self.reader.read_size)

    @property
    def piece_size(self) -> int:
        """Rows of a piece; the last piece of a step may be filled up."""
        return -(-self.schedule.rows_per_step // self.num_pieces)

    @property
    def is_read_apart(self) -> bool:
        """Whether more is read in one call than decoded: for small steps, or with `read_block`."""
        return self.read_size > max(self.reader.read_size, 2 * self.piece_size - 1)

    def epoch(self, start: Any) -> tf.data.Dataset:
        """Returns the input of `prepare`, from a row that begins a step to the end of its epoch.

        As many steps without rows follow: otherwise a lost row could shorten or drop the last
        batch, unnoticed. Only those needed, or prepared ahead, are made.
        """
        per_epoch = self.schedule.rows_per_epoch
        return self.numbered(start, start - start % per_epoch + per_epoch, times=2)

    def numbered(self, start: Any, stop: Any, times: int = 1) -> tf.data.Dataset:
        """Returns the input of `prepare` for the rows of whole steps, [start, stop)."""
        first, last = (row // self.schedule.rows_per_step for row in (start, stop))
        end = first + times * (last - first)
        slots, size = self.num_pieces * self.piece_size, self.read_size if self.is_read_apart else self.piece_size
        bounds = tf.data.Dataset.from_tensors(tf.cast(tf.stack([start, stop]), tf.int64)).repeat()
        return tf.data.Dataset.zip(bounds, tf.data.Dataset.range(first * slots, end * slots).batch(size))

    def prepare(self, bounds: tf.Tensor, slots: tf.Tensor) -> Tensors:
        """Reads, and returns the result of `parse`; empty when Python exits.

        Called from Python, as `Compiled` is, for the same reason.

        Args:
            bounds: int64 [2], the iterator's first row and the end of its rows.
            slots: int64 [N], places in the pieces of all steps.
        """
        prepare = for_graphs(self._prepare)
        parsed = self.imaging.parse_compiled.structured_outputs
        made = tf.py_function(prepare, [bounds, slots], [value.dtype for value in parsed.values()])
        return {name: tf.ensure_shape(one, parsed[name].shape) for name, one in zip(parsed, made, strict=True)}

    @on_cpu
    def _prepare(self, bounds: tf.Tensor, slots: tf.Tensor) -> list[tf.Tensor]:
        (start, stop), per_step = bounds.numpy(), self.schedule.rows_per_step
        steps, places = np.divmod(slots.numpy(), self.num_pieces * self.piece_size)
        rows = steps * per_step + places
        rows = np.where((places < per_step) & (rows < stop), rows, _NONE)
        located = self._locate_compiled({"start": tf.constant(np.full_like(rows, start)), "row": tf.constant(rows)})
        positions = located["position"].numpy()
        data = self.reader.read_batch(positions)
        batch = {name: value[: len(data)] for name, value in {**located, **self._labels(positions)}.items()}
        return list(self.imaging.parse_compiled({**batch, "serialized": tf.constant(data, tf.string)}).values())

    def _labels(self, positions: np.ndarray[Any, Any]) -> Tensors:
        """Returns each position's listed label and the one to give, int64 [N]."""
        listed = self.reader.labels[np.maximum(positions, 0)].astype(np.int64)
        label = listed if self.new_labels is None else self.new_labels[np.maximum(listed, 0)]
        return {"listed": tf.constant(listed), "label": tf.constant(label, tf.int64)}

    @functools.cached_property
    def _locate_compiled(self) -> Any:
        numbers = {name: tf.TensorSpec([None], tf.int64) for name in ("start", "row")}
        with tf.init_scope():  # of no graph, so that every graph can use it
            return tf.function(self.locate, autograph=False).get_concrete_function(numbers)

    @on_cpu
    def locate(self, batch: Tensors) -> Tensors:
        """Returns "start", "row", "position" and "epoch", int64 [N] each, for "start" and "row"."""
        epochs, indices = self.schedule.indices(tf.maximum(batch["row"], 0))
        positions, passes = self.order.positions(epochs, tf.maximum(indices, 0))
        blank = (indices < 0) | (batch["row"] < 0)
        return {**batch, "position": tf.where(blank, np.int64(BLANK), positions), "epoch": passes}

    def decode(self, batch: Tensors) -> Tensors:
        """Returns a piece with "image", uint8 [N, height, width, 3], instead of "encoded".

        Colours and flips are those of the file: `complete` changes them, for a whole batch.
        """
        image = self.imaging.decode(batch["encoded"], batch["numbers"])
        return {"image": image, **{name: value for name, value in batch.items() if name != "encoded"}}

    def is_before_end(self, index: tf.Tensor, batch: Tensors) -> tf.Tensor:
        """Returns whether a batch, after `index` others, is a step of the epoch: bool []."""
        start = tf.reshape(self.imaging.unpack(batch["numbers"])["start"], [-1])[0]
        return start % self.schedule.rows_per_epoch + index * self.schedule.rows_per_step < self.schedule.rows_per_epoch

    def check(self, index: tf.Tensor, batch: Tensors) -> tuple[Tensors, tf.Tensor]:
        """Returns the rows of a step, and why they are not the expected ones, string [], or "".

        Args:
            index: int64 [], number of steps before it.
            batch: pieces of `decode`, batched if a step has several; some may be lost.
        """
        if self.num_pieces > 1:
            batch = {name: tf.reshape(value, [-1, *value.shape[2:]]) for name, value in batch.items()}
        batch = {name: value[: self.schedule.rows_per_step] for name, value in batch.items()}
        columns = self.imaging.unpack(batch["numbers"])
        start, offset = columns["start"][0], index * self.schedule.rows_per_step
        expected = start + offset + tf.range(self.schedule.rows_per_step, dtype=tf.int64)
        wrong = tf.not_equal(columns["row"], expected)
        intact = ~tf.reduce_any(wrong)
        explain = for_graphs(self.explain)

        def why() -> tf.Tensor:
            first = offset + tf.argmax(wrong)
            return tf.ensure_shape(tf.numpy_function(explain, [start, first], tf.string, stateful=False), [])

        return batch, tf.cond(intact, lambda: tf.constant(""), why)

    def complete(self, batch: Tensors) -> Tensors:
        """Returns a batch of `decode` with colours, flips and mixing, blank rows blank."""
        columns, image = self.imaging.unpack(batch["numbers"]), batch["image"]
        row = {"label": columns["label"], "mask": columns["mask"]}
        row |= {name: batch[name] for name in ("key", "filename") if self.imaging.names}
        if self.imaging.augmentation is not None:
            image, row["epoch"] = finish(image, columns), columns["epoch"]
        if self.schedule.has_blanks:
            # A blank row is a record with one dark pixel, which may have been coloured.
            colourful, shown = image, row["mask"][:, tf.newaxis, tf.newaxis, tf.newaxis]
            image = tf.cond(tf.reduce_all(shown), lambda: colourful, lambda: tf.where(shown, colourful, tf.zeros([], tf.uint8)))
        if self.targets is not None:
            last = tf.shape(self.targets, tf.int64)[0] - 1
            row["label"] = tf.gather(self.targets, tf.where(row["label"] < 0, last, row["label"]))
        row = {"image": image, **row}
        mixes = self.imaging.augmentation is not None and self.imaging.augmentation.mixes
        return self._mixed(columns["row"], row, self.imaging.augmentation) if mixes else row

    @on_cpu
    def make(self, position: int, epoch: int) -> np.ndarray[Any, Any]:
        """Returns the image of one record in one epoch, before mixing: uint8 [height, width, 3].

        Raises:
            DataError: the record is damaged.
        """
        serialized = self.reader.read(position)
        self.reader.check_label(position, serialized)
        numbers = {"start": 0, "row": 0, "position": position, "epoch": epoch}
        batch = {name: tf.constant([number], tf.int64) for name, number in numbers.items()}
        try:
            batch |= {**self._labels(np.array([position])), "serialized": tf.constant([serialized])}
            parsed = self.imaging.parse(batch)
            image = self.imaging.decode_one(parsed["encoded"][0], parsed["numbers"][0])[tf.newaxis]
            if self.imaging.augmentation is not None:
                image = finish(image, self.imaging.unpack(parsed["numbers"]))
        except Exception as error:  # of whatever class: bytes in TensorFlow's message need not be UTF-8
            raise self.reader.error(position, f"cannot be decoded: {decoding.plain_reason(error)}") from error
        made: np.ndarray[Any, Any] = image[0].numpy()
        return made

    def _mixed(self, rows: tf.Tensor, row: Tensors, augmentation: Any) -> Tensors:
        schedule = self.schedule
        epoch, step = schedule.step(rows[0])
        labels = row["label"] if self.targets is not None else tf.one_hot(row["label"], self.num_classes)
        if schedule.partners:
            half = schedule.batch_size
            others = {"image": row["image"][half:], "label": labels[half:]}
            row, labels = {name: value[:half] for name, value in row.items()}, labels[:half]
        else:
            size = tf.math.count_nonzero(row["mask"])
            places = tf.range(schedule.batch_size, dtype=tf.int64)
            ones = tf.ones_like(places)
            partners = schedule.partner_places(epoch * ones, step * ones, tf.minimum(places, size - 1), size * ones)
            partners = tf.where(row["mask"], partners, places)
            others = {"image": tf.gather(row["image"], partners), "label": tf.gather(labels, partners)}
        images, labels = mix(
            row["image"],
            labels,
            others["image"],
            others["label"],
            mixup=augmentation.mixup,
            cutmix=augmentation.cutmix,
            seed=self.imaging.seed,
            epoch=epoch,
            step=step,
        )
        if self.reader.combinations is not None:  # numbers may be negative
            labels = tf.where((row["label"] < 0) | (others["label"] < 0), tf.constant(-1.0), labels)
        return {**row, "image": images, "label": labels}

    def explain(self, start: np.int64, offset: np.int64) -> bytes:
        """Returns why the row at an offset from the first one was lost, by trying again."""
        if is_exiting():
            return b"Python is exiting: nothing is read any more"
        row = int(start) + int(offset)
        # Records that are read or decoded together are lost together: the first that fails again is
        # the culprit.
        numbers = tf.range(row, row + max(self.read_size, self.piece_size), dtype=tf.int64)
        located = self.locate({"row": numbers})
        positions, epochs = located["position"].numpy().tolist(), located["epoch"].numpy().tolist()
        for position, epoch in zip(positions, epochs, strict=True):
            if position < 0:
                continue
            failure = self.reader.failure(position)
            try:
                self.make(position, epoch)
            except DataError as error:
                return str(error).encode()
            if failure:
                return str(self.reader.error(position, f"{failure}; {_AGAIN}")).encode()
        if positions[0] < 0:
            return f"a blank row was {_LOST}".encode()
        return str(self.reader.error(positions[0], f"{_LOST}; {_AGAIN}")).encode()
