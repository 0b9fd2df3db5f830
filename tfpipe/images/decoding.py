"""From a serialised Example or a file's bytes to the image: functions for `Dataset.map`.

    features = parse_example(serialized)
    image = decode_image(features["image/encoded"], features["image/orientation"])  # uint8 [H, W, 3]
    image = resize_image(image, (224, 224), "crop")                              # uint8 [224, 224, 3]
    images, valid = decode_batch(files, (224, 224), "crop", max_pixels)    # in a graph to be saved

Pixels are Pillow's: the accurate inverse DCT (TensorFlow's default is the fast one, which differs
in two values of three) and a resize that averages when it shrinks (TensorFlow's default aliases).
"""

from __future__ import annotations

import re
from typing import Any, cast

import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.images import graph_headers, headers
from tfpipe.images.decoders import decode_stored
from tfpipe.images.placement import on_cpu
from tfpipe.images.resizing import sample_image, scaled_size
from tfpipe.records import schema
from tfpipe.records.manifest import MULTILABEL, REGRESSION, SINGLE, TASKS
from tfpipe.records.samples import RESIZES as RESIZES
from tfpipe.records.samples import USUAL, Samples
from tfpipe.records.samples import Resize as Resize

_STRINGS = (schema.ENCODED, schema.FORMAT, schema.FILENAME, schema.KEY, schema.SHA256, schema.CLASS_NAME)
_INTEGERS = (schema.HEIGHT, schema.WIDTH, schema.CHANNELS, schema.ORIENTATION, schema.LABEL)
_ABSENT = "\0absent"

# Not AUTOTUNE, which means all cores: each image decoded in parallel can cost 1.6 GB at the default
# limit (9 bytes per pixel of a progressive JPEG), and a server handles several requests at once
# anyway.
_PARALLEL_CALLS = 2


@on_cpu
def parse_example(serialized: tf.Tensor, task: str = SINGLE) -> dict[str, tf.Tensor]:
    """Returns the features of one serialised `tf.train.Example` as tfpipe writes it.

    Args:
        serialized: string [].
        task: of the data set, see `Manifest`.

    Returns:
        By the names of `tfpipe.records.schema` ("image/encoded", "image/class/label", ...): string
        [] or int64 []. Of "multilabel", "image/class/label" and "image/class/unknown" are int64 [L]. Of
        "regression", "image/target" is float32 [D] in place of a label, and [0] in an unlabelled split.

    Raises:
        tf.errors.InvalidArgumentError: not an Example, or a feature is missing or of another type.
    """
    serialized = as_tensor("serialized", serialized, tf.string, [])
    arguments.choice("task", task, TASKS)
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in _STRINGS}
    features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in _INTEGERS}
    if task == MULTILABEL:
        features |= {name: tf.io.RaggedFeature(tf.int64) for name in (schema.LABEL, schema.UNKNOWN)}
        features[schema.COMBINATION] = tf.io.FixedLenFeature([], tf.int64)
    if task == REGRESSION:
        features[schema.TARGET_ROW] = features.pop(schema.LABEL)
        features[schema.TARGET] = tf.io.RaggedFeature(tf.float32)
    parsed: dict[str, tf.Tensor] = tf.io.parse_single_example(serialized, features)
    return parsed


@on_cpu
def parse_batch(serialized: tf.Tensor, label: str = schema.LABEL) -> dict[str, tf.Tensor]:
    """Returns the features that reading needs of serialised Examples, string [N]; 3 times faster.

    `label` is the name of the feature that is one label.

    An empty string, or an Example that lacks a feature, gives an undecodable "image/encoded".

    Raises:
        tf.errors.InvalidArgumentError: one is not an Example, or a feature is of another type.
    """
    strings = (schema.ENCODED, schema.FORMAT, schema.FILENAME, schema.KEY)
    integers = (schema.HEIGHT, schema.WIDTH, schema.ORIENTATION, label)
    features = {name: tf.io.FixedLenFeature([], tf.string, _ABSENT) for name in strings}
    features |= {name: tf.io.FixedLenFeature([], tf.int64, tf.int64.min) for name in integers}
    parsed: dict[str, tf.Tensor] = tf.io.parse_example(serialized, features)
    absent = [parsed[name] == (_ABSENT if name in strings else tf.int64.min) for name in features]
    return {**parsed, schema.ENCODED: without(tf.reduce_any(absent, axis=0), parsed[schema.ENCODED])}


def without(failed: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Returns files, string [N], with undecodable bytes in place of each that failed, bool [N]."""
    return tf.cond(tf.reduce_any(failed), lambda: tf.where(failed, _ABSENT, encoded), lambda: encoded)  # where copies


@on_cpu
def decode_image(encoded: tf.Tensor, orientation: tf.Tensor | int = 1, samples: Samples = USUAL) -> tf.Tensor:
    """Decodes a JPEG, PNG, WebP or BMP file to RGB, turned upright.

    Equal to Pillow's `ImageOps.exif_transpose(image).convert("RGB")`, pixel by pixel, for JPEG in
    colour and grey, for PNG of 8 bits, WebP and BMP, unless `samples` lays a background under it: alpha is
    dropped.

    Args:
        encoded: string [], the bytes of the file.
        orientation: integer [], EXIF 1..8; any other value is taken as 1, as viewers do. The file's
            own tag is not read.
        samples: treatment of 16 bits and alpha; a data set's is `Samples.of(manifest.options)`.

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
    """Turns an image, [H, W, C] of any type, upright by its EXIF orientation, int32 []."""
    turned = (orientation > 1) & (orientation <= 8)
    return tf.cond(turned, lambda: _turned(image, orientation), lambda: image)  # nearly always 1: then nothing is copied


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    # Exif 2.32, tag 0x0112: 5..8 are transposed; after that, 3, 4, 7, 8 reverse the rows and 2, 3,
    # 6, 7 the columns.
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    reversed_rows = (orientation - 1) % 4 >= 2
    reversed_columns = orientation % 4 >= 2
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([reversed_rows, reversed_columns, False]))


