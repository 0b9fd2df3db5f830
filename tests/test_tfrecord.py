import os
import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpipe.common.errors import DataError
from tfpipe.records import tfrecord
from tfpipe.records.tfrecord import Gap, RawRecord

datas = st.lists(st.binary(max_size=40), max_size=6)
FEW = [b"first record", b"", b"the third, a little longer", b"\0" * 20]


def framed(records):
    return b"".join(piece for data in records for piece in tfrecord.frame(data))


def salvaged(path):
    return list(tfrecord.salvage_frames(path))


def intact(pieces):
    return [piece.data for piece in pieces if isinstance(piece, RawRecord)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("frames") / "x.tfrecord"


@settings(deadline=None)
@given(datas)
def test_round_trip(path, records):
    path.write_bytes(framed(records))
    frames = list(tfrecord.read_frames(path))
    assert [frame.data for frame in frames] == records
    assert sum(frame.length for frame in frames) == path.stat().st_size
    assert intact(salvaged(path)) == records


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_records_or_a_data_error(path, content):
    path.write_bytes(content)
    records, error = [], None
    try:
        records += [frame.data for frame in tfrecord.read_frames(path)]
    except DataError as raised:
        error = raised
    assert framed(records) == content if error is None else 0 <= error.offset < len(content)


@settings(deadline=None)
@given(st.binary(max_size=200), datas, st.binary(max_size=60))
def test_salvage_accounts_for_every_byte(path, before, records, after):
    path.write_bytes(before + framed(records) + after)
    end = 0
    for piece in tfrecord.salvage_frames(path):
        start, stop = (piece.offset, piece.offset + piece.length) if isinstance(piece, RawRecord) else piece
        assert start == end < stop
        end = stop
    assert end == path.stat().st_size
    assert intact(salvaged(path)) == records


@pytest.mark.parametrize("length", [2**20, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_wrong_length_never_allocates_more_than_the_file(path, length):
    header = struct.pack("<Q", length)
    path.write_bytes(header + struct.pack("<I", tfrecord.masked_crc32c(header)) + b"x" * 100)
    tracemalloc.start()
    with pytest.raises(DataError, match="truncated file"):
        list(tfrecord.read_frames(path))
    assert salvaged(path) == [Gap(0, 112)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def test_every_truncation_is_seen_but_between_records(path):
    content = framed(FEW)
    ends = {len(framed(FEW[:count])) for count in range(len(FEW) + 1)}
    for length in range(len(content)):
        path.write_bytes(content[:length])
        if length in ends:
            list(tfrecord.read_frames(path))
        else:
            with pytest.raises(DataError, match="truncated file"):
                list(tfrecord.read_frames(path))


def test_every_flipped_byte_is_seen_and_costs_one_record(path):
    content = framed(FEW)
    for offset in range(len(content)):
        for mask in (1, 0xFF):
            damaged = bytearray(content)
            damaged[offset] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(DataError):
                list(tfrecord.read_frames(path))
            hit = next(count for count in range(len(FEW)) if offset < len(framed(FEW[: count + 1])))
            pieces = salvaged(path)
            assert intact(pieces) == FEW[:hit] + FEW[hit + 1 :]
            assert [piece for piece in pieces if isinstance(piece, Gap)] == [
                Gap(len(framed(FEW[:hit])), len(framed(FEW[: hit + 1])))
            ]


@pytest.mark.parametrize(
    "garbage",
    [b"x", b"\0" * 50, b"\0" * 7 + b"y", os.urandom(1000), framed([b"cut"])[:-1]],
    ids=["byte", "zeros", "mostly zeros", "random", "cut"],  # of random bytes, every process would make its own
)
@pytest.mark.parametrize("place", range(len(FEW) + 1))
def test_inserted_garbage_costs_nothing(path, place, garbage):
    path.write_bytes(framed(FEW[:place]) + garbage + framed(FEW[place:]))
    assert intact(salvaged(path)) == FEW


def test_zeros_before_a_record_whose_header_begins_with_zeros(path):
    for count in range(40):
        path.write_bytes(b"\0" * count + framed([b""]) + b"\0" * count + framed([b"x" * 256]) + b"\0" * count)
        assert intact(salvaged(path)) == [b"", b"x" * 256]


@pytest.mark.parametrize("gap", [bytes(1 << 26), os.urandom(1 << 22) * 16], ids=["zeros", "random"])
def test_a_large_gap_takes_no_time_to_speak_of(path, gap):
    path.write_bytes(framed([b"a"]) + gap + framed([b"b"]))
    start = time.process_time()
    assert intact(salvaged(path)) == [b"a", b"b"]
    assert time.process_time() - start < 5  # looked at byte by byte, it takes minutes


def test_a_record_that_holds_records_is_lost_whole(path):
    inner = framed([b"inside"])
    content = bytearray(framed([b"a", inner + b"tail", b"b"]))
    content[content.index(b"tail")] ^= 1
    path.write_bytes(content)
    assert intact(salvaged(path)) == [b"a", b"b"]


def test_an_empty_file_has_no_records(path):
    path.write_bytes(b"")
    assert salvaged(path) == []


@pytest.mark.tf
@settings(max_examples=30, deadline=None)
@given(records=datas)
def test_bytes_equal_tensorflows(path, records):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert path.read_bytes() == framed(records)
