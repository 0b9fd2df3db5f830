"""Reading: every record is what the catalog has, or an error with shard, offset and source; never fewer records.

The exhaustive loops (every byte, every length) exercise the reader alone, at microseconds a case:
`dataset()` reads through `RecordReader` and nothing else, and test_loader.py shows for a sample
that what the reader refuses reaches the user.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import os
import random
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pipeline_fixtures import make_image, open_descriptors, write_data_set

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly
from tfpipe.pipeline import reading
from tfpipe.pipeline.reading import RecordReader, read_records
from tfpipe.records import catalog, manifest, schema, tfrecord

pytestmark = pytest.mark.tf

SHARDS = [manifest.shard_file("pets", "test", shard, 3) for shard in range(3)]


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Nine records of equal size in three shards: only their bytes tell them apart."""
    return write_data_set(tmp_path / "shards", [bytes([number]) * 20 for number in range(9)], 3)


def stored(data_set: Path) -> list[bytes]:
    return [frame.data for shard in SHARDS for frame in tfrecord.read_frames(data_set / shard)]


def problems(reader: RecordReader) -> dict[int, DataError]:
    found = {}
    for position in range(reader.num_records):
        try:
            reader.read(position)
        except DataError as error:
            found[position] = error
    return found


def test_records_come_by_position(data_set: Path):
    reader = RecordReader(data_set, "test")
    assert [reader.read(position) for position in range(reader.num_records)] == stored(data_set)
    assert reader.read_batch(np.array([7, 0, 7])).tolist() == [stored(data_set)[i] for i in (7, 0, 7)]


@pytest.mark.parametrize("num_shards", [1, 4, 11])
def test_empty_shards_are_passed_over(tmp_path: Path, num_shards: int):
    reader = RecordReader(write_data_set(tmp_path / "shards", [b"a", b"bb", b"ccc"], num_shards), "test")
    assert [schema.decode(reader.read(position)).encoded for position in range(3)] == [b"a", b"bb", b"ccc"]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_any_order_is_read_beside_what_came_with_it(data_set: Path, batch_size: int):
    positions, names = np.array([8, 3, 3, 0]), np.array([b"a", b"b", b"c", b"d"])
    batches = tf.data.Dataset.from_tensor_slices({"position": positions, "name": names}).batch(batch_size)
    data = read_records(RecordReader(data_set, "test"), batches, num_parallel_calls=2)
    rows = list(data.unbatch().as_numpy_iterator())
    assert [row["serialized"] for row in rows] == [stored(data_set)[position] for position in positions]
    assert [(row["position"], row["name"]) for row in rows] == list(zip(positions, names, strict=True))


def test_a_negative_position_gives_the_blank_record(data_set: Path):
    batches = tf.data.Dataset.from_tensors({"position": np.array([2, -1])})
    (batch,) = read_records(RecordReader(data_set, "test"), batches, num_parallel_calls=1).as_numpy_iterator()
    first, blank = (schema.decode(serialized) for serialized in batch["serialized"])
    assert first.encoded == bytes([2]) * 20
    assert (blank.key, blank.filename, blank.label) == ("", "", schema.UNLABELLED)
    assert not tf.io.decode_image(blank.encoded).numpy().any()


# Damage


