"""Which images a run sees, and how: the arguments of `tfpipe.dataset` that training, extraction and validation share.

train = Images("shards/", "train", image_size=(224, 224), augment="light", seed=0)
train.batches(32, first_epoch=3)        # endless, for training
train.once(64)                          # each image once, as evaluation sees it
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import seeds
from tfpipe.models.classifiers import Predictor
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.pipeline.loader import Loader
from tfpipe.pipeline.options import Options
from tfpipe.records import catalog, manifest

NOT_AUGMENTED = Augmentation()


@dataclass(frozen=True)
class Images:
    """A split, or some positions of it, and how its images are shown.

    Attributes:
        directory: of the data set.
        split: its name.
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
        # Without augmentation, training sees what evaluation sees.
        scaled = False if self.augmentation == NOT_AUGMENTED else None
        given = {"training": True, "augment": self.augmentation, "seed": self.seed, "balanced": self.balanced}
        return self._loader({"batch_size": batch_size, "scaled_decode": scaled, **given, **options})

    def batches(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        """Returns endless training batches; options as of `tfpipe.dataset`."""
        return self.training(batch_size, repeat=True, **options).dataset()

    def once(self, batch_size: int) -> tf.data.Dataset:
        """Returns each image once, in stored order, as evaluation sees it: uint8 [B, H, W, 3], int64 [B]."""
        return self.evaluation(batch_size).dataset()

    def evaluation(self, batch_size: int) -> Loader:
        """Returns the loader of `once`."""
        return self._loader({"batch_size": batch_size})

    def view(self, epoch: int, batch_size: int, first: int) -> tf.data.Dataset:
        """Returns the images from a position on, in stored order, augmented as training sees them in an epoch."""
        rest = dataclasses.replace(self, selection=np.arange(first, self.num_records), balanced=False)
        return rest.training(batch_size, shuffle=False, first_epoch=epoch).dataset()

    def plain(self, batch_size: int, first: int) -> tf.data.Dataset:
        """Returns the images from a position on, in stored order, as evaluation sees them."""
        return dataclasses.replace(self, selection=np.arange(first, self.num_records)).once(batch_size)

    @property
    def positions(self) -> np.ndarray[Any, Any]:
        """int64 [N], the positions that take part."""
        return np.arange(self.num_records) if self.selection is None else self.selection

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        """int64 [N], the classes of `positions`."""
        rows = catalog.read_catalog(self.directory, split=self.split)
        labels: np.ndarray[Any, Any] = np.array([row.label for row in rows], np.int64)[self.positions]
        return labels

    @property
    def manifest(self) -> manifest.Manifest:
        """The data set's."""
        return manifest.load(self.directory)

    @property
    def num_records(self) -> int:
        """Of the whole split."""
        return self.manifest.split(self.split).num_records

    def _loader(self, options: dict[str, Any]) -> Loader:
        given = {"image_size": self.image_size, "resize": self.resize, "selection": self.selection}
        return Loader(self.directory, self.split, Options(**given, **options))


def seen_by(predictor: Predictor, directory: str | os.PathLike[str], split: str, **options: Any) -> tf.data.Dataset:
    """Returns a split as a model sees it, in dictionaries; options and errors as of `tfpipe.dataset`."""
    seen = {"image_size": predictor.image_size, "resize": predictor.resize, "as_dict": True}
    samples = getattr(predictor, "samples", None)  # a model that does not tell takes those of the data set
    return Loader(directory, split, Options(**{**seen, **options}, samples=samples)).dataset()


def hold_out(images: Images, fraction: float) -> tuple[Images, Images]:
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
    for position, row in enumerate(catalog.read_catalog(images.directory, split=images.split)):
        digest = seeds.digest(images.seed, "hold out", row.sha256)
        by_class.setdefault(row.label, []).append((digest, position))
        labels.setdefault(digest, set()).add(row.label)
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
