"""Which images a run sees: held-out parts, tails, views that are replayed, training without augmentation."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import transfer_fixtures
from conftest import write
from transfer_fixtures import CLASS_NAMES, IMAGE_SIZE, colour_image, colours_without_val
from transfer_fixtures import uneven_colours as colours

import tfpipe
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.records import catalog

pytestmark = pytest.mark.tf

__all__ = ["colours", "colours_without_val"]  # fixtures


def rows_of(images):
    return list(catalog.read_catalog(images.directory, split=images.split))


def order_of(loader, epoch):
    """Positions of an epoch's images, without those of blank rows."""
    positions = loader.positions(epoch)
    return positions[positions >= 0]


def stacked(data):
    batches = [(images.numpy(), labels.numpy()) for images, labels in data]
    return tuple(map(np.concatenate, zip(*batches, strict=True)))


# ---- holding out


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_images_are_disjoint_complete_stratified_and_copies_stay_together(colours_without_val, fraction, seed):
    whole = SplitImages(colours_without_val, "train", IMAGE_SIZE, seed=seed)
    rest, held = hold_out(whole, fraction)
    assert sorted([*rest.positions, *held.positions]) == list(range(whole.num_records))
    assert list(held.positions) == sorted(held.positions)
    assert list(rest.positions) == sorted(rest.positions)
    rows = rows_of(whole)
    hashes = [{rows[position].sha256 for position in part.positions} for part in (rest, held)]
    assert not hashes[0] & hashes[1]
    counts, held_counts = Counter(row.label for row in rows), Counter(rows[p].label for p in held.positions)
    for label in range(len(CLASS_NAMES)):
        wanted = min(max(1, round(counts[label] * fraction)), counts[label] - 1)
        assert wanted <= held_counts[label] < counts[label]
        assert held_counts[label] <= wanted + 3  # the copies of an image


def test_some_copies_are_held_out_and_some_are_not(colours_without_val):
    """Else the test above would prove nothing."""
    whole = SplitImages(colours_without_val, "train", IMAGE_SIZE)
    rows = rows_of(whole)
    doubles = {sha256 for sha256, count in Counter(row.sha256 for row in rows).items() if count > 1}
    assert len(doubles) == 3
    found = [
        len(doubles & {rows[p].sha256 for p in hold_out(dataclasses.replace(whole, seed=seed), 0.3)[1].positions})
        for seed in range(8)
    ]
    assert max(found) > 0
    assert min(found) < 3


def test_equal_seeds_hold_out_the_same_and_others_do_not(colours):
    def held(seed):
        return hold_out(SplitImages(colours, "train", IMAGE_SIZE, seed=seed), 0.3)[1].positions.tolist()

    assert held(5) == held(5)
    assert held(5) != held(6)


def test_what_is_held_out_keeps_all_else(colours):
    whole = SplitImages(colours, "train", (8, 9), "crop", Augmentation.named("light"), 3, balanced=True)
    for part in hold_out(whole, 0.2):
        assert dataclasses.replace(part, selection=None) == whole


@pytest.fixture
def build(tmp_path):
    def build(classes, **options):
        """Builds a train split of lists of images' numbers by class; equal numbers are equal bytes."""
        for name, numbers in classes.items():
            for index, number in enumerate(numbers):
                write(tmp_path / "photos" / name / f"{index}.jpg", colour_image(CLASS_NAMES[0], number))
        tfpipe.build_tfrecords(
            {"train": tmp_path / "photos"}, tmp_path / "shards", layout="folders", workers=1, progress=False, **options
        )
        return SplitImages(tmp_path / "shards", "train", IMAGE_SIZE)

    return build


def test_a_class_of_one_image_stays_where_it_is_trained_on(build):
    images = build({"one": [1], "several": [2, 3, 4]})
    rest, held = hold_out(images, 0.9)
    rows = rows_of(images)
    assert "one" in {rows[p].class_name for p in rest.positions}
    assert {rows[p].class_name for p in held.positions} == {"several"}
    assert len(held.positions) == 2


@pytest.mark.parametrize("classes", [{"a": [1], "b": [2]}, {"a": [1, 1, 1], "b": [2]}])
def test_too_small_a_split_is_refused(build, classes):
    images = build(classes)
    with pytest.raises(ValueError, match=r"shards: split 'train' is too small to hold a part out.*build .* with a val split"):
        hold_out(images, 0.1)


def test_copies_with_other_labels_are_not_held_out(build):
    """G9 also for the data sets that were built with on_conflict="keep"."""
    images = build({"a": range(1, 12), "b": range(8, 20)}, on_conflict="keep")
    rows = rows_of(images)
    for seed in range(6):
        rest, held = hold_out(dataclasses.replace(images, seed=seed), 0.4)
        assert not {rows[p].sha256 for p in rest.positions} & {rows[p].sha256 for p in held.positions}
        assert len(held.positions) >= 6


# ---- what is shown