def test_g3_every_flipped_byte_is_the_error_of_one_record(data_set: Path):
    reader = RecordReader(data_set, "test")  # open already: a later change is no different
    first = len(stored(data_set)[3]) + tfrecord.FRAME_BYTES
    path = data_set / SHARDS[1]
    content = path.read_bytes()
    for index, byte in enumerate(content):
        with open(path, "r+b") as file:
            file.seek(index)
            file.write(bytes([byte ^ 1 << index % 8]))
        (position, error), *others = problems(reader).items()
        assert (position, others) == (3 + index // first, [])
        assert (error.path, error.offset) == (str(path), index // first * first)
        path.write_bytes(content)
    assert problems(reader) == {}


def test_g3_every_length_of_a_cut_shard_is_refused(data_set: Path):
    reader = RecordReader(data_set, "test")
    path = data_set / SHARDS[2]
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=re.escape(f"{path}: truncated: {exactly(length, 'byte')}")):
            RecordReader(data_set, "test")
        intact = 6 + length // (len(content) // 3)
        assert list(problems(reader)) == list(range(intact, 9))  # cut after it was opened
    assert "(truncated file)" in str(problems(reader)[8])


def swap(data_set: Path) -> None:
    os.rename(data_set / SHARDS[0], data_set / "aside")
    os.rename(data_set / SHARDS[1], data_set / SHARDS[0])
    os.rename(data_set / "aside", data_set / SHARDS[1])


def swap_with_indexes(data_set: Path) -> None:
    swap(data_set)
    content = [(data_set / manifest.index_file(shard)).read_bytes() for shard in SHARDS[:2]]
    for shard, index in zip(SHARDS[:2], reversed(content), strict=True):
        (data_set / manifest.index_file(shard)).write_bytes(index)


def duplicate(data_set: Path) -> None:
    shutil.copyfile(data_set / SHARDS[0], data_set / SHARDS[1])


def swap_records(data_set: Path) -> None:
    path = data_set / SHARDS[1]
    size = path.stat().st_size // 3
    content = path.read_bytes()
    path.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])


@pytest.mark.parametrize(
    ("harm", "positions"),
    [(swap, range(6)), (swap_with_indexes, range(6)), (duplicate, range(3, 6)), (swap_records, (3, 4))],
)
@pytest.mark.parametrize("before", [True, False])
def test_g3_intact_records_in_another_place_are_refused(data_set: Path, harm, positions, before: bool):
    reader = RecordReader(data_set, "test")
    harm(data_set)
    reader = RecordReader(data_set, "test") if before else reader
    found = problems(reader)
    assert list(found) == list(positions)
    assert all("not the one that the catalog lists here (swapped)" in str(error) for error in found.values())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "missing: a shard of 3 records"),
        (lambda path: path.write_bytes(b""), "truncated: 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "longer than written"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "longer than written"),
        (lambda path: shutil.copy(path, path.with_name(path.name.replace("00003", "00004"))), "does not list"),
    ],
)
def test_g3_a_wrong_file_is_refused_on_opening(data_set: Path, harm, message: str):
    harm(data_set / SHARDS[1])
    with pytest.raises(DataError, match=message):
        RecordReader(data_set, "test")


@pytest.mark.parametrize("name", ["catalog.csv", manifest.index_file(SHARDS[1])])
def test_a_changed_catalog_or_index_is_refused_on_opening(data_set: Path, name: str):
    path = data_set / name
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(DataError, match=f"{name}: not as listed in the manifest"):
            RecordReader(data_set, "test")
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        RecordReader(data_set, "test")


def test_a_shard_deleted_after_opening_is_an_error(data_set: Path):
    reader = RecordReader(data_set, "test")
    (data_set / SHARDS[0]).unlink()
    assert list(problems(reader)) == [0, 1, 2]
    assert "cannot be read: No such file or directory" in str(problems(reader)[0])


def test_an_error_names_shard_offset_record_and_source(data_set: Path):
    reader = RecordReader(data_set, "test")
    path = data_set / SHARDS[1]
    content = path.read_bytes()
    offset = len(content) // 3 * 2
    path.write_bytes(content[: offset + 30] + b"!" + content[offset + 31 :])
    message = f"{path}: at byte {offset}: record 2 (source owl/5.jpg): the data does not match its CRC (damaged)"
    assert str(problems(reader)[5]) == message


def test_a_failed_record_of_a_batch_is_empty_and_its_reason_is_kept_once(data_set: Path):
    reader = RecordReader(data_set, "test")
    swap_records(data_set)
    records = reader.read_batch(np.arange(2, 6)).tolist()
    assert records == [stored(data_set)[2], b"", b"", stored(data_set)[5]]
    assert "swapped" in (reader.failure(4) or "")
    assert reader.failure(4) is None
    assert reader.failure(2) is None


def test_a_split_that_does_not_exist_is_answered_with_those_that_do(data_set: Path):
    with pytest.raises(ValueError, match=r"split must be one of test \(got 'val'\)"):
        RecordReader(data_set, "val")


