"""MixUp and CutMix: against numpy, with the shares that are documented, as functions of (seed, epoch, step)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfpipe.pipeline.mixing import mix

pytestmark = pytest.mark.tf

SIZE = (40, 56)
CLASSES = 5
random = np.random.default_rng(0)
IMAGES, OTHERS = random.integers(0, 256, (2, 4, *SIZE, 3), dtype=np.uint8)
LABELS, OTHER_LABELS = tf.one_hot([0, 1, 2, 3], CLASSES), tf.one_hot([4, 4, 4, 4], CLASSES)  # the last class: what was mixed in

BLACK, WHITE = np.zeros((1, *SIZE, 3), np.uint8), np.full((1, *SIZE, 3), 255, np.uint8)


@tf.function(reduce_retracing=True)
def mixed(images, labels, others, other_labels, mixup: float, cutmix: float, seed: int, epoch, step):
    return mix(images, labels, others, other_labels, mixup=mixup, cutmix=cutmix, seed=seed, epoch=epoch, step=step)


def step_of(
    step: int, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0, epoch: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    when = tf.constant(epoch, tf.int64), tf.constant(step, tf.int64)
    images, labels = mixed(IMAGES, LABELS, OTHERS, OTHER_LABELS, mixup, cutmix, seed, *when)
    return images.numpy(), labels.numpy()


def shares(count: int, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0, epoch: int = 0) -> np.ndarray:
    """[count, 2], for each step the share of the first image: what the labels say, and what the pixels do."""
    labels = tf.one_hot([0], 2), tf.one_hot([1], 2)

    def both(step: tf.Tensor) -> tf.Tensor:
        when = {"seed": seed, "epoch": tf.constant(epoch, tf.int64), "step": step}
        images, mixed_labels = mix(WHITE, labels[0], tf.constant(BLACK), labels[1], mixup=mixup, cutmix=cutmix, **when)
        return tf.stack([mixed_labels[0, 0], tf.reduce_mean(tf.cast(images, tf.float32)) / 255])

    data = tf.data.Dataset.range(count).map(both, num_parallel_calls=2).batch(count)
    return data.get_single_element().numpy()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_adds_images_and_labels_with_one_share(alpha: float):
    shares = []
    for step in range(20):
        images, labels = step_of(step, mixup=alpha)
        share = labels[0, 0].astype(np.float64)
        expected = np.round(IMAGES * share + OTHERS * (1 - share))
        difference = np.abs(images - expected)
        assert difference.max() <= 1  # float32: halves may go the other way
        assert difference.mean() < 0.01
        assert np.allclose(labels, LABELS.numpy() * share + OTHER_LABELS.numpy() * (1 - share), atol=1e-6)
        assert images.dtype == np.uint8
        shares.append(share)
    assert any(0.01 < share < 0.99 for share in shares)  # twin: some are truly mixed


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_takes_a_rectangle_whose_area_is_in_the_labels(alpha: float):
    areas = []
    for step in range(40):
        images, labels = step_of(step, cutmix=alpha)
        taken = (images != IMAGES).any(axis=-1)
        assert (images == np.where(taken[..., None], OTHERS, IMAGES)).all()
        rows, columns = (np.flatnonzero(taken[0].any(axis=axis)) for axis in (1, 0))
        area = len(rows) * len(columns) / math.prod(SIZE)
        if area:  # one rectangle, the same in all images of the batch (equal pixels of noise are rare)
            assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (len(rows), len(columns))
            assert taken[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.999
        assert np.allclose(labels[:, 4], area, atol=1e-6)
        assert np.allclose(labels[range(4), range(4)], 1 - area, atol=1e-6)
        areas.append(area)
    assert len(set(areas)) > 10


def test_the_rectangle_is_where_the_other_image_has_it():
    # It is taken from its own place, and is not always in the middle.
    tops = set()
    for step in range(30):
        images, _ = step_of(step, cutmix=1.0)
        taken = (images != IMAGES).any(axis=(0, 3))
        assert (images[:, taken] == OTHERS[:, taken]).all()
        tops.add(int(np.argmax(taken.any(axis=1))))
    assert len(tops) > 8


def test_cutmix_reaches_every_pixel_and_no_edge_is_favoured():
    counts = np.zeros(SIZE)
    for step in range(400):
        counts += (step_of(step, cutmix=1.0)[0] != IMAGES).any(axis=(0, 3))
    assert counts.min() > 0
    assert abs(counts[:20].sum() / counts[20:].sum() - 1) < 0.15
    assert abs(counts[:, :28].sum() / counts[:, 28:].sum() - 1) < 0.15
    assert counts[20, 28] > counts[0, 0]  # rectangles are cut off at the edges, not moved


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_of_mixup_have_the_moments_of_beta(alpha: float):
    labels, pixels = shares(3000, mixup=alpha).T
    assert np.abs(labels - pixels).max() < 0.003
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(labels.mean() - 0.5) < 4 * math.sqrt(variance / 3000)
    assert abs(labels.var() / variance - 1) < 0.1
    fourth = variance * 3 * (2 * alpha + 1) / (2 * alpha + 3)  # E(x - 1/2)^4, over the variance, times 4 ...
    assert abs(((labels - 0.5) ** 4).mean() / (fourth / (4 * (2 * alpha + 1))) - 1) < 0.15
    near_an_end = ((labels < 0.1) | (labels > 0.9)).mean()
    assert abs(near_an_end - {0.2: 0.6739, 1.0: 0.2}[alpha]) < 0.04


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_areas_of_cutmix_are_those_of_beta_before_the_edges_cut_them(alpha: float):
    labels, pixels = shares(3000, cutmix=alpha).T
    assert np.abs(labels - pixels).max() < 1e-5
    # In numpy: a square's share in both axes about a uniform middle, cut off at the edges.
    draw = np.random.default_rng(0)
    sides = np.sqrt(1 - draw.beta(alpha, alpha, 200_000))
    ends = []
    for length in SIZE:
        middle, half = np.floor(draw.random(len(sides)) * length), np.floor(sides * length) // 2
        ends.append(np.clip(middle + half, 0, length) - np.clip(middle - half, 0, length))
    expected = 1 - ends[0] * ends[1] / math.prod(SIZE)
    assert abs(labels.mean() - expected.mean()) < 4 * expected.std() / math.sqrt(3000)
    assert abs(labels.std() / expected.std() - 1) < 0.05
    assert np.abs(np.quantile(labels, [0.25, 0.5, 0.75]) - np.quantile(expected, [0.25, 0.5, 0.75])).max() < 0.03


def test_a_very_small_alpha_mixes_nothing():
    labels, pixels = shares(500, mixup=1e-4).T
    assert np.abs(labels - pixels).max() < 0.003
    assert ((labels < 0.001) | (labels > 0.999)).mean() > 0.98


def test_a_large_alpha_halves():
    assert np.abs(shares(200, mixup=100)[:, 0] - 0.5).max() < 0.25


def test_with_both_each_comes_half_the_time():
    # MixUp of black and white is grey everywhere; CutMix has no grey.
    def grey(step: tf.Tensor) -> tf.Tensor:
        when = {"seed": 0, "epoch": tf.constant(0, tf.int64), "step": step}
        labels = tf.one_hot([0], 2), tf.one_hot([1], 2)
        image, _ = mix(WHITE, labels[0], tf.constant(BLACK), labels[1], mixup=1.0, cutmix=1.0, **when)
        return tf.reduce_any((image > 0) & (image < 255))

    greys = tf.data.Dataset.range(2000).map(grey, num_parallel_calls=2).batch(2000).get_single_element().numpy()
    assert abs(greys.mean() - 0.5) < 4 * math.sqrt(0.25 / 2000)
    assert abs(np.corrcoef(greys[1:], greys[:-1])[0, 1]) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_labels_are_probabilities(options: dict):
    for step in range(30):
        _, labels = step_of(step, **options)
        assert np.abs(labels.sum(axis=1) - 1).max() < 1e-6
        assert labels.min() >= 0


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_g7_mixing_is_a_function_of_seed_epoch_and_step(options: dict):
    def found(step: int, **changed: int) -> bytes:
        return b"".join(part.tobytes() for part in step_of(step, **options, **changed))

    assert found(17, seed=3, epoch=5) == found(17, seed=3, epoch=5)
    many = {
        (seed, epoch, step): found(step, seed=seed, epoch=epoch) for seed in (3, 4) for epoch in (4, 5) for step in (3, 4, 5)
    }
    assert len(set(many.values())) == len(many)  # twin: of all of them


def test_g7_a_part_of_the_batch_is_mixed_as_in_the_whole():
    # Readers hold parts of the global batch, and mix alike.
    when = tf.constant(2, tf.int64), tf.constant(9, tf.int64)
    images, labels = step_of(9, mixup=0.5, cutmix=0.5, epoch=2)
    for part in (slice(0, 1), slice(1, 4)):
        arrays = (array[part] for array in (IMAGES, LABELS, OTHERS, OTHER_LABELS))
        ours, our_labels = mixed(*arrays, 0.5, 0.5, 0, *when)
        assert (ours.numpy() == images[part]).all()
        assert (our_labels.numpy() == labels[part]).all()


def test_g7_steps_are_unrelated():
    first = shares(2000, mixup=1.0)[:, 0]
    assert (first == shares(2000, mixup=1.0)[:, 0]).all()
    others = shares(2000, mixup=1.0, epoch=1)[:, 0], shares(2000, mixup=1.0, seed=1)[:, 0]
    for other in (*others, np.roll(first, 1)):
        assert (first != other).mean() > 0.99
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / math.sqrt(2000)
