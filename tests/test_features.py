"""Features on disk: equal to the network's, computed once, whole or said to be damaged; and G12, frozen means frozen."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_networks import random_weight
from transfer_fixtures import IMAGE_SIZE, colours_without_val
from transfer_fixtures import uneven_colours as colours

from tfpipe.common import locking
from tfpipe.common.errors import DataError
from tfpipe.models import features
from tfpipe.models.features import check_frozen, computation, describe, extract, sample
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.networks import arithmetic, backbones, submodels
from tfpipe.networks.heads import dtype_policy
from tfpipe.networks.layers import Preprocessing, Trunk
from tfpipe.pipeline.augmentation import Augmentation

pytestmark = pytest.mark.tf

__all__ = ["colours", "colours_without_val"]  # fixtures

ROWS_PER_SHARD = 6


def make_network(precision="float32", seed=0):
    """Two convolutions with BatchNorm and Dropout, small enough to be traced in no time."""
    with dtype_policy(precision):
        images = keras.Input((*IMAGE_SIZE, 3))
        values = keras.layers.Conv2D(4, 3, strides=4, name="conv")(images)
        values = keras.layers.Dropout(0.2, name="dropout")(keras.layers.BatchNormalization(name="bn")(values))
        network = keras.Model(images, keras.layers.Conv2D(5, 2, activation="tanh", name="conv2")(values))
    drawn = np.random.default_rng(seed)
    network.set_weights([random_weight(drawn, weight) for weight in network.weights])
    return network


class Counting(keras.layers.Layer):
    """Counts the images that go through it."""

    seen = 0

    def call(self, values):
        counted = tf.numpy_function(self._count, [values], tf.float32)
        return tf.ensure_shape(counted, values.shape)

    def compute_output_spec(self, values):
        return keras.KerasTensor(values.shape, values.dtype)

    @classmethod
    def _count(cls, values):
        cls.seen += len(values)
        return values


NETWORK = {precision: make_network(precision) for precision in ("float32", "mixed_bfloat16")}


def preprocessing_of(precision, mode="tf"):
    return Preprocessing(mode, dtype=precision)


@pytest.fixture
def split_images(colours):
    return SplitImages(colours, "train", IMAGE_SIZE, augmentation=Augmentation(crop=0.5), seed=3)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "_SHARD_BYTES", ROWS_PER_SHARD * features.bytes_per_image(NETWORK["float32"]) + 1)


def run(cache, images, *, view=None, precision="float32", batch_size=4, network=None, mode="tf"):
    network = network or NETWORK[precision]
    return extract(cache, network, preprocessing_of(precision, mode), images, view=view, batch_size=batch_size, progress=False)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def all_rows(found, count=41):
    return found.rows(np.arange(count))


# ---- what they are


@pytest.mark.parametrize(("precision", "view"), [("float32", None), ("mixed_bfloat16", None), ("float32", 2)])
def test_features_are_those_of_the_network(tmp_path, split_images, small_shards, precision, view):
    found = all_rows(run(tmp_path, split_images, view=view, precision=precision))
    data = split_images.whole(41, view=view)
    images = next(iter(data))[0]
    with arithmetic.exact():
        expected = NETWORK[precision](preprocessing_of(precision)(images), training=False).numpy()
    assert found.dtype == expected.dtype == (np.float32 if precision == "float32" else ml_dtypes.bfloat16)
    tolerance = 1e-5 if precision == "float32" else 0.02
    np.testing.assert_allclose(found.astype("float32"), expected.astype("float32"), rtol=tolerance, atol=tolerance)
    assert np.ptp(found.astype("float32"), axis=0).max() > 0.1


def test_bfloat16_is_stored_exactly(tmp_path, split_images):
    found = all_rows(run(tmp_path, split_images, precision="mixed_bfloat16", batch_size=41))
    compute = computation(NETWORK["mixed_bfloat16"], preprocessing_of("mixed_bfloat16"), IMAGE_SIZE)
    expected = compute(next(iter(split_images.once(41)))[0])
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_shards_are_the_same_whatever_the_batches(tmp_path, split_images, small_shards, batch_size):
    """Batches may be larger than a shard: a feature map of an early layer takes megabytes."""
    found = run(tmp_path, split_images, batch_size=batch_size)
    lengths = [len(np.load(path)) for path in sorted(found.folder.glob("*.npy"))]
    assert lengths == [6] * 6 + [5]
    np.testing.assert_allclose(all_rows(found), all_rows(run(tmp_path / "other", split_images, batch_size=5)), atol=1e-5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(positions=st.lists(st.integers(0, 40), max_size=60))
def test_rows_at_any_positions(tmp_path, split_images, small_shards, positions):
    found = run(tmp_path, split_images)
    assert len(found.crcs) == 7
    whole = np.concatenate([np.load(path) for path in sorted(found.folder.glob("*.npy"))])
    np.testing.assert_array_equal(found.rows(np.array(positions, np.int64)), whole[np.array(positions, np.int64)])


def test_positions_after_the_end_are_refused(tmp_path, split_images):
    with pytest.raises(IndexError):
        run(tmp_path, split_images).rows(np.array([41]))


# ---- once


def counting_network():
    images = keras.Input((*IMAGE_SIZE, 3))
    return keras.Model(images, keras.layers.AveragePooling2D(8)(Counting(name="counting")(images)))


def test_the_second_time_nothing_is_computed(tmp_path, split_images):
    network = counting_network()
    Counting.seen = 0
    first = run(tmp_path, split_images, network=network)
    assert Counting.seen == 41
    before = files_of(first.folder)
    second = run(tmp_path, dataclasses.replace(split_images, seed=9), network=network, batch_size=7)
    assert Counting.seen == 41
    assert second.folder == first.folder
    assert files_of(first.folder) == before
    np.testing.assert_array_equal(all_rows(second), all_rows(first))
    third = run(tmp_path, split_images, network=network, view=0)
    assert Counting.seen == 82
    assert third.folder != first.folder


@pytest.mark.parametrize(("lost", "view"), [(0, None), (1, None), (7, None), (3, 1)])
def test_an_extraction_that_was_killed_goes_on(tmp_path, split_images, small_shards, monkeypatch, lost, view):
    whole = run(tmp_path, split_images, view=view, batch_size=6)
    expected = files_of(whole.folder)
    (whole.folder / "features.json").unlink()
    shards = sorted(whole.folder.glob("*.npy"))
    for path in shards[len(shards) - lost :]:
        path.unlink()
    (whole.folder / ".features-00006.npy.1234.tmp").write_bytes(b"half")  # of the process that was killed
    written = []
    write = features._write
    monkeypatch.setattr(features, "_write", lambda path, *rest: (written.append(path), write(path, *rest)))
    again = run(tmp_path, split_images, view=view, batch_size=6)
    assert len(written) == lost
    assert files_of(again.folder) == expected


class Waiting(Counting):
    """Counts the images that go through it, and stands still at the first batch."""

    seen = 0
    is_reached, may_go_on = threading.Event(), threading.Event()

    @classmethod
    def _count(cls, values):
        cls.is_reached.set()
        assert cls.may_go_on.wait(60)
        return super()._count(values)


def test_of_two_runs_one_waits_and_finds_the_features_ready(tmp_path, split_images, caplog):
    images = keras.Input((*IMAGE_SIZE, 3))
    network = keras.Model(images, keras.layers.AveragePooling2D(8)(Waiting(name="waiting")(images)))
    caplog.set_level("INFO", "tfpipe")
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(run, tmp_path, split_images, network=network)
            assert Waiting.is_reached.wait(60)
            second = pool.submit(run, tmp_path, split_images, network=network)
            deadline = time.monotonic() + 60
            while "another run is writing here; waiting for it" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not second.done()
        finally:
            Waiting.may_go_on.set()
        np.testing.assert_array_equal(all_rows(first.result()), all_rows(second.result()))
    assert caplog.text.count("another run is writing here; waiting for it") == 1
    assert Waiting.seen == 41


def test_features_that_are_complete_are_read_without_a_lock(tmp_path, split_images):
    found = run(tmp_path, split_images)
    with locking.locked(found.folder, "test"):
        np.testing.assert_array_equal(all_rows(run(tmp_path, split_images)), all_rows(found))


def test_without_locks_features_are_computed_all_the_same(tmp_path, split_images, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert len(all_rows(run(tmp_path, split_images))) == 41


def test_an_error_in_the_middle_leaves_whole_shards_and_no_facts(tmp_path, split_images, small_shards, monkeypatch):
    expected = files_of(run(tmp_path / "expected", split_images, batch_size=6).folder)
    save, calls = np.save, []

    def fail(file, values):
        calls.append(values)
        if len(calls) == 3:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, values)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="No space left") as caught:
            run(tmp_path / "cache", split_images, batch_size=6)
    assert "features-00002.npy" in str(caught.value)
    (folder,) = (tmp_path / "cache").iterdir()
    assert files_of(folder) == {name: expected[name] for name in ("features-00000.npy", "features-00001.npy")}
    assert files_of(run(tmp_path / "cache", split_images, batch_size=6).folder) == expected


# ---- found by content


def test_the_key_is_all_that_the_numbers_depend_on(split_images, colours_without_val):
    network, preprocessing = NETWORK["float32"], preprocessing_of("float32")
    changed = make_network()
    weight = changed.weights[-1]
    weight.assign(weight.numpy() + np.eye(1, 5, 2, dtype="float32")[0] * 1e-6)
    strong = dataclasses.replace(split_images, augmentation=Augmentation.named("strong"))
    keys = [
        describe(network, preprocessing, split_images, None),
        describe(changed, preprocessing, split_images, None),
        describe(NETWORK["mixed_bfloat16"], preprocessing, split_images, None),
        describe(network, preprocessing_of("float32", "unit"), split_images, None),
        describe(network, preprocessing, dataclasses.replace(split_images, image_size=(16, 17)), None),
        describe(network, preprocessing, dataclasses.replace(split_images, image_size=(17, 16)), None),
        describe(network, preprocessing, dataclasses.replace(split_images, resize="crop"), None),
        describe(network, preprocessing, dataclasses.replace(split_images, directory=colours_without_val), None),
        describe(network, preprocessing, dataclasses.replace(split_images, split="test"), None),
        *(describe(network, preprocessing, split_images, view) for view in (0, 1)),
        describe(network, preprocessing, dataclasses.replace(split_images, seed=4), 0),
        describe(network, preprocessing, strong, 0),
    ]
    texts = {json.dumps(key, sort_keys=True) for key in keys}
    assert len(texts) == len(keys)


def test_the_key_is_nothing_else(tmp_path, split_images):
    network, preprocessing = NETWORK["float32"], preprocessing_of("float32")
    expected = describe(network, preprocessing, split_images, None)
    moved = shutil.copytree(split_images.directory, tmp_path / "elsewhere")
    part, _ = hold_out(split_images, 0.2)
    for same in (
        dataclasses.replace(split_images, seed=4),
        dataclasses.replace(split_images, augmentation=Augmentation()),
        dataclasses.replace(split_images, balanced=True),
        dataclasses.replace(split_images, directory=moved),
        part,
    ):
        assert describe(network, preprocessing, same, None) == expected
    assert describe(make_network(), Preprocessing("tf", "crop", name="other"), split_images, None) == expected
    assert describe(network, preprocessing, part, 1) == describe(network, preprocessing, split_images, 1)


# ---- damage


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_any_flipped_byte_is_noticed(tmp_path, split_images, precision):
    folder = run(tmp_path, split_images, precision=precision).folder
    path = folder / "features-00000.npy"
    whole = path.read_bytes()
    expected = all_rows(run(tmp_path, split_images, precision=precision))
    for place in [*range(70), *range(128, len(whole), len(whole) // 30), len(whole) - 1]:
        for bit in (1, 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = all_rows(run(tmp_path, split_images, precision=precision))
            except DataError as error:
                message = str(error)
            else:
                assert place < 128, place
                np.testing.assert_array_equal(found, expected)  # a byte of the header that says nothing
                continue
            assert message.startswith(str(path))
            assert f"delete {folder}, and it is computed again" in message


@pytest.mark.parametrize("length", [0, 5, 100, 128, 1000, -1])
def test_a_shard_that_was_cut(tmp_path, split_images, small_shards, length):
    folder = run(tmp_path, split_images).folder
    path = folder / "features-00002.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{path}: .*delete {folder}, and it is computed again"):
        all_rows(run(tmp_path, split_images))


def test_a_shard_that_is_missing(tmp_path, split_images, small_shards):
    folder = run(tmp_path, split_images).folder
    (folder / "features-00002.npy").unlink()
    with pytest.raises(DataError, match=rf"features-00002\.npy: .*delete {folder}"):
        all_rows(run(tmp_path, split_images))


def test_shards_that_changed_places(tmp_path, split_images, small_shards):
    folder = run(tmp_path, split_images).folder
    (folder / "features-00002.npy").rename(folder / "x")
    (folder / "features-00001.npy").rename(folder / "features-00002.npy")
    (folder / "x").rename(folder / "features-00001.npy")
    with pytest.raises(DataError, match=r"features-00001\.npy: damaged"):
        all_rows(run(tmp_path, split_images))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"shape": [1', b'{"shape": 3, "dtype": "float32"}', b"\xff\xfe"])
def test_facts_that_cannot_be_understood(tmp_path, split_images, content):
    folder = run(tmp_path, split_images).folder
    (folder / "features.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"features\.json: cannot be understood .*delete {folder}"):
        run(tmp_path, split_images)


def test_deleted_it_is_computed_again(tmp_path, split_images):
    found = run(tmp_path, split_images)
    expected = files_of(found.folder)
    shutil.rmtree(found.folder)
    assert files_of(run(tmp_path, split_images).folder) == expected


# ---- places that cannot be written


def test_a_full_disk_is_reported_before_anything_is_computed(tmp_path, split_images, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(OSError, match=r"deeper/cache: .* GB of features do not fit into the .* GB that are free"):
        run(tmp_path / "deeper" / "cache", split_images)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_there_needs_no_space(tmp_path, split_images, monkeypatch):
    expected = all_rows(run(tmp_path, split_images))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    np.testing.assert_array_equal(all_rows(run(tmp_path, split_images)), expected)


def test_a_folder_that_is_none(tmp_path, split_images):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        run(tmp_path / "file" / "cache", split_images)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path, split_images):
    (tmp_path / "cache").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=str(tmp_path / "cache")):
        run(tmp_path / "cache", split_images)


# ---- G12


def in_training(network, preprocessing):
    return lambda images: network(preprocessing(images), training=True)


@pytest.fixture(params=["float32", "mixed_bfloat16"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def all_cached(tmp_path_factory, colours):
    split_images = SplitImages(colours, "train", IMAGE_SIZE)
    images = sample(split_images, None)
    cache = tmp_path_factory.mktemp("cache")
    return {name: (run(cache, split_images, precision=name).rows(np.arange(len(images))), images) for name in NETWORK}


@pytest.fixture
def cached(all_cached, precision):
    """Features of the first images from the cache, and the images."""
    return all_cached[precision]


@pytest.mark.parametrize(("precision", "view"), [("float32", None), ("mixed_bfloat16", None), ("mixed_bfloat16", 0)])
def test_g12_a_frozen_trunk_passes(tmp_path, split_images, precision, view):
    images = sample(split_images, view)
    expected = run(tmp_path, split_images, view=view, precision=precision, batch_size=5).rows(np.arange(len(images)))
    trunk = Trunk(NETWORK[precision], inference=True)
    difference = check_frozen(expected, images, in_training(trunk, preprocessing_of(precision)))
    assert 0 <= difference <= features.TOLERANCES[expected.dtype.name] / 3


def test_g12_dropout_and_batch_norm_left_on_are_caught(cached, precision):
    network = make_network(precision)
    with pytest.raises(DataError, match=r"frozen layers give other features .* Dropout or BatchNorm is on"):
        check_frozen(*cached, in_training(Trunk(network, inference=False), preprocessing_of(precision)))


def test_g12_dropout_left_on_is_caught(cached, precision):
    """The recipe of Keras' own guide: a base that is not trainable, whose BatchNorm is frozen and whose Dropout is not."""
    network = make_network(precision)
    network.trainable = False
    statistics = network.get_layer("bn").moving_mean.numpy()
    with pytest.raises(DataError, match="frozen layers give other features"):
        check_frozen(*cached, in_training(network, preprocessing_of(precision)))
    np.testing.assert_array_equal(network.get_layer("bn").moving_mean.numpy(), statistics)