@pytest.mark.parametrize(("first", "batch_size"), [(0, 7), (1, 1), (20, 7), (40, 7)])
def test_plain_from_a_position_is_the_tail_of_the_whole(colours, first, batch_size):
    split_images = SplitImages(colours, "train", IMAGE_SIZE)
    images, labels = stacked(split_images.once(64))
    tail, tail_labels = stacked(split_images.whole(batch_size, first))
    np.testing.assert_array_equal(tail, images[first:])
    np.testing.assert_array_equal(tail_labels, labels[first:])
    assert labels.tolist() == [row.label for row in rows_of(split_images)]


@pytest.mark.parametrize("first", [5, 40])
def test_a_view_from_a_position_is_the_tail_of_the_whole(colours, first):
    split_images = SplitImages(
        colours, "train", IMAGE_SIZE, augmentation=Augmentation(crop=0.5, horizontal_flip=0.5), seed=3, balanced=True
    )
    images, labels = stacked(split_images.whole(64, 0, view=2))
    tail, tail_labels = stacked(split_images.whole(7, first, view=2))
    np.testing.assert_array_equal(tail, images[first:])
    np.testing.assert_array_equal(tail_labels, labels[first:])
    assert labels.tolist() == [row.label for row in rows_of(split_images)]
    assert not np.array_equal(images, stacked(split_images.whole(64, 0, view=1))[0])


def test_views_and_tails_are_of_the_whole_split_whatever_is_selected(colours):
    whole = SplitImages(colours, "train", IMAGE_SIZE, augmentation=Augmentation(crop=0.5))
    part, _ = hold_out(whole, 0.3)
    np.testing.assert_array_equal(stacked(part.whole(16, 3, view=1))[0], stacked(whole.whole(16, 3, view=1))[0])
    np.testing.assert_array_equal(stacked(part.whole(16, 3))[0], stacked(whole.whole(16, 3))[0])


@pytest.mark.parametrize(("epoch", "resize"), [(0, "stretch"), (3, "crop")])
def test_a_view_is_what_replay_gives(colours, epoch, resize):
    augmentation = Augmentation(crop=0.5, rotation=10, horizontal_flip=0.5, brightness=0.1)
    split_images = SplitImages(colours, "train", IMAGE_SIZE, resize, augmentation, 7)
    images, _ = stacked(split_images.whole(16, 0, view=epoch))
    rows = rows_of(split_images)
    for position in (0, 13, len(rows) - 1):
        expected = tfpipe.replay(
            colours,
            "train",
            rows[position].key,
            seed=7,
            epoch=epoch,
            image_size=IMAGE_SIZE,
            resize=resize,
            augment=augmentation,
        )
        np.testing.assert_array_equal(images[position], expected)


def test_training_sees_in_an_epoch_the_images_of_its_view(colours):
    split_images = SplitImages(colours, "train", IMAGE_SIZE, augmentation=Augmentation(horizontal_flip=0.5), seed=1)
    loader = split_images.training(8, first_epoch=2)
    images, labels = stacked(loader.dataset())
    positions = order_of(loader, 2)
    view, view_labels = stacked(split_images.whole(8, 0, view=2))
    np.testing.assert_array_equal(images, view[positions])
    np.testing.assert_array_equal(labels, view_labels[positions])
    assert sorted(positions) == list(range(split_images.num_records))
    assert list(positions) != sorted(positions)


def test_training_without_augmentation_sees_the_pixels_of_evaluation(tmp_path):
    for index in range(4):  # large enough for a decoder that scales, which training else takes
        write(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", colour_image(CLASS_NAMES[index % 2], index, (90, 70)))
    tfpipe.build_tfrecords({"train": tmp_path / "photos"}, tmp_path / "shards", layout="folders", workers=1, progress=False)
    split_images = SplitImages(tmp_path / "shards", "train", IMAGE_SIZE)
    loader = split_images.training(3)
    images, labels = stacked(loader.dataset())
    expected, expected_labels = stacked(split_images.once(4))
    np.testing.assert_array_equal(images, expected[order_of(loader, 0)])
    np.testing.assert_array_equal(labels, expected_labels[order_of(loader, 0)])
    np.testing.assert_array_equal(stacked(split_images.whole(2, 0, view=0))[0], expected)
    scaled, _ = stacked(split_images.training(3, scaled_decode=True).dataset())
    assert not np.array_equal(scaled, images)


def test_only_what_is_selected_is_trained_on_and_evaluated(colours):
    rest, held = hold_out(SplitImages(colours, "train", IMAGE_SIZE), 0.3)
    for part in (rest, held):
        assert sorted(order_of(part.training(4), 1)) == part.positions.tolist()
        assert stacked(part.once(5))[0].shape[0] == len(part.positions)


def test_the_fixture_is_what_it_promises(colours, colours_without_val):
    assert set(tfpipe.load_manifest(colours).splits) == {"train", "val", "test"}
    assert set(tfpipe.load_manifest(colours_without_val).splits) == {"train", "test"}
    rows = rows_of(SplitImages(colours, "train", IMAGE_SIZE))
    assert {row.format for row in rows} == {"JPEG", "PNG"}
    assert len({(row.height, row.width) for row in rows}) > 10
    assert len(rows) == sum(transfer_fixtures.UNEVEN_COUNTS["train"])
