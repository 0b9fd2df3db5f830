"""Contenders that need TensorFlow: tfpipe, tf.data on the same shards, Keras."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from tfpipe.tools.benchmarks.worker import Pass, Task

# No fixed number of calls was measurably faster in what follows, nor was leaving out the shuffle
# buffer.
_AUTOTUNE = tf.data.AUTOTUNE


def tfpipe_train(task: Task) -> Pass:
    """The training pipeline as it comes."""
    return _images(_tfpipe(task, training=True, seed=0, augment="standard"))


def tfpipe_train_nocolour(task: Task) -> Pass:
    """The training pipeline with crops and flips only."""
    import tfpipe

    standard = tfpipe.Augmentation.named("standard")
    augment = dataclasses.replace(standard, brightness=0, contrast=0, saturation=0, hue=0)
    return _images(_tfpipe(task, training=True, seed=0, augment=augment))


def tfpipe_train_stored(task: Task) -> Pass:
    """The training pipeline in stored order, to compare the shuffled one with."""
    return _images(_loader(task, stored=True).dataset())


def tfpipe_read_shuffled(task: Task) -> Pass:
    """Records in shuffled order, checked, not decoded."""
    return _records(task, stored=False)


def tfpipe_read_stored(task: Task) -> Pass:
    """Records in stored order, checked, not decoded."""
    return _records(task, stored=True)


def tfrecord_offsets(task: Task) -> Pass:
    """Records in shuffled order by TensorFlow's reader, each by its offset."""
    loader = _loader(task, stored=False)
    shards = sorted(glob.glob(f"{glob.escape(task.shards)}/*.tfrecord-*"))
    indexes = sorted(glob.glob(f"{glob.escape(task.shards)}/index/*.idx"))
    places = [(file, offset) for file, index in zip(shards, indexes, strict=True) for offset in _offsets(index)]
    files, offsets = tf.constant([file for file, _ in places]), tf.constant([offset for _, offset in places], tf.int64)
    count = len(places)

    def record(position: tf.Tensor) -> tf.data.Dataset:
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[files[position]],
            compression_type="",
            buffer_size=tf.constant(0, tf.int64),
            byte_offsets=[offsets[position]],
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(1)

    data = _located(loader.rows, count).map(lambda rows: rows["position"]).unbatch()
    data = data.flat_map(record).batch(task.batch_size).prefetch(_AUTOTUNE)
    return lambda: data


def _offsets(index: str) -> list[int]:
    with open(index, encoding="ascii") as file:
        return [int(line.split()[0]) for line in file]


def _loader(task: Task, *, stored: bool) -> Any:
    from tfpipe.pipeline.loader import Loader
    from tfpipe.pipeline.options import Options
    from tfpipe.pipeline.ordering import StoredOrder

    loader = Loader(task.shards, "train", Options(training=True, batch_size=task.batch_size, image_size=(task.side, task.side)))
    if stored:
        loader.rows = dataclasses.replace(loader.rows, order=StoredOrder(loader.rows.order.num_rows))
    return loader


def _records(task: Task, *, stored: bool) -> Pass:
    from tfpipe.pipeline.reading import read_records

    rows = _loader(task, stored=stored).rows
    data = _located(rows, rows.schedule.num_rows)
    data = read_records(rows.reader, data, num_parallel_calls=_AUTOTUNE)
    data = data.map(lambda batch: batch["serialized"]).unbatch().batch(task.batch_size).prefetch(_AUTOTUNE)
    return lambda: data


