"""A batch that does not fit into memory: an error that says what to do, where TensorFlow reports its allocator.

with needing(len(images)):
    probabilities = model(images)    # MemoryError: out of memory with batch_size=64; try batch_size=32
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def needing(batch_size: int, advice: str = "") -> Iterator[None]:
    """Surrounds a computation on a batch.

    Raises:
        MemoryError: the memory of the device, or of the computer, does not suffice.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        smaller = (
            f"try batch_size={batch_size // 2}" if batch_size > 1 else "a smaller image_size, or another device, is needed"
        )
        raise MemoryError(f"out of memory with batch_size={batch_size}; {smaller}{advice}") from error
