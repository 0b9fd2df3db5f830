"""Augmentation that can be replayed: it is a function of (seed, epoch, key) alone.

    augmentation = Augmentation.named("standard")
    image = augment_image(image, (224, 224), augmentation, key="cat/1.jpg", seed=0, epoch=3)

Only the crop is decoded. Brightness, contrast, saturation, hue and greyscale are one affine map of
each pixel's colour, applied with the flip to a whole batch by one compiled loop.

Two programs, for one image and for a batch, must agree in every bit, so that an image can be
replayed. Random strengths are computed in float64 and rounded (the last bit of exp, cos or sqrt
depends on a value's place in its batch: in a vector register or not). Coefficients are whole
numbers of 1/4096, so that float32 holds each of their sums exactly, in any order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import arguments, seeds
from tfpipe.images import sampling
from tfpipe.images.decoding import Resize, as_tensor, check_mode
from tfpipe.images.placement import on_cpu
from tfpipe.pipeline.counter_rng import draw, hash_keys
from tfpipe.pipeline.presets import PRESETS as PRESETS
from tfpipe.pipeline.presets import Augmentation as Augmentation

Tensors = dict[str, tf.Tensor]

_CROP_TRIES = 10  # as torchvision's RandomResizedCrop
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), 3.3  # Zhong et al., Random Erasing Data Augmentation, AAAI 2020
_ERASED_LEVELS = (124, 116, 104)  # the mean pixel of ImageNet, as the paper fills for Re-ID

_UNIT = 4096  # of coefficients: 255 * 3 * 4 levels in this unit are below 2**24, where float32 is exact
_MEAN_SIDE = 28

# Places of the drawn numbers, one home for all: switching an operation off does not change what the
# others draw.
_DRAWS = {
    "areas": _CROP_TRIES,
    "aspects": _CROP_TRIES,
    "place": 2,
    "horizontal_flip": 1,
    "vertical_flip": 1,
    "brightness": 1,
    "contrast": 1,
    "saturation": 1,
    "hue": 1,
    "greyscale": 1,
    "rotation": 1,
    "erasing": 1,
    "erased_size": 2,
    "erased_place": 2,
}

# ITU-R BT.601 luma and the NTSC axes I and Q: hue is an angle between them, saturation the distance
# from luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


@on_cpu
def augment_image(
    image: tf.Tensor,
    size: tuple[int, int],
    augmentation: Augmentation,
    *,
    key: str | tf.Tensor,
    seed: int,
    epoch: int | tf.Tensor,
    resize: Resize = "stretch",
) -> tf.Tensor:
    """Augments one decoded image as `tfpipe.dataset(..., training=True)` does, unscaled.

    Args:
        image: uint8 [H, W, 3], upright.
        size: (height, width) of the result, or the side of a square.
        augmentation: MixUp and CutMix take a batch and are left out.
        key: string [], the record's key.
        seed: the run's seed, 0 or more.
        epoch: integer [], 0 or more.
        resize: how an image that is not cropped is resized, see `resize_image`.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: an argument is wrong.
    """
    size, seed = arguments.check(size=size, seed=seed)  # as plain integers: seeds are hashed with their type
    resize = check_mode(resize)
    image, key = as_tensor("image", image, tf.uint8, [None, None, 3]), as_tensor("key", key, tf.string, [])
    (epoch,) = [as_tensor("epoch", epoch, "integer", [])] if tf.is_tensor(epoch) else arguments.check(epoch=epoch)
    if not isinstance(augmentation, Augmentation):
        raise arguments.wrong("augmentation", "an Augmentation, see Augmentation.named", augmentation)
    keys, epochs = hash_keys(tf.reshape(key, [1])), tf.reshape(tf.cast(epoch, tf.int64), [1])
    source = tf.shape(image)[tf.newaxis, :2]
    changes = draw_changes(augmentation, size, resize, keys=keys, seed=seed, epochs=epochs, sources=source)
    changes = sampling.as_decoded(changes, tf.constant([1]), tf.constant([False]), size, scaled=False)
    first = {name: value[0] for name, value in changes.items()}
    top, left, height, width = tf.unstack(first["window"])
    sampled = sampling.sample(image[top : top + height, left : left + width], size, first)
    return finish(rotate(sampled, first)[tf.newaxis], changes)[0]


@on_cpu
def draw_changes(
    augmentation: Augmentation,
    size: tuple[int, int],
    resize: Resize,
    *,
    keys: tf.Tensor,
    seed: int,
    epochs: tf.Tensor,
    sources: tf.Tensor,
) -> Tensors:
    """Draws the changes of N images.

    Args:
        augmentation: the strengths.
        size: (height, width) of the results.
        resize: how an image that is not cropped is resized.
        keys: int64 [N], see `hash_keys`.
        seed: the run's.
        epochs: int64 [N].
        sources: int32 [N, 2], heights and widths of the upright images.

    Returns:
        "window", int32 [N, 4], and, unless images are cropped, "scale" and "translation", float32
        [N, 2]: see `tfpipe.images.sampling`. Only where the operation is on: "mirrored" and
        "upside_down", bool [N]; "colour", "mean" and "brightness", int32 [N, 3, 3], [N, 3, 3] and
        [N], in 1/4096: levels times colour, plus the image's mean colour times mean, plus
        brightness; "angle" float32 [N], radians; "erased" int32 [N, 4], top, left, bottom, right.
    """
    uniforms = tf.cast(draw(keys, seeds.derive(seed, "augment"), epochs, sum(_DRAWS.values())), tf.float64)
    drawn = dict(zip(_DRAWS, tf.split(uniforms, list(_DRAWS.values()), axis=1), strict=True))
    changes = _draw_window(augmentation, size, resize, drawn, sources)
    if augmentation.horizontal_flip:
        changes["mirrored"] = drawn["horizontal_flip"][:, 0] < augmentation.horizontal_flip
    if augmentation.vertical_flip:
        changes["upside_down"] = drawn["vertical_flip"][:, 0] < augmentation.vertical_flip
    if augmentation.colour:
        changes |= _draw_colour(augmentation, drawn)
    if augmentation.rotation:
        changes["angle"] = tf.cast(_within(drawn["rotation"], math.radians(augmentation.rotation)), tf.float32)
    if augmentation.erasing:
        changes["erased"] = _draw_erased(augmentation, size, drawn)
    return changes


def _within(uniforms: tf.Tensor, most: float) -> tf.Tensor:
    return (2.0 * uniforms[:, 0] - 1.0) * most


def _draw_window(
    augmentation: Augmentation, size: tuple[int, int], resize: Resize, drawn: Tensors, sources: tf.Tensor
) -> Tensors:
    if not augmentation.crop:
        return sampling.fit(sources, size, resize)
    heights, widths = tf.split(tf.cast(sources, tf.float64), 2, axis=1)
    areas = heights * widths * (augmentation.crop + drawn["areas"] * (1.0 - augmentation.crop))
    aspects = tf.exp((2.0 * drawn["aspects"] - 1.0) * math.log(augmentation.crop_aspect))
    tried_heights, tried_widths = tf.round(tf.sqrt(areas / aspects)), tf.round(tf.sqrt(areas * aspects))
    fits = (tried_heights >= 1) & (tried_heights <= heights) & (tried_widths >= 1) & (tried_widths <= widths)
    first = tf.argmax(fits, axis=1)[:, tf.newaxis]
    # Where none fits, the largest window in the middle whose aspect is allowed.
    found = tf.reduce_any(fits, axis=1, keepdims=True)
    whole_heights = tf.minimum(heights, tf.maximum(tf.round(widths * augmentation.crop_aspect), 1.0))
    whole_widths = tf.minimum(widths, tf.maximum(tf.round(heights * augmentation.crop_aspect), 1.0))
    windows = tf.concat(
        [
            tf.where(found, tf.gather(tried_heights, first, axis=1, batch_dims=1), whole_heights),
            tf.where(found, tf.gather(tried_widths, first, axis=1, batch_dims=1), whole_widths),
        ],
        axis=1,
    )
    room = tf.concat([heights, widths], axis=1) - windows
    corners = tf.where(found, tf.floor(drawn["place"] * (room + 1.0)), tf.floor(room / 2.0))
    return {"window": tf.cast(tf.concat([corners, windows], axis=1), tf.int32)}


def _draw_colour(augmentation: Augmentation, drawn: Tensors) -> Tensors:
    saturation = 1.0 + _within(drawn["saturation"], augmentation.saturation)
    angle = -2.0 * math.pi * _within(drawn["hue"], augmentation.hue)  # I and Q turn against the hue of HSV
    across, along = tf.cos(angle) * saturation, tf.sin(angle) * saturation
    zero, one = tf.zeros_like(across), tf.ones_like(across)
    turn = tf.reshape(tf.stack([one, zero, zero, zero, across, -along, zero, along, across], axis=1), [-1, 3, 3])
    colour = tf.constant(_RGB) @ turn @ tf.constant(_YIQ)
    grey = drawn["greyscale"][:, :, tf.newaxis] < augmentation.greyscale
    colour = tf.where(grey, tf.tile(tf.constant(_YIQ[:1]), [3, 1]), colour)
    contrast = (1.0 + _within(drawn["contrast"], augmentation.contrast))[:, tf.newaxis, tf.newaxis]
    brightness = _within(drawn["brightness"], 255.0 * augmentation.brightness)
    parts = {"colour": colour * contrast, "mean": colour * (1.0 - contrast), "brightness": brightness}
    return {name: tf.cast(tf.round(value * _UNIT), tf.int32) for name, value in parts.items()}


def _draw_erased(augmentation: Augmentation, size: tuple[int, int], drawn: Tensors) -> tf.Tensor:
    least, most = _ERASED_AREA
    areas = size[0] * size[1] * (least + drawn["erased_size"][:, :1] * (most - least))
    aspects = tf.exp((2.0 * drawn["erased_size"][:, 1:] - 1.0) * math.log(_ERASED_ASPECT))
    sides = tf.concat([tf.sqrt(areas * aspects), tf.sqrt(areas / aspects)], axis=1)
    sides = tf.clip_by_value(tf.round(sides), 1.0, tf.constant(size, tf.float64))
    corners = tf.floor(drawn["erased_place"] * (tf.constant(size, tf.float64) - sides + 1.0))
    box = tf.concat([corners, corners + sides], axis=1)
    return tf.cast(tf.where(drawn["erasing"] < augmentation.erasing, box, 0.0), tf.int32)


def rotate(image: tf.Tensor, changes: Tensors) -> tf.Tensor:
    """Rotates by the "angle" of the changes, if any, and rounds: float32 to uint8 [H, W, 3]."""
    if "angle" in changes:
        image = _rotated(image, changes["angle"])
    return tf.cast(tf.round(image), tf.uint8)


def finish(images: tf.Tensor, changes: Tensors) -> tf.Tensor:
    """Colours, flips and erases the images of a batch: uint8 [B, H, W, 3], as are the results."""
    height, width = images.shape[1:3]
    for program, names in ((_coloured, ("colour", "mean", "brightness", "mirrored")), (_covered, ("upside_down", "erased"))):
        used = {name: changes[name] for name in names if name in changes}
        if used:  # two programs: one for all takes five times as long
            images = program(images, used)
    return tf.ensure_shape(images, [None, height, width, 3])


def _colour(images: tf.Tensor, changes: Tensors) -> tf.Tensor:
    if "colour" in changes:
        colour = tf.cast(changes["colour"], tf.float32) / _UNIT
        offset = tf.cast(_offset(images, changes), tf.float32) / _UNIT
        channels = tf.unstack(tf.cast(images, tf.float32), axis=-1)  # a matrix product of three columns is slower

        def mixed(row: int) -> tf.Tensor:
            weights = [colour[:, row, column, tf.newaxis, tf.newaxis] for column in range(3)]
            products = [channel * weight for channel, weight in zip(channels, weights, strict=True)]
            return products[0] + products[1] + products[2] + offset[:, row, tf.newaxis, tf.newaxis]

        levels = tf.stack([mixed(row) for row in range(3)], axis=-1)
        images = tf.cast(tf.round(tf.clip_by_value(levels, 0.0, 255.0)), tf.uint8)
    if "mirrored" in changes:
        images = tf.where(changes["mirrored"][:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [2]), images)
    return images


def _offset(images: tf.Tensor, changes: Tensors) -> tf.Tensor:
    """Returns the offset of the levels, int32 [B, 3], in 1/4096."""
    # The mean of some 28 x 28 pixels: contrast needs no better one. In whole numbers, like all that
    # a replay must repeat.
    height, width = images.shape[1:3]
    stride = max(1, min(height, width) // _MEAN_SIDE)
    samples = tf.cast(images[:, stride // 2 :: stride, stride // 2 :: stride], tf.int64)
    count = samples.shape[1] * samples.shape[2]
    means = tf.reduce_sum(samples, axis=[1, 2]) * 256 // count
    shifted = tf.reduce_sum(tf.cast(changes["mean"], tf.int64) * means[:, tf.newaxis], axis=-1) // 256
    return tf.cast(shifted, tf.int32) + changes["brightness"][:, tf.newaxis]


def _cover(images: tf.Tensor, changes: Tensors) -> tf.Tensor:
    if "upside_down" in changes:
        images = tf.where(changes["upside_down"][:, tf.newaxis, tf.newaxis, tf.newaxis], tf.reverse(images, [1]), images)
    if "erased" in changes:
        height, width = images.shape[1:3]
        top, left, bottom, right = (side[:, tf.newaxis, tf.newaxis] for side in tf.unstack(changes["erased"], axis=1))
        rows, columns = tf.range(height)[:, tf.newaxis], tf.range(width)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        images = tf.where(inside[..., tf.newaxis], tf.constant(_ERASED_LEVELS, tf.uint8), images)
    return images


_coloured: Any = tf.function(_colour, jit_compile=True, autograph=False)
_covered: Any = tf.function(_cover, jit_compile=True, autograph=False)


def _rotated(image: tf.Tensor, angle: tf.Tensor) -> tf.Tensor:
    # About the middle, pixel centres at whole numbers; the transform maps places of the result to
    # places of the source.
    size = tf.shape(image)[:2]
    middle_y, middle_x = tf.unstack(tf.cast(size - 1, tf.float32) / 2.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    shift_x = middle_x - cosine * middle_x + sine * middle_y
    shift_y = middle_y - sine * middle_x - cosine * middle_y
    transform = tf.stack([cosine, -sine, shift_x, sine, cosine, shift_y, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]
