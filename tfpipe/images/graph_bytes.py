"""Bytes in a TensorFlow graph: parts, numbers, and walks through a file.

`tf.strings.substr` raises for a start after the end: here it is clipped.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

MAX_STEPS = 2**14
"""Segments or chunks after which a walk ends."""


class Facts(NamedTuple):
    """Header before its EXIF block, string [], and its XMP packet, string [], have been read."""

    readable: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    exif: tf.Tensor
    xmp: tf.Tensor


def integer(value: int) -> tf.Tensor:
    """Returns a number, int64 []."""
    return tf.constant(value, tf.int64)


def byte_length(data: tf.Tensor) -> tf.Tensor:
    """Returns the number of bytes, int64 []."""
    return tf.cast(tf.strings.length(data), tf.int64)


def slice_bytes(data: tf.Tensor, start: tf.Tensor | int, size: tf.Tensor | int) -> tf.Tensor:
    """Returns at most `size` bytes from `start` on; none after the end."""
    start, size = tf.cast(start, tf.int64), tf.cast(size, tf.int64)
    return tf.strings.substr(data, tf.clip_by_value(start, 0, byte_length(data)), size)


def starts_with(data: tf.Tensor, prefix: bytes) -> tf.Tensor:
    """Returns whether the data begin so, bool []."""
    return tf.strings.substr(data, 0, len(prefix)) == prefix


def byte_window(data: tf.Tensor, start: tf.Tensor | int, size: int) -> tf.Tensor:
    """Returns bytes, uint8 [size]; zeros where the data have ended."""
    return tf.io.decode_raw(slice_bytes(data, start, size), tf.uint8, fixed_length=size)


def to_number(values: tf.Tensor, little: tf.Tensor | bool = False) -> tf.Tensor:
    """Returns bytes [..., K], big-endian or little-endian, as one number, int64 [...]."""
    weights = [256**place for place in range(values.shape[-1])]
    weights = tf.where(little, tf.constant(weights, tf.int64), tf.constant(weights[::-1], tf.int64))
    return tf.reduce_sum(tf.cast(values, tf.int64) * weights, axis=-1)