def test_g12_batch_norm_left_on_is_caught(cached, precision):
    network = make_network(precision)
    network.get_layer("dropout").rate = 0.0
    with pytest.raises(DataError, match="frozen layers give other features"):
        check_frozen(*cached, in_training(network, preprocessing_of(precision)))


@pytest.mark.parametrize("mode", ["unit", "caffe", "torch", "none"])
def test_g12_another_preprocessing_is_caught(cached, precision, mode):
    trunk = Trunk(NETWORK[precision], inference=True)
    with pytest.raises(DataError, match="or preprocessing differs"):
        check_frozen(*cached, in_training(trunk, preprocessing_of(precision, mode)))


def test_g12_another_size_or_number_is_caught(cached, precision):
    expected, images = cached
    trunk = Trunk(NETWORK[precision], inference=True)
    right = in_training(trunk, preprocessing_of(precision))
    check_frozen(expected, images, right)
    for wrong in (expected[:, :1], expected[:-1], expected[..., :1], expected[:, 0], expected[:0]):
        with pytest.raises(DataError, match="inf of their size"):
            check_frozen(wrong, images, right)


def test_g12_images_in_another_order_are_caught(cached, precision):
    expected, images = cached
    trunk = Trunk(NETWORK[precision], inference=True)
    with pytest.raises(DataError, match="other features"):
        check_frozen(expected[::-1], images, in_training(trunk, preprocessing_of(precision)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["cache", "training"])
def test_g12_what_is_not_a_number_is_caught(cached, precision, value, side):
    expected, images = cached
    broken = expected.copy()
    broken[0, 0, 0, 0] = value
    one, other = (broken, expected) if side == "cache" else (expected, broken)
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match="other features"):
        check_frozen(one, images, lambda _: tf.constant(other))


