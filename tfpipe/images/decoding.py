"""From a serialised Example to a picture: functions for `Dataset.map`, each usable alone.

    features = parse_example(serialized)
    image = decode_image(features["image/encoded"], features["image/orientation"])    # uint8 [H, W, 3]
    image = resize_image(image, (224, 224), "crop")                                   # uint8 [224, 224, 3]

Pixels are those that Pillow gives: the accurate inverse DCT (TensorFlow's default is the fast one, which differs in two
values of three) and a resize that averages what it shrinks (TensorFlow's default samples, and aliases).
"""

from __future__ import annotations

import re
from typing import Any, cast

import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.images.placement import on_cpu
from tfpipe.images.stored import apart, decode_stored
from tfpipe.records import schema
from tfpipe.records.samples import RESIZES as RESIZES
from tfpipe.records.samples import USUAL, Samples
from tfpipe.records.samples import Resize as Resize

_STRINGS = (schema.ENCODED, schema.FORMAT, schema.FILENAME, schema.KEY, schema.SHA256, schema.CLASS_NAME)
_INTEGERS = (schema.HEIGHT, schema.WIDTH, schema.CHANNELS, schema.ORIENTATION, schema.LABEL)

_ABSENT = "\0absent"
_LARGE_VALUES = 4_000_000
_HUGE_VALUES = 32_000_000


@on_cpu
def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the features of one serialised `tf.train.Example` as tfpipe writes it.

    Args:
        serialized: string [].

    Returns:
        By the names of `tfpipe.records.schema` ("image/encoded", "image/class/label", ...): string [] or int64 [].

    Raises:
        tf.errors.InvalidArgumentError: not an Example, or a feature is missing or of another type.
    """
    serialized = as_tensor("serialized", serialized, tf.string, [])
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in _STRINGS}
    features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in _INTEGERS}
    parsed: dict[str, tf.Tensor] = tf.io.parse_single_example(serialized, features)
    return parsed


@on_cpu
def parse_batch(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns features of several serialised Examples at once, in a third of the time that one by one takes.

    Args:
        serialized: string [N]. An empty string, or an Example that lacks one of the features, gives an "image/encoded" that no
            decoder takes for a picture.

    Returns:
        All features that `parse_example` returns but those that only people read, string [N] or int64 [N].

    Raises:
        tf.errors.InvalidArgumentError: one is not an Example, or a feature is of another type.
    """
    strings = (schema.ENCODED, schema.FORMAT, schema.FILENAME, schema.KEY)
    integers = (schema.HEIGHT, schema.WIDTH, schema.ORIENTATION, schema.LABEL)
    features = {name: tf.io.FixedLenFeature([], tf.string, _ABSENT) for name in strings}
    features |= {name: tf.io.FixedLenFeature([], tf.int64, tf.int64.min) for name in integers}
    parsed: dict[str, tf.Tensor] = tf.io.parse_example(serialized, features)
    absent = [parsed[name] == (_ABSENT if name in strings else tf.int64.min) for name in features]
    return {**parsed, schema.ENCODED: without(tf.reduce_any(absent, axis=0), parsed[schema.ENCODED])}


def without(failed: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Returns files, string [N], with one that no decoder takes for a picture in the place of each that failed, bool [N]."""
    return tf.cond(tf.reduce_any(failed), lambda: tf.where(failed, _ABSENT, encoded), lambda: encoded)  # where copies


@on_cpu
def decode_image(encoded: tf.Tensor, orientation: tf.Tensor | int = 1, samples: Samples = USUAL) -> tf.Tensor:
    """Decodes a JPEG or PNG file to RGB, turned upright.

    Equal to Pillow's `ImageOps.exif_transpose(image).convert("RGB")`, pixel by pixel, for JPEG in colour and grey and
    for PNG of 8 bits, where `samples` lays no background behind it: alpha is dropped.

    Args:
        encoded: string [], the bytes of the file.
        orientation: integer [], EXIF 1..8; any other value is taken as 1, as viewers do. The file's own tag is
            not read.
        samples: what becomes of 16 bits and of alpha; a data set's are `Samples.of(manifest.options)`.

    Returns:
        uint8 [H, W, 3], RGB, 0..255; height and width after turning.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded.
    """
    encoded, orientation = as_tensor("encoded", encoded, tf.string, []), as_tensor("orientation", orientation, "integer", [])
    if not isinstance(samples, Samples):
        raise arguments.wrong("samples", "a tfpipe.records.samples.Samples", samples)
    image = decode_stored(encoded, samples)
    orientation = tf.cast(orientation, tf.int32)
    return tf.ensure_shape(turn_image(image, orientation), [None, None, 3])


def turn_image(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a picture upright.

    Args:
        image: any numeric type, [H, W, C].
        orientation: int32 [], EXIF 1..8; any other value turns nothing.
    """
    turned = (orientation > 1) & (orientation <= 8)
    return tf.cond(turned, lambda: _turned(image, orientation), lambda: image)  # nearly always 1: then nothing is copied


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    # Exif 2.32, tag 0x0112: 5..8 are transposed; after that, 3, 4, 7, 8 reverse the rows and 2, 3, 6, 7 the columns.
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    reversed_rows = (orientation - 1) % 4 >= 2
    reversed_columns = orientation % 4 >= 2
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([reversed_rows, reversed_columns, False]))


