"""Which part of a file to decode, in which size and orientation, for a crop or a resize.

    changes = as_stored(fit(sizes, (224, 224), "crop"), sizes, orientations, (224, 224))

A crop is a window of the image; a resize also has two numbers per axis, output = scale * input +
translation. All functions but those of pixels take N images at once.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfpipe.images.decoders import decode_stored
from tfpipe.images.resizing import sample_image, scaled_size
from tfpipe.records.samples import USUAL, Resize, Samples

RATIOS = (1, 2, 4, 8)
_WHOLE = len(RATIOS)
MOST_REDUCED = 3

Tensors = dict[str, tf.Tensor]


def fit(sources: tf.Tensor, size: tuple[int, int], resize: Resize) -> Tensors:
    """Returns the sampling of `resize_image` for upright images of sizes int32 [N, 2].

    Returns:
        "scale" and "translation", float32 [N, 2]; "window", int32 [N, 4], top, left, height, width:
        nothing outside it is used.
    """
    target = tf.constant([size])
    scaled = scaled_size(sources, target, resize)
    scale = tf.cast(scaled / sources, tf.float32)
    translation = tf.cast(tf.truncatediv(target - scaled, 2), tf.float32)
    # What a window cuts off has no part in the averages at its edge, so the whole image is the
    # window, but for the pixels that no average reaches.
    reach = tf.maximum(1.0 / scale, 1.0) + 1.0
    top = tf.cast(tf.floor(-translation / scale - reach), tf.int32)
    bottom = tf.cast(tf.math.ceil((tf.cast(target, tf.float32) - translation) / scale + reach), tf.int32)
    top, bottom = tf.clip_by_value(top, 0, sources - 1), tf.clip_by_value(bottom, 1, sources)
    return {"scale": scale, "translation": translation, "window": tf.concat([top, bottom - top], axis=1)}


def sample(part: tf.Tensor, size: Any, changes: Tensors, *, large: bool = True) -> tf.Tensor:
    """Samples the window of an image: float32 [height, width, 3], 0..255, of uint8 [h, w, 3].

    Args:
        part: the window's content.
        size: (height, width) of the result, integers or int32 [].
        changes: "scale" and "translation", float32 [2], for the part; without them, all of it.
        large: whether the part may be over `MOST_REDUCED` times as high or wide as the result.
    """
    if "scale" in changes:
        return sample_image(part, size, changes["scale"], changes["translation"])
    # Two pixels by two, not averaged, where that passes over few: crops are small, and of large
    # JPEG files the decoder gives less than twice the size. Averaging takes three times as long,
    # and longer than decoding.
    if not large:
        return tf.image.resize(part, size)
    fast = tf.reduce_all(tf.shape(part)[:2] <= MOST_REDUCED * tf.stack(size))
    scale = tf.cast(tf.stack(size) / tf.shape(part)[:2], tf.float32)
    return tf.cond(fast, lambda: tf.image.resize(part, size), lambda: sample_image(part, size, scale, tf.zeros([2])))


def as_stored(changes: Tensors, sizes: tf.Tensor, orientations: tf.Tensor, size: tuple[int, int]) -> Tensors:
    """Returns the sampling of upright images for images as stored, to be turned later.

    Args:
        changes: "window" and, if any, "scale" and "translation"; others are kept.
        sizes: int32 [N, 2], heights and widths of the upright images.
        orientations: int32 [N], EXIF 1..8.
        size: (height, width) of the upright results.
    """
    orientations = orientations[:, tf.newaxis]
    # The inverse of `turn_image`: rows and columns back, then transposed.
    reversed_axes = tf.concat([(orientations - 1) % 4 >= 2, orientations % 4 >= 2], axis=1)
    turned = orientations >= 5

    def swapped(pairs: tf.Tensor) -> tf.Tensor:
        return tf.where(turned, pairs[:, ::-1], pairs)

    corners, windows = tf.split(changes["window"], 2, axis=1)
    corners = tf.where(reversed_axes, sizes - corners - windows, corners)
    stored = {**changes, "window": tf.concat([swapped(corners), swapped(windows)], axis=1)}
    if "scale" in changes:
        scale, translation = changes["scale"], changes["translation"]
        mirrored = tf.constant(size, tf.float32) - translation - scale * tf.cast(sizes, tf.float32)
        stored |= {"scale": swapped(scale), "translation": swapped(tf.where(reversed_axes, mirrored, translation))}
    return stored


def as_decoded(
    changes: Tensors, orientations: tf.Tensor, is_whole: tf.Tensor, size: tuple[int, int], *, scaled: bool
) -> Tensors:
    """Returns the sampling of images as stored for the output of `decode_window`.

    Chooses the smallest of the decoder's sizes that has, along both axes, at least as many pixels
    as the result takes from it.

    Args:
        changes: see `as_stored`.
        orientations: int32 [N], EXIF 1..8.
        is_whole: bool [N], decoded whole: not JPEG.
        size: (height, width) of the upright results.
        scaled: whether sizes other than 1/1 may be chosen.

    Returns:
        "window" in whole pixels of that size; "decoder", int32 [N], for `decode_window`; "scale" and
        "translation" for the decoded window, if any.
    """
    corners, windows = tf.split(changes["window"], 2, axis=1)
    if "scale" in changes:
        scale = changes["scale"]
    else:
        target = tf.constant([size])
        target = tf.where((orientations >= 5)[:, tf.newaxis], target[:, ::-1], target)
        scale = tf.cast(target, tf.float32) / tf.cast(windows, tf.float32)
    largest = tf.reduce_max(scale, axis=1, keepdims=True)
    ratio = tf.ones_like(corners[:, :1])
    for candidate in RATIOS[1:] if scaled else ():
        ratio = tf.where((largest * candidate <= 1.0) & ~is_whole[:, tf.newaxis], candidate, ratio)
    decoder = tf.reduce_sum(tf.cast(ratio > tf.constant([RATIOS[:-1]]), tf.int32), axis=1)
    decoded = {**changes, "decoder": tf.where(is_whole, _WHOLE, decoder)}
    ends = corners + windows
    if "scale" in changes:
        first, last = corners // ratio, -(-ends // ratio)  # all that the window touches; the decoder rounds its size up, too
        scale = scale * tf.cast(ratio, tf.float32)
        decoded |= {"scale": scale, "translation": changes["translation"] + scale * tf.cast(first, tf.float32)}
    else:
        first, last = (corners + ratio // 2) // ratio, (ends + ratio // 2) // ratio
    return {**decoded, "window": tf.concat([first, last - first], axis=1)}


def decode_window(
    encoded: tf.Tensor,
    window: tf.Tensor,
    decoder: tf.Tensor,
    samples: Samples = USUAL,
    *,
    scaled: bool,
    png: bool = True,
    rare: bool = True,
    others: bool = True,
) -> tf.Tensor:
    """Decodes part of an image file, as stored, in a size of the decoder: uint8 [h, w, 3].

    Args:
        encoded: string [], the bytes of the file.
        window: int32 [4], top, left, height, width in pixels of that size.
        decoder: int32 [], of `as_decoded`.
        samples: see `decode_stored`.
        scaled: whether `decoder` may be another size than 1/1.
        png: whether the file may be PNG.
        rare: see `decode_stored`.
        others: whether the file may be WebP or BMP.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded, or have no such window.
    """

    def jpeg(ratio: int) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    def whole() -> tf.Tensor:
        return tf.slice(
            decode_stored(encoded, samples, rare=rare, others=others), [window[0], window[1], 0], [window[2], window[3], 3]
        )

    if not scaled and not png and not others:
        return jpeg(1)
    return tf.switch_case(
        decoder if scaled else decoder // _WHOLE,
        [*(functools.partial(jpeg, ratio) for ratio in (RATIOS if scaled else RATIOS[:1])), whole],
    )
