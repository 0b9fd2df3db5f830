"""Images of a split as training, extraction, validation and evaluation read them.

train = SplitImages("shards/", "train", image_size=(224, 224), seed=0)
train.training(32, first_epoch=3).dataset()
for images, labels in read(train.once(64)): ...     # DataError for a damaged record
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import seeds
from tfpipe.common.errors import DataError
from tfpipe.models.classifiers import Predictor
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.pipeline.loader import Loader, targets_of
from tfpipe.pipeline.options import Options
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import catalog, manifest
from tfpipe.records.targets import num_strata

NOT_AUGMENTED = Augmentation()


@dataclass(frozen=True)
class SplitImages:
    """A split, or some positions of it, and how its images are prepared.

    Attributes:
        directory: of the data set.
        split: its name, or those of several joined.
        image_size: (height, width).
        resize: see `tfpipe.dataset`.
        augmentation: of training; `Augmentation()` for none.
        seed: of order and augmentation.
        balanced: every class equally often in training.
        selection: int64 [N], ascending positions that take part; None for all.
    """

    directory: str | os.PathLike[str]
    split: str
    image_size: tuple[int, int]
    resize: Any = "stretch"
    augmentation: Augmentation = NOT_AUGMENTED
    seed: int = 0
    balanced: bool = False
    selection: np.ndarray[Any, Any] | None = None

    def training(self, batch_size: int, **options: Any) -> Loader:
        """Returns the loader of training batches; options as of `tfpipe.dataset`."""
        # Without augmentation, training sees the images of evaluation.
        scaled = False if self.augmentation == NOT_AUGMENTED else None
        given = {"training": True, "augment": self.augmentation, "seed": self.seed, "balanced": self.balanced}
        return self._loader(**{"batch_size": batch_size, "scaled_decode": scaled, **given, **options})

    def evaluation(self, batch_size: int) -> Loader:
        """Returns the loader of each image once, in stored order, as in evaluation."""
        return self._loader(batch_size=batch_size)

    def once(self, batch_size: int, shard: tuple[int, int] | None = None) -> tf.data.Dataset:
        """Returns each image of a part once, as in evaluation: uint8 [B, H, W, 3], int64 [B]."""
        return self._loader(batch_size=batch_size, shard=shard).dataset()

    def whole(self, batch_size: int, first: int = 0, view: int | None = None, last: int | None = None) -> tf.data.Dataset:
        """Returns the images of the whole split, whatever the selection, in stored order.

        Args:
            batch_size: images of an element.
            first: position to begin at.
            view: None for images as in evaluation, else the epoch of training to augment them as.
            last: position to end before; None for the end of the split.
        """
        last = self.num_records if last is None else last
        rest = dataclasses.replace(self, selection=np.arange(first, last), balanced=False)
        if view is None:
            return rest.once(batch_size)
        return rest.training(batch_size, shuffle=False, first_epoch=view).dataset()

    @property
    def positions(self) -> np.ndarray[Any, Any]:
        """int64 [N], the positions that take part."""
        return np.arange(self.num_records) if self.selection is None else self.selection

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """int64 [N], the classes of `positions`."""
        labels: np.ndarray[Any, Any] = RecordReader(self.directory, self.split).labels[self.positions].astype(np.int64)
        return labels

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """float32 [N, D], the numbers of `positions`; NaN in an unlabelled split.

        Raises ValueError if the data set's task is not regression.
        """
        reader = RecordReader(self.directory, self.split)
        if reader.targets is None:
            raise ValueError(f"{os.fspath(self.directory)}: has classes, and no numbers")
        found: np.ndarray[Any, Any] = targets_of(reader.targets)[reader.labels[self.positions]]  # -1 is the last
        return found

    @property
    def strata(self) -> np.ndarray[Any, Any]:
        """int64 [num_records], the parts that `hold_out` divides: classes.

        Of several labels an image, the rarest of them in the split, and one more for none: of rare
        combinations there may be one image each. Of numbers, strata as in a build.
        """
        reader = RecordReader(self.directory, self.split)
        labels: np.ndarray[Any, Any] = reader.labels.astype(np.int64)
        if reader.targets is not None:
            before = np.searchsorted(np.sort(labels), labels)
            parts: np.ndarray[Any, Any] = before * num_strata(len(labels)) // max(1, len(labels))
            return parts
        if reader.combinations is None:
            return labels
        present = reader.combinations == 1
        counts = np.bincount(labels, minlength=len(present)) @ present
        rarest = np.where(present, counts, np.iinfo(np.int64).max).argmin(axis=1)
        strata: np.ndarray[Any, Any] = np.where(present.any(axis=1), rarest, present.shape[1])[labels]
        return strata

    @property
    def manifest(self) -> manifest.Manifest:
        """The data set's."""
        return manifest.load(self.directory)

    @property
    def num_records(self) -> int:
        """Of the whole split."""
        return self.manifest.split(self.split).num_records

    def _loader(self, **options: Any) -> Loader:
        given = {"image_size": self.image_size, "resize": self.resize, "selection": self.selection}
        return Loader(self.directory, self.split, Options(**given, **options))


