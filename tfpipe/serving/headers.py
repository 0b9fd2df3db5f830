"""What a picture's file says of itself, read by a TensorFlow graph."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfpipe.records import images

_MAX_STEPS = 2**14
_WINDOW_BYTES = 4096


class Header(NamedTuple):
    """What the file says.

    Attributes:
        readable: bool [], whether this is a JPEG or PNG that says how large it is.
        height: int64 [], in pixels, before orientation.
        width: int64 [], in pixels, before orientation.
        orientation: int32 [], EXIF 1..8.
    """

    readable: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    orientation: tf.Tensor


def read_header(encoded: tf.Tensor) -> Header:
    """Reads the header of a JPEG or PNG file; never raises, whatever the bytes.

    Args:
        encoded: string [], the bytes of the file.
    """
    jpeg_signature, png_signature = images.SIGNATURES
    is_jpeg = tf.strings.substr(encoded, 0, len(jpeg_signature)) == jpeg_signature
    is_png = tf.strings.substr(encoded, 0, len(png_signature)) == png_signature
    none = Header(tf.constant(False), tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.constant(1))
    read = tf.cond(is_jpeg, lambda: _jpeg(encoded), lambda: tf.cond(is_png, lambda: _png(encoded), lambda: none))
    return Header(*read)


def _jpeg(encoded: tf.Tensor) -> Header:
    length = tf.strings.length(encoded)

    def step(position: tf.Tensor, _: tf.Tensor, frame: tf.Tensor, steps: tf.Tensor) -> tuple[tf.Tensor, ...]:
        window = _window(encoded, position, _WINDOW_BYTES)
        code = window[1:]
        found = (window[:-1] == 0xFF) & (code >= 2) & (code <= 0xFE) & ((code < 0xD0) | (code > 0xD7))
        place = tf.argmax(found, output_type=tf.int32)
        marker = tf.where(found[place], code[place], 0)
        start = position + place + 2
        size = tf.maximum(_number(_window(encoded, start, 2)), 2)
        is_frame = (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        frame = tf.where(is_frame, start, frame)
        following = tf.where(marker > 0, start + tf.cast(size, tf.int32), position + _WINDOW_BYTES - 1)
        return tf.minimum(following, length), tf.cast(marker, tf.int32), frame, steps + 1

    def unfinished(position: tf.Tensor, marker: tf.Tensor, _: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        return (position < length) & (marker != 0xDA) & (marker != 0xD9) & (steps < _MAX_STEPS)

    initial = (tf.minimum(2, length), tf.constant(0), tf.constant(-1), tf.constant(0))
    _, marker, frame, _ = tf.while_loop(unfinished, step, initial)
    sizes = _window(encoded, frame + 3, 4)
    return Header((marker == 0xDA) & (frame >= 0), _number(sizes[:2]), _number(sizes[2:]), tf.constant(1))


def _png(encoded: tf.Tensor) -> Header:
    sizes = _window(encoded, 16, 8)
    readable = tf.strings.substr(encoded, 8, 8) == b"\0\0\0\x0dIHDR"
    return Header(readable, _number(sizes[4:]), _number(sizes[:4]), tf.constant(1))


def _window(data: tf.Tensor, start: tf.Tensor | int, size: int) -> tf.Tensor:
    """Returns bytes, uint8 [size]; zeros where the data have ended."""
    # Clipped: `substr` raises for a start behind the end.
    start = tf.clip_by_value(start, 0, tf.strings.length(data))
    return tf.io.decode_raw(tf.strings.substr(data, start, size), tf.uint8, fixed_length=size)


def _number(values: tf.Tensor) -> tf.Tensor:
    """Returns big-endian bytes [..., K] as one number, int64 [...]."""
    weights = tf.constant([256**place for place in reversed(range(values.shape[-1]))], tf.int64)
    return tf.reduce_sum(tf.cast(values, tf.int64) * weights, axis=-1)
