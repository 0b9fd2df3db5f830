"""Augmentation that can be replayed: what happens to a picture is a function of (seed, epoch, key) alone.

    augmentation = Augmentation.named("standard")
    image = augment_image(image, (224, 224), augmentation, key="cat/1.jpg", seed=0, epoch=3)

Crop, resize and flip are one sampling of the decoded picture; brightness, contrast, saturation, hue and greyscale are one
affine map of each pixel's colour, computed together with rounding, flips and erasing by one compiled loop.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfpipe.pipeline import sampling
from tfpipe.pipeline.decoding import Resize
from tfpipe.pipeline.draws import draw, hash_keys
from tfpipe.records import seeds

Tensors = dict[str, tf.Tensor]

_CROP_TRIES = 10  # as torchvision's RandomResizedCrop
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), 3.3  # Zhong et al., Random Erasing Data Augmentation, AAAI 2020
_ERASED_LEVELS = (124.0, 116.0, 104.0)  # the mean pixel of ImageNet, as the paper fills for Re-ID

# Places of the drawn numbers, one home for all: switching an operation off does not change what the others draw.
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

# ITU-R BT.601 luma and the NTSC axes I and Q: hue is an angle between them, saturation the distance from luma.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly pictures are changed at random; 0 switches an operation off.

    Attributes:
        crop: least share of the picture's area that is cut out, the share being uniform in [crop, 1]; 0 takes the whole.
        crop_aspect: the aspect ratio of what is cut out lies in [1 / crop_aspect, crop_aspect], uniform in its logarithm.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: share of full scale that is added to or taken from all levels, at most.
        contrast: distances from the picture's mean colour are multiplied by 1 - contrast to 1 + contrast.
        saturation: distances from grey are multiplied by 1 - saturation to 1 + saturation.
        hue: colours are turned by at most this share of the colour circle, either way.
        greyscale: probability.
        rotation: degrees, at most, either way; the corners are filled with a reflection.
        erasing: probability that a rectangle (2 % to 33 % of the area, aspect 0.3 to 3.3) is made grey.
        mixup: alpha of the Beta distribution of the weights with which the pictures of a batch are added in pairs
            (Zhang et al., mixup, ICLR 2018). Labels become probabilities.
        cutmix: the same for the area of a rectangle that is taken from the other picture (Yun et al., CutMix, ICCV 2019).
            With both, each batch has one of them, at even odds.

    Raises:
        ValueError: a strength is out of range.

    >>> dataclasses.replace(Augmentation.named("standard"), horizontal_flip=0)    # for digits, text, X-rays, hand signs
    """

    crop: float = 0.0
    crop_aspect: float = 4 / 3
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    greyscale: float = 0.0
    rotation: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    _MOST: ClassVar[dict[str, float]] = {"crop_aspect": 100, "hue": 0.5, "rotation": 45, "mixup": 100, "cutmix": 100}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, most = getattr(self, field.name), self._MOST.get(field.name, 1)
            least = 1 if field.name == "crop_aspect" else 0
            number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not number or not least <= value <= most:
                raise ValueError(f"{field.name} must be a number between {least} and {most} (got {value!r})")

    @classmethod
    def named(cls, preset: str) -> Augmentation:
        """Returns one of the presets: none, light, standard, strong.

        `standard` is the random crop of Szegedy et al. (Going Deeper with Convolutions, CVPR 2015) with a flip and moderate
        colour changes; `light` keeps at least half of the picture and its colours nearly; `strong` adds greyscale,
        rotation and erasing.

        Raises:
            ValueError: there is none of that name.
        """
        if preset not in PRESETS:
            raise ValueError(f"augment must be an Augmentation or one of {', '.join(PRESETS)} (got {preset!r})")
        return PRESETS[preset]

    @property
    def colour(self) -> bool:
        """Whether colours are changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.greyscale))

    @property
    def mixes(self) -> bool:
        """Whether pictures of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


