"""The training images that a classifier finds most like a new one.

    index = collect(classifier, "shards/", "train")
    for found in index.nearest(features):                          # those of `predict_with_features`
        print(found.key, found.class_name, found.similarity)
        index.image(found, 256)                                  # uint8 [H, W, 3]

Features are in memory, 4 D bytes an image; images stay in their shards and are read when they are
shown.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.common.progress import ProgressBar
from tfpipe.images import decoding
from tfpipe.models.classifiers import Classifier
from tfpipe.models.split_images import read_for
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import schema
from tfpipe.records.samples import Samples

BATCH_SIZE = 64

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image, and how alike its features are.

    Attributes:
        key: of its record.
        class_name: "" where it has none.
        similarity: cosine of the pooled features, 1 for the same image.
        position: of its record in the split.
    """

    key: str
    class_name: str
    similarity: float
    position: int


@dataclass(frozen=True)
class FeatureIndex:
    """Training images by their features.

    Attributes:
        reader: of the split that they are in; the first `len(keys)` of its records are here.
        split: its name.
        keys: of the records.
        features: float32 [N, D], each of length 1.
    """

    reader: RecordReader
    split: str
    keys: Sequence[str]
    features: Array

    def nearest(self, features: Array, count: int = 8) -> list[Neighbour]:
        """Returns the most similar images, the first of equal ones first.

        Args:
            features: float32 [D], pooled, of the image to compare with.
            count: at most so many.
        """
        similarities = self.features @ unit_vectors(features)
        nearest = np.argsort(-similarities, kind="stable")[:count].tolist()
        return [Neighbour(self.keys[place], self._class_name(place), float(similarities[place]), place) for place in nearest]

    def _class_name(self, place: int) -> str:
        label = int(self.reader.labels[place])
        return "" if label == schema.UNLABELLED else self.reader.manifest.class_names[label]

    def image(self, neighbour: Neighbour, side: int) -> Array:
        """Returns the image, upright, uint8 [H, W, 3], its longer side no longer than `side`.

        Raises:
            DataError: its record cannot be read any more.
        """
        row = decoding.parse_example(self.reader.read(neighbour.position))
        try:
            samples = Samples.of(self.reader.manifest.options)
            return shrink(decoding.decode_image(row[schema.ENCODED], row[schema.ORIENTATION], samples), side)
        except tf.errors.OpError as error:
            raise self.reader.error(neighbour.position, decoding.plain_reason(error)) from None


def shrink(image: tf.Tensor, side: int) -> Array:
    """Returns an image, uint8 [H, W, 3], with its longer side at most `side`; smaller ones as they are."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    shrunk: Array = (image if scale == 1 else decoding.resize_image(image, size)).numpy()
    return shrunk


def collect(
    classifier: Classifier,
    directory: str | os.PathLike[str],
    split: str = "train",
    *,
    max_images: int | None = None,
    progress: bool = True,
) -> FeatureIndex:
    """Sends the images of a split through a classifier and keeps their features.

    Args:
        classifier: computes the features, and defines how images are resized.
        directory: of the data set.
        split: its name.
        max_images: at most so many, up to a full batch: the first as stored, which is in random
            order; 0: all.
        progress: show a bar.

    Raises:
        ValueError, FileNotFoundError, DataError: as `tfpipe.dataset`; ValueError if there are no
            images, DataError if the model's features of one are not finite.
    """
    reader = RecordReader(directory, split)
    num_batches = -(-min(reader.num_records, max_images or reader.num_records) // BATCH_SIZE)
    total = min(reader.num_records, num_batches * BATCH_SIZE)
    if not total:
        raise ValueError(f"{os.fspath(directory)}: there are no images in split {split!r} to compare with")
    keys: list[str] = []
    features: list[Array] = []
    with ProgressBar("features of the training images", total, enabled=progress) as bar:
        for batch in itertools.islice(read_for(classifier, directory, split, batch_size=BATCH_SIZE), num_batches):
            keys += [key.decode() for key in batch["key"].numpy().tolist()]
            _, found = classifier.predict_with_features(batch["image"])
            if broken := np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist():
                name = keys[broken[0] - len(found)]
                raise DataError(f"model {classifier.sha256[:12]}: its features of {name!r} are not finite numbers")
            features.append(unit_vectors(found))
            bar.add(len(features[-1]), 0)
    return FeatureIndex(reader, split, keys, np.concatenate(features))


def unit_vectors(features: Array) -> Array:
    """Returns vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    scaled: Array = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
