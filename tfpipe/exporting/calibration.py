"""Images to calibrate whole numbers of 8 bits on: of the split trained on, drawn by a fixed seed.

images = draw_images("shards/", specification)     # uint8 [128, H, W, 3]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.formats.preflight import calibration_splits
from tfpipe.formats.specifications import Specification
from tfpipe.images import decoding
from tfpipe.pipeline.ordering import ShuffledOrder
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import manifest, schema

NUM_IMAGES = 128
_SEED = 0


def draw_images(directory: str | os.PathLike[str], specification: Specification) -> np.ndarray[Any, Any]:
    """Returns uint8 [N, H, W, 3] as the model sees them: 128, or all of a smaller split.

    Raises:
        ValueError: there is no training split, or it is empty.
        FileNotFoundError, DataError: not a data set, or a damaged one.
    """
    split, _ = calibration_splits(directory, specification.seen)
    total = manifest.load(directory).split(split).num_records
    if not total:
        raise ValueError(f"{directory}: split {split!r} is empty: there is nothing to calibrate on")
    indices = tf.range(min(NUM_IMAGES, total), dtype=tf.int64)
    positions, _ = ShuffledOrder(total, _SEED).positions(tf.zeros_like(indices), indices)
    reader, size, mode = RecordReader(Path(directory), split), specification.image_size, specification.resize
    images = []
    for position in positions.numpy().tolist():
        row = decoding.parse_example(reader.read(position), reader.manifest.task)
        encoded, orientation = row[schema.ENCODED], row[schema.ORIENTATION]
        images.append(decoding.decode_and_resize(encoded, orientation, size, mode, specification.samples).numpy())
    return np.stack(images)