def _located(rows: Any, count: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(count).batch(rows.read_size).map(lambda row: rows.locate({"row": row}))


def tfpipe_eval(task: Task) -> Pass:
    """The evaluation pipeline as it comes."""
    return _images(_tfpipe(task))


def tfpipe_eval_scaled(task: Task) -> Pass:
    """The evaluation pipeline with the decoder's own reduction of large images."""
    return _images(_tfpipe(task, scaled_decode=True))


def tfdata_crop(task: Task) -> Pass:
    """tf.data by hand: decodes the crop alone."""
    return _training(task, lambda data: _flipped(_as_uint8(_decoded_crop(data, task.side))))


def tfdata_crop_colour(task: Task) -> Pass:
    """tf.data by hand: decodes the crop alone, then the four colour operations of tf.image."""
    return _training(task, lambda data: _coloured(_flipped(_decoded_crop(data, task.side))))


def tfdata_tutorial(task: Task) -> Pass:
    """tf.data as TensorFlow's tutorials write it: decodes all, stretches."""

    def augment(data: tf.Tensor) -> tf.Tensor:
        image = tf.image.resize(tf.io.decode_jpeg(data, channels=3), [task.side, task.side])
        return _coloured(_flipped(image))

    return _training(task, augment)


def tfdata_antialias(task: Task) -> Pass:
    """tf.data by hand: accurate decoder and antialiased resize, as tfpipe's evaluation."""
    return _evaluation(task, antialias=True)


def tfdata_bilinear(task: Task) -> Pass:
    """tf.data by hand: the accurate decoder and a plain bilinear resize."""
    return _evaluation(task, antialias=False)


def keras(task: Task) -> Pass:
    """Keras' reader of folders: decodes all, stretches, no augmentation."""
    data = read_folder(task, (task.side, task.side), shuffle=True, seed=0)
    return lambda: data


def tfpipe_predict(task: Task) -> Pass:
    """`tfpipe.predict`, the whole call: from listing the folder to the CSV of probabilities."""
    from tfpipe.formats import opening
    from tfpipe.prediction import prediction

    predictor = opening.load(task.model)
    folder, output = os.path.dirname(task.photos[0]), os.path.join(task.scratch, "predictions.csv")

    def predict() -> Iterator[Any]:
        summary = prediction.predict(predictor, folder, output, batch_size=task.batch_size, progress=False)
        yield range(summary.num_rows)

    return predict


def keras_predict(task: Task) -> Pass:
    """Keras as its guides show it: a reader of folders, predict, the probabilities as an array."""
    from tfpipe.models import classifiers

    model = classifiers.load(task.model).model

    def predict() -> Iterator[Any]:
        yield model.predict(read_folder(task, model.input_shape[1:3], shuffle=False), verbose=0)

    return predict


def read_folder(task: Task, image_size: tuple[int, int], **options: Any) -> tf.data.Dataset:
    """Returns Keras' reader of the folder of photos."""
    import keras

    return keras.utils.image_dataset_from_directory(
        os.path.dirname(task.photos[0]),
        labels=None,
        image_size=image_size,
        batch_size=task.batch_size,
        verbose=False,
        **options,
    )


def _tfpipe(task: Task, **options: Any) -> tf.data.Dataset:
    import tfpipe

    size = (task.side, task.side)
    return tfpipe.dataset(task.shards, "train", batch_size=task.batch_size, image_size=size, **options)


def _images(data: tf.data.Dataset) -> Pass:
    return lambda: (batch[0] for batch in data)


def _encoded(task: Task) -> tf.data.Dataset:
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    shards = sorted(glob.glob(f"{glob.escape(task.shards)}/*.tfrecord-*"))
    data = tf.data.TFRecordDataset(shards, num_parallel_reads=task.workers)
    return data, lambda example: tf.io.parse_single_example(example, features)["image/encoded"]


def _training(task: Task, augment: Callable[[tf.Tensor], tf.Tensor]) -> Pass:
    data, encoded = _encoded(task)
    data = data.shuffle(1024)
    data = data.map(lambda example: augment(encoded(example)), num_parallel_calls=_AUTOTUNE, deterministic=False)
    data = data.batch(task.batch_size).prefetch(_AUTOTUNE)
    return lambda: data


def _evaluation(task: Task, *, antialias: bool) -> Pass:
    def decode(data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(tf.image.resize(image, [task.side, task.side], antialias=antialias), tf.uint8)

    data, encoded = _encoded(task)
    data = data.map(lambda example: decode(encoded(example)), num_parallel_calls=_AUTOTUNE)
    data = data.batch(task.batch_size).prefetch(_AUTOTUNE)
    return lambda: data


def _decoded_crop(data: tf.Tensor, side: int) -> tf.Tensor:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data),
        tf.zeros([1, 0, 4]),
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    return tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), [side, side])


def _as_uint8(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(image, tf.uint8)


def _flipped(image: tf.Tensor) -> tf.Tensor:
    return tf.image.random_flip_left_right(image)


def _coloured(image: tf.Tensor) -> tf.Tensor:
    image = tf.image.random_brightness(image / 255, 32 / 255)
    image = tf.image.random_contrast(image, 0.5, 1.5)
    image = tf.image.random_saturation(image, 0.5, 1.5)
    image = tf.image.random_hue(image, 0.2)
    return tf.clip_by_value(image, 0, 1)
