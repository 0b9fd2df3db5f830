"""Replays what training saw: the augmented image of one key in one epoch.

    image = replay("shards/", "train", "cat/1.jpg", seed=0, epoch=3)      # uint8 [224, 224, 3]

The path is training's own (`tfpipe.pipeline.elements`), for one record: an augmentation is a
function of (seed, epoch, key).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from tfpipe.common import arguments
from tfpipe.images import decoding
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.pipeline.loader import Loader
from tfpipe.pipeline.options import Options
from tfpipe.records.catalog import read_checked

Image = np.ndarray[Any, Any]


@arguments.renamed(directory="data")
def replay(
    data: str | os.PathLike[str],
    split: str,
    key: str | bytes,
    *,
    seed: int,
    epoch: int,
    image_size: tuple[int, int] = (224, 224),
    resize: decoding.Resize = "stretch",
    augment: Augmentation | str | None = None,
    scaled_decode: bool = True,
) -> Image:
    """Returns the image that training saw for a key in an epoch.

    Bit for bit the row of `dataset(data, split, training=True, as_dict=True, ...)` with this "key"
    and "epoch", whatever the batches, the order and the readers were. MixUp and CutMix, which take
    a batch, are left out: this is the image before them. To replay many, use a `Replayer`: opening
    the data set takes longer than an image.

    Args:
        data: the data set's folder.
        split: the one that was trained on.
        key: of the record, as the catalog and the dataset's "key" have it.
        seed: the run's, as given to `dataset`.
        epoch: the dataset's "epoch", 0 or more. With `balanced`, that is how often the record came
            before.
        image_size: this and the following as given to `dataset`.
        resize: see above.
        augment: default "standard".
        scaled_decode: see above.

    Returns:
        uint8 [height, width, 3], RGB, 0..255, a numpy array.

    Raises:
        ValueError: there is no such key or split, or an argument is wrong.
        FileNotFoundError: there is no data set.
        DataError: the data set or the record is damaged.
    """
    replayer = Replayer(
        data, split, seed=seed, image_size=image_size, resize=resize, augment=augment, scaled_decode=scaled_decode
    )
    return replayer.image(replayer.position(key), epoch)


class Replayer:
    """Images of a split one at a time, as training sees them and as evaluation does.

    Attributes:
        augmentation: of training.
    """

    def __init__(
        self, directory: str | os.PathLike[str], split: str, *, seed: int, scaled_decode: bool = True, **options: Any
    ) -> None:
        """Opens a split; arguments and errors as of `replay`, and other ones of `Options`."""
        (scaled_decode,) = arguments.check(scaled_decode=scaled_decode)  # None is not a choice here
        given = Options(training=True, batch_size=1, seed=seed, scaled_decode=scaled_decode, **options)
        self._training = Loader(directory, split, given).rows
        plain = dataclasses.replace(self._training.imaging, augmentation=None, scaled=False, reduced=False)
        self._evaluation = dataclasses.replace(self._training, imaging=plain)
        self._directory, self._split = directory, split
        self.augmentation: Augmentation = self._training.imaging.augmentation or Augmentation()

    def position(self, key: str | bytes) -> int:
        """Returns the place of a record in stored order.

        Raises:
            ValueError: there is none with this key.
        """
        text = key.decode() if isinstance(key, bytes) else key
        if not isinstance(text, str):
            raise arguments.wrong("key", "a text or bytes", key)
        for position, row in enumerate(read_checked(self._directory, split=self._split)):
            if row.key == text:
                return position
        raise ValueError(f"{os.fspath(self._directory)}: no record of split {self._split!r} has the key {text!r}")

    def image(self, position: int, epoch: int) -> Image:
        """Returns the image that training sees in an epoch, uint8 [height, width, 3].

        Raises:
            ValueError: not an epoch.
            DataError: the record is damaged.
        """
        return self._training.make(position, *arguments.check(epoch=epoch))

    def evaluated(self, position: int) -> Image:
        """Returns the image as evaluation sees it, uint8 [height, width, 3].

        Raises:
            DataError: the record is damaged.
        """
        return self._evaluation.make(position, 0)
