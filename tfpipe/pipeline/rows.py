"""The steps between the number of a row and the row: record, features, pixels; and why a row did not arrive.

Each method is a stage of `tfpipe.pipeline.loader.Loader`, for `Dataset.map`. From a row's number follow its epoch, its record
and its augmentation, so that any thread can make any row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.pipeline import decoding, sampling
from tfpipe.pipeline.augmentation import Augmentation, draw_changes, finish
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

    def locate(self, rows: tf.Tensor) -> Tensors:
        """Returns "row", "position" and "epoch", int64 [N] each."""
        epochs, indices = self.schedule.indices(rows)
        positions, passes = self.order.positions(epochs, tf.maximum(indices, 0))
        return {"row": rows, "position": tf.where(indices >= 0, positions, BLANK), "epoch": passes}

    def parse(self, batch: Tensors) -> Tensors:
        """Returns all that a batch of records needs to be decoded one by one."""
        features = decoding.parse_batch(batch["serialized"])
        label, orientation = features[schema.LABEL], tf.cast(features[schema.ORIENTATION], tf.int32)
        mask = batch["position"] >= 0
        if self.new_labels is not None:
            label = tf.where(mask, tf.gather(tf.constant(self.new_labels, tf.int64), tf.maximum(label, 0)), label)
        row = {
            "row": batch["row"],
            "encoded": features[schema.ENCODED],
            "orientation": orientation,
            "label": label,
            "key": features[schema.KEY],
            "filename": features[schema.FILENAME],
            "mask": mask,
        }
        if self.augmentation is not None:
            row["epoch"] = batch["epoch"]
        if self.augmentation is not None or self.scaled:
            row["changes"] = self._changes(features, orientation, batch["epoch"])
        return row

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
        return sampling.as_decoded(changes, features[schema.FORMAT] == "PNG", scaled=self.scaled)

    def decode(self, row: Tensors) -> Tensors:
        """Returns a row with "image", uint8 [height, width, 3], and without what was only needed to make it."""
        image = self._picture(row["encoded"], row["orientation"], row.get("changes"))
        kept = {name: value for name, value in row.items() if name not in ("encoded", "orientation", "changes")}
        return {**kept, "image": image}

    def _picture(self, encoded: tf.Tensor, orientation: tf.Tensor, changes: Tensors | None) -> tf.Tensor:
        if changes is None:
            return decoding.resize_image(decoding.decode_image(encoded, orientation), self.image_size, self.resize)
        window = sampling.decode_window(encoded, changes["window"], changes["decoder"], scaled=self.scaled)
        height, width = self.image_size
        size: Any = self.image_size if height == width else tf.where(orientation >= 5, [width, height], [height, width])
        sampled = decoding.sample_image(window, size, changes["scale"], changes["translation"])
        sampled = tf.ensure_shape(decoding.turn_image(sampled, orientation), [height, width, 3])
        if self.augmentation is None:
            return tf.cast(tf.round(sampled), tf.uint8)
        return finish(self.augmentation, self.image_size)(sampled, changes)

    def missing(self) -> tf.data.Dataset:
        """Returns one row like those of `decode` that is never an expected one."""
        row = {"row": np.int64(_MISSING), "label": np.int64(schema.UNLABELLED), "key": "", "filename": "", "mask": False}
        if self.augmentation is not None:
            row["epoch"] = np.int64(0)
        # The image is made when it is needed: a constant would stand in every graph.
        data = tf.data.Dataset.from_tensors(row)
        return data.map(lambda row: {**row, "image": tf.zeros([*self.image_size, 3], tf.uint8)})

    def check(self, expected: tf.Tensor, row: Tensors) -> Tensors:
        """Returns the row or batch, whose numbers must be the expected ones."""
        explain = for_graphs(self.explain)
        wrong = tf.reshape(expected != row["row"], [-1])
        intact = ~tf.reduce_any(wrong)

        def why() -> tf.Tensor:
            first = tf.boolean_mask(tf.reshape(expected, [-1]), wrong)[0]
            return tf.ensure_shape(tf.numpy_function(explain, [first], tf.string, stateful=False), [])

        # The text of Assert reaches the user whole, of an exception in a numpy_function with two tracebacks around it.
        reason = tf.cond(intact, lambda: tf.constant(""), why)
        with tf.control_dependencies([tf.debugging.Assert(intact, [reason])]):
            return {name: tf.identity(value) for name, value in row.items()}

    def complete(self, row: Tensors) -> Tensors:
        """Returns the row or batch with blank rows blanked and pictures mixed."""
        rows, mask = row["row"], row["mask"]
        row = {name: value for name, value in row.items() if name != "row"}
        if self.schedule.has_blanks:
            # A blank row is a record with one black pixel, which augmentation may have coloured.
            row["image"] = tf.where(mask[..., tf.newaxis, tf.newaxis, tf.newaxis], row["image"], tf.zeros([], tf.uint8))
        if self.augmentation is not None and self.augmentation.mixes:
            row = self._mixed(rows, row, self.augmentation)
        return row

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
            self.decode(tf.nest.map_structure(lambda value: value[0], rows))
        except Exception as error:  # whatever it is, it is the answer (bytes in TensorFlow's message can be no UTF-8)
            return str(self.reader.error(position, f"cannot be decoded: {_plain(error)}"))
        return ""


def _plain(error: Exception) -> str:
    # "{{function_node __wrapped__DecodeJpeg_device_...}} jpeg::Uncompress failed. ... [Op:DecodeJpeg]"
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", str(error), flags=re.DOTALL)
