"""From a row's number to the row: record, features, pixels; and why a row was lost.

Each method is a stage of `tfpipe.pipeline.loader.Loader`, for `Dataset.map`. From a row's number
follow its epoch, its record and its augmentation, so that any thread can make any row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.images import decoding, sampling
from tfpipe.images.placement import on_cpu
from tfpipe.pipeline.augmentation import Augmentation, draw_changes, finish, rotate
from tfpipe.pipeline.counter_rng import hash_keys
from tfpipe.pipeline.mixing import mix
from tfpipe.pipeline.ordering import BLANK, Order, Schedule
from tfpipe.pipeline.reading import RecordReader, for_graphs, is_exiting
from tfpipe.records import schema
from tfpipe.records.samples import USUAL, Samples

_NONE = -2  # the number of rows after the last, and of those that only fill up a piece

_LOST = "lost on the way, or an error before it was passed over"
_AGAIN = "a second attempt read and decoded it"

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Rows:
    """How a row is made.

    Attributes:
        scaled: whether large JPEG files are decoded at a reduced size.
        augmentation: None in a single pass.
        new_labels: int64 [C], the label that replaces each of the data set's; None keeps them.
        read_size: records that may be read together.
        names: whether rows have "key" and "filename".
        layout: columns of "numbers" in order, type and shape by name; known after `parse` has been
            traced.
    """

    reader: RecordReader
    order: Order
    schedule: Schedule
    image_size: tuple[int, int]
    resize: decoding.Resize
    scaled: bool
    augmentation: Augmentation | None
    seed: int
    new_labels: np.ndarray[Any, Any] | None
    num_classes: int
    read_size: int
    names: bool
    samples: Samples
    layout: dict[str, tuple[tf.DType, tf.TensorShape]] = field(default_factory=dict, init=False)

    @functools.cached_property
    def _labels(self) -> tf.Tensor:
        with tf.init_scope():  # of no graph, so that every graph can use them
            return tf.constant(self.reader.labels)

    @property
    def num_pieces(self) -> int:
        """Pieces that a step is decoded in, each all at once: what a piece has to hold in memory is limited."""
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
        """Returns the input of `prepare` for the rows in [start, stop), whole steps, divided as they are read."""
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
        _, parsed = self._functions
        names, values = zip(*parsed.structured_outputs.items(), strict=True)
        made = tf.py_function(prepare, [bounds, slots], [value.dtype for value in values])
        return {name: tf.ensure_shape(one, value.shape) for name, one, value in zip(names, made, values, strict=True)}

    @on_cpu
    def _prepare(self, bounds: tf.Tensor, slots: tf.Tensor) -> list[tf.Tensor]:
        locate, parse = self._functions
        (start, stop), per_step = bounds.numpy(), self.schedule.rows_per_step
        steps, places = np.divmod(slots.numpy(), self.num_pieces * self.piece_size)
        rows = steps * per_step + places
        rows = np.where((places < per_step) & (rows < stop), rows, _NONE)
        located = locate({"start": tf.constant(np.full_like(rows, start)), "row": tf.constant(rows)})
        data = self.reader.read_batch(located["position"].numpy())
        located = {name: value[: len(data)] for name, value in located.items()}
        return list(parse({**located, "serialized": tf.constant(data, tf.string)}).values())

    @functools.cached_property
    def _functions(self) -> tuple[Any, Any]:
        """`locate` and `parse`, compiled."""
        numbers = {name: tf.TensorSpec([None], tf.int64) for name in ("start", "row", "position", "epoch")}
        given = {name: numbers[name] for name in ("start", "row")}, {**numbers, "serialized": tf.TensorSpec([None], tf.string)}
        with tf.init_scope():  # of no graph, so that every graph can use them
            return tuple(
                tf.function(stage, autograph=False).get_concrete_function(spec)
                for stage, spec in zip((self.locate, self.parse), given, strict=True)
            )

    @on_cpu
    def locate(self, batch: Tensors) -> Tensors:
        """Returns "start", "row", "position" and "epoch", int64 [N] each, for "start" and "row"."""
        epochs, indices = self.schedule.indices(tf.maximum(batch["row"], 0))
        positions, passes = self.order.positions(epochs, tf.maximum(indices, 0))
        blank = (indices < 0) | (batch["row"] < 0)
        return {**batch, "position": tf.where(blank, np.int64(BLANK), positions), "epoch": passes}

    def parse(self, batch: Tensors) -> Tensors:
        """Returns all that decoding a batch of records one by one needs.

        Returns:
            "encoded" and, with `names`, "key" and "filename", string [N]; "numbers", int64 [N, K],
            all else, see `_unpacked`: each tensor that is split into records and batched again
            costs time.
        """
        features = decoding.parse_batch(batch["serialized"])
        label, orientation = features[schema.LABEL], tf.cast(features[schema.ORIENTATION], tf.int32)
        mask = batch["position"] >= 0
        listed = tf.where(mask, tf.cast(tf.gather(self._labels, tf.maximum(batch["position"], 0)), tf.int64), label)
        features[schema.ENCODED] = decoding.without(label != listed, features[schema.ENCODED])
        label = listed
        if self.new_labels is not None:
            label = tf.where(mask, tf.gather(tf.constant(self.new_labels, tf.int64), tf.maximum(label, 0)), label)
        columns = {"start": batch["start"], "row": batch["row"], "label": label, "mask": mask, "orientation": orientation}
        if self.augmentation is not None:
            columns["epoch"] = batch["epoch"]
        if self.augmentation is not None or self.scaled:
            columns |= self._changes(features, orientation, batch["epoch"])
        names = {"key": features[schema.KEY], "filename": features[schema.FILENAME]} if self.names else {}
        return {"encoded": features[schema.ENCODED], **names, "numbers": self._packed(columns)}

    def _changes(self, features: Tensors, orientation: tf.Tensor, epoch: tf.Tensor) -> Tensors:
        stored = tf.cast(tf.stack([features[schema.HEIGHT], features[schema.WIDTH]], axis=1), tf.int32)
        upright = tf.where((orientation >= 5)[:, tf.newaxis], stored[:, ::-1], stored)
        if self.augmentation is None:
            changes = sampling.fit(upright, self.image_size, self.resize)
        else:
            keys = hash_keys(features[schema.KEY])
            changes = draw_changes(
                self.augmentation, self.image_size, self.resize, keys=keys, seed=self.seed, epochs=epoch, sources=upright
            )
        changes = sampling.as_stored(changes, upright, orientation, self.image_size)
        is_png = tf.equal(features[schema.FORMAT], "PNG")
        return sampling.as_decoded(changes, orientation, is_png, self.image_size, scaled=self.scaled)

    def _packed(self, columns: Tensors) -> tf.Tensor:
        if not self.layout:  # always the same; other threads may be reading it
            self.layout.update({name: (value.dtype, value.shape[1:]) for name, value in columns.items()})
        flat = [tf.reshape(_as_integers(value), [-1, value.shape[1:].num_elements()]) for value in columns.values()]
        return tf.concat(flat, axis=1)

    def _unpacked(self, numbers: tf.Tensor) -> Tensors:
        """Returns the columns that `parse` packed, of one row or of a batch."""
        widths = [shape.num_elements() for _, shape in self.layout.values()]
        parts = tf.split(numbers, widths, axis=-1)
        leading = tf.shape(numbers)[:-1] if None in numbers.shape else numbers.shape[:-1]
        columns = {}
        for (name, (dtype, shape)), part in zip(self.layout.items(), parts, strict=True):
            columns[name] = _from_integers(tf.reshape(part, tf.concat([leading, shape], 0)), dtype)
        return columns

    def decode(self, batch: Tensors) -> Tensors:
        """Returns a piece of what `parse` returns with "image", uint8 [N, height, width, 3], and without "encoded".

        Colours and flips are those of the file: `complete` changes them, for a whole batch.
        """
        encoded, numbers = batch["encoded"], batch["numbers"]
        specs = [tf.TensorSpec([], tf.string), tf.TensorSpec(numbers.shape[1:], tf.int64)]
        function = tf.function(self._decoded, autograph=False).get_concrete_function(*specs)
        # Each result goes straight to its place in the batch. And no operation on one image wakes
        # other threads, as in `Dataset.map`: that costs a fifth of the time.
        (images,) = tf.raw_ops.MapDefun(
            arguments=[encoded, numbers],
            captured_inputs=function.captured_inputs,
            output_types=[tf.uint8],
            output_shapes=[[*self.image_size, 3]],
            f=function,
            max_intra_op_parallelism=1,
        )
        return {"image": images, **{name: value for name, value in batch.items() if name != "encoded"}}

    def _decoded(self, encoded: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        columns = self._unpacked(numbers)
        return self._image(encoded, columns["orientation"], columns)

    def _image(self, encoded: tf.Tensor, orientation: tf.Tensor, changes: Tensors) -> tf.Tensor:
        traits = self.reader.traits
        if "window" not in changes:
            return decoding.decode_and_resize(encoded, orientation, self.image_size, self.resize, self.samples, rare=self._rare)
        height, width = self.image_size
        # An image whose longer side is less than twice the result is never made smaller, whatever
        # the mode.
        scaled = self.scaled and traits.longer >= 2 * min(height, width)
        window, decoder = changes["window"], changes["decoder"]
        part = sampling.decode_window(encoded, window, decoder, self.samples, scaled=scaled, png=traits.png, rare=self._rare)
        size: Any = self.image_size
        if height != width and traits.turned:
            size = tf.unstack(tf.where(orientation >= 5, [width, height], [height, width]))
        large = traits.longer > sampling.MOST_REDUCED * min(height, width)
        image = sampling.sample(part, size, changes, large=large)
        if traits.turned:
            image = tf.ensure_shape(decoding.turn_image(image, orientation), [height, width, 3])
        return rotate(image, changes)

    @property
    def _rare(self) -> bool:
        """Whether some files may take more than the usual decoder; the audit counts those of 16 bits where there is any PNG."""
        return self.reader.traits.png and (self.samples != USUAL or self.reader.manifest.properties.get("png16", 1) > 0)

    def is_before_end(self, index: tf.Tensor, batch: Tensors) -> tf.Tensor:
        """Returns whether a batch, the one after `index` others, is one of the steps of an epoch: bool []."""
        start = tf.reshape(self._unpacked(batch["numbers"])["start"], [-1])[0]
        return start % self.schedule.rows_per_epoch + index * self.schedule.rows_per_step < self.schedule.rows_per_epoch

    def check(self, index: tf.Tensor, batch: Tensors) -> tuple[Tensors, tf.Tensor]:
        """Returns the rows of a step, and an error if they are not the expected ones, string [], else "".

        Args:
            index: int64 [], number of steps before it.
            batch: pieces of `decode`, batched if a step has several; some may be lost.
        """
        if self.num_pieces > 1:
            batch = {name: tf.reshape(value, [-1, *value.shape[2:]]) for name, value in batch.items()}
        batch = {name: value[: self.schedule.rows_per_step] for name, value in batch.items()}
        columns = self._unpacked(batch["numbers"])
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
        """Returns a batch of `decode` with colours and flips, blank rows blank, and images mixed."""
        columns, image = self._unpacked(batch["numbers"]), batch["image"]
        row = {"label": columns["label"], "mask": columns["mask"]}
        row |= {name: batch[name] for name in ("key", "filename") if self.names}
        if self.augmentation is not None:
            image, row["epoch"] = finish(image, columns), columns["epoch"]
        if self.schedule.has_blanks:
            # A blank row is a record with one dark pixel, which may have been coloured.
            colourful, shown = image, row["mask"][:, tf.newaxis, tf.newaxis, tf.newaxis]
            image = tf.cond(tf.reduce_all(shown), lambda: colourful, lambda: tf.where(shown, colourful, tf.zeros([], tf.uint8)))
        row = {"image": image, **row}
        mixes = self.augmentation is not None and self.augmentation.mixes
        return self._mixed(columns["row"], row, self.augmentation) if mixes else row

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
            parsed = self.parse({**batch, "serialized": tf.constant([serialized])})
            image = self._decoded(parsed["encoded"][0], parsed["numbers"][0])[tf.newaxis]
            if self.augmentation is not None:
                image = finish(image, self._unpacked(parsed["numbers"]))
        except Exception as error:  # of whatever class: bytes in TensorFlow's message need not be UTF-8
            raise self.reader.error(position, f"cannot be decoded: {decoding.plain_reason(error)}") from error
        made: np.ndarray[Any, Any] = image[0].numpy()
        return made

    def _mixed(self, rows: tf.Tensor, row: Tensors, augmentation: Any) -> Tensors:
        schedule = self.schedule
        epoch, step = schedule.step(rows[0])
        labels = tf.one_hot(row["label"], self.num_classes)
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
            seed=self.seed,
            epoch=epoch,
            step=step,
        )
        return {**row, "image": images, "label": labels}

    def explain(self, start: np.int64, offset: np.int64) -> bytes:
        """Returns why the row at an offset from an iterator's first one was lost, by trying again."""
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


def _as_integers(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.bitcast(values, tf.int32) if values.dtype == tf.float32 else values, tf.int64)


def _from_integers(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.bitcast(tf.cast(values, tf.int32), tf.float32) if dtype == tf.float32 else tf.cast(values, dtype)
