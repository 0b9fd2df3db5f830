"""`dataset()`: each record exactly once, in order, for any number of threads; or an error that names the culprit."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import thin_out
from PIL import Image, ImageOps
from pipeline_fixtures import CLASS_NAMES, damaged, make_image, open_descriptors, write_data_set

import tfpipe
from tfpipe.pipeline import reading
from tfpipe.pipeline.loader import Loader, dataset
from tfpipe.pipeline.options import Options
from tfpipe.records import manifest, schema, tfrecord
from tfpipe.records.catalog import read_catalog

pytestmark = pytest.mark.tf

SIZE = (8, 8)
NUM_RECORDS = 23
IMAGES = [make_image(number) for number in range(NUM_RECORDS)]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("data") / "shards", IMAGES, 3)


def with_damaged(out: Path, bad: list[int]) -> Path:
    images = [damaged(jpeg) if number in bad else jpeg for number, jpeg in enumerate(IMAGES)]
    return write_data_set(out / "shards", images, 3)


def read(data_set: Path, **options: object) -> list[dict[str, np.ndarray]]:
    return list(dataset(data_set, "test", image_size=SIZE, as_dict=True, **options).as_numpy_iterator())


def names(data_set: Path) -> list[str]:
    return [row.filename for row in read_catalog(data_set, split="test")]


def column(batches: list[dict[str, np.ndarray]], name: str) -> list:
    return np.concatenate([np.atleast_1d(batch[name]) for batch in batches]).tolist()


def keys(batches: list[dict[str, np.ndarray]]) -> list[str]:
    return [key.decode() for key in column(batches, "key")]


# Each record once


@pytest.mark.parametrize("batch_size", [None, 1, 7, 23, 64])
def test_g5_every_record_once_in_stored_order(data_set: Path, batch_size: int | None):
    batches = read(data_set, batch_size=batch_size)
    assert keys(batches) == names(data_set)
    assert column(batches, "filename") == column(batches, "key")
    assert column(batches, "label") == [number % 3 for number in range(NUM_RECORDS)]
    assert column(batches, "mask") == [True] * NUM_RECORDS
    images = [batch["image"] for batch in batches] if batch_size is None else [x for b in batches for x in b["image"]]
    for image, jpeg in zip(images, IMAGES, strict=True):
        assert (image == np.asarray(Image.open(io.BytesIO(jpeg)))).all()


@pytest.mark.parametrize("batch_size", [None, 1, 7, 23, 64])
@pytest.mark.parametrize("equal_steps", [True, False])
def test_len_is_the_number_of_steps(data_set: Path, batch_size: int | None, equal_steps: bool):
    data = dataset(data_set, "test", image_size=SIZE, batch_size=batch_size, shard=(1, 2), equal_steps=equal_steps)
    assert len(data) == len(list(data)) == -(-12 // (batch_size or 1))


def test_g5_the_last_batch_is_partial(data_set: Path):
    assert [len(batch["label"]) for batch in read(data_set, batch_size=7)] == [7, 7, 7, 2]


def test_elements_are_as_documented(data_set: Path):
    image, label, text = (
        tf.TensorSpec([None, 5, 6, 3], tf.uint8),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.string),
    )
    mask = tf.TensorSpec([None], tf.bool)
    data = dataset(data_set, "test", image_size=(5, 6), as_dict=True)
    assert data.element_spec == {"image": image, "label": label, "key": text, "filename": text, "mask": mask}
    assert dataset(data_set, "test", image_size=(5, 6)).element_spec == (image, label)
    assert dataset(data_set, "test", image_size=(5, 6), batch_size=None).element_spec == (
        tf.TensorSpec([5, 6, 3], tf.uint8),
        tf.TensorSpec([], tf.int64),
    )
    assert dataset(data_set, "test", image_size=(5, 6), batch_size=4, equal_steps=True).element_spec == (
        tf.TensorSpec([4, 5, 6, 3], tf.uint8),
        tf.TensorSpec([4], tf.int64),
        tf.TensorSpec([4], tf.float32),
    )


def test_a_second_pass_equals_the_first(data_set: Path):
    data = dataset(data_set, "test", image_size=SIZE, batch_size=5)
    passes = [[(image.tobytes(), label.tolist()) for image, label in data.as_numpy_iterator()] for _ in range(2)]
    assert passes[0] == passes[1]


def test_an_empty_split_has_no_steps(tmp_path: Path):
    empty = write_data_set(tmp_path / "shards", [], 1)
    assert list(dataset(empty, "test")) == []
    assert len(dataset(empty, "test", equal_steps=True)) == 0


@pytest.mark.parametrize("read_size", [1, 64])
def test_threads_change_nothing(data_set: Path, read_size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_READ_RECORDS", read_size)
    runs = [read(data_set, batch_size=4, num_parallel_calls=threads) for threads in (1, 2, 8, None)]
    for batches in runs[1:]:
        for batch, first in zip(batches, runs[0], strict=True):
            assert all((batch[name] == first[name]).all() for name in first)


@pytest.mark.parametrize(("read_size", "pieces"), [(3, (4, 3)), (7, (2, 5)), (10, (1, 10)), (64, (1, 10))])
def test_steps_in_pieces_are_those_of_whole_ones(
    data_set: Path, tmp_path: Path, read_size: int, pieces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    # Pieces of 4 x 3 hold two rows more than a step of 10 has.
    whole = read(data_set, batch_size=10)
    monkeypatch.setattr(reading, "_READ_RECORDS", read_size)
    options = Options(image_size=SIZE, as_dict=True, batch_size=10)
    loader = Loader(data_set, "test", options)
    assert (loader.rows.num_pieces, loader.rows.piece_size) == pieces
    for batch, first in zip(loader.dataset().as_numpy_iterator(), whole, strict=True):
        assert all((batch[name] == first[name]).all() for name in first)
    bad = with_damaged(tmp_path, [13])
    with pytest.raises(tf.errors.InvalidArgumentError, match=culprit(13)):
        read(bad, batch_size=10)


def test_options_are_the_keyword_arguments_of_dataset():
    keywords = inspect.signature(dataset).parameters.values()
    of_dataset = {keyword.name: keyword.default for keyword in keywords if keyword.kind == keyword.KEYWORD_ONLY}
    of_options = {field.name: field.default for field in dataclasses.fields(Options)}
    assert {name: default for name, default in of_options.items() if name in of_dataset} == of_dataset
    assert of_options.keys() - of_dataset.keys() == {"shuffle", "selection", "samples"}


# Several readers


# Each reader compiles a pipeline, for most of a second. That any number of readers divides any
# number of records, whatever the batches, is shown where it is decided: of `Schedule`, in
# test_ordering.py.
@pytest.mark.parametrize(("num_shards", "count"), [(1, 3), (2, 1), (3, 2), (4, 7), (5, 4)])
def test_g5_readers_divide_a_split_exactly(tmp_path: Path, num_shards: int, count: int):
    data_set = write_data_set(tmp_path / "shards", IMAGES, num_shards)
    parts = [keys(read(data_set, batch_size=4, shard=(index, count))) for index in range(count)]
    assert list(itertools.chain(*parts)) == names(data_set)  # disjoint, complete, in order
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("num_records", "count", "batch_size"), [(23, 1, 4), (23, 2, None), (23, 2, 64), (23, 3, 1), (3, 5, 4)]
)
def test_g5_equal_steps_fill_up_with_masked_rows(tmp_path: Path, num_records: int, count: int, batch_size: int | None):
    data_set = write_data_set(tmp_path / "shards", IMAGES[:num_records], 3)
    parts = [read(data_set, batch_size=batch_size, shard=(i, count), equal_steps=True) for i in range(count)]
    assert len({len(part) for part in parts}) == 1
    batches = [batch for part in parts for batch in part]
    assert {np.size(batch["label"]) for batch in batches} == {batch_size or 1}
    mask = np.array(column(batches, "mask"))
    assert mask.sum() == num_records
    assert np.array(keys(batches))[mask].tolist() == names(data_set)
    blank = [
        row for row, valid in zip(zip(column(batches, "label"), keys(batches), strict=True), mask, strict=True) if not valid
    ]
    assert set(blank) <= {(-1, "")}
    images = np.concatenate([batch["image"].reshape(-1, 8, 8, 3) for batch in batches])
    assert not images[~mask].any()
    assert images[mask].any(axis=(1, 2, 3)).all()


def test_weights_of_blank_rows_make_keras_metrics_exact(data_set: Path):
    model = classifier()
    whole = dataset(data_set, "test", image_size=SIZE, batch_size=NUM_RECORDS)
    filled = dataset(data_set, "test", image_size=SIZE, batch_size=16, equal_steps=True)
    assert [float(weight.sum()) for _, _, weight in filled.as_numpy_iterator()] == [16, 7]
    # Keras divides its own loss by the number of rows, whatever they weigh: 32 here.
    loss, *metrics = model.evaluate(filled, verbose=0)
    np.testing.assert_allclose([loss * 32 / NUM_RECORDS, *metrics], model.evaluate(whole, verbose=0), rtol=1e-5)


# Errors while iterating


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((*SIZE, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, weighted_metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(from_logits=True)])
    return model


def culprit(bad: int) -> str:
    return re.escape(f"(source {CLASS_NAMES[bad % 3]}/{bad}.jpg): cannot be decoded: jpeg::Uncompress failed")


BAD = ([0], [11], [NUM_RECORDS - 1], [11, 12, 13, 20], list(range(NUM_RECORDS)))
BATCHED = ({"batch_size": 4}, {"batch_size": None}, {"batch_size": 1}, {"equal_steps": True})


@pytest.mark.parametrize(
    ("bad", "options"),
    thin_out(itertools.product(BAD, BATCHED), lambda bad, options: len(bad) == 4 or options == BATCHED[0]),
)
def test_g3_an_image_that_cannot_be_decoded_is_named_where_it_stands(tmp_path: Path, bad: list[int], options: dict):
    iterator = iter(dataset(with_damaged(tmp_path, bad), "test", image_size=SIZE, **options))
    before = 0
    with pytest.raises(tf.errors.InvalidArgumentError, match=culprit(bad[0])):  # noqa: PT012 (counts what comes before)
        while next(iterator, None) is not None:
            before += 1
    assert before == bad[0] // (options.get("batch_size", 32) or 1)  # all that comes before it is delivered


def test_g5_no_later_batch_passes_either(tmp_path: Path):
    # Someone may catch the error and go on: rows have moved up, and must not come as if nothing had
    # been.
    iterator = iter(dataset(with_damaged(tmp_path, [0]), "test", image_size=SIZE, batch_size=4))
    for _ in range(6):
        with pytest.raises(tf.errors.InvalidArgumentError):
            next(iterator)
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 6 elements but contained only 0"):
        next(iterator)


@pytest.mark.parametrize(
    ("bad", "method"),
    thin_out(
        itertools.product((0, 11, NUM_RECORDS - 1), ("evaluate", "fit", "predict")),
        lambda bad, method: bad == 11 or (bad == 0 and method == "fit"),
    ),
)
def test_keras_shows_the_name(tmp_path: Path, bad: int, method: str):
    data = dataset(with_damaged(tmp_path, [bad]), "test", image_size=SIZE, batch_size=4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=culprit(bad)):
        getattr(classifier(), method)(data, verbose=0)


def test_a_function_shows_the_name(tmp_path: Path):
    data = dataset(with_damaged(tmp_path, [11]), "test", image_size=SIZE, batch_size=None)

    @tf.function
    def total() -> tf.Tensor:
        return data.reduce(tf.constant(0, tf.int64), lambda state, row: state + row[1])

    with pytest.raises(tf.errors.InvalidArgumentError, match=culprit(11)):
        total()


def run_script(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys, tensorflow as tf; from tfpipe.pipeline.loader import dataset\n{code}"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("inter_op_threads", [pytest.param(0, marks=pytest.mark.exhaustive(only=True)), 1])
def test_a_process_that_fails_ends(tmp_path: Path, inter_op_threads: int):
    # It hung after its traceback: the iterator waits at exit for a call into Python, which is gone.
    done = run_script(
        "tf.config.threading.set_inter_op_parallelism_threads(int(sys.argv[2]))\n"
        "for _ in dataset(sys.argv[1], 'test', image_size=(8, 8), batch_size=4, num_parallel_calls=1): pass",
        with_damaged(tmp_path, [11]),
        inter_op_threads,
    )
    assert done.returncode == 1
    assert re.search(culprit(11), done.stderr)


def test_a_process_ends_with_an_iterator_in_the_middle_of_reading(tmp_path: Path):
    # Four endless pipelines that do nothing but read: some thread is in Python, or waits for it,
    # when the process ends.
    data_set = write_data_set(tmp_path / "shards", [bytes(100_000)] * 200, 3)
    done = run_script(
        "from tfpipe.pipeline.reading import RecordReader, read_records\n"
        "reader = RecordReader(sys.argv[1], 'test')\n"
        "batches = tf.data.Dataset.range(200).repeat().batch(4).map(lambda positions: {'position': positions})\n"
        "data = read_records(reader, batches, num_parallel_calls=2).map(lambda batch: tf.strings.length(batch['serialized']))\n"
        "iterators = [iter(data.prefetch(1_000_000)) for _ in range(4)]\n"
        "print([bool((next(iterator) > 100_000).numpy().all()) for iterator in iterators])",
        data_set,
    )
    assert (done.returncode, done.stdout) == (0, "[True, True, True, True]\n")


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 4]))


def swap_next(path: Path) -> None:
    other = next(file for file in sorted(path.parent.glob("pets-*")) if file != path)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


HARM = {
    "flip": flip,
    "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "delete": lambda path: path.unlink(),
    "swap": swap_next,
    "duplicate": lambda path: path.write_bytes(next(p for p in path.parent.glob("pets-*") if p != path).read_bytes()),
}


@pytest.mark.parametrize(
    ("shard", "harm", "before"),
    thin_out(itertools.product((0, 2), HARM, (True, False)), lambda shard, harm, before: before or shard == 2),
)
def test_g3_harm_is_reported_and_nothing_is_read_as_a_smaller_set(tmp_path: Path, harm: str, shard: int, before: bool):
    data_set = write_data_set(tmp_path / "shards", IMAGES, 3)
    file = data_set / manifest.shard_file("pets", "test", shard, 3)
    opened = [] if before else [dataset(data_set, "test", image_size=SIZE, shard=(i, 2), batch_size=4) for i in (0, 1)]
    HARM[harm](file)
    errors = []
    for index in (0, 1):
        try:
            data = opened[index] if opened else dataset(data_set, "test", image_size=SIZE, shard=(index, 2), batch_size=4)
            assert sum(len(labels) for _, labels in data) == (11, 12)[index]
        except (tfpipe.DataError, tf.errors.InvalidArgumentError) as error:
            errors.append(str(error))
    assert errors
    assert any(str(file) in error for error in errors)


def test_g5_storage_that_fails_once_is_reported_too(data_set: Path, monkeypatch: pytest.MonkeyPatch):
    # Reading again for the error's text must not turn the error into silence.
    right, calls = reading._OpenFile.read, itertools.count()

    def wrong_once(file: reading._OpenFile, length: int, offset: int) -> bytes:
        content = right(file, length, offset)
        return content[:-9] if next(calls) == 0 else content

    monkeypatch.setattr(reading._OpenFile, "read", wrong_once)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"record 6 \(source cat/6.jpg\): .*truncated file.*a second attempt"
    ):
        read(data_set, num_parallel_calls=1)


def test_a_record_that_is_not_an_example_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "encode", lambda record: b"\xff" + record.key.encode())
    data_set = write_data_set(tmp_path / "shards", IMAGES, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"record 0 \(source cat/0.jpg\): cannot be decoded"):
        read(data_set)


# Errors of the caller


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split must be one of test (got 'val')"),
        ({"batch_size": 0}, "batch_size must be an integer, 1 or more and less than 2**63 (got 0)"),
        ({"batch_size": 2.0}, "batch_size must be an integer, 1 or more and less than 2**63 (got 2.0)"),
        ({"batch_size": True}, "batch_size must be an integer, 1 or more and less than 2**63 (got True)"),
        ({"num_parallel_calls": -2}, "num_parallel_calls must be an integer, 1 or more and less than 2**31 (got -2)"),
        ({"shard": (2, 2)}, "shard must be (index, count) with 0 <= index < count (got (2, 2))"),
        ({"shard": (-1, 2)}, "shard must be (index, count) with 0 <= index < count (got (-1, 2))"),
        ({"shard": (0, 0)}, "shard must be (index, count) with 0 <= index < count (got (0, 0))"),
        ({"shard": 3}, "shard must be (index, count) with 0 <= index < count (got 3)"),
        ({"shard": (0.0, 2)}, "shard must be (index, count) with 0 <= index < count (got (0.0, 2))"),
        (
            {"image_size": (224, 0)},
            "the side of a square, positive integers (got (224, 0))",
        ),
        ({"resize": "squash"}, "resize must be one of stretch, crop, pad (got 'squash')"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(data_set: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset(data_set, **{"split": "test", **options})


# Lifetime


def test_a_dozen_datasets_leave_no_descriptor_open(data_set: Path):
    for _ in range(12):
        data = dataset(data_set, "test", image_size=SIZE, batch_size=8)
        assert len(list(data.take(1))) == 1
        assert open_descriptors(data_set) > 0
        del data
    gc.collect()
    assert open_descriptors(data_set) == 0


def test_what_is_made_of_a_dataset_keeps_it_alive(data_set: Path):
    iterator = iter(
        dataset(data_set, "test", image_size=SIZE, batch_size=None).map(lambda _, label: label).batch(4).prefetch(1)
    )
    gc.collect()
    assert sum(len(labels) for labels in iterator) == NUM_RECORDS


# With the builder, and other readers


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built")
    for number in range(40):
        png = number % 4 == 0
        path = root / "photos" / CLASS_NAMES[number % 3] / f"ü{number}.{'png' if png else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_format, orientation = "PNG" if png else "JPEG", 1 if png else number % 8 + 1
        path.write_bytes(make_image(number, 20 + number, 30, image_format=image_format, orientation=orientation))
    splits = {"train": 0.5, "test": 0.5}
    options = {"name": "pets", "layout": "folders", "splits": splits, "workers": 1, "num_shards": 3, "progress": False}
    tfpipe.build_tfrecords(root / "photos", root / "shards", **options)
    return root


def test_what_was_built_comes_back(built: Path):
    shards = built / "shards"
    seen: list[str] = []
    for split in ("train", "test"):
        for row in dataset(shards, split, image_size=(64, 64), resize="pad", batch_size=None, as_dict=True).as_numpy_iterator():
            filename = row["filename"].decode()
            seen.append(filename)
            assert tfpipe.load_manifest(shards).class_names[row["label"]] == filename.split("/")[0]
            with Image.open(built / "photos" / filename) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            scale = 64 / max(upright.size)
            expected = upright.resize([round(side * scale) for side in upright.size], Image.Resampling.BILINEAR)
            top, left = (64 - expected.height) // 2, (64 - expected.width) // 2
            decoded = row["image"][top : top + expected.height, left : left + expected.width]
            assert np.abs(decoded.astype(int) - np.asarray(expected)).max() <= 1
    assert sorted(seen) == sorted(path.relative_to(built / "photos").as_posix() for path in built.glob("photos/*/*"))


def test_a_plain_tfrecord_dataset_reads_the_same(built: Path):
    files = sorted(map(str, (built / "shards").glob("pets-test.tfrecord-*")))
    plain = tf.data.TFRecordDataset(files).map(tfpipe.parse_example).as_numpy_iterator()
    ours = dataset(built / "shards", "test", batch_size=None, as_dict=True).as_numpy_iterator()
    pairs = [
        (theirs[schema.KEY], theirs[schema.LABEL], row["key"], row["label"]) for theirs, row in zip(plain, ours, strict=True)
    ]
    assert len(pairs) == tfpipe.load_manifest(built / "shards").split("test").num_records
    assert all((key, label) == (our_key, our_label) for key, label, our_key, our_label in pairs)


def test_tensorflow_datasets_reads_the_same(built: Path):
    builder = tfds.builder_from_directory(built / "shards")
    config = tfds.ReadConfig(interleave_cycle_length=1)
    theirs = list(builder.as_dataset(split="test", read_config=config, shuffle_files=False).as_numpy_iterator())
    records = [
        schema.decode(frame.data)
        for file in sorted((built / "shards").glob("pets-test.tfrecord-*"))
        for frame in tfrecord.read_frames(file)
    ]
    assert len(theirs) == len(records) > 0
    for row, record in zip(theirs, records, strict=True):
        assert row[schema.LABEL] == record.label
        assert (row[schema.ENCODED] == tf.io.decode_image(record.encoded, channels=3).numpy()).all()
    assert list(builder.info.features[schema.LABEL].names) == list(tfpipe.load_manifest(built / "shards").class_names)
    (image, label), *_ = builder.as_dataset(split="test", as_supervised=True, read_config=config)
    assert (label.numpy(), image.shape) == (theirs[0][schema.LABEL], theirs[0][schema.ENCODED].shape)


@pytest.mark.skipif("TFPIPE_TEST_DATA" not in os.environ, reason="TFPIPE_TEST_DATA is unset: no real images")
def test_real_images_come_back(tmp_path: Path):
    source = Path(os.environ["TFPIPE_TEST_DATA"]) / "signs" / "test_signs"
    tfpipe.build_tfrecords({"test": source}, tmp_path / "shards", name="signs", layout="filename", workers=1, progress=False)
    rows = dataset(tmp_path / "shards", "test", image_size=(64, 64), batch_size=None, as_dict=True).as_numpy_iterator()
    seen = set()
    for row in rows:
        path = source / Path(row["filename"].decode()).name
        seen.add(path.name)
        assert (row["image"] == np.asarray(Image.open(path).convert("RGB"))).all()
        assert row["label"] == int(path.name[0])
    assert len(seen) == 120


# Where it is used


def test_a_relative_directory_stays_the_same_folder(data_set: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(data_set.parent)
    data = dataset(data_set.name, "test", image_size=SIZE)
    monkeypatch.chdir("/")
    assert sum(len(labels) for _, labels in data) == len(IMAGES)


def test_within_a_function_and_another_dataset(data_set: Path):
    @tf.function
    def count() -> tf.Tensor:
        total = tf.constant(0)
        data = dataset(data_set, "test", image_size=SIZE, batch_size=4)
        assert data.element_spec[0].shape.as_list() == [None, *SIZE, 3]  # the arguments, not the defaults
        for _, labels in data:
            total += tf.size(labels)
        return total

    assert count().numpy() == len(IMAGES)
    nested = tf.data.Dataset.range(2).flat_map(lambda _: dataset(data_set, "test", image_size=SIZE, batch_size=4))
    assert sum(len(labels) for _, labels in nested) == 2 * len(IMAGES)


def test_a_readers_part_is_not_divided_again(data_set: Path):
    from tensorflow.python.data.experimental.ops.distribute import _AutoShardDataset  # what strategies apply

    parts = [dataset(data_set, "test", image_size=SIZE, batch_size=4, shard=(index, 2)) for index in (0, 1)]
    read = [sum(len(labels) for _, labels in _AutoShardDataset(part, 2, index)) for index, part in enumerate(parts)]
    assert sum(read) == len(IMAGES)


def test_numbers_of_numpy_and_autotune_are_taken(data_set: Path):
    size = (np.int64(8), np.int32(6))
    data = dataset(data_set, "test", image_size=size, batch_size=np.int64(3), num_parallel_calls=tf.data.AUTOTUNE)
    assert data.element_spec[0].shape == [None, 8, 6, 3]
    assert sum(len(labels) for _, labels in data) == len(IMAGES)


def test_opening_takes_no_memory_for_images(data_set: Path):
    assert len(dataset(data_set, "test", image_size=(100_000, 100_000), batch_size=1)) == len(IMAGES)
