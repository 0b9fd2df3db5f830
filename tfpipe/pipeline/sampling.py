"""Where the pixels of a result come from: output = scale * input + translation, and the window that must be decoded.

    sampled = sample(image, (224, 224), **crop(corner, window, (224, 224)))     # float32 [224, 224, 3]

A resize, a crop and both together are two numbers per axis. From them follows what part of a file has to be decoded, in
which of the decoder's sizes (1/1, 1/2, 1/4, 1/8), whatever the orientation. All functions of several pictures take N of
them at once: in a pipeline these few numbers are computed for a whole batch, and only pixels one by one.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from tfpipe.pipeline.decoding import Resize, sample_image, scaled_size

RATIOS = (1, 2, 4, 8)
_PNG = len(RATIOS)

Tensors = dict[str, tf.Tensor]


def crop(corners: tf.Tensor, windows: tf.Tensor, size: tuple[int, int]) -> Tensors:
    """Returns the sampling that brings windows to `size`.

    Args:
        corners: int32 [N, 2], top and left, in pixels of the upright picture.
        windows: int32 [N, 2], height and width.
        size: (height, width) of the results.

    Returns:
        "scale" and "translation", float32 [N, 2]; "window", int32 [N, 4], top, left, height, width: nothing outside it
        is looked at.
    """
    scale = tf.constant(size, tf.float32) / tf.cast(windows, tf.float32)
    translation = -tf.cast(corners, tf.float32) * scale
    return {"scale": scale, "translation": translation, "window": tf.concat([corners, windows], axis=1)}


def fit(sources: tf.Tensor, size: tuple[int, int], resize: Resize) -> Tensors:
    """Returns the sampling of `resize_image`, as `crop` does.

    Args:
        sources: int32 [N, 2], heights and widths of the upright pictures.
        size: (height, width) of the results.
        resize: "stretch", "crop" or "pad".
    """
    target = tf.constant([size])
    scaled = scaled_size(sources, target, resize)
    scale = tf.cast(scaled / sources, tf.float32)
    translation = tf.cast(tf.truncatediv(target - scaled, 2), tf.float32)
    # What a window cuts off has no part in the averages at its edge, so the whole picture is the window, but for the
    # pixels that no average reaches.
    reach = tf.maximum(1.0 / scale, 1.0) + 1.0
    top = tf.cast(tf.floor(-translation / scale - reach), tf.int32)
    bottom = tf.cast(tf.math.ceil((tf.cast(target, tf.float32) - translation) / scale + reach), tf.int32)
    top, bottom = tf.clip_by_value(top, 0, sources - 1), tf.clip_by_value(bottom, 1, sources)
    return {"scale": scale, "translation": translation, "window": tf.concat([top, bottom - top], axis=1)}


def sample(image: tf.Tensor, size: tuple[int, int], window: tf.Tensor, scale: tf.Tensor, translation: tf.Tensor) -> tf.Tensor:
    """Returns what a sampling makes of one decoded, upright picture: float32 [height, width, 3], 0..255."""
    part = image[window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
    return sample_image(part, size, scale, translation + scale * tf.cast(window[:2], tf.float32))


def as_stored(changes: Tensors, sizes: tf.Tensor, orientations: tf.Tensor, size: tuple[int, int]) -> Tensors:
    """Returns the same sampling for pictures as they are stored, giving results that are yet to be turned upright.

    Args:
        changes: "scale", "translation" and "window" for upright pictures.
        sizes: int32 [N, 2], heights and widths of the upright pictures.
        orientations: int32 [N], EXIF 1..8.
        size: (height, width) of the upright results.
    """
    orientations = orientations[:, tf.newaxis]
    # The inverse of `turn_image`: rows and columns back, then transposed.
    reversed_axes = tf.concat([(orientations - 1) % 4 >= 2, orientations % 4 >= 2], axis=1)
    scale, translation = changes["scale"], changes["translation"]
    corners, windows = tf.split(changes["window"], 2, axis=1)
    mirrored = tf.constant(size, tf.float32) - translation - scale * tf.cast(sizes, tf.float32)
    translation = tf.where(reversed_axes, mirrored, translation)
    corners = tf.where(reversed_axes, sizes - corners - windows, corners)
    turned = orientations >= 5
    scale, translation, corners, windows = (
        tf.where(turned, value[:, ::-1], value) for value in (scale, translation, corners, windows)
    )
    return {**changes, "scale": scale, "translation": translation, "window": tf.concat([corners, windows], axis=1)}


def as_decoded(changes: Tensors, is_png: tf.Tensor, *, scaled: bool) -> Tensors:
    """Returns the same sampling for pictures that the decoder has cropped and, if `scaled`, made smaller.

    The smallest of the decoder's sizes is taken that does not have to be enlarged: at least as many pixels along both axes as
    the result takes from it.

    Args:
        changes: "scale", "translation" and "window" for pictures as stored.
        is_png: bool [N], of those that are not decoded in part.
        scaled: whether sizes other than 1/1 are taken.

    Returns:
        "scale" and "translation" for what `decode_window` gives, "window" in pixels of the decoder's size, and "decoder",
        int32 [N], which `decode_window` takes.
    """
    smallest = tf.reduce_max(changes["scale"], axis=1, keepdims=True)
    ratio = tf.ones_like(smallest)
    for candidate in RATIOS[1:] if scaled else ():
        ratio = tf.where((smallest * candidate <= 1.0) & ~is_png[:, tf.newaxis], float(candidate), ratio)
    corners, windows = tf.split(tf.cast(changes["window"], tf.float32), 2, axis=1)
    first = tf.floor(corners / ratio)
    last = tf.math.ceil((corners + windows) / ratio)  # never beyond the decoder's own size, which is rounded up too
    scale = changes["scale"] * ratio
    window = tf.cast(tf.concat([first, last - first], axis=1), tf.int32)
    index = tf.cast(tf.round(tf.math.log(ratio[:, 0]) / tf.math.log(2.0)), tf.int32)
    decoder = tf.where(is_png, _PNG, index)
    translation = changes["translation"] + scale * first
    return {**changes, "scale": scale, "translation": translation, "window": window, "decoder": decoder}


def decode_window(encoded: tf.Tensor, window: tf.Tensor, decoder: tf.Tensor, *, scaled: bool) -> tf.Tensor:
    """Decodes a part of a picture, as stored, in one of the decoder's sizes.

    Args:
        encoded: string [], the bytes of a JPEG or PNG file.
        window: int32 [4], top, left, height, width in pixels of that size.
        decoder: int32 [], what `as_decoded` says.
        scaled: whether sizes other than 1/1 may be asked for.

    Returns:
        uint8 [h, w, 3], RGB, 0..255, not turned.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded, or have no such window.
    """

    def jpeg(ratio: int) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    def png() -> tf.Tensor:
        return tf.slice(tf.io.decode_png(encoded, channels=3), [window[0], window[1], 0], [window[2], window[3], 3])

    if not scaled:
        return tf.cond(decoder == _PNG, png, lambda: jpeg(1))
    return tf.switch_case(decoder, [*(functools.partial(jpeg, ratio) for ratio in RATIOS), png])