@on_cpu
def resize_image(image: tf.Tensor, size: tuple[int, int], mode: Resize = "stretch") -> tf.Tensor:
    """Resizes a picture, antialiased bilinear, rounded to the nearest level.

    Less than 1.5 levels from Pillow's `Image.resize(..., BILINEAR)`, which rounds twice.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the result, or the side of a square.
        mode: "stretch" fills the size, whatever becomes of the aspect ratio; "crop" brings the picture to the smallest
            size that covers it and keeps the centre; "pad" to the largest that fits, with zeros around it.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: an argument is not what it should be.
    """
    (size,), mode = arguments.check(size=size), check_mode(mode, "mode")
    image = as_tensor("image", image, tf.uint8, [None, None, 3])
    target, source = tf.constant(size), tf.shape(image)[:2]
    scaled = scaled_size(source, target, mode)
    # One sampling for all modes: the result is a window on the scaled picture, and only what it shows is computed (a
    # strip of 1 x 60,000 pixels, scaled as a whole before it is cropped, would be 13 million pixels wide).
    scale = tf.cast(scaled / source, tf.float32)
    translation = tf.cast(tf.truncatediv(target - scaled, 2), tf.float32)
    return tf.cast(tf.round(sample_image(image, size, scale, translation)), tf.uint8)


def sample_image(image: tf.Tensor, size: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    """Returns the window of a scaled picture that `size` shows, antialiased bilinear: output = scale * input + translation.

    Bit for bit what one ScaleAndTranslate of the whole picture gives, in a quarter of its time: that op is fast along
    rows that are long, and slow along pixels of three values. So each axis is made the outer one in turn.

    A long strip, of which that would make [height, W] pixels, takes its columns first, and may differ in a last bit of float32:
    the fewer of [height, W] and [H, width] pixels are never more than the greater of image and result has.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the result, integers or int32 [].
        scale: float32 [2], of height and width.
        translation: float32 [2], in pixels of the result.

    Returns:
        float32 [height, width, 3], 0..255; zeros where the window shows what is beside the picture.
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
    # As integers: oneDNN, which transposes floats, wakes all threads for it, also those that decode other pictures.
    return tf.bitcast(tf.transpose(tf.bitcast(values, tf.int32), order), tf.float32)


def _sample_rows(rows: tf.Tensor, count: Any, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    # The row's values are the channels of a picture that is one pixel high: then the op has nothing to share out among all
    # threads, also those that decode other pictures. But it makes a float32 copy of the whole: a large picture is rather
    # one pixel wide. (Reshaped: slices would be copied.)
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
    """Returns the size that a picture is scaled to before it is cut or padded.

    Args:
        source: int32 [..., 2], height and width.
        target: int32 [..., 2] of the result.
        mode: see `resize_image`.

    Returns:
        int32 [..., 2].
    """
    if mode == "stretch":
        return tf.broadcast_to(target, tf.shape(source))
    height, width = tf.unstack(tf.cast(source, tf.int64), axis=-1)
    new_height, new_width = tf.unstack(tf.cast(target, tf.int64), axis=-1)
    # In integers, half rounded up: no float decides which pixel a picture ends at.
    wide = tf.stack([new_height + tf.zeros_like(width), (2 * width * new_height + height) // (2 * height)], axis=-1)
    high = tf.stack([(2 * height * new_width + width) // (2 * width), new_width + tf.zeros_like(width)], axis=-1)
    wider = (width * new_height >= height * new_width)[..., tf.newaxis]
    scaled = tf.where(wider if mode == "crop" else ~wider, wide, high)
    return tf.cast(tf.maximum(scaled, 1), tf.int32)


def as_tensor(name: str, value: Any, dtype: Any, shape: list[int | None]) -> tf.Tensor:
    """Returns an argument as a tensor; raises ValueError unless it has this shape and type, which may be "integer"."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (ValueError, TypeError):
        tensor = None
    whole = dtype == "integer"
    if (
        tensor is not None
        and tensor.shape.is_compatible_with(shape)
        and (tensor.dtype.is_integer if whole else tensor.dtype == dtype)
    ):
        return tensor
    wanted = f"{dtype if whole else dtype.name} {'[H, W, 3]' if shape else '[]'}"
    got = value if tensor is None or not shape else f"{tensor.dtype.name} {tensor.shape}"
    raise arguments.wrong(name, wanted, got)


def check_mode(mode: Any, name: str = "resize") -> Resize:
    """Returns a resize mode; raises ValueError for anything else."""
    return cast("Resize", arguments.choice(name, mode, RESIZES))


def plain_reason(error: Exception) -> str:
    """Returns why a decoder refused a file, without the names of TensorFlow's nodes and operations."""
    # "{{function_node __wrapped__DecodeJpeg_device_...}} jpeg::Uncompress failed. ... [Op:DecodeJpeg]"
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", str(error), flags=re.DOTALL)
