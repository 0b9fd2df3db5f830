"""`dataset(training=True)`: every record once an epoch, in new order; a run goes on anywhere as if it had not stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import has_gpu
from pipeline_fixtures import CLASS_NAMES, damaged, make_image, write_data_set
from tensorflow.python.framework.config import is_op_determinism_enabled
from test_loader import run_script

import tfpipe
from tfpipe.pipeline.augmentation import PRESETS, Augmentation
from tfpipe.pipeline.loader import Loader, dataset, describe
from tfpipe.pipeline.mixing import mix
from tfpipe.pipeline.options import Options
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import manifest

pytestmark = pytest.mark.tf

# A case that shows what those beside it show.
ALSO = functools.partial(pytest.param, marks=pytest.mark.exhaustive(only=True))

SIZE = (8, 8)
NUM_RECORDS = 23
IMAGES = [make_image(number) for number in range(NUM_RECORDS)]
KEYS = sorted(f"{CLASS_NAMES[number % 3]}/{number}.jpg" for number in range(NUM_RECORDS))
MIXED = dataclasses.replace(PRESETS["light"], mixup=0.4, cutmix=1.0)

Batch = dict[str, np.ndarray]


@functools.cache
def written(folder: Path, num_shards: int) -> Path:
    return write_data_set(folder / f"shards-{num_shards}", IMAGES, num_shards, "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def data_set(folder: Path) -> Path:
    return written(folder, 3)


def training(data_set: Path, **options: object) -> tf.data.Dataset:
    return dataset(data_set, "train", **{"training": True, "image_size": SIZE, "batch_size": 7, "as_dict": True, **options})


def epochs(data: tf.data.Dataset, count: int) -> Iterator[list[Batch]]:
    for _ in range(count):
        yield list(data.as_numpy_iterator())


def column(batches: list[Batch], name: str) -> list:
    return [value for batch in batches for value in np.atleast_1d(batch[name]).tolist()]


def keys(batches: list[Batch]) -> list[str]:
    return [key.decode() for key in column(batches, "key")]


def contents(batches: list[Batch]) -> list[tuple]:
    """All of every batch, comparable."""
    return [tuple((name, str(value.dtype), value.tolist()) for name, value in sorted(batch.items())) for batch in batches]


def images_by_key(batches: list[Batch], name: str = "image") -> dict[tuple[str, int], bytes]:
    """The image of each key and epoch, wherever it stands."""
    found = {}
    for batch in batches:
        for values in zip(batch["key"], batch["epoch"], batch["mask"], batch[name], strict=True):
            key, epoch, valid, value = values
            if valid:
                assert (key, epoch) not in found
                found[key, epoch] = value.tobytes()
    return found


@pytest.fixture(scope="module")
def whole(data_set: Path) -> list[list[Batch]]:
    """Three epochs of a run that nothing interrupts."""
    return list(epochs(training(data_set), 3))


# Each record once, in another order every epoch


@pytest.mark.parametrize("batch_size", [None, 1, 5, 64])
def test_g6_every_record_once_an_epoch_in_another_order(data_set: Path, batch_size: int | None):
    data = training(data_set, batch_size=batch_size, augment="none")
    orders = []
    for number, batches in enumerate(epochs(data, 2)):
        assert sorted(keys(batches)) == KEYS
        assert len(batches) == len(data) == -(-NUM_RECORDS // (batch_size or 1))
        assert {np.size(batch["label"]) for batch in batches[:-1]} <= {batch_size or 1}
        assert column(batches, "epoch") == [number] * NUM_RECORDS
        assert column(batches, "filename") == column(batches, "key")
        assert column(batches, "mask") == [True] * NUM_RECORDS
        assert [CLASS_NAMES[label] for label in column(batches, "label")] == [key.split("/")[0] for key in keys(batches)]
        orders.append(keys(batches))
    assert orders[0] != orders[1]


def test_g6_equal_seeds_are_equal_and_others_differ(data_set: Path, whole: list[list[Batch]]):
    assert contents(next(epochs(training(data_set), 1))) == contents(whole[0])
    (other,) = epochs(training(data_set, seed=1), 1)
    assert sorted(keys(other)) == sorted(keys(whole[0]))
    assert keys(other) not in [keys(batches) for batches in whole]
    mine, theirs = images_by_key(other), images_by_key(whole[0])
    assert sum(mine[row] == theirs[row] for row in mine) <= 2  # seed 1 is augmented otherwise, too
    for epoch, batches in enumerate(whole[1:], 1):  # nor is it another epoch of seed 0
        theirs = images_by_key(batches)
        assert sum(mine[key, 0] == theirs[key, epoch] for key, _ in mine) <= 2


def test_g7_an_image_is_another_one_every_epoch(whole: list[list[Batch]]):
    first, second, third = (images_by_key(batches) for batches in whole)
    assert sum(first[key, 0] == second[key, 1] for key, _ in first) <= 2
    assert sum(second[key, 1] == third[key, 2] for key, _ in second) <= 2


def test_without_augmentation_images_are_those_of_a_single_pass(data_set: Path):
    (batches,) = epochs(training(data_set, augment="none", scaled_decode=False), 1)
    single = list(dataset(data_set, "train", image_size=SIZE, as_dict=True).as_numpy_iterator())
    expected = dict(zip(single[0]["key"], single[0]["image"], strict=True))
    assert all(
        (image == expected[key]).all() for batch in batches for key, image in zip(batch["key"], batch["image"], strict=True)
    )


def test_a_peek_takes_an_epoch(data_set: Path, whole: list[list[Batch]]):
    data = training(data_set)
    peek = next(data.as_numpy_iterator())
    assert contents([peek]) == contents(whole[0][:1])
    assert contents(next(epochs(data, 1))) == contents(whole[1])


def test_an_iterator_that_is_not_asked_takes_none(data_set: Path, whole: list[list[Batch]]):
    data = training(data_set)
    iter(data)  # as Keras does after every epoch
    assert contents(next(epochs(data, 1))) == contents(whole[0])


# Resumed


@pytest.fixture(scope="module")
def tail(whole: list[list[Batch]]) -> list[tuple]:
    return contents(list(itertools.chain(*whole)))


STEPS = 4  # of an epoch


def test_the_uninterrupted_run_is_as_long_as_thought(tail: list[tuple]):
    assert len(tail) == len(set(map(str, tail))) == 3 * STEPS


# Of `Schedule`, any step may be the first: test_ordering.py. Here, steps at both sides of an
# epoch's end, and others.
@pytest.mark.parametrize("first", [ALSO(0), ALSO(1), STEPS - 1, STEPS, ALSO(STEPS + 2)])
def test_g8_from_any_step_on_all_is_as_if_never_stopped(data_set: Path, tail: list[tuple], first: int):
    epoch, step = divmod(first, STEPS)
    data = training(data_set, first_epoch=epoch, first_step=step)
    assert len(data) == STEPS
    runs = [contents(batches) for batches in epochs(data, 2)]
    assert [len(run) for run in runs] == [STEPS - step, STEPS]
    assert list(itertools.chain(*runs)) == tail[first : (epoch + 2) * STEPS]
    assert len(data) == STEPS


@pytest.mark.parametrize("first", [ALSO(1), STEPS - 1, ALSO(STEPS + 2)])
def test_g8_an_endless_run_goes_on_from_any_step(data_set: Path, tail: list[tuple], first: int):
    epoch, step = divmod(first, STEPS)
    data = training(data_set, first_epoch=epoch, first_step=step, repeat=True)
    assert data.cardinality() == tf.data.INFINITE_CARDINALITY
    stop = (epoch + 2) * STEPS  # on from epoch to epoch
    assert contents(list(data.take(stop - first).as_numpy_iterator())) == tail[first:stop]


def test_an_endless_iterator_begins_where_the_first_did(data_set: Path, tail: list[tuple]):
    data = training(data_set, repeat=True).take(1)
    assert [contents(batches) for batches in epochs(data, 2)] == [tail[:1], tail[:1]]


def test_g8_epoch_ninety_is_the_ninetieth(data_set: Path, whole: list[list[Batch]]):
    (late,) = epochs(training(data_set, first_epoch=90), 1)
    assert sorted(keys(late)) == KEYS
    assert set(column(late, "epoch")) == {90}
    assert keys(late) not in [keys(batches) for batches in whole]


# On what an image does not depend


@pytest.mark.parametrize(
    "options",
    [
        {"num_parallel_calls": 1},
        ALSO({"num_parallel_calls": 2}),
        {"num_parallel_calls": 8},
        ALSO({"num_parallel_calls": tf.data.AUTOTUNE}),
        {"batch_size": 1},
        {"batch_size": 5},
        {"equal_steps": True},
    ],
    ids=str,
)
def test_g7_threads_and_batches_change_nothing(data_set: Path, whole: list[list[Batch]], options: dict):
    data = training(data_set, **options)
    steps = -(-NUM_RECORDS // options.get("batch_size", 7))
    batches = list(data.take(steps).as_numpy_iterator())
    assert images_by_key(batches) == images_by_key(whole[0])
    assert [key for key in keys(batches) if key] == keys(whole[0])
    if "num_parallel_calls" in options:
        assert contents(batches) == contents(whole[0])


@pytest.mark.parametrize("num_shards", [1, ALSO(23)])
def test_g7_shards_change_nothing(folder: Path, whole: list[list[Batch]], num_shards: int):
    assert contents(next(epochs(training(written(folder, num_shards)), 1))) == contents(whole[0])


@pytest.mark.parametrize("read_size", [ALSO(1), 5])
def test_g7_what_is_read_together_changes_nothing(data_set, whole, read_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tfpipe.pipeline.reading._READ_RECORDS", read_size)
    assert contents(next(epochs(training(data_set), 1))) == contents(whole[0])


@pytest.mark.parametrize("count", [ALSO(2), 3])
def test_g7_readers_change_nothing(data_set: Path, whole: list[list[Batch]], count: int):
    parts = [next(epochs(training(data_set, batch_size=4, shard=(index, count)), 1)) for index in range(count)]
    found = {row: image for part in parts for row, image in images_by_key(part).items()}
    assert found == images_by_key(whole[0])


DIGEST = """
import hashlib
tf.config.threading.set_inter_op_parallelism_threads(int(sys.argv[2]))
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[2]))
data = dataset(sys.argv[1], 'train', training=True, image_size=(8, 8), batch_size=7, as_dict=True)
images = b''.join(batch['image'].tobytes() for batch in data.as_numpy_iterator())
print(hashlib.sha256(images).hexdigest())
"""


def test_g7_one_thread_of_tensorflow_changes_nothing(data_set: Path, whole: list[list[Batch]]):
    done = run_script(DIGEST, data_set, 1)
    images = b"".join(batch["image"].tobytes() for batch in whole[0])
    assert (done.returncode, done.stdout.split()) == (0, [hashlib.sha256(images).hexdigest()]), done.stderr[-2000:]


# Several readers


def positions(loader: Loader) -> list[int]:
    """The record of every row of epoch 0, -1 for a blank row."""
    rows = tf.range(loader.rows.schedule.rows_per_epoch, dtype=tf.int64)
    found, indices = loader.rows.schedule.indices(rows)
    located, _ = loader.rows.order.positions(found, tf.maximum(indices, 0))
    return tf.where(indices < 0, indices, located).numpy().tolist()


@pytest.mark.parametrize(("num_shards", "count"), [(1, 3), (2, 1), (3, 2), (4, 7), (5, 4)])
def test_g5_readers_locate_every_record_once(folder: Path, num_shards: int, count: int):
    found = []
    for index in range(count):
        options = Options(training=True, batch_size=2, shard=(index, count))
        loader = Loader(written(folder, num_shards), "train", options)
        found += positions(loader)
    assert sorted(position for position in found if position >= 0) == list(range(NUM_RECORDS))


@pytest.mark.parametrize(("num_shards", "count"), [(5, 2), (4, 5)])
def test_g5_readers_divide_an_epoch_exactly(folder: Path, num_shards: int, count: int):
    options = {"batch_size": 2, "augment": "none", "equal_steps": num_shards % 2 == 0}
    parts = [next(epochs(training(written(folder, num_shards), shard=(i, count), **options), 1)) for i in range(count)]
    assert sorted(key for part in parts for key in keys(part) if key) == KEYS
    if options["equal_steps"]:
        assert {len(part) for part in parts} == {-(-NUM_RECORDS // (2 * count))}
        assert {len(batch["key"]) for part in parts for batch in part} == {2}


def test_g5_a_step_of_all_readers_is_a_step_of_one(data_set: Path):
    (one,) = epochs(training(data_set, batch_size=12), 1)
    parts = [next(epochs(training(data_set, batch_size=4, shard=(index, 3)), 1)) for index in range(3)]
    for step, batch in enumerate(one):
        for name, expected in batch.items():
            together = np.concatenate([part[step][name] for part in parts if step < len(part)])
            assert (together == expected).all()


def test_more_readers_than_records(tmp_path: Path):
    data_set = write_data_set(tmp_path / "shards", IMAGES[:2], 1, "train")
    lengths, found = [], []
    for index in range(4):
        data = training(data_set, shard=(index, 4), augment="none")
        found += keys(next(epochs(data, 1)))
        lengths.append(len(data))
    assert sorted(found) == ["cat/0.jpg", "dog/1.jpg"]
    assert sorted(lengths) == [0, 0, 1, 1]


@pytest.mark.parametrize("repeat", [True, False])
def test_an_empty_split_has_no_steps(tmp_path: Path, repeat: bool):
    data = training(write_data_set(tmp_path / "shards", [], 1, "train"), repeat=repeat)
    assert (len(data), list(data)) == (0, [])


def test_g5_blank_rows_weigh_nothing(data_set: Path):
    batches = list(training(data_set, batch_size=16, equal_steps=True, as_dict=False).as_numpy_iterator())
    weights = np.concatenate([weight for *_, weight in batches])
    images, labels = (np.concatenate(part) for part in list(zip(*batches, strict=True))[:2])
    assert weights.tolist() == [1.0] * NUM_RECORDS + [0.0] * 9
    assert not images[NUM_RECORDS:].any()
    assert images[:NUM_RECORDS].any(axis=(1, 2, 3)).all()
    assert set(labels[NUM_RECORDS:]) == {0}


def test_augmentation_leaves_blank_rows_black(data_set: Path):
    data = training(data_set, batch_size=16, equal_steps=True, augment=Augmentation(brightness=1.0))
    for batches in epochs(data, 3):
        assert not batches[-1]["image"][7:].any()
        assert batches[-1]["image"][:7].any()


# With Keras


class Recorder(keras.Model):
    """Writes down the labels' images of every batch of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.seen = keras.layers.Dense(3), []

    def build(self, shape: object) -> None:
        self.dense.build((None, 192))

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return self.dense(tf.reshape(tf.cast(images, tf.float32) / 255, [-1, 192]))

    def train_step(self, data: tuple) -> dict:
        digest = tf.numpy_function(
            lambda images: [self.seen[-1].append(image.tobytes()) for image in images] and 0, [data[0]], tf.int64
        )
        with tf.control_dependencies([digest]):
            return super().train_step(data)


