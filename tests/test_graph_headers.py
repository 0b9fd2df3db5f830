"""What the graph reads of a file against what the audit reads: wherever the audit accepts a file, they agree."""

from __future__ import annotations

import struct
import time
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_headers import (
    BASELINE,
    COMPRESSED,
    JPEGS,
    ONE_PIXEL,
    PLAIN_TEXT,
    PNG,
    PROGRESSIVE,
    chunk,
    directory,
    encode,
    exif_segment,
    ihdr,
    join,
    make_image,
    make_png,
    segment,
    tiff,
    with_compressed,
    with_scans,
    with_segments,
    xmp_segment,
)

from tfpipe.common.errors import RejectedImage
from tfpipe.images import graph_headers, headers

pytestmark = pytest.mark.tf

XMP_PACKET = b"http://ns.adobe.com/xap/1.0/\0" + b'tiff:Orientation="3"'
XMP_8 = b'<x:xmpmeta tiff:Orientation="8">'
LINES_8 = tiff("<", 8).hex("\n", 36).upper().encode()
PROFILE_8 = b"Raw profile type exif\0\nexif\n 66\n" + tiff("<", 8).hex().encode()
EXAMPLES = settings(max_examples=60)


@cache
def reader() -> Any:
    return tf.function(graph_headers.read_header, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def read(data: bytes) -> tuple[bool, int, int, int]:
    """(readable, height, width, orientation), by the graph."""
    return tuple(value.numpy().item() for value in reader()(data))


def audited(data: bytes) -> tuple[bool, int, int, int] | None:
    try:
        header = headers.read_header(data)
    except RejectedImage:
        return None
    return True, header.height, header.width, header.orientation


def check(data: bytes) -> tuple[bool, int, int, int]:
    """What the graph reads, which is what the audit reads if it accepts."""
    found, expected = read(data), audited(data)
    assert expected is None or found == expected
    assert found[0] or found == (False, 0, 0, 1)
    return found


def turned(orientation: int, *files: bytes) -> None:
    """Each is accepted by the audit and has this orientation."""
    for data in files:
        assert audited(data) is not None
        assert check(data)[3] == orientation


# --- what is an image, and how large -------------------------------------------------------------


@pytest.mark.parametrize("data", [*JPEGS.values(), PNG], ids=[*JPEGS, "png"])
def test_sizes_are_the_audits(data):
    assert check(data)[0]


def test_height_and_width_are_not_swapped():
    for kind in ("JPEG", "PNG"):
        assert read(encode(make_image("RGB", (24, 20)), kind)) == (True, 20, 24, 1)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8\0" + BASELINE[2:]),
        *(b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a" + PNG[8:], PNG[:8] + PNG[33:], make_png(ihdr(0, 4), ONE_PIXEL)),
        *(b"<!doctype html><html>", b"RIFF\0\0\0\0WEBP" + bytes(40), b"BM" + bytes(60), b"GIF89a" + bytes(60)),
        *(encode(make_image("L"), kind) for kind in ("GIF", "TIFF")),
        encode(make_image("P"), "BMP"),
        *(BASELINE[: BASELINE.index(b"\xff\xc0")] + b"\xff\xd9", BASELINE[: BASELINE.index(b"\xff\xda")]),
    ],
)
def test_what_is_not_a_jpeg_or_png_or_has_no_size_is_not_readable(data):
    assert read(data) == (False, 0, 0, 1)
    assert audited(data) is None


def test_declared_sizes_are_read_however_large():
    huge = bytearray(BASELINE)
    place = huge.index(b"\xff\xc0") + 5
    huge[place : place + 4] = b"\xff\xff\xff\xff"
    assert read(bytes(huge)) == (True, 65_535, 65_535, 1)
    assert read(make_png(ihdr(2**31 - 1, 2**32 - 1), ONE_PIXEL)) == (True, 2**32 - 1, 2**31 - 1, 1)