_STANDARD = Augmentation(crop=0.08, horizontal_flip=0.5, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.2)
PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(crop=0.5, horizontal_flip=0.5, brightness=0.05, contrast=0.1, saturation=0.1),
    "standard": _STANDARD,
    "strong": dataclasses.replace(_STANDARD, brightness=0.25, greyscale=0.1, rotation=15, erasing=0.25),
}


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
    """Augments one decoded picture, as `tfpipe.dataset(..., training=True)` does without scaled decoding.

    Args:
        image: uint8 [H, W, 3], upright.
        size: (height, width) of the result.
        augmentation: what to do. MixUp and CutMix take a batch and are left out.
        key: string [], the record's key.
        seed: the run's seed.
        epoch: integer [], 0 or more.
        resize: how the picture, if it is not cropped, is brought to `size`, see `resize_image`.

    Returns:
        uint8 [height, width, 3].
    """
    keys, epochs = hash_keys(tf.reshape(key, [1])), tf.reshape(tf.cast(epoch, tf.int64), [1])
    source = tf.shape(image)[tf.newaxis, :2]
    changes = draw_changes(augmentation, size, resize, keys=keys, seed=seed, epochs=epochs, sources=source)
    changes = {name: value[0] for name, value in changes.items()}
    sampled = sampling.sample(image, size, changes.pop("window"), changes["scale"], changes["translation"])
    return finish(augmentation, size)(sampled, changes)


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
    """Draws what is done to each of some pictures.

    Args:
        augmentation: the strengths.
        size: (height, width) of the results.
        resize: how a picture that is not cropped is brought to `size`.
        keys: int64 [N], see `hash_keys`.
        seed: the run's.
        epochs: int64 [N].
        sources: int32 [N, 2], heights and widths of the upright pictures.

    Returns:
        "scale" and "translation", float32 [N, 2], and "window", int32 [N, 4]: see `tfpipe.pipeline.sampling`.
        "flips" bool [N, 2], vertical and horizontal. Only where the operation is on: "colour", float32 [N, 3, 3] that
        levels are multiplied with, and "gains", float32 [N, 2], contrast and brightness; "angle" float32 [N], radians;
        "erased" int32 [N, 4], top, left, bottom, right.
    """
    uniforms = draw(keys, seeds.derive(seed, "augment"), epochs, sum(_DRAWS.values()))
    drawn = dict(zip(_DRAWS, tf.split(uniforms, list(_DRAWS.values()), axis=1), strict=True))
    changes = _draw_window(augmentation, size, resize, drawn, sources)
    changes["flips"] = tf.concat(
        [drawn["vertical_flip"] < augmentation.vertical_flip, drawn["horizontal_flip"] < augmentation.horizontal_flip], 1
    )
    if augmentation.colour:
        changes |= _draw_colour(augmentation, drawn)
    if augmentation.rotation:
        changes["angle"] = _within(drawn["rotation"], math.radians(augmentation.rotation))
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
    heights, widths = tf.split(tf.cast(sources, tf.float32), 2, axis=1)
    areas = heights * widths * (augmentation.crop + drawn["areas"] * (1.0 - augmentation.crop))
    aspects = tf.exp((2.0 * drawn["aspects"] - 1.0) * math.log(augmentation.crop_aspect))
    tried_heights, tried_widths = tf.round(tf.sqrt(areas / aspects)), tf.round(tf.sqrt(areas * aspects))
    fits = (tried_heights >= 1) & (tried_heights <= heights) & (tried_widths >= 1) & (tried_widths <= widths)
    first = tf.argmax(fits, axis=1)[:, tf.newaxis]
    # Where none fits, the largest window in the middle whose aspect is allowed.
    found = tf.reduce_any(fits, axis=1, keepdims=True)
    whole_heights = tf.minimum(heights, tf.maximum(1.0, tf.round(widths * augmentation.crop_aspect)))
    whole_widths = tf.minimum(widths, tf.maximum(1.0, tf.round(heights * augmentation.crop_aspect)))
    windows = tf.concat(
        [
            tf.where(found, tf.gather(tried_heights, first, axis=1, batch_dims=1), whole_heights),
            tf.where(found, tf.gather(tried_widths, first, axis=1, batch_dims=1), whole_widths),
        ],
        axis=1,
    )
    room = tf.concat([heights, widths], axis=1) - windows
    corners = tf.where(found, tf.floor(drawn["place"] * (room + 1.0)), tf.floor(room / 2.0))
    return sampling.crop(tf.cast(corners, tf.int32), tf.cast(windows, tf.int32), size)