class Epochs(keras.callbacks.Callback):
    def __init__(self, seen: list[list[bytes]]) -> None:
        super().__init__()
        self.seen = seen

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.seen.append([])


def fit(
    data: tf.data.Dataset, num_epochs: int, *, built: bool = True, at_once: int = 1, **options: object
) -> list[list[bytes]]:
    """The images that a model sees in each epoch of `fit`."""
    model = Recorder()
    if built:
        model.build((None, *SIZE, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # On a GPU Keras compiles with XLA, which knows no numpy_function.
    model.compile("sgd", loss, steps_per_execution=at_once, jit_compile=False)
    model.fit(data, epochs=num_epochs, verbose=0, callbacks=[Epochs(model.seen)], **options)
    return model.seen


def images(whole: list[list[Batch]]) -> list[list[bytes]]:
    return [[image.tobytes() for batch in batches for image in batch["image"]] for batches in whole]


def test_g6_fit_sees_every_image_every_epoch_in_another_order(data_set: Path, whole: list[list[Batch]]):
    assert fit(training(data_set, as_dict=False), 3) == images(whole)


def test_g6_fit_sees_the_same_with_an_endless_dataset(data_set: Path, whole: list[list[Batch]]):
    assert fit(training(data_set, as_dict=False, repeat=True), 3, steps_per_epoch=STEPS) == images(whole)


def test_g6_fit_of_several_steps_at_once_sees_the_same(data_set: Path, whole: list[list[Batch]]):
    assert fit(training(data_set, as_dict=False), 2, at_once=3) == images(whole)[:2]


def test_g6_fit_of_a_model_that_is_not_built_takes_no_epoch(data_set: Path, whole: list[list[Batch]]):
    assert fit(training(data_set, as_dict=False), 2, built=False) == images(whole)[:2]


def test_g8_fit_goes_on_in_the_middle_of_an_epoch(data_set: Path, whole: list[list[Batch]]):
    # Keras expects `len()` steps of the first epoch, too: it warns, and goes on with the next
    # epoch.
    first, *rest = images(whole)
    with pytest.warns(UserWarning, match="ran out of data"):
        assert fit(training(data_set, as_dict=False, first_step=3), 3) == [first[3 * 7 :], *rest]


def test_g8_fit_goes_on_with_initial_epoch(data_set: Path, whole: list[list[Batch]]):
    assert fit(training(data_set, as_dict=False, first_epoch=1), 3, initial_epoch=1) == images(whole)[1:]


def test_fit_in_a_strategy_takes_an_epoch_to_look_at_a_batch(data_set: Path, whole: list[list[Batch]]):
    # Keras 3.15 does so before the first epoch of every model in a strategy; the epochs that it
    # trains on are whole.
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert fit(training(data_set, as_dict=False), 2) == images(whole)[1:]


def test_g8_fit_in_a_strategy_begins_where_it_shall_with_an_endless_dataset(data_set: Path, whole: list[list[Batch]]):
    data = training(data_set, as_dict=False, repeat=True, first_epoch=1)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert fit(data, 2, steps_per_epoch=STEPS) == images(whole)[1:]


@pytest.mark.parametrize("compiled", ["auto", ALSO(True)])  # Keras' default, and what it becomes on a GPU
def test_a_plain_model_is_fitted_as_keras_does_by_itself(data_set: Path, compiled: str | bool):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=compiled)
    deterministic = is_op_determinism_enabled()  # by a training before, in this process; Keras does not compile then
    assert model.jit_compile == ((has_gpu() or compiled is True) and not deterministic)
    data = dataset(data_set, "train", training=True, batch_size=7, image_size=SIZE, seed=0, augment="none")
    losses = model.fit(data, epochs=3, verbose=0).history["loss"]
    assert losses == sorted(losses, reverse=True)


# Some classes only, or all equally often


def test_chosen_classes_are_labelled_by_their_place(data_set: Path):
    chosen = ["owl", "cat"]
    for batches in epochs(training(data_set, class_names=chosen), 2):
        assert sorted(keys(batches)) == [key for key in KEYS if key.split("/")[0] in chosen]
        assert [chosen[label] for label in column(batches, "label")] == [key.split("/")[0] for key in keys(batches)]


def test_another_order_of_classes_changes_labels_only(data_set: Path, whole: list[list[Batch]]):
    (batches,) = epochs(training(data_set, class_names=["owl", "cat", "dog"]), 1)
    assert column(batches, "label") == [(label + 1) % 3 for label in column(whole[0], "label")]
    assert images_by_key(batches) == images_by_key(whole[0])
    assert keys(batches) == keys(whole[0])


def test_g5_chosen_classes_in_a_single_pass(data_set: Path):
    options = {"image_size": SIZE, "batch_size": 4, "class_names": ["dog"], "as_dict": True}
    parts = [list(dataset(data_set, "train", shard=(i, 3), equal_steps=True, **options).as_numpy_iterator()) for i in range(3)]
    assert [key for part in parts for key in keys(part) if key] == [f"dog/{number}.jpg" for number in range(1, NUM_RECORDS, 3)]
    assert {label for part in parts for label in column(part, "label")} == {0, -1}
    blank = [
        label for part in parts for label, valid in zip(column(part, "label"), column(part, "mask"), strict=True) if not valid
    ]
    assert set(blank) == {-1}


@pytest.mark.parametrize("options", [{}, {"training": True}])
def test_g5_a_chosen_class_without_records_gives_none(tmp_path: Path, options: dict):
    data_set = write_data_set(tmp_path / "shards", IMAGES[:2], 1, "train")  # no owl
    assert list(dataset(data_set, "train", image_size=SIZE, class_names=["owl"], **options)) == []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["cat", "bat", "owl", "rat"], "class_names: there are no classes bat, rat; there are cat, dog, owl"),
        ([], "class_names must be different names of classes (got [])"),
        (["cat", "cat"], "class_names must be different names of classes (got ['cat', 'cat'])"),
        ("cat", "class_names must be different names of classes (got 'cat')"),
        ([0], "class_names must be different names of classes (got [0])"),
    ],
)
def test_wrong_classes_are_named(data_set: Path, chosen: object, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset(data_set, "train", class_names=chosen)


def test_balanced_classes_come_equally_often(data_set: Path):
    chosen = ["owl", "cat", "dog"]
    data = training(data_set, balanced=True, class_names=chosen)
    both = list(epochs(data, 2))
    for batches in both:
        assert np.bincount(column(batches, "label")).tolist() == [8, 8, 8]
        assert len(batches) == len(data) == 4
    seen = images_by_key(list(itertools.chain(*both)))  # which fails where a record comes twice in a pass
    assert len(seen) == 48
    assert len({image for (key, _), image in seen.items() if key == b"owl/2.jpg"}) > 1  # newly augmented every time


def test_g8_balanced_goes_on_as_if_never_stopped(data_set: Path):
    runs = [contents(batches) for batches in epochs(training(data_set, balanced=True), 2)]
    resumed = [contents(batches) for batches in epochs(training(data_set, balanced=True, first_step=2), 2)]
    assert resumed == [runs[0][2:], runs[1]]
    assert contents(next(epochs(training(data_set, balanced=True, seed=1), 1))) not in runs


def test_balanced_needs_records_of_every_class(tmp_path: Path):
    data_set = write_data_set(tmp_path / "shards", IMAGES[:2], 1, "train")
    with pytest.raises(ValueError, match=re.escape("balanced needs records of every class; there are none of: owl")):
        dataset(data_set, "train", training=True, balanced=True)
    (batches,) = epochs(training(data_set, balanced=True, class_names=["dog", "cat"]), 1)
    assert sorted(keys(batches)) == ["cat/0.jpg", "dog/1.jpg"]


def test_g6_blocks_give_every_record_once(data_set: Path, whole: list[list[Batch]]):
    data = training(data_set, read_block=2)
    found = list(epochs(data, 2))
    assert all(sorted(keys(batches)) == KEYS for batches in found)
    assert keys(found[0]) != keys(found[1])
    assert images_by_key(found[0]) == images_by_key(whole[0])  # the order is another, augmentation is not
    resumed = [contents(batches) for batches in epochs(training(data_set, read_block=2, first_step=1), 2)]
    assert resumed == [contents(found[0])[1:], contents(found[1])]


# Damage


def corrupt(data_set: Path, number: int) -> str:
    """Flips a byte of a record; returns its shard's path."""
    reader = RecordReader(data_set, "train")
    path, offset = reader.error(number, "").path, reader.error(number, "").offset
    with open(path, "r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 1]))
    return str(path)


def failures(data: tf.data.Dataset) -> tuple[list[Batch], list[str]]:
    """The batches before the first error, and the errors from there on."""
    iterator = data.as_numpy_iterator()
    before, errors = [], []
    for _ in range(len(data)):
        try:
            before.append(next(iterator))
            assert not errors, "a batch after an error"
        except tf.errors.InvalidArgumentError as error:
            errors.append(str(error))
    return before, errors


UNCROPPED = Augmentation(horizontal_flip=0.5, mixup=0.4, cutmix=1.0)


@pytest.mark.parametrize(
    ("bad", "options"),
    [
        ALSO(0, {"augment": "none"}),
        (NUM_RECORDS - 1, {"augment": "none"}),
        (11, {"augment": "none", "read_block": 2}),
        (11, {"augment": "none", "balanced": True}),
        (11, {"augment": UNCROPPED}),
    ],
)
def test_g3_a_damaged_image_is_named_and_nothing_follows(tmp_path: Path, bad: int, options: dict):
    files = [damaged(jpeg) if number == bad else jpeg for number, jpeg in enumerate(IMAGES)]
    before, errors = failures(training(write_data_set(tmp_path / "shards", files, 3, "train"), **options))
    shard, name = int(np.searchsorted([7, 15], bad, side="right")), f"{CLASS_NAMES[bad % 3]}/{bad}.jpg"
    assert re.search(f"{manifest.shard_file('pets', 'train', shard, 3)}: at byte .*source {name}.*cannot be decoded", errors[0])
    assert name not in keys(before)
    assert len(before) + len(errors) == 4


@pytest.mark.parametrize(("bad", "options"), [ALSO(0, {}), (11, {"read_block": 2}), (NUM_RECORDS - 1, {"first_epoch": 1})])
def test_g3_a_damaged_record_is_named_and_nothing_follows(tmp_path: Path, bad: int, options: dict):
    data_set = write_data_set(tmp_path / "shards", IMAGES, 3, "train")
    path = corrupt(data_set, bad)
    before, errors = failures(training(data_set, **options))
    assert f"{path}: at byte" in errors[0]
    assert re.search(rf"source {CLASS_NAMES[bad % 3]}/{bad}\.jpg\): .*CRC", errors[0])
    assert len(before) + len(errors) == 4


def test_g3_a_damaged_image_is_named_once_its_end_is_decoded(tmp_path: Path):
    # A crop that ends above is decoded without a word: the decoder stops at the crop's last row
    # (see the known limits).
    files = [damaged(jpeg) for jpeg in IMAGES]
    data_set = write_data_set(tmp_path / "shards", files, 3, "train")
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot be decoded"):
        next(iter(training(data_set, batch_size=1, first_epoch=1, augment="none")))


def test_g3_a_resumed_run_comes_to_the_damage_too(tmp_path: Path, whole: list[list[Batch]]):
    data_set = write_data_set(tmp_path / "shards", IMAGES, 3, "train")
    last = whole[0][-1]["key"][-1].decode()
    corrupt(data_set, int(re.findall(r"\d+", last)[0]))
    iterator = training(data_set, first_step=2).as_numpy_iterator()
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"source {last}"):
        list(iterator)


def test_g3_the_partner_of_a_mixed_image_is_named_too(tmp_path: Path):
    harmed = write_data_set(tmp_path / "shards", IMAGES, 3, "train")
    options = {"batch_size": 12, "augment": MIXED, "shard": (1, 2)}
    read = positions(Loader(harmed, "train", Options(training=True, **options)))
    number = next(position for position in read[12:] if position not in read[:12])
    path = corrupt(harmed, number)
    _, (error,) = failures(training(harmed, **options))
    assert f"{path}: at byte" in error
    assert f"/{number}.jpg): " in error


def test_g3_fit_shows_the_name(tmp_path: Path):
    data_set = write_data_set(tmp_path / "shards", IMAGES, 3, "train")
    corrupt(data_set, 11)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"source owl/11\.jpg"):
        fit(training(data_set, as_dict=False), 1)


