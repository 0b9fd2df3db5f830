"""MixUp and CutMix of a batch: functions of (seed, epoch, step), for any division among readers.

images, labels = mix(
images, labels, others, other_labels, mixup=0.2, cutmix=1, seed=0, epoch=3, step=17
)
"""

from __future__ import annotations

import tensorflow as tf

from tfpipe.common import seeds
from tfpipe.pipeline.counter_rng import draw, draw_words

_LEAST = 1e-300


def mix(
    images: tf.Tensor,
    labels: tf.Tensor,
    other_images: tf.Tensor,
    other_labels: tf.Tensor,
    *,
    mixup: float,
    cutmix: float,
    seed: int,
    epoch: tf.Tensor,
    step: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image of a batch with another one, all by the same share.

    Args:
        images: uint8 [B, H, W, 3].
        labels: float32 [B, C], probabilities.
        other_images: uint8 [B, H, W, 3], to mix in.
        other_labels: float32 [B, C].
        mixup: alpha of the Beta distribution of the weights, 0 for never.
        cutmix: the same for the areas. With both, one of them at even odds.
        seed: the run's.
        epoch: int64 [].
        step: int64 [], in its epoch.

    Returns:
        uint8 [B, H, W, 3] and float32 [B, C].
    """
    epochs, steps = tf.reshape(epoch, [1]), tf.reshape(step, [1])
    choice, centre_y, centre_x = tf.unstack(draw(steps, seeds.derive(seed, "mix"), epochs, 3)[0])
    words = tf.bitcast(draw_words(steps, seeds.derive(seed, "beta"), epochs, 4)[0], tf.int32)

    def added() -> tuple[tf.Tensor, tf.Tensor]:
        share = _beta(mixup, words)
        pixels = tf.cast(images, tf.float32) * share + tf.cast(other_images, tf.float32) * (1.0 - share)
        return tf.cast(tf.round(pixels), tf.uint8), share

    def pasted() -> tuple[tf.Tensor, tf.Tensor]:
        height, width = images.shape[1:3]
        side = tf.sqrt(1.0 - _beta(cutmix, words))
        top, bottom = _span(centre_y, side, height)
        left, right = _span(centre_x, side, width)
        rows, columns = tf.range(height)[:, tf.newaxis], tf.range(width)[tf.newaxis]
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        share = 1.0 - tf.cast((bottom - top) * (right - left), tf.float32) / (height * width)  # of what was really cut
        return tf.where(inside[..., tf.newaxis], other_images, images), share

    if mixup and cutmix:
        pixels, share = tf.cond(choice < 0.5, added, pasted)
    else:
        pixels, share = added() if mixup else pasted()
    return pixels, labels * share + other_labels * (1.0 - share)


def _beta(alpha: float, words: tf.Tensor) -> tf.Tensor:
    first, second = (tf.random.stateless_gamma([], seed=seed, alpha=alpha, dtype=tf.float64) for seed in (words[:2], words[2:]))
    # With a small alpha both can be too small for a number and come as the smallest there is; then
    # nothing is mixed.
    share = tf.where(first + second > _LEAST, first / (first + second), 1.0)
    return tf.cast(share, tf.float32)


def _span(centre: tf.Tensor, side: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
    middle, half = tf.floor(centre * length), tf.floor(side * length) // 2
    ends = tf.clip_by_value(tf.stack([middle - half, middle + half]), 0, length)
    start, stop = tf.unstack(tf.cast(ends, tf.int32))
    return start, stop