@pytest.mark.parametrize(
    "inserted",
    [
        *(b"\xff" * 9, b"\xff\xff\xff\0", b"\0" * 5000, b"\xff\0" * 2000, b"\xff\x01", b"stray\xff\0\xff\xd3"),
        b"\xff\xe5\0\0\xff\xe5\0\1",  # segments that say to be shorter than their lengths
        *(b"\xff\xe1\0" + size + prefix for size in (b"\0", b"\1") for prefix in (b"Exif\0\0" + tiff(">", 3), XMP_PACKET)),
        *(b"\0" * size for size in (1020, 1021, 1022, 1023)),  # a marker across the end of what is read at once
    ],
)
def test_fill_bytes_stray_bytes_and_tem_markers_are_stepped_over(inserted):
    turned(6, BASELINE[:2] + exif_segment(tiff(">", 6)) + inserted + BASELINE[2:])
    turned(6, BASELINE[:20] + inserted + exif_segment(tiff(">", 6)) + BASELINE[20:])


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("orientation", range(11))
def test_exif_in_both_byte_orders_and_in_all_places(byte_order, orientation):
    block, decoy = tiff(byte_order, orientation), segment(0xFE, b"Exif\0\0" + tiff(">", 3))
    found, expected = exif_segment(block), orientation if 1 <= orientation <= 8 else 1
    turned(expected, with_segments(BASELINE, found), with_segments(BASELINE, segment(0xE0, b"JFIF\0" + bytes(9)), found))
    turned(expected, with_segments(BASELINE, xmp_segment(b" " * 5000 + XMP_8), found), with_segments(BASELINE, decoy, found))
    scan = BASELINE.index(b"\xff\xda")
    turned(expected, BASELINE[:scan] + found + BASELINE[scan:])
    turned(1, BASELINE[:-2] + found + BASELINE[-2:])
    exif = chunk(b"eXIf", block)
    turned(expected, make_png(ihdr(), exif, ONE_PIXEL), make_png(ihdr(), ONE_PIXEL, exif))
    turned(expected, make_png(ihdr(), chunk(b"eXIf", b"Exif\0\0" + block), ONE_PIXEL))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_that_pillow_writes(kind, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a maker"
    turned(orientation, encode(make_image("RGB"), kind, exif=exif))


@pytest.mark.parametrize(
    ("orientation", "inserted"),
    [
        (6, [xmp_segment(XMP_8), exif_segment(tiff("<", 6))]),
        (6, [exif_segment(tiff("<", 6)), xmp_segment(XMP_8)]),
        (1, [exif_segment(tiff("<", 9)), xmp_segment(XMP_8)]),
        (8, [exif_segment(b""), xmp_segment(XMP_8)]),
        (1, [exif_segment(b"neither II nor MM"), xmp_segment(XMP_8)]),
        (8, [xmp_segment(XMP_8)]),
        (5, [xmp_segment(b"<tiff:Orientation>5</tiff:Orientation>")]),
        (5, [xmp_segment(b"\xff\xfe\0 tiff:Orientation=6 tiff:Orientation\ntiff:Orientation>5")]),
        (1, [xmp_segment(b'tiff:Orientation="9" tiff:Orientation="6"')]),
        (1, [xmp_segment(b"6")]),
        (3, [xmp_segment(XMP_8), xmp_segment(b'tiff:Orientation="3"')]),
        (6, [exif_segment(tiff(">", 6)), exif_segment(tiff(">", 3))]),
        (6, [exif_segment(tiff(">", 6)[:20]), exif_segment(tiff(">", 6)[20:])]),
        (1, [exif_segment(tiff(">", 6)[:30])]),
        (1, [segment(0xE1, tiff(">", 6))]),
        (6, [exif_segment(b"Exif\0\0" + tiff(">", 6))]),
        (6, [exif_segment(directory((0x010F, 2, 5, 8), (0x010F, 2, 9, 1000)))]),
        (6, [exif_segment(directory((0x010F, 2, 5000, 8)))]),
        (1, [exif_segment(directory((0x010F, 2, 9, 1000)))]),
        (6, [exif_segment(directory((0x010F, 99, 9, 1000)))]),
        (6, [exif_segment(directory((0x0112, 3, 5000, 8)))]),
        (6, [exif_segment(directory(*[(tag, 4, 1, 0) for tag in range(300, 2300)]))]),
        (6, [exif_segment(b"MM\0*" + struct.pack(">L", 27) + bytes(19) + tiff(">", 6)[8:])]),
    ],
)
def test_several_and_odd_segments(orientation, inserted):
    turned(orientation, with_segments(BASELINE, *inserted))


@pytest.mark.parametrize("kind", range(18))
@pytest.mark.parametrize("byte_order", "<>")
def test_every_tiff_field_type(byte_order, kind):
    layouts = {1: "B", 3: "H", 4: "L", 5: "LL", 6: "b", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q"}
    layout, found = layouts.get(kind, "H"), set()
    negative = [(-6, -1), (-6, 1), (-5, 1)] if layout.islower() else []
    for values in (
        (6, 1),
        (12, 2),
        (0, 1),
        (6, 0),
        (7, 2),
        (9, 1),
        *negative,
    ):
        value = struct.pack(byte_order + layout, *values[: len(layout)])
        entry = struct.pack(byte_order + "HHL", 0x0112, kind, 1)
        entry += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(byte_order + "L", 26)
        block = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(byte_order + "LH", 8, 1) + entry + bytes(4) + value
        found.add(check(with_segments(BASELINE, exif_segment(block)))[3])
    assert (6 in found) == (kind in layouts and kind != 1)


tags = st.sampled_from([0x010E, 0x010F, 0x0112, 0x0112, 0x011A])
counts = st.sampled_from([0, 1, 1, 1, 2, 4, 5, 9, 40, 200, 2**32 - 1])
values = st.one_of(st.integers(0, 9), st.integers(0, 400), st.sampled_from([6 << 16, 2**32 - 1]))
entries = st.lists(st.tuples(tags, st.integers(0, 17), counts, values), max_size=9)


@EXAMPLES
@given(st.sampled_from("<>"), entries, st.integers(6, 12), st.integers(-1, 2), st.binary(max_size=60), st.integers(0, 250))
def test_any_directory(byte_order, entries, start, surplus, tail, cut):
    block = {"<": b"II*\0", ">": b"MM\0*"}[byte_order] + struct.pack(byte_order + "L", start)
    block += bytes(max(start - 8, 0)) + struct.pack(byte_order + "H", max(len(entries) + surplus, 0))
    block += b"".join(struct.pack(byte_order + "HHLL", *entry) for entry in entries) + tail
    for data in (block, block[: len(block) * cut // 200]):
        check(with_segments(BASELINE, exif_segment(data), xmp_segment(XMP_8)))


@EXAMPLES
@given(st.sampled_from("<>"), st.integers(0, 9), st.data())
def test_damaged_exif(byte_order, orientation, data):
    block = bytearray(tiff(byte_order, orientation))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    check(with_segments(BASELINE, exif_segment(bytes(block[: data.draw(st.integers(0, len(block)))]))))


TEXTS = {
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0en\0title\0" + XMP_8),
    "plain xmp": chunk(b"tEXt", b"XML:com.adobe.xmp\0" + XMP_8),
    "hexadecimal": chunk(b"tEXt", PROFILE_8),
    "hexadecimal in lines": chunk(
        b"tEXt", b"Raw profile type exif\0\nexif\n 66\n" + tiff("<", 8).hex("\n", 36).upper().encode()
    ),
    "hexadecimal in iTXt": chunk(b"iTXt", b"Raw profile type exif\0\0\0\0\0\nexif\n 66\n" + tiff("<", 8).hex().encode()),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_png_text_chunks(text):
    turned(8, make_png(ihdr(), text, ONE_PIXEL), make_png(ihdr(), ONE_PIXEL, text))
    turned(6, make_png(ihdr(), text, chunk(b"eXIf", tiff(">", 6)), ONE_PIXEL))
    turned(6, make_png(ihdr(), chunk(b"eXIf", tiff(">", 6)), ONE_PIXEL, text))


def test_odd_hexadecimal_profiles():
    digits = tiff("<", 8).hex().encode()
    for text in (digits[:-1], digits[:40], digits + b"x", b"", b"\n\n", digits.replace(b"49", b"4\n9", 1)):
        check(make_png(ihdr(), chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 66\n" + text), ONE_PIXEL))
    turned(1, make_png(ihdr(), chunk(b"tEXt", b"Raw profile type exif\0" + digits), ONE_PIXEL))


@EXAMPLES
@given(
    st.lists(
        st.sampled_from(
            [
                *(chunk(b"eXIf", tiff("<", 6)), chunk(b"eXIf", b"Exif\0\0MM"), chunk(b"tEXt", b"Title\0" + XMP_8)),
                *(chunk(b"IDAT", b""), ONE_PIXEL, chunk(b"zTXt", b"Title\0\0" + zlib.compress(XMP_8)), *TEXTS.values()),
                *(with_compressed(8)[33:-12], COMPRESSED["iTXt"], COMPRESSED["iCCP"]),
                *(chunk(b"tEXt", b""), chunk(b"iTXt", b"XML:com.adobe.xmp"), chunk(b"tEXt", b"XML:com.adobe.xmp\0")),
            ]
        ),
        max_size=5,
    )
)
def test_any_order_of_chunks(chunks):
    check(make_png(ihdr(), *chunks, ONE_PIXEL))


# --- files that are small and cost their decoder much ---------------------------------------------


@pytest.mark.parametrize("data", [BASELINE, PROGRESSIVE], ids=["baseline", "progressive"])
def test_scans_are_counted_as_the_audit_does(data):
    for count in (100, 101, 1000):
        costly = with_scans(data, count)
        assert read(costly)[0] == (count <= 100)
        assert too_costly(costly) == (count > 100)


def too_costly(data: bytes) -> bool:
    try:
        headers.read_header(data)
    except RejectedImage as rejected:
        return rejected.reason == "too_costly"
    return False


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_chunks_are_counted_as_the_audit_does(kind):
    for count in (8, 9, 300):
        many = COMPRESSED[kind] * count
        for data in (make_png(ihdr(), PLAIN_TEXT * 20, many, ONE_PIXEL), make_png(ihdr(), ONE_PIXEL, many)):
            assert check(data)[0] == (count <= 8)
            assert too_costly(data) == (count > 8)


# --- any bytes whatsoever -------------------------------------------------------------------------


@EXAMPLES
@given(st.binary(max_size=300))
@example(b"\xff" * 300)
def test_arbitrary_bytes(data):
    read(data)
    for file in (b"\xff\xd8\xff" + data, b"\x89PNG\r\n\x1a\n" + data, make_png(ihdr(), chunk(b"eXIf", data), ONE_PIXEL)):
        check(file)
    check(with_segments(BASELINE, exif_segment(data)))


@EXAMPLES
@given(st.lists(st.tuples(st.sampled_from(range(0xC0, 0xFF)), st.binary(max_size=40)), max_size=12))
def test_arbitrary_segments(parts):
    check(join([(marker, payload, b"") for marker, payload in parts]))


@EXAMPLES
@given(st.sampled_from([*JPEGS.values(), PNG, with_segments(BASELINE, exif_segment(tiff("<", 6)))]), st.data())
def test_mutations_of_good_files(good, data):
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    check(bytes(mutated))


# --- stated limits --------------------------------------------------------------------------------


def test_compressed_text_is_not_inflated():
    for text in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_8)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE_8.split(b"\0", 1)[1])),
    ):
        data = make_png(ihdr(), text, ONE_PIXEL)
        assert audited(data) == (True, 1, 1, 8)
        assert read(data) == (True, 1, 1, 1)


def test_the_first_profile_counts_and_an_empty_exif_chunk_does_not():
    junk = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 66\nno digits")
    data = make_png(ihdr(), junk, chunk(b"tEXt", PROFILE_8), ONE_PIXEL)
    assert (audited(data)[3], read(data)[3]) == (8, 1)
    data = make_png(ihdr(), chunk(b"tEXt", PROFILE_8), chunk(b"eXIf", b""), ONE_PIXEL)
    assert (audited(data)[3], read(data)[3]) == (1, 8)


@pytest.mark.parametrize("places", [2**20 - 10, 2**20 + 10])
def test_metadata_beyond_a_mebibyte_are_not_read(places):
    data = make_png(ihdr(), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * (places - 50) + XMP_8), ONE_PIXEL)
    assert audited(data)[3] == 8
    assert read(data)[3] == (8 if places < 2**20 else 1)


def test_segments_and_chunks_are_counted():
    few, many = 16_300, 16_400
    for data, count in [
        *((with_segments(BASELINE, segment(0xE2, b"") * count), count) for count in (few, many)),
        *((make_png(ihdr(), chunk(b"IDAT", b"") * count, ONE_PIXEL), count) for count in (few, many)),
    ]:
        assert audited(data) is not None
        assert read(data)[0] == (count == few)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 4_000_000,
        bytes(20_000_000),
        exif_segment(bytes(60_000)) * 300,
        xmp_segment(b"tiff:Orientation" * 4000) * 300,
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"tiff:Orientation" * 1_000_000),
        chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + b"0" * 20_000_000),
        chunk(b"eXIf", directory(*[(0x0112, 3, 5, 8)] * 60_000)),
    ],
    ids=["fill bytes", "zeros", "exif", "xmp", "png xmp", "png profile", "directory"],
)
def test_hostile_megabytes_take_seconds_at_most(body):
    data = make_png(ihdr(), body, ONE_PIXEL) if body[4:8].isalpha() else with_segments(BASELINE, body)
    read(b"")
    started = time.process_time()
    read(data)
    assert time.process_time() - started < 5


# --- real files -----------------------------------------------------------------------------------


def test_real_files(test_data: Path):
    folders = [*(test_data / "large").iterdir(), *sorted((test_data / "cats_dogs" / "train").iterdir())[::10]]
    paths = [*(path for path in (test_data / "jpeg").rglob("*") if path.is_file()), *folders]
    found = [(check(data := path.read_bytes()), audited(data)) for path in paths]
    assert len(found) > 700
    assert {read[3] for read, accepted in found if accepted} == set(range(1, 9))  # so none is right by chance
    assert sum(accepted is not None for _, accepted in found) > 480


def test_reading_takes_a_fraction_of_a_millisecond():
    data = encode(make_image("RGB", (640, 480)), exif=tiff("<", 6))
    read(data)
    best = min(_seconds(data) for _ in range(50))
    assert best < 0.005  # measured: 0.0008, as called from Python; a busy machine takes longer, a loop over bytes for ever


def _seconds(data: bytes) -> float:
    started = time.process_time()
    read(data)
    return time.process_time() - started
