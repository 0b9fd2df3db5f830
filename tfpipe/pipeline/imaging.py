"""From a record to pixels: what to decode of it, and how; the same for every data set.

`Imaging` instances are shared: tracing their functions into graphs takes half a second, which a
second loader with equal options saves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from tfpipe.images import decoding, sampling
from tfpipe.pipeline.augmentation import Augmentation, draw_changes, rotate
from tfpipe.pipeline.counter_rng import hash_keys
from tfpipe.records import schema
from tfpipe.records.samples import Samples

Tensors = dict[str, tf.Tensor]

_NUMBERS = ("start", "row", "position", "epoch", "listed", "label")  # of a row, all int64


@dataclass(frozen=True)
class Imaging:
    """How an image is made of a record.

    Attributes:
        scaled: whether large JPEG files are decoded at a reduced size.
        augmentation: None in a single pass.
        names: whether rows have "key" and "filename".
        label: name of the feature that is one label.
        png: some images are PNG files.
        turned: some are stored in another orientation than 1.
        reduced: some are large enough to be decoded at a reduced size.
        large: some are too large for the usual way of sampling them.
        rare: some files may take more than the usual decoder.
        others: some images are WebP or BMP files.
        layout: columns of "numbers" in order, type and shape by name; known after `parse` has been
            traced.
    """

    image_size: tuple[int, int]
    resize: decoding.Resize
    scaled: bool
    augmentation: Augmentation | None
    seed: int
    samples: Samples
    names: bool
    label: str
    png: bool
    turned: bool
    reduced: bool
    large: bool
    rare: bool
    others: bool
    layout: dict[str, tuple[tf.DType, tf.TensorShape]] = field(default_factory=dict, init=False, compare=False)

    @functools.cached_property
    def parse_compiled(self) -> Any:
        """`parse` as a concrete function."""
        given = {name: tf.TensorSpec([None], tf.int64) for name in _NUMBERS}
        with tf.init_scope():  # of no graph, so that every graph can use it
            function = tf.function(self.parse, autograph=False)
            return function.get_concrete_function({**given, "serialized": tf.TensorSpec([None], tf.string)})

    @functools.cached_property
    def _decode_compiled(self) -> Any:
        with tf.init_scope():
            numbers = self.parse_compiled.structured_outputs["numbers"]
            specs = [tf.TensorSpec([], tf.string), tf.TensorSpec(numbers.shape[1:], tf.int64)]
            return tf.function(self.decode_one, autograph=False).get_concrete_function(*specs)

    def parse(self, batch: Tensors) -> Tensors:
        """Returns all that decoding a batch of records one by one needs.

        Args:
            batch: "serialized", string [N]; "start", "row", "position", "epoch", "listed" and
                "label", int64 [N]: the label that the catalog lists, and the one to give.

        Returns:
            "encoded" and, with `names`, "key" and "filename", string [N]; "numbers", int64 [N, K],
            all else, see `unpack`: each tensor that is split into records and batched again costs
            time. "encoded" is empty where the record's label is not the listed one.
        """
        features = decoding.parse_batch(batch["serialized"], self.label)
        stored, orientation = features[self.label], tf.cast(features[schema.ORIENTATION], tf.int32)
        mask = batch["position"] >= 0
        encoded = decoding.without(mask & (stored != batch["listed"]), features[schema.ENCODED])
        label = tf.where(mask, batch["label"], stored)
        columns = {"start": batch["start"], "row": batch["row"], "label": label, "mask": mask, "orientation": orientation}
        if self.augmentation is not None:
            columns["epoch"] = batch["epoch"]
        if self.augmentation is not None or self.scaled:
            columns |= self._changes(features, orientation, batch["epoch"])
        names = {"key": features[schema.KEY], "filename": features[schema.FILENAME]} if self.names else {}
        return {"encoded": encoded, **names, "numbers": self._pack(columns)}

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
        is_whole = tf.not_equal(features[schema.FORMAT], "JPEG")
        return sampling.as_decoded(changes, orientation, is_whole, self.image_size, scaled=self.scaled)

    def _pack(self, columns: Tensors) -> tf.Tensor:
        if not self.layout:  # always the same; other threads may be reading it
            self.layout.update({name: (value.dtype, value.shape[1:]) for name, value in columns.items()})
        flat = [tf.reshape(_as_integers(value), [-1, value.shape[1:].num_elements()]) for value in columns.values()]
        return tf.concat(flat, axis=1)

    def unpack(self, numbers: tf.Tensor) -> Tensors:
        """Returns the columns that `parse` packed, of one row or of a batch."""
        widths = [shape.num_elements() for _, shape in self.layout.values()]
        parts = tf.split(numbers, widths, axis=-1)
        leading = tf.shape(numbers)[:-1] if None in numbers.shape else numbers.shape[:-1]
        columns = {}
        for (name, (dtype, shape)), part in zip(self.layout.items(), parts, strict=True):
            columns[name] = _from_integers(tf.reshape(part, tf.concat([leading, shape], 0)), dtype)
        return columns

    def decode(self, encoded: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Returns images, uint8 [N, height, width, 3], in the colours and flips of the files."""
        function = self._decode_compiled
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
        return images

    def decode_one(self, encoded: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Returns the image of one record, uint8 [height, width, 3]."""
        changes = self.unpack(numbers)
        orientation = changes["orientation"]
        if "window" not in changes:
            kinds = {"rare": self.rare, "others": self.others}
            return decoding.decode_and_resize(encoded, orientation, self.image_size, self.resize, self.samples, **kinds)
        height, width = self.image_size
        window, decoder = changes["window"], changes["decoder"]
        kinds = {"scaled": self.reduced, "png": self.png, "rare": self.rare, "others": self.others}
        part = sampling.decode_window(encoded, window, decoder, self.samples, **kinds)
        size: Any = self.image_size
        if height != width and self.turned:
            size = tf.unstack(tf.where(orientation >= 5, [width, height], [height, width]))
        image = sampling.sample(part, size, changes, large=self.large)
        if self.turned:
            image = tf.ensure_shape(decoding.turn_image(image, orientation), [height, width, 3])
        return rotate(image, changes)


shared = functools.lru_cache(maxsize=16)(Imaging)


def _as_integers(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.bitcast(values, tf.int32) if values.dtype == tf.float32 else values, tf.int64)


def _from_integers(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.bitcast(tf.cast(values, tf.int32), tf.float32) if dtype == tf.float32 else tf.cast(values, dtype)
