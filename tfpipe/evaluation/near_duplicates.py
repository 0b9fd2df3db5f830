"""Near-duplicates across splits: images of an evaluated split that are also in the training data.

    for pair in find_near_duplicates(classifier, "shards/", "test"):
        print(pair.key, pair.other, pair.similarity)

A pair counts when three things agree:

1. The classifier's pooled features have a cosine of 0.8 or more. That alone would not do: features
   of a fine-tuned network collapse into one point per class. And it is lenient, since a few pixels'
   shift moves features of a good network to 0.9.
2. and 3. In grey, small and aligned, the images are the same: see `tfpipe.verification.alignment`.

Byte-identical images always count, by the hashes of the catalog. Features, a hundred times as
expensive as the rest, are computed last, of the images that remain. `tfpipe verify
--near_duplicates` does without.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common.progress import ProgressBar
from tfpipe.evaluation.feature_index import unit_vectors
from tfpipe.images.placement import on_cpu
from tfpipe.models.classifiers import Classifier, Predictor
from tfpipe.models.split_images import read_for
from tfpipe.pipeline.replaying import Replayer
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_checked
from tfpipe.verification.alignment import SIDE, Pair, Queries

COSINE = 0.8
_LUMA = (0.299, 0.587, 0.114)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """An image of the evaluated split and the most similar one of another split.

    Attributes:
        key: of the image.
        other: key of the other one.
        split: of the other one.
        similarity: correlation of the two, aligned; 1 for identical bytes.
        identical: their files have the same bytes.
    """

    key: str
    other: str
    split: str
    similarity: float
    identical: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the pair as in near_duplicates.json."""
        return {"twin" if name == "other" else name: value for name, value in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class _Batch:
    keys: Sequence[str]
    images: Array  # uint8 [B, H, W, 3]
    grey: Array  # [B, 64, 64]


def training_splits(directory: str | os.PathLike[str], split: str) -> tuple[str, ...]:
    """Returns the splits that a classifier was trained on: train and val, without `split`."""
    return tuple(name for name in manifests.load(directory).splits if name in ("train", "val") and name != split)


def reader_of(predictor: Predictor, directory: str | os.PathLike[str], split: str) -> Replayer:
    """Returns the reader of single images as a model sees them, see `Replayer.evaluated`."""
    size, resize = predictor.image_size, predictor.resize
    samples = getattr(predictor, "samples", None)  # None: those of the data set, as in `read_for`
    return Replayer(directory, split, seed=0, image_size=size, resize=resize, augment="none", samples=samples)


def find_near_duplicates(
    classifier: Classifier,
    directory: str | os.PathLike[str],
    split: str,
    *,
    against: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> list[NearDuplicate]:
    """Returns a split's images with a near-duplicate in another split, in the catalog's order.

    One pass over all these splits. Memory grows with the images of `split` alone, by 1 kB each and
    the features of those that look like another one.

    Args:
        classifier: computes the features, and defines how images are resized.
        directory: of the data set.
        split: the evaluated one.
        against: the other splits, default train and val where present.
        batch_size: images that are read, and go through the classifier, at once.
        progress: show a bar.

    Raises:
        ValueError: there is no such split, or it is compared with itself.
        FileNotFoundError, DataError: as `tfpipe.dataset`.
    """
    others = training_splits(directory, split) if against is None else tuple(against)
    if split in others:
        raise ValueError(f"against: {split!r} cannot be compared with itself")
    manifest = manifests.load(directory)
    total = sum(manifest.split(name).num_records for name in (split, *others))
    if not others or not manifest.split(split).num_records:
        return []
    best = _identical(directory, split, others)
    with ProgressBar(f"near-duplicates of {split} in {', '.join(others)}", total, enabled=progress) as bar:

        def batches(name: str) -> Iterator[_Batch]:
            for batch in _batches(classifier, directory, name, batch_size):
                yield batch
                bar.add(len(batch.keys), 0)

        queries = Queries((batch.keys, batch.grey) for batch in batches(split))
        features = _Features(classifier, directory, split, batch_size)

        def is_better(pair: Pair) -> bool:
            key = queries.keys[pair[0]]
            return key not in best or best[key].similarity < pair[2]

        for name in others:
            for batch in batches(name):
                pairs = [pair for pair in queries.compare(batch.grey) if is_better(pair)]
                for row, column, similarity in filter(is_better, features.alike(pairs, batch.images)):
                    key = queries.keys[row]
                    best[key] = NearDuplicate(key, batch.keys[column], name, similarity, identical=False)
    return [best[key] for key in queries.keys if key in best]


def _identical(directory: str | os.PathLike[str], split: str, others: Sequence[str]) -> dict[str, NearDuplicate]:
    """Returns the byte-identical pairs by key."""
    by_hash = collections.defaultdict(list)
    for row in read_checked(directory, split=split):
        by_hash[row.sha256].append(row.key)
    pairs: dict[str, NearDuplicate] = {}
    for other in others:
        for row in read_checked(directory, split=other):
            for key in by_hash.get(row.sha256, ()):
                pairs.setdefault(key, NearDuplicate(key, row.key, other, 1.0, identical=True))
    return pairs


def _batches(classifier: Classifier, directory: str | os.PathLike[str], split: str, batch_size: int) -> Iterator[_Batch]:
    for batch in read_for(classifier, directory, split, batch_size=batch_size):
        keys = [key.decode() for key in batch["key"].numpy().tolist()]
        yield _Batch(keys, batch["image"].numpy(), shrink(batch["image"]))


@on_cpu
def shrink(images: Any) -> Array:
    """Returns images in grey, float32 [B, 64, 64], 0..255, of uint8 [B, H, W, 3]."""
    grey = tf.reduce_sum(tf.cast(images, tf.float32) * _LUMA, axis=-1, keepdims=True)
    small: Array = tf.image.resize(grey, (SIDE, SIDE), method="area")[..., 0].numpy()
    return small


class _Features:
    """Features of the evaluated split's images, computed on demand, each once."""

    def __init__(self, classifier: Classifier, directory: str | os.PathLike[str], split: str, batch_size: int) -> None:
        self._reader = reader_of(classifier, directory, split)
        self._classifier, self._batch_size = classifier, batch_size
        self._known: dict[int, Array] = {}

    def alike(self, pairs: Sequence[Pair], images: Array) -> Iterator[Pair]:
        """Yields those of some pairs of a batch with `images` whose features are alike."""
        missing = sorted({row for row, *_ in pairs} - self._known.keys())
        for start in range(0, len(missing), self._batch_size):
            rows = missing[start : start + self._batch_size]
            self._known.update(zip(rows, self._compute(np.stack([self._reader.evaluated(row) for row in rows])), strict=True))
        columns = sorted({column for _, column, _ in pairs})
        found = dict(zip(columns, self._compute(images[columns]), strict=True)) if columns else {}
        for row, column, similarity in pairs:
            if not self._known[row] @ found[column] < COSINE:  # non-finite features exclude nothing
                yield row, column, similarity

    def _compute(self, images: Array) -> Array:
        """Returns features of length 1, [B, D]."""
        with np.errstate(invalid="ignore", over="ignore"):
            return unit_vectors(self._classifier.predict_with_features(images)[1])