def test_no_data_set(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        RecordReader(tmp_path, "test")


# Descriptors and threads


def test_few_descriptors_are_open_and_none_after_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 2)
    data_set = write_data_set(tmp_path / "shards", [bytes([number]) for number in range(20)], 10)
    reader = RecordReader(data_set, "test")
    assert open_descriptors(data_set) == 0
    for position in range(20):
        reader.read(position)
        assert 0 < open_descriptors(data_set) <= 2
    del reader
    gc.collect()
    assert open_descriptors(data_set) == 0


def test_threads_share_one_descriptor_of_ten_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The cache closes descriptors all the time, while other threads read: not one may lose the file
    # it reads from, nor read from a file that was given the same number.
    monkeypatch.setattr(reading, "_MAX_OPEN_FILES", 1)
    data_set = write_data_set(tmp_path / "shards", [make_image(number) for number in range(40)], 10)
    reader = RecordReader(data_set, "test")
    expected = [reader.read(position) for position in range(40)]
    start = threading.Barrier(8)

    def read(seed: int) -> None:
        order = random.Random(seed).choices(range(40), k=1000)
        start.wait()
        assert all(reader.read(position) == expected[position] for position in order)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))
    assert open_descriptors(data_set) == 1


def test_a_file_that_the_cache_does_not_keep_stays_open_until_it_is_read(
    data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Two threads that open a file at once: the cache keeps one of the two. Here it keeps none, and
    # before each read another file is opened, which is given the number of a descriptor that was
    # closed too early.
    reader = RecordReader(data_set, "test")
    positions = np.arange(reader.num_records)
    expected = [reader.read(position) for position in positions.tolist()]
    other = tmp_path / "other"
    other.write_bytes(b"?" * 100_000)
    reader._open, pread, others = reading._OpenFile, os.pread, []

    def open_another_and_read(descriptor: int, length: int, offset: int) -> bytes:
        others.append(open(other, "rb"))  # noqa: SIM115
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", open_another_and_read)
    assert reader.read_batch(positions).tolist() == expected
    assert [reader.read(position) for position in positions.tolist()] == expected
    for file in others:
        file.close()
    assert others


def test_a_record_takes_few_bytes_of_memory(data_set: Path):
    reader = RecordReader(data_set, "test")
    assert reader._frames.nbytes / reader.num_records <= 24


def test_read_calls_of_large_records_are_smaller(tmp_path: Path):
    small = RecordReader(write_data_set(tmp_path / "small", [b"x"] * 3, 1), "test")
    large = RecordReader(write_data_set(tmp_path / "large", [b"x" * 3_000_000] * 3, 1), "test")
    assert small.read_size == 64
    assert large.read_size == 1
    assert RecordReader(write_data_set(tmp_path / "none", [], 1), "test").num_records == 0


def test_a_read_that_returns_less_than_asked_goes_on(data_set: Path, monkeypatch: pytest.MonkeyPatch):
    reader = RecordReader(data_set, "test")
    expected = [reader.read(position) for position in range(reader.num_records)]
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: whole(descriptor, (length + 1) // 2, offset))
    assert [reader.read(position) for position in range(reader.num_records)] == expected


@pytest.mark.parametrize("name", ["catalog.csv", "manifest.json"])
def test_a_folder_in_the_place_of_a_file_is_named(data_set: Path, name: str):
    (data_set / name).unlink()
    (data_set / name).mkdir()
    with pytest.raises(DataError, match=name):
        RecordReader(data_set, "test")


def test_a_data_set_whose_images_were_not_decoded_reports_it_once(data_set: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", "tfpipe")
    for _ in range(2):
        RecordReader(data_set, "test")
    said = f"{data_set}: only the headers of its images were checked; if the decoder says"
    assert [message for message in caplog.messages if message.startswith(said)] == caplog.messages
    assert len(caplog.messages) == 1
    assert "tfpipe verify --decode" in caplog.text
    decoded = shutil.copytree(data_set, tmp_path / "decoded")
    content = manifest.load(decoded)
    manifest.save(dataclasses.replace(content, options={**content.options, "check": "decode"}), decoded)
    RecordReader(decoded, "test")
    assert len(caplog.messages) == 1


# ---- the frames of a split: all that a reader needs of catalog and indexes


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A data set in today's format, of 7 images in 3 shards, one of them turned, one a PNG."""
    for index in range(7):
        image_format, ending = ("PNG", "png") if index == 3 else ("JPEG", "jpg")
        image = make_image(index, 8, 8 + index, image_format=image_format, orientation=6 if index == 5 else 1)
        path = tmp_path / "in" / ("cat", "owl")[index % 2] / f"{index}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    options = {"name": "pets", "num_shards": 3, "splits": {"test": 1}, "workers": 1, "progress": False}
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", **options)
    return tmp_path / "out"


FRAMES = "index/pets-test.frames"


def test_frames_hold_what_catalog_and_indexes_hold(built: Path):
    content = manifest.load(built)
    plain = dataclasses.replace(content, splits={"test": dataclasses.replace(content.split("test"), frames=None)})
    manifest.save(plain, built)
    old = RecordReader(built, "test")
    manifest.save(content, built)
    new = RecordReader(built, "test")
    assert new.traits == old.traits == manifest.Traits(png=True, turned=True, longer=14)
    np.testing.assert_array_equal(new._frames, old._frames)
    assert [new.read(index) for index in range(7)] == [old.read(index) for index in range(7)]
    assert json.loads((built / "manifest.json").read_bytes())["format_version"] == 2


def test_opening_reads_neither_catalog_nor_indexes(built: Path):
    (built / "catalog.csv").unlink()
    for path in (built / "index").glob("*.idx"):
        path.unlink()
    reader = RecordReader(built, "test")
    assert len({reader.read(index) for index in range(7)}) == 7


def test_g3_changed_frames_are_refused_on_opening(built: Path):
    path = built / FRAMES
    content = path.read_bytes()
    assert len(content) == 7 * 20
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(DataError, match=f"{FRAMES}: not as listed in the manifest"):
            RecordReader(built, "test")
    path.unlink()
    with pytest.raises(DataError, match=f"{FRAMES}: missing"):
        RecordReader(built, "test")


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: frames[:-1],
        lambda frames: [*frames, frames[0]],
        lambda frames: [frames[1], frames[0], *frames[2:]],
        lambda frames: [(*frames[0][:3], 2), *frames[1:]],
        lambda frames: [(*frames[0][:3], -1), *frames[1:]],
        lambda frames: [(*frames[0][:3], 1 - frames[0][3]), *frames[1:]],
        lambda frames: [(1, *frames[0][1:]), *frames[1:]],
        lambda frames: [(0, 10, *frames[0][2:]), *frames[1:]],
    ],
    ids=["fewer", "more", "order", "no class", "no label", "other class", "offset", "length"],
)
def test_g3_frames_that_cannot_be_are_refused_though_their_hash_is_right(built: Path, change):
    content, path = manifest.load(built), built / FRAMES
    frames = list(catalog.FRAME.iter_unpack(path.read_bytes()))
    path.write_bytes(b"".join(catalog.FRAME.pack(*frame) for frame in change(frames)))
    split = content.split("test")
    listed = manifest.Frames(hashlib.sha256(path.read_bytes()).hexdigest(), split.frames.traits)
    manifest.save(dataclasses.replace(content, splits={"test": dataclasses.replace(split, frames=listed)}), built)
    with pytest.raises(DataError, match=f"{FRAMES}: not the frames of as many records as the manifest lists"):
        RecordReader(built, "test")
    assert tfpipe.verify(built, workers=1, progress=False).num_findings


def test_verify_compares_frames_with_the_catalog(built: Path):
    content, path = manifest.load(built), built / FRAMES
    frames = list(catalog.FRAME.iter_unpack(path.read_bytes()))
    frames[0] = (*frames[0][:2], 7, frames[0][3])  # another CRC: no reader can know
    path.write_bytes(b"".join(catalog.FRAME.pack(*frame) for frame in frames))
    split = content.split("test")
    listed = manifest.Frames(hashlib.sha256(path.read_bytes()).hexdigest(), split.frames.traits)
    manifest.save(dataclasses.replace(content, splits={"test": dataclasses.replace(split, frames=listed)}), built)
    (finding,) = tfpipe.verify(built, workers=1, progress=False).findings
    assert f"{FRAMES}: not the records that catalog and indexes list for split 'test'" in str(finding)