def test_g12_features_that_are_all_zero_are_no_way_around(precision):
    dtype = ml_dtypes.bfloat16 if precision == "mixed_bfloat16" else np.float32
    zeros, images = np.zeros((2, 1, 1, 3), dtype), tf.zeros((2, *IMAGE_SIZE, 3), tf.uint8)
    for found in (zeros, zeros + dtype(1)):
        with pytest.raises(DataError, match="all features are zero"):
            check_frozen(zeros, images, lambda _, found=found: tf.constant(found))


def test_g12_parts_of_a_network_are_frozen_as_well(tmp_path, split_images):
    """With a real network that has all the traps: the part in front of what fine-tuning trains."""
    backbone = backbones.build("custom_backbone:small_inception", image_size=IMAGE_SIZE)
    boundary, _ = backbones.find_trainable(backbone, list(backbone.blocks)[-1:])
    front, _ = submodels.cut(backbone.network, boundary)
    images, preprocessing = sample(split_images, None), Preprocessing("unit")
    expected = extract(tmp_path, front, preprocessing, split_images, view=None, progress=False).rows(np.arange(len(images)))
    check_frozen(expected, images, in_training(Trunk(front, inference=True), preprocessing))
    with pytest.raises(DataError, match="other features"):
        check_frozen(expected, images, in_training(front, preprocessing))
