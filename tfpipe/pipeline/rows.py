"""The steps between the number of a row and the row: record, features, pixels; and why a row did not arrive.

Each method is a stage of `tfpipe.pipeline.loader.Loader`, for `Dataset.map`. From a row's number follow its epoch, its record
and its augmentation, so that any thread can make any row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.pipeline import decoding, sampling
from tfpipe.pipeline.augmentation import Augmentation, draw_changes, finish, rotate
from tfpipe.pipeline.draws import hash_keys
from tfpipe.pipeline.mixing import mix
from tfpipe.pipeline.ordering import BLANK, Order, Schedule
from tfpipe.pipeline.reading import RecordReader, for_graphs, is_exiting
from tfpipe.records import schema
from tfpipe.records.errors import DataError

_MISSING = -2  # the number of the rows that follow when too few have come

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Rows:
    """How a row is made.

    Attributes:
        reader: of the records.
        order: of the records.
        schedule: of the rows.
        image_size: (height, width).
        resize: see `decoding.resize_image`.
        scaled: whether large JPEG files are decoded to less than their size.
        augmentation: None in a single pass.
        seed: of the augmentation.
        new_labels: int64 [C], the label that replaces each of the data set's, None for the same.
        num_classes: labels are less than this.
        read_size: records that are read and parsed together.
        layout: what "numbers" hold, in order: type and shape by name; known when `parse` has been traced.
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
    layout: dict[str, tuple[tf.DType, tf.TensorShape]] = field(default_factory=dict)

    def locate(self, rows: tf.Tensor) -> Tensors:
        """Returns "row", "position" and "epoch", int64 [N] each."""
        epochs, indices = self.schedule.indices(rows)
        positions, passes = self.order.positions(epochs, tf.maximum(indices, 0))
        return {"row": rows, "position": tf.where(indices >= 0, positions, BLANK), "epoch": passes}

    def parse(self, batch: Tensors) -> Tensors:
        """Returns all that a batch of records needs to be decoded one by one.

        Returns:
            "encoded", "key" and "filename", string [N]; "numbers", int64 [N, K], all else, see `_unpacked`: what is taken apart
            into records and put together to batches again costs by the piece.
        """
        features = decoding.parse_batch(batch["serialized"])
        label, orientation = features[schema.LABEL], tf.cast(features[schema.ORIENTATION], tf.int32)
        mask = batch["position"] >= 0
        if self.new_labels is not None:
            label = tf.where(mask, tf.gather(tf.constant(self.new_labels, tf.int64), tf.maximum(label, 0)), label)
        columns = {"row": batch["row"], "label": label, "mask": mask, "orientation": orientation}
        if self.augmentation is not None:
            columns["epoch"] = batch["epoch"]
        if self.augmentation is not None or self.scaled:
            columns |= self._changes(features, orientation, batch["epoch"])
        strings = {"encoded": features[schema.ENCODED], "key": features[schema.KEY], "filename": features[schema.FILENAME]}
        return {**strings, "numbers": self._packed(columns)}

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
        is_png = features[schema.FORMAT] == "PNG"
        return sampling.as_decoded(changes, orientation, is_png, self.image_size, scaled=self.scaled)

    def _packed(self, columns: Tensors) -> tf.Tensor:
        self.layout.clear()
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

    def decode(self, row: Tensors) -> Tensors:
        """Returns a row of `parse` with "image", uint8 [height, width, 3], and without "encoded".

        Colours and flips are those of the file: `complete` changes them, for a whole batch.
        """
        columns = self._unpacked(row["numbers"])
        image = self._picture(row["encoded"], columns["orientation"], columns)
        return {"numbers": row["numbers"], "key": row["key"], "filename": row["filename"], "image": image}

    def _picture(self, encoded: tf.Tensor, orientation: tf.Tensor, changes: Tensors) -> tf.Tensor:
        if "window" not in changes:
            return decoding.resize_image(decoding.decode_image(encoded, orientation), self.image_size, self.resize)
        part = sampling.decode_window(encoded, changes["window"], changes["decoder"], scaled=self.scaled)
        height, width = self.image_size
        size: Any = self.image_size
        if height != width:
            size = tf.unstack(tf.where(orientation >= 5, [width, height], [height, width]))
        image = decoding.turn_image(sampling.sample(part, size, changes), orientation)
        return rotate(tf.ensure_shape(image, [height, width, 3]), changes)

    def missing(self) -> tf.data.Dataset:
        """Returns one row like those of `decode` that is never an expected one."""
        width = sum(shape.num_elements() for _, shape in self.layout.values())
        row = {"numbers": tf.fill([width], np.int64(_MISSING)), "key": "", "filename": ""}
        # The image is made when it is needed: a constant would stand in every graph.
        data = tf.data.Dataset.from_tensors(row)
        return data.map(lambda row: {**row, "image": tf.zeros([*self.image_size, 3], tf.uint8)})

    def check(self, expected: tf.Tensor, row: Tensors) -> Tensors:
        """Returns the row or batch, whose numbers must be the expected ones."""
        explain = for_graphs(self.explain)
        wrong = tf.reshape(expected != self._unpacked(row["numbers"])["row"], [-1])
        intact = ~tf.reduce_any(wrong)

        def why() -> tf.Tensor:
            first = tf.boolean_mask(tf.reshape(expected, [-1]), wrong)[0]
            return tf.ensure_shape(tf.numpy_function(explain, [first], tf.string, stateful=False), [])

        # The text of Assert reaches the user whole, of an exception in a numpy_function with two tracebacks around it.
        reason = tf.cond(intact, lambda: tf.constant(""), why)
        with tf.control_dependencies([tf.debugging.Assert(intact, [reason])]):
            return {name: tf.identity(value) for name, value in row.items()}

    def complete(self, batch: Tensors) -> Tensors:
        """Returns a batch of `decode`'s rows as it is given out, with colours and flips, blank rows blank, pictures mixed."""
        columns, image = self._unpacked(batch["numbers"]), batch["image"]
        row = {"label": columns["label"], "key": batch["key"], "filename": batch["filename"], "mask": columns["mask"]}
        if self.augmentation is None:
            return {"image": image, **row}
        image = finish(image, columns)
        if self.schedule.has_blanks:
            # A blank row is a record with one black pixel, which may have been coloured.
            colourful, shown = image, row["mask"][:, tf.newaxis, tf.newaxis, tf.newaxis]
            image = tf.cond(tf.reduce_all(shown), lambda: colourful, lambda: tf.where(shown, colourful, tf.zeros([], tf.uint8)))
        row = {"image": image, **row, "epoch": columns["epoch"]}
        return self._mixed(columns["row"], row, self.augmentation) if self.augmentation.mixes else row

    def _mixed(self, rows: tf.Tensor, row: Tensors, augmentation: Augmentation) -> Tensors:
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

    def explain(self, row: np.int64) -> bytes:
        """Returns why a record did not arrive, by trying again."""
        if is_exiting():
            return b"Python is exiting: nothing is read any more"
        # Records that are parsed together are lost together: the first that fails again is the culprit.
        rows = tf.range(row, row + self.read_size, dtype=tf.int64)
        located = [{name: value[i : i + 1] for name, value in self.locate(rows).items()} for i in range(self.read_size)]
        first_failure = self.reader.failure(int(located[0]["position"][0]))
        for batch in located:
            if problem := self._problem(batch):
                return problem.encode()
        reason = first_failure or "lost on the way, or an error before it was passed over"
        error = self.reader.error(int(located[0]["position"][0]), f"{reason}; a second attempt read and decoded it")
        return str(error).encode()

    def _problem(self, batch: Tensors) -> str:
        """Returns what is wrong with the record of a batch of one, "" if nothing is."""
        position = int(batch["position"][0])
        if position < 0:
            return ""
        try:
            serialized = self.reader.read(position)
        except DataError as error:
            return str(error)
        try:
            rows = self.parse({**batch, "serialized": tf.constant([serialized])})
            self.decode({name: value[0] for name, value in rows.items()})
        except Exception as error:  # whatever it is, it is the answer (bytes in TensorFlow's message can be no UTF-8)
            return str(self.reader.error(position, f"cannot be decoded: {_plain(error)}"))
        return ""


def _as_integers(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.bitcast(values, tf.int32) if values.dtype == tf.float32 else values, tf.int64)


def _from_integers(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.bitcast(tf.cast(values, tf.int32), tf.float32) if dtype == tf.float32 else tf.cast(values, dtype)


def _plain(error: Exception) -> str:
    # "{{function_node __wrapped__DecodeJpeg_device_...}} jpeg::Uncompress failed. ... [Op:DecodeJpeg]"
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", str(error), flags=re.DOTALL)