def read_for(predictor: Predictor, directory: str | os.PathLike[str], split: str, **options: Any) -> Iterator[Any]:
    """Returns a split as dictionaries, for a model; options and errors as `tfpipe.dataset`.

    Raises:
        DataError: a record is damaged.
    """
    expected = {"image_size": predictor.image_size, "resize": predictor.resize, "as_dict": True}
    samples = getattr(predictor, "samples", None)  # by default those of the data set
    return read(Loader(directory, split, Options(**{**expected, **options}, samples=samples)).dataset())


def read(data: tf.data.Dataset) -> Iterator[Any]:
    """Yields the elements of `tfpipe.dataset`.

    Raises:
        DataError: a record is damaged; TensorFlow's report also names nodes of its graph.
    """
    try:
        yield from data
    except tf.errors.InvalidArgumentError as error:
        # "{{function_node ...}} Error in user-defined function ...: assertion failed: [REASON]\n\t
        # [[{{node Assert/Assert}}]] ..."
        found = re.search(r"assertion failed: \[(.*)\]\s*\[\[\{\{node", error.message, flags=re.DOTALL)
        raise DataError(found[1] if found else error.message) from error


def hold_out(images: SplitImages, fraction: float) -> tuple[SplitImages, SplitImages]:
    """Divides a split by class into (the larger part, the part held out): the same for equal seeds.

    Byte-identical images stay together, so that no image is held out and trained on; those that are
    in two classes, and a class of one image, stay in the larger part. Of every other class at least
    one is held out, however small the fraction.

    Raises:
        ValueError: the fraction is 0, or the split is too small.
    """
    if not fraction:
        raise ValueError(
            f"val_fraction=0 holds nothing out, and {os.fspath(images.directory)} has no val split: there would be nothing to"
            " choose the best epoch by; give val_fraction=0.1 or the like, or build the data set with a val split"
        )
    by_class: dict[int, list[tuple[bytes, int]]] = {}
    labels: dict[bytes, set[int]] = {}
    rows = catalog.read_checked(images.directory, split=images.split)
    of_rows = images.strata.tolist()
    for position, (row, label) in enumerate(zip(rows, of_rows, strict=True)):
        digest = seeds.digest(images.seed, "hold out", row.sha256)
        by_class.setdefault(label, []).append((digest, position))
        labels.setdefault(digest, set()).add(label)
    held: list[int] = []
    for found in by_class.values():
        ranked = sorted(entry for entry in found if len(labels[entry[0]]) == 1)
        size = min(max(1, round(len(ranked) * fraction)), len(ranked) - 1)
        while 0 < size < len(ranked) and ranked[size][0] == ranked[size - 1][0]:
            size += 1  # copies of the last one
        held += [position for _, position in ranked[:size]] if size < len(ranked) else []
    if not held:
        raise ValueError(
            f"{os.fspath(images.directory)}: split {images.split!r} is too small to hold a part out for validation;"
            " build the data set with a val split"
        )
    chosen = np.array(sorted(held), np.int64)
    rest = np.setdiff1d(np.arange(images.num_records), chosen)
    return dataclasses.replace(images, selection=rest), dataclasses.replace(images, selection=chosen)
