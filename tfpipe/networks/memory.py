"""A batch that does not fit into memory: an error that says what to do, where TensorFlow reports its allocator.

with needing(len(images)):
    probabilities = model(images)    # MemoryError: out of memory with batch_size=64; try batch_size=32
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

Array = np.ndarray[Any, Any]


@contextlib.contextmanager
def needing(batch_size: int, advice: str = "") -> Iterator[None]:
    """Surrounds a computation on a batch.

    Raises:
        MemoryError: the memory of the device, or of the computer, does not suffice.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        remedy = f"batch_size={batch_size // 2}{advice}" if batch_size > 1 else "a smaller image_size"
        raise MemoryError(f"out of memory with batch_size={batch_size}; try {remedy}") from error


def in_parts(compute: Callable[[Any], Array]) -> Callable[[Any], Array]:
    """Returns a function that computes the same, of parts of a batch if all of it does not fit.

    Args:
        compute: batch -> a row for each of its rows, which depends on that alone.
    """
    most = sys.maxsize

    def computed(batch: Any) -> Array:
        nonlocal most
        while True:
            size = min(len(batch), most)
            firsts = range(0, len(batch), size)
            try:
                with needing(size):
                    return np.concatenate([compute(batch[first : first + size]) for first in firsts])
            except MemoryError:
                if size == 1:
                    raise
                most = math.ceil(size / 2)

    return computed