def _draw_colour(augmentation: Augmentation, drawn: Tensors) -> Tensors:
    saturation = 1.0 + _within(drawn["saturation"], augmentation.saturation)
    angle = -2.0 * math.pi * _within(drawn["hue"], augmentation.hue)  # I and Q turn against the hue of HSV
    across, along = tf.cos(angle) * saturation, tf.sin(angle) * saturation
    zero, one = tf.zeros_like(across), tf.ones_like(across)
    turn = tf.reshape(tf.stack([one, zero, zero, zero, across, -along, zero, along, across], axis=1), [-1, 3, 3])
    colour = tf.constant(_RGB, tf.float32) @ turn @ tf.constant(_YIQ, tf.float32)
    grey = drawn["greyscale"][:, :, tf.newaxis] < augmentation.greyscale
    colour = tf.where(grey, tf.tile(tf.constant(_YIQ[:1], tf.float32), [3, 1]), colour)
    contrast = 1.0 + _within(drawn["contrast"], augmentation.contrast)
    brightness = _within(drawn["brightness"], 255.0 * augmentation.brightness)
    return {"colour": colour, "gains": tf.stack([contrast, brightness], axis=1)}


def _draw_erased(augmentation: Augmentation, size: tuple[int, int], drawn: Tensors) -> tf.Tensor:
    least, most = _ERASED_AREA
    areas = size[0] * size[1] * (least + drawn["erased_size"][:, :1] * (most - least))
    aspects = tf.exp((2.0 * drawn["erased_size"][:, 1:] - 1.0) * math.log(_ERASED_ASPECT))
    sides = tf.concat([tf.sqrt(areas * aspects), tf.sqrt(areas / aspects)], axis=1)
    sides = tf.clip_by_value(tf.round(sides), 1.0, tf.constant(size, tf.float32))
    corners = tf.floor(drawn["erased_place"] * (tf.constant(size, tf.float32) - sides + 1.0))
    box = tf.concat([corners, corners + sides], axis=1)
    return tf.cast(tf.where(drawn["erasing"] < augmentation.erasing, box, 0.0), tf.int32)


def finish(augmentation: Augmentation, size: tuple[int, int]) -> Any:
    """Returns the function (sampled float32 [height, width, 3], changes of one picture) -> uint8 [height, width, 3]."""
    compiled = _compiled(size)

    def finished(sampled: tf.Tensor, changes: Tensors) -> tf.Tensor:
        if augmentation.rotation:
            sampled = _rotated(sampled, changes["angle"])
        used = {name: changes[name] for name in ("flips", "colour", "gains", "erased") if name in changes}
        return tf.ensure_shape(compiled(sampled, used), [*size, 3])

    return finished


@functools.cache
def _compiled(size: tuple[int, int]) -> Any:
    # One loop over the pixels instead of about ten: the colours of a picture cost a third of what four separate matrix
    # products and clips do. Compiled once per size and set of operations.
    del size  # the key: a tf.function keeps the programs of all shapes that it has seen

    @tf.function(jit_compile=True, autograph=False)
    def pixels(sampled: tf.Tensor, changes: Tensors) -> tf.Tensor:
        height, width, _ = sampled.shape
        if "colour" in changes:
            mean = tf.reduce_mean(sampled, axis=[0, 1])
            sampled = (sampled - mean) * changes["gains"][0] + mean
            red, green, blue = tf.unstack(sampled, axis=-1)  # a matrix product of three columns is slower
            colour = changes["colour"]
            mixed = [red * colour[i, 0] + green * colour[i, 1] + blue * colour[i, 2] for i in range(3)]
            sampled = tf.stack(mixed, axis=-1) + changes["gains"][1]
        levels = tf.round(tf.clip_by_value(sampled, 0.0, 255.0))
        levels = tf.where(changes["flips"][0], tf.reverse(levels, [0]), levels)
        levels = tf.where(changes["flips"][1], tf.reverse(levels, [1]), levels)
        if "erased" in changes:
            top, left, bottom, right = tf.unstack(changes["erased"])
            rows, columns = tf.range(height)[:, tf.newaxis], tf.range(width)[tf.newaxis]
            inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
            levels = tf.where(inside[..., tf.newaxis], tf.constant(_ERASED_LEVELS), levels)
        return tf.cast(levels, tf.uint8)

    return pixels


def _rotated(image: tf.Tensor, angle: tf.Tensor) -> tf.Tensor:
    # About the middle, pixel centres at whole numbers; the transform maps places of the result to places of the source.
    middle_y, middle_x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    cosine, sine = tf.cos(angle), tf.sin(angle)
    shift_x = middle_x - cosine * middle_x + sine * middle_y
    shift_y = middle_y - sine * middle_x - cosine * middle_y
    transform = tf.stack([cosine, -sine, shift_x, sine, cosine, shift_y, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]
