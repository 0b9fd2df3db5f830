"""Batches of images and of features: one order, one set of labels, from any place in training."""

import itertools

import keras
import numpy as np
import pytest
from transfer_fixtures import CLASS_NAMES, IMAGE_SIZE
from transfer_fixtures import uneven_colours as colours

from tfpipe.models.features import extract
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.networks.layers import Preprocessing
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.training.batches import FeatureBatches, ImageBatches

pytestmark = pytest.mark.tf

__all__ = ["colours"]  # a fixture

NUM_CLASSES = len(CLASS_NAMES)
NUM_VIEWS = 2


@pytest.fixture(scope="module")
def make(colours, tmp_path_factory):
    """Both kinds for the same images; the features are the pixels."""
    cache = tmp_path_factory.mktemp("cache")
    network = keras.Sequential([keras.Input((*IMAGE_SIZE, 3)), keras.layers.Identity()])
    preprocessing = Preprocessing("none")

    def make(batch_size=8, *, held_out=False, augmented=False, **options):
        balanced, given = options.pop("balanced", False), {"reader": (0, 1), "equal": False, **options}
        augmentation = Augmentation(horizontal_flip=0.5) if augmented else Augmentation()
        train = SplitImages(colours, "train", IMAGE_SIZE, augmentation=augmentation, seed=4, balanced=balanced)
        val = SplitImages(colours, "val", IMAGE_SIZE, seed=4)
        if held_out:
            train, val = hold_out(train, 0.3)
        views = [
            extract(cache, network, preprocessing, train, view=view, progress=False)
            for view in (range(NUM_VIEWS) if augmented else [None])
        ]
        val_features = extract(cache, network, preprocessing, val, view=None, progress=False)
        shared = {"train": train, "val": val, "batch_size": batch_size, "num_classes": NUM_CLASSES, **given}
        images = ImageBatches(**shared)
        return images, FeatureBatches(views=views, val_features=val_features, **shared)

    return make


def first(batches, count, epoch=0, step=0):
    return [tuple(np.asarray(part) for part in batch) for batch in itertools.islice(batches.start(epoch, step), count)]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for part, other_part in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize("options", [{}, {"held_out": True}, {"augmented": True}, {"equal": True}, {"balanced": True}])
def test_images_and_features_come_in_the_same_order(make, options):
    images, features = make(**options)
    assert (images.num_steps, images.num_rows) == (features.num_steps, features.num_rows)
    epochs = NUM_VIEWS if options.get("augmented") else 3
    count = epochs * images.num_steps
    found, expected = first(features, count), first(images, count)
    real = [batch[2] > 0 for batch in expected]
    assert_equal(
        [(x[r], y[r], w) for (x, y, w), r in zip(found, real, strict=True)],
        [(x[r], y[r], w) for (x, y, w), r in zip(expected, real, strict=True)],
    )
    for _, targets, weights in expected:
        assert (targets.dtype, weights.dtype) == (np.float32, np.float32)
        assert targets.shape == (len(weights), NUM_CLASSES)
        np.testing.assert_array_equal(targets.sum(axis=1), 1)
        np.testing.assert_array_equal(targets.max(axis=1), 1)


@pytest.mark.parametrize(("epoch", "step", "held_out"), [(0, 3, False), (2, 0, False), (3, 5, False), (1, 2, True)])
def test_from_any_epoch_and_step_it_is_the_tail_of_the_whole(make, epoch, step, held_out):
    images, features = make(held_out=held_out, augmented=True)
    skipped = epoch * images.num_steps + step
    whole = first(features, skipped + 4)
    assert_equal(first(features, 4, epoch, step), whole[skipped:])
    tail = first(images, 4, epoch, step)
    assert_equal([batch[1:] for batch in tail], [batch[1:] for batch in whole[skipped:]])
    following = first(images, images.num_steps - step + 2, epoch, step)
    assert_equal(following[:2], tail[:2])
    assert_equal(following[-2:], first(images, 2, epoch + 1, 0))


def test_every_epoch_has_another_order(make):
    for batches in make():
        steps = batches.num_steps
        epochs = [first(batches, steps, epoch) for epoch in (0, 1)]
        targets = [np.concatenate([batch[1] for batch in epoch]).argmax(axis=1).tolist() for epoch in epochs]
        assert targets[0] != targets[1]
        assert sorted(targets[0]) == sorted(targets[1])


def test_views_come_in_turn(make):
    _, features = make(augmented=True)
    steps = features.num_steps
    labels = features._loader.rows.reader.labels
    for epoch in range(2 * NUM_VIEWS + 1):
        positions = features._loader.positions(epoch)
        positions = positions[positions >= 0]
        inputs, targets, _ = (np.concatenate(parts) for parts in zip(*first(features, steps, epoch), strict=True))
        np.testing.assert_array_equal(inputs, features.views[epoch % NUM_VIEWS].rows(positions))
        np.testing.assert_array_equal(targets.argmax(axis=1), labels[positions])
    one, other = (view.rows(np.arange(5)) for view in features.views)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_readers_together_see_each_image_once_and_blank_rows_weigh_nothing(make, count, batch_size):
    kinds = [make(batch_size, reader=(index, count), equal=True) for index in range(count)]
    for readers in zip(*kinds, strict=True):
        assert len({reader.num_steps for reader in readers}) == 1
        rows, blank = [], 0
        for reader in readers:
            for inputs, targets, weights in first(reader, reader.num_steps, epoch=1):
                assert len(inputs) == len(targets) == len(weights) == batch_size
                assert set(weights.tolist()) <= {0.0, 1.0}
                rows += [row.tobytes() for row in inputs[weights > 0].astype("float32")]
                blank += int((weights == 0).sum())
        assert len(rows) == len(set(rows)) == reader.num_rows
        assert blank == count * batch_size * reader.num_steps - reader.num_rows


def test_without_equal_there_are_no_blank_rows(make):
    for batches in make(batch_size=8):
        epoch = first(batches, batches.num_steps)
        assert [len(batch[0]) for batch in epoch] == [8] * 5 + [1]
        assert all((batch[2] == 1).all() for batch in epoch)


@pytest.mark.parametrize("options", [{}, {"held_out": True}, {"equal": True}])
@pytest.mark.parametrize(("batch_size", "num_workers"), [(5, 1), (64, 1), (5, 3)])
def test_validation_of_all_workers_covers_each_image_once(make, options, batch_size, num_workers):
    found = []
    for index in range(num_workers):
        kinds = make(batch_size, reader=(index, num_workers), **options)
        mine = [[tuple(map(np.asarray, batch)) for batch in kind.validation()] for kind in kinds]
        assert_equal(mine[1], mine[0])
        assert_equal([tuple(map(np.asarray, batch)) for batch in kinds[1].validation()], mine[1])
        found += mine[1]
    positions = kinds[0].val.positions
    inputs, targets, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(inputs, kinds[1].val_features.rows(positions))
    np.testing.assert_array_equal(targets.argmax(axis=1), kinds[1].val.labels)
    assert len(weights) == len(positions)
    assert (weights == 1).all()


def test_mixed_targets_come_through(colours):
    train = SplitImages(colours, "train", IMAGE_SIZE, augmentation=Augmentation(mixup=1.0))
    batches = ImageBatches(train=train, val=SplitImages(colours, "val", IMAGE_SIZE), batch_size=8, num_classes=NUM_CLASSES)
    targets = np.concatenate([batch[1] for batch in first(batches, batches.num_steps)])
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert ((targets > 0.01) & (targets < 0.99)).any()
