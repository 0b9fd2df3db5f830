"""Antialiased bilinear resizing in TensorFlow, within 1.5 levels of Pillow's.

scaled = scaled_size(source, target, "crop")
window = sample_image(image, (224, 224), scale, translation)    # float32 [224, 224, 3]
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfpipe.images.decoders import apart
from tfpipe.records.samples import Resize

_LARGE_VALUES = 4_000_000
_HUGE_VALUES = 32_000_000


def sample_image(image: tf.Tensor, size: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    """Samples an image at output = scale * input + translation, antialiased bilinear.

    Bit for bit one ScaleAndTranslate of the whole image, in a quarter of its time: that op is fast
    along long rows, and slow along pixels of three values, so each axis is made the outer one in
    turn. A long strip, which that would blow up to [height, W] pixels, takes its columns first, and
    may differ in the last bit of float32: the smaller of [height, W] and [H, width] is never larger
    than both image and result.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the result, integers or int32 [].
        scale: float32 [2], of height and width.
        translation: float32 [2], in pixels of the result.

    Returns:
        float32 [height, width, 3], 0..255; zeros where the window lies outside the image.
    """
    large = tf.cast(size[0], tf.float32) * tf.cast(tf.shape(image)[1], tf.float32) > _LARGE_VALUES / 3
    return tf.cond(
        large, lambda: _sample_large(image, size, scale, translation), lambda: _rows_first(image, size, scale, translation)
    )


@apart
def _sample_large(image: tf.Tensor, size: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    high, wide, new_high, new_wide = (tf.cast(side, tf.int64) for side in (*tf.unstack(tf.shape(image)[:2]), *size))
    values, largest = 3 * new_high * wide, 3 * tf.maximum(high * wide, new_high * new_wide)
    strip = (values > tf.maximum(2 * largest, _LARGE_VALUES)) | (values > tf.maximum(largest // 4, _HUGE_VALUES))
    columns_first = strip & (values > 3 * high * new_wide)
    return tf.cond(
        columns_first,
        lambda: _columns_first(image, size, scale, translation),
        lambda: _rows_first(image, size, scale, translation),
    )


def _rows_first(image: tf.Tensor, size: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    (height, width), columns = size, tf.shape(image)[1]
    rows = _sample_rows(tf.reshape(image, [-1, columns * 3]), height, scale[0], translation[0])
    turned = _transposed(tf.reshape(rows, [height, columns, 3]), [1, 2, 0])
    turned = _sample_rows(tf.reshape(turned, [columns, 3 * height]), width, scale[1], translation[1])
    return _transposed(tf.reshape(turned, [width, 3, height]), [2, 0, 1])


def _columns_first(image: tf.Tensor, size: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    (height, width), rows, columns = size, tf.shape(image)[0], tf.shape(image)[1]
    turned = tf.reshape(tf.transpose(image, [1, 2, 0]), [columns, 3 * rows])
    turned = _sample_rows(turned, width, scale[1], translation[1])
    shrunk = tf.reshape(_transposed(tf.reshape(turned, [width, 3, rows]), [2, 0, 1]), [rows, width * 3])
    return tf.reshape(_sample_rows(shrunk, height, scale[0], translation[0]), [height, width, 3])


def _transposed(values: tf.Tensor, order: list[int]) -> tf.Tensor:
    # As integers: oneDNN, which transposes floats, wakes all threads for it, also those that decode
    # other images.
    return tf.bitcast(tf.transpose(tf.bitcast(values, tf.int32), order), tf.float32)


def _sample_rows(rows: tf.Tensor, count: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    # The row's values are the channels of an image one pixel high: then the op distributes nothing
    # among the threads, which decode other images. But it makes a float32 copy of the whole, so a
    # large image is made one pixel wide instead. (Reshaped: slices would be copied.)
    length = tf.shape(rows)[1]

    def sampled(shape: list[Any], axis: int) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=tf.reshape(rows, shape),
            size=[1, count] if axis else [count, 1],
            scale=tf.stack([1.0, scale] if axis else [scale, 1.0]),
            translation=tf.stack([0.0, translation] if axis else [translation, 0.0]),
            kernel_type="triangle",
            antialias=True,
        )

    large = tf.size(rows) > _LARGE_VALUES
    result = tf.cond(large, lambda: sampled([1, -1, 1, length], 0), lambda: sampled([1, 1, -1, length], 1))
    return tf.reshape(result, [count, length])


def scaled_size(source: tf.Tensor, target: tf.Tensor, mode: Resize) -> tf.Tensor:
    """Returns the size of a scaled image before it is cut or padded, int32 [..., 2]."""
    if mode == "stretch":
        return tf.broadcast_to(target, tf.shape(source))
    height, width = tf.unstack(tf.cast(source, tf.int64), axis=-1)
    new_height, new_width = tf.unstack(tf.cast(target, tf.int64), axis=-1)
    # In integers, half rounded up: no float decides which pixel an image ends at.
    wide = tf.stack([new_height + tf.zeros_like(width), (2 * width * new_height + height) // (2 * height)], axis=-1)
    high = tf.stack([(2 * height * new_width + width) // (2 * width), new_width + tf.zeros_like(width)], axis=-1)
    wider = (width * new_height >= height * new_width)[..., tf.newaxis]
    scaled = tf.where(wider if mode == "crop" else ~wider, wide, high)
    return tf.cast(tf.maximum(scaled, 1), tf.int32)