@on_cpu
def resize_image(image: tf.Tensor, size: tuple[int, int], mode: Resize = "stretch") -> tf.Tensor:
    """Resizes an image, antialiased bilinear, rounded to the nearest level.

    Less than 1.5 levels from Pillow's `Image.resize(..., BILINEAR)`, which rounds twice.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the result, or the side of a square.
        mode: "stretch" fills the size and may change the aspect ratio; "crop" scales the image to
            the smallest size that covers it and keeps the centre; "pad" to the largest that fits,
            with zeros around it.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: an argument is wrong.
    """
    (size,), mode = arguments.check(size=size), check_mode(mode, "mode")
    image = as_tensor("image", image, tf.uint8, [None, None, 3])
    target, source = tf.constant(size), tf.shape(image)[:2]
    scaled = scaled_size(source, target, mode)
    # One sampling for all modes: the result is a window on the scaled image, and only what it shows
    # is computed (a strip of 1 x 60,000 pixels, scaled as a whole before it is cropped, would be 13
    # million pixels wide).
    scale = tf.cast(scaled / source, tf.float32)
    translation = tf.cast(tf.truncatediv(target - scaled, 2), tf.float32)
    return tf.cast(tf.round(sample_image(image, size, scale, translation)), tf.uint8)


@on_cpu
def decode_and_resize(
    encoded: tf.Tensor,
    orientation: tf.Tensor,
    size: tuple[int, int],
    mode: Resize = "stretch",
    samples: Samples = USUAL,
    *,
    rare: bool = True,
    others: bool = True,
) -> tf.Tensor:
    """Returns what evaluation, prediction and exports give a model: decoded, turned, resized.

    Args:
        encoded: string [], the bytes of an image file.
        orientation: integer [], EXIF 1..8.
        size: see `resize_image`.
        mode: see `resize_image`.
        samples: see `decode_image`.
        rare: see `decode_stored`.
        others: see `decode_stored`.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded.
    """
    image = turn_image(decode_stored(encoded, samples, rare=rare, others=others), tf.cast(orientation, tf.int32))
    return resize_image(image, size, mode)


def decode_file(
    encoded: tf.Tensor, image_size: tuple[int, int], resize: Resize, max_pixels: int, samples: Samples = USUAL
) -> tf.Tensor:
    """Does the same by the file's own orientation, and rejects what the audit of headers rejects.

    Truncated files are rejected: the decoder's repair (try_recover_truncated) loops for ever on the
    bytes ff d8 ff.
    """
    header = graph_headers.read_header(encoded)
    accepted = header.readable & (header.height * header.width <= min(max_pixels, headers.TENSORFLOW_MAX_PIXELS))
    # Not an assertion: nothing but the data ties the decoder to the check, so no pruning of a graph
    # can part them.
    decodable = tf.cond(accepted, lambda: encoded, lambda: tf.constant(b""))
    return decode_and_resize(decodable, header.orientation, image_size, resize, samples)


@on_cpu
def decode_batch(
    encoded: tf.Tensor, image_size: tuple[int, int], resize: Resize, max_pixels: int, samples: Samples = USUAL
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes files, string [B], each as `decode_file` does; a bad one does not affect the others.

    Uses TensorFlow's own operations alone, so a saved graph runs where tfpipe is not installed.
    Memory is that of the result, twice, and of two images being decoded: at most 9 bytes times
    `max_pixels` each, or up to 16 for a PNG with unusual treatment of 16 bits or alpha.

    Returns:
        uint8 [B, height, width, 3], zeros for bad files, and bool [B], whether the file was decoded.
    """
    count = tf.size(encoded, tf.int64)

    def decode(index: tf.Tensor, one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index, decode_file(one, image_size, resize, max_pixels, samples)

    data = tf.data.Dataset.from_tensor_slices(encoded).enumerate()
    decode = tf.autograph.experimental.do_not_convert(decode)  # there is nothing to convert; looking for it takes seconds
    data = data.map(decode, num_parallel_calls=_PARALLEL_CALLS, deterministic=True).ignore_errors()
    # A last element that is always there, because an empty dataset gives no batch.
    data = data.concatenate(tf.data.Dataset.from_tensors((count, tf.zeros([*image_size, 3], tf.uint8))))
    indices, images = data.batch(count + 1).get_single_element()
    shape = tf.concat([[count + 1], tf.constant([*image_size, 3], tf.int64)], 0)
    images = tf.scatter_nd(indices[:, tf.newaxis], images, shape)[:-1]
    valid = tf.scatter_nd(indices[:, tf.newaxis], tf.ones_like(indices, tf.bool), [count + 1])[:-1]
    return tf.ensure_shape(images, [None, *image_size, 3]), valid


def as_tensor(name: str, value: Any, dtype: Any, shape: list[int | None]) -> tf.Tensor:
    """Returns an argument as a tensor; raises ValueError for another shape or type."""
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
    """Returns a decoder's error without the names of TensorFlow's nodes and operations."""
    # "{{function_node __wrapped__DecodeJpeg_device_...}} jpeg::Uncompress failed. ...
    # [Op:DecodeJpeg]"
    return re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", str(error), flags=re.DOTALL)