# Mixing

MIXES = {name: Augmentation(crop=0.5, **{name: 1.0}) for name in ("mixup", "cutmix")} | {"both": MIXED}


@pytest.fixture(scope="module")
def mixed(data_set: Path) -> dict[str, list[list[Batch]]]:
    return {name: list(epochs(training(data_set, batch_size=6, augment=augment), 2)) for name, augment in MIXES.items()}


@pytest.mark.parametrize(("count", "name"), [ALSO(2, "mixup"), ALSO(2, "cutmix"), (3, "both")])
def test_g7_readers_mix_as_one_reader_does(data_set: Path, mixed: dict, name: str, count: int):
    parts = [
        list(epochs(training(data_set, batch_size=6 // count, augment=MIXES[name], shard=(i, count)), 2)) for i in range(count)
    ]
    for epoch, batches in enumerate(mixed[name]):
        for step, batch in enumerate(batches):
            for column_name, expected in batch.items():
                together = np.concatenate([part[epoch][step][column_name] for part in parts if step < len(part[epoch])])
                assert (together == expected).all(), (epoch, step, column_name)


@pytest.mark.parametrize("name", [ALSO(name) if name != "both" else name for name in MIXES])
def test_g8_mixing_goes_on_as_if_never_stopped(data_set: Path, mixed: dict, name: str):
    (resumed,) = epochs(training(data_set, batch_size=6, augment=MIXES[name], first_epoch=1, first_step=2), 1)
    assert contents(resumed) == contents(mixed[name][1])[2:]
    assert contents(resumed) != contents(mixed[name][0])[2:]


@pytest.mark.parametrize("of", ["seed", "epoch", "step"])
def test_g7_how_images_are_mixed_depends_on_seed_epoch_and_step(of: str):
    black, white = np.zeros((1, *SIZE, 3), np.uint8), np.full((1, *SIZE, 3), 255, np.uint8)
    labels = np.eye(2, dtype=np.float32)

    def mixed(number: int) -> tuple[bool, float]:
        """Whether the image was pasted, and its share."""
        place = {"seed": 5, "epoch": tf.constant(5, tf.int64), "step": tf.constant(5, tf.int64)}
        place[of] = number if of == "seed" else tf.constant(number, tf.int64)
        image, label = mix(black, labels[:1], white, labels[1:], mixup=1.0, cutmix=1.0, **place)
        return set(np.unique(image)) <= {0, 255}, float(label[0, 0])

    several = [mixed(number) for number in range(20)]
    assert [mixed(number) for number in range(3)] == several[:3]
    assert 2 < sum(pasted for pasted, _ in several) < 18
    assert len({share for pasted, share in several if not pasted}) == sum(not pasted for pasted, _ in several)


def test_g8_a_reader_of_several_mixes_on_as_if_never_stopped(data_set: Path):
    # Here the rows of a step are more than those of its batch: the partners are read with them.
    options = {"batch_size": 3, "augment": MIXES["both"], "shard": (1, 2)}
    (whole,) = epochs(training(data_set, **options), 1)
    (resumed,) = epochs(training(data_set, first_step=2, **options), 1)
    assert contents(resumed) == contents(whole)[2:]


@pytest.mark.parametrize("name", MIXES)
def test_mixed_labels_are_probabilities_with_most_of_some_class(mixed: dict, name: str):
    batches = list(itertools.chain(*mixed[name]))
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.shape == (2 * NUM_RECORDS, 3)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
    assert (labels >= 0).all()
    assert ((labels > 0).sum(1) == 2).any()  # something was mixed


def test_mixup_adds_images_in_the_shares_of_their_labels(data_set: Path, mixed: dict):
    plain = next(epochs(training(data_set, batch_size=6, augment=Augmentation(crop=0.5)), 1))
    for batch, alone in zip(mixed["mixup"][0], plain, strict=True):
        assert batch["key"].tolist() == alone["key"].tolist()
        classes = alone["label"]
        shares = [label[own] for label, own in zip(batch["label"], classes, strict=True) if label[own] < 1]
        assert len({round(float(share), 5) for share in shares}) <= 1  # one for the whole batch
        if shares:
            share = shares[0]
            for image, own, label, label_own in zip(batch["image"], alone["image"], batch["label"], classes, strict=True):
                others = [np.round(own * share + other * (1 - share)) for other in alone["image"].astype(np.float32)]
                fits = [np.abs(other - image).max() <= 1 for other in others]
                assert any(fits), (label, label_own)


def test_cutmix_pastes_rectangles_in_the_shares_of_their_labels(data_set: Path, mixed: dict):
    plain = next(epochs(training(data_set, batch_size=6, augment=Augmentation(crop=0.5)), 1))
    pasted = 0
    for batch, alone in zip(mixed["cutmix"][0], plain, strict=True):
        for image, own, label, label_own in zip(batch["image"], alone["image"], batch["label"], alone["label"], strict=True):
            changed = (image != own).any(axis=-1)
            if not changed.any():
                continue
            rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert any((other[box] == image[box]).all() for other in alone["image"])
            if label[label_own] < 1:
                pasted += 1
                assert abs((1 - label[label_own]) * 64 - changed[box].size) <= 8  # equal pixels at an edge may hide one row
    assert pasted > 3


def test_mixing_with_blank_rows_leaves_them_blank(data_set: Path, mixed: dict):
    (batches,) = epochs(training(data_set, batch_size=6, augment=MIXED, equal_steps=True), 1)
    last, expected = batches[-1], mixed["both"][0][-1]
    assert last["mask"].tolist() == [True] * 5 + [False]
    assert not last["image"][-1].any()
    assert not last["label"][-1].any()
    assert all((last[name][:5] == expected[name]).all() for name in expected)


# What the caller sees


def test_elements_are_as_documented(data_set: Path):
    image, text = tf.TensorSpec([None, *SIZE, 3], tf.uint8), tf.TensorSpec([None], tf.string)
    number, mask = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.bool)
    columns = {"image": image, "label": number, "key": text, "filename": text, "mask": mask, "epoch": number}
    assert training(data_set).element_spec == columns
    assert training(data_set, as_dict=False).element_spec == (image, number)
    assert training(data_set, as_dict=False, augment=MIXED).element_spec == (image, tf.TensorSpec([None, 3], tf.float32))
    assert training(data_set, as_dict=False, first_step=2).element_spec == (image, number)


def test_describe_has_one_line_per_stage(data_set: Path):
    lines = describe(data_set, "train", training=True, image_size=SIZE, batch_size=7, seed=5, first_epoch=3).splitlines()
    stages = [line.split()[0] for line in lines]
    assert stages == ["read", "order", "reader", "decode", "augment", "resize", "batch", "elements", "epochs"]
    said = dict(zip(stages, lines, strict=True))
    assert "23 records" in said["read"]
    assert "seed 5" in said["order"]
    assert "of 7, 4 steps" in said["batch"]
    assert "from epoch 3, step 0" in said["epochs"]
    single = describe(data_set, "train").splitlines()
    assert "as stored" in single[1]
    assert not any(line.startswith("epochs") for line in single)


TRAINING_ONLY = {
    "augment": "light",
    "balanced": True,
    "read_block": 4,
    "repeat": True,
    "seed": 1,
    "first_epoch": 2,
    "first_step": 1,
}


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_what_is_of_training_only_is_refused_without(data_set: Path, name: str):
    message = f"{name} is of training only: training=True is missing (got {TRAINING_ONLY[name]!r})"
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset(data_set, "train", **{name: TRAINING_ONLY[name]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer, 0 or more and less than 2**31 (got -1)"),
        ({"seed": 2**31}, "seed must be an integer, 0 or more and less than 2**31 (got 2147483648)"),
        ({"seed": 1.0}, "seed must be an integer, 0 or more and less than 2**31 (got 1.0)"),
        ({"seed": None}, "seed must be an integer, 0 or more and less than 2**31 (got None)"),
        ({"first_epoch": -1}, "first_epoch must be an integer, 0 or more and less than 2**31 (got -1)"),
        ({"first_step": "1"}, "first_step must be an integer, 0 or more and less than 2**31 (got '1')"),
        ({"first_step": 4}, "first_step must be less than the 4 steps of an epoch (got 4)"),
        ({"read_block": 0}, "read_block must be an integer, 1 or more and less than 2**31 (got 0)"),
        ({"read_block": 2.5}, "read_block must be an integer, 1 or more and less than 2**31 (got 2.5)"),
        ({"read_block": 4, "balanced": True}, "balanced and read_block=4 exclude each other"),
        ({"augment": "wild"}, "augment must be an Augmentation or one of none, light, standard, strong (got 'wild')"),
        ({"augment": 3}, "augment must be an Augmentation or one of none, light, standard, strong (got 3)"),
        ({"augment": ""}, "augment must be an Augmentation or one of none, light, standard, strong (got '')"),
        ({"augment": False}, "augment must be an Augmentation or one of none, light, standard, strong (got False)"),
        ({"augment": MIXED, "batch_size": None}, "mixup and cutmix need labels and batches"),
        ({"class_names": ["bat"]}, "class_names: there are no classes bat"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_with_its_value(data_set: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        training(data_set, **options)


def test_numbers_of_numpy_are_taken(data_set: Path, whole: list[list[Batch]]):
    data = training(data_set, seed=np.int64(0), first_epoch=np.int32(1), first_step=np.uint8(2))
    assert contents(next(epochs(data, 1))) == contents(whole[1])[2:]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_whose_shorter_side_alone_is_small_are_scaled_in_one_way(tmp_path: Path, resize: str, training: bool):
    # Enough for "pad" to take the decoder's half size, not for the others: who decodes must choose
    # as who places does.
    for number in range(3):
        path = tmp_path / "photos" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(number, 30, 60))
    tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", layout="folders", splits={"train": 1.0}, progress=False)
    options = {"image_size": (24, 24), "resize": resize, "batch_size": None, "as_dict": True}
    way = {"training": True, "augment": "none"} if training else {"scaled_decode": True}
    whole, scaled = (
        {
            row["key"]: row["image"].astype(int)
            for row in dataset(tmp_path / "shards", "train", **options, **given).as_numpy_iterator()
        }
        for given in ({}, way)
    )
    assert whole.keys() == scaled.keys()
    assert max(np.abs(whole[key] - scaled[key]).mean() for key in whole) < 3


@pytest.mark.parametrize("options", [{}, {"training": True}, {"training": True, "shard": (1, 2)}])
def test_a_batch_larger_than_the_split_holds_no_more_than_that(data_set: Path, options: dict):
    data = dataset(data_set, "train", batch_size=1 << 40, image_size=SIZE, **options)
    (batch,) = data.as_numpy_iterator()
    assert len(batch[0]) == -(-len(IMAGES) // options.get("shard", (0, 1))[1])


def test_numbers_of_numpy_are_taken_whatever_their_width(data_set: Path):
    narrow = dataset(data_set, "train", training=True, image_size=SIZE, shard=(np.int8(1), np.int8(100)), batch_size=1)
    assert len(list(narrow)) == len(
        list(dataset(data_set, "train", training=True, image_size=SIZE, shard=(1, 100), batch_size=1))
    )


@pytest.mark.parametrize("name", ["training", "balanced", "repeat", "as_dict", "equal_steps", "scaled_decode"])
def test_a_switch_is_true_or_false(data_set: Path, name: str):
    with pytest.raises(ValueError, match=rf"{name} must be True or False \(got 'no'\)"):
        dataset(data_set, "train", **{"training": True, name: "no"})
