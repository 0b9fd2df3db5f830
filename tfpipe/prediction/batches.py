"""Batches of a listing's images through a model: probabilities of each, or its rejection.

    for stop, outcomes in ImageStream(listing, predictor, batch_size=64).predict():
        for index, outcome in outcomes.items(): ...     # float32 [C], or a RejectedImage

A batch holds images that can be decoded. Restarted where a batch stopped, the next ones are the
same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.workers import count_cores
from tfpipe.images import decoding, headers
from tfpipe.listing import image_files
from tfpipe.listing.image_files import Encoded
from tfpipe.listing.selection import Image, Listing
from tfpipe.models import predictions
from tfpipe.models.classifiers import Predictor, samples_of
from tfpipe.networks import arithmetic
from tfpipe.pipeline import reading
from tfpipe.records import schema

Array = np.ndarray[Any, Any]
Outcomes = dict[int, Array | RejectedImage]  # by the positions of images in the listing

_READ_FILES = 8  # in one call into Python, which costs; not more, since photographs are large
_THREADS = count_cores()
_PREFETCHED = 2  # batches, so that none is waited for


def read_image(image: Image, max_pixels: int) -> Encoded | RejectedImage:
    """Returns the bytes of an image's file, or why they are bad, as far as its header shows."""
    if image.problem:
        return RejectedImage("unreadable", image.problem, path=image.shown)
    return image_files.read(image.path, max_pixels)


class ImageStream:
    """The images of a listing on their way through a model.

    Args:
        listing: what to predict.
        predictor: the model.
        batch_size: images per call of the model.
        max_pixels: height times width above which a file is not decoded.
    """

    def __init__(
        self, listing: Listing, predictor: Predictor, batch_size: int, max_pixels: int = headers.DEFAULT_MAX_PIXELS
    ) -> None:
        self._images, self._predictor = listing.images, predictor
        self._batch_size, self._max_pixels = batch_size, max_pixels
        self._reader = reading.RecordReader(*listing.data_set) if listing.data_set else None
        self._problems: dict[int, RejectedImage] = {}  # of files that were read ahead

    def predict(self, start: int = 0) -> Generator[tuple[int, Outcomes], None, None]:
        """Yields the end of each batch and the outcomes of all images up to it, from `start` on.

        The next batch is computed in a thread while the caller deals with one.

        Raises:
            DataError: the model's outputs are not probabilities.
        """
        with closing(self._predict(start)) as batches, ThreadPoolExecutor(1) as pool:
            following = pool.submit(next, batches, None)
            while (batch := following.result()) is not None:
                following = pool.submit(next, batches, None)
                yield batch

    def _predict(self, start: int) -> Generator[tuple[int, Outcomes], None, None]:
        for batch in self._batches(start):
            indices = batch["index"].numpy().tolist()
            with arithmetic.exact():  # the model may be of another program
                values = self._predictor.predict(batch["image"])
            predictions.check(values, [self._images[index].shown for index in indices], self._predictor)
            found, stop = dict(zip(indices, values, strict=True)), indices[-1] + 1
            yield stop, self._complete(found, range(start, stop))
            start = stop
        if start < len(self._images):
            yield len(self._images), self._complete({}, range(start, len(self._images)))

    def _complete(self, found: dict[int, Array], indices: range) -> Outcomes:
        """Adds the rejections of missing images, found while reading or by a second attempt."""
        outcomes: Outcomes = {}
        for index in indices:
            problem = None if index in found else self._problems.pop(index, None) or self._explain(index)
            outcomes[index] = problem or found[index]
        return outcomes

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]  # nothing to convert; looking takes long
    def _batches(self, start: int) -> tf.data.Dataset:
        """Returns batches of "index" and "image", without images that cannot be decoded."""
        data = tf.data.Dataset.range(start, len(self._images))
        data = self._files(data) if self._reader is None else self._records(self._reader, data)
        data = data.unbatch()
        data = data.map(self._decode, num_parallel_calls=_THREADS, deterministic=True)
        data = data.ignore_errors()
        data = data.batch(self._batch_size).prefetch(_PREFETCHED)
        # Nothing is left to tune, and the thread that would do it is waited for when the iterator
        # ends, for up to a minute.
        options = tf.data.Options()
        options.autotune.enabled = False
        return data.with_options(options)

    def _files(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        read_batch = reading.for_graphs(self._read_batch)

        def read(batch: tf.Tensor, _owner: ImageStream = self) -> dict[str, tf.Tensor]:
            encoded, orientations = tf.numpy_function(read_batch, [batch], (tf.string, tf.int32), stateful=False)
            encoded, orientations = (tf.ensure_shape(tensor, batch.shape) for tensor in (encoded, orientations))
            return {"index": batch, "encoded": encoded, "orientation": orientations}

        data = indices.batch(_READ_FILES).map(read, num_parallel_calls=_THREADS, deterministic=True)
        return data.take_while(lambda batch: tf.size(batch["encoded"]) > 0)  # nothing comes when Python is about to exit

    def _read_batch(self, indices: Array) -> tuple[Array, Array]:
        if reading.is_exiting():
            return np.empty(0, object), np.empty(0, np.int32)
        encoded, orientations = np.empty(len(indices), object), np.zeros(len(indices), np.int32)
        for place, index in enumerate(indices.tolist()):
            found = read_image(self._images[index], self._max_pixels)
            if isinstance(found, RejectedImage):
                self._problems[index] = found
                encoded[place] = b""  # which no decoder accepts
            else:
                encoded[place], orientations[place] = found
        return encoded, orientations

    def _records(self, reader: reading.RecordReader, indices: tf.data.Dataset) -> tf.data.Dataset:
        positions = tf.constant([image.position for image in self._images], tf.int64)

        def parse(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            features = decoding.parse_batch(batch["serialized"], reader.label_feature)
            return {"index": batch["index"], "encoded": features[schema.ENCODED], "orientation": features[schema.ORIENTATION]}

        batches = indices.batch(reader.read_size)
        batches = batches.map(lambda batch: {"index": batch, "position": tf.gather(positions, batch)})
        return reading.read_records(reader, batches, num_parallel_calls=_THREADS).map(parse).ignore_errors()

    def _decode(self, row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        size, mode = self._predictor.image_size, self._predictor.resize
        samples = samples_of(self._predictor)
        image = decoding.decode_and_resize(row["encoded"], row["orientation"], size, mode, samples)
        return {"index": row["index"], "image": image}

    def _explain(self, index: int) -> RejectedImage:
        image = self._images[index]
        try:
            if self._reader is not None:
                features = decoding.parse_example(self._reader.read(image.position), self._reader.manifest.task)
                found: Encoded | RejectedImage = Encoded(features[schema.ENCODED], features[schema.ORIENTATION])
            else:
                found = read_image(image, self._max_pixels)
            if isinstance(found, RejectedImage):
                return found
            self._decode({"index": tf.constant(index), "encoded": found.data, "orientation": found.orientation})
        except DataError as error:
            return RejectedImage("unreadable", error.message, path=error.path, offset=error.offset)
        except tf.errors.OpError as error:
            return image_files.undecodable(decoding.plain_reason(error), image.shown)
        return RejectedImage("unreadable", "lost on the way; a second attempt read and decoded it", path=image.shown)
