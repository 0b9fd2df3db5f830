"""The training images that a classifier finds most like a new one.

    index = collect(classifier, "shards/", "train")
    for found in index.nearest(features):                          # those of `predict_with_features`
        print(found.key, found.class_name, found.similarity)
        index.image(found)                                       # uint8 [H, W, 3]

Features are in memory, 4 D bytes an image; images stay in their shards.
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
    """A training image: key, class ("" without), and cosine with the features of the new one."""

    key: str
    class_name: str
    similarity: float
    position: int  # in the split


@dataclass(frozen=True)
class FeatureIndex:
    """Training images by their features, float32 [N, D], each of length 1.

    `reader` is that of their split; the first `len(keys)` of its records are here.
    """

    reader: RecordReader
    split: str
    keys: Sequence[str]
    features: Array

    def nearest(self, features: Array, count: int = 8) -> list[Neighbour]:
        """Returns the images with the most similar features, float32 [D]; stable."""
        similarities = self.features @ unit_vectors(features)
        names = {schema.UNLABELLED: "", **dict(enumerate(self.reader.label_texts))}
        return [
            Neighbour(self.keys[place], names[int(self.reader.labels[place])], float(similarities[place]), place)
            for place in np.argsort(-similarities, kind="stable")[:count].tolist()
        ]

    def image(self, neighbour: Neighbour) -> Array:
        """Returns the image, upright, uint8 [H, W, 3].

        Raises:
            DataError: its record cannot be read any more.
        """
        row = decoding.parse_example(self.reader.read(neighbour.position), self.reader.manifest.task)
        samples = Samples.of(self.reader.manifest.options)
        try:
            image: Array = decoding.decode_image(row[schema.ENCODED], row[schema.ORIENTATION], samples).numpy()
        except tf.errors.OpError as error:
            raise self.reader.error(neighbour.position, decoding.plain_reason(error)) from None
        return image


def collect(
    classifier: Classifier,
    directory: str | os.PathLike[str],
    split: str = "train",
    *,
    max_images: int | None = None,
    progress: bool = True,
) -> FeatureIndex:
    """Computes a classifier's features of a split's images.

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
