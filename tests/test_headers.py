"""The header reader against Pillow (what files say) and TensorFlow (what decodes): good, bad and mutated files."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import struct
import time
import warnings
import zlib
from datetime import timedelta
from pathlib import Path

import PIL
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfpipe.common.errors import RejectedImage
from tfpipe.images import headers, jpeg
from tfpipe.images.headers import DEFAULT_MAX_PIXELS, REASONS, ImageHeader, read_header

ORIENTATION_TAG = 0x0112
BOUNDED = settings(deadline=timedelta(seconds=1), max_examples=200, suppress_health_check=[HealthCheck.too_slow])


# --- files of our own -----------------------------------------------------------------------------


def make_image(mode: str, size: tuple[int, int] = (24, 20)) -> Image.Image:
    noise = random.Random(7)
    num_bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, noise.randbytes(size[0] * size[1] * num_bands))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def segments(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """(marker, payload, bytes behind the segment up to the next marker), from behind SOI to before EOI."""
    found, position = [], 2
    while data[position + 1] != 0xD9:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        next_marker = jpeg._MARKER.search(data, end).start()
        found.append((data[position + 1], data[position + 4 : end], data[end:next_marker]))
        position = next_marker
    return found


def join(parts: list[tuple[int, bytes, bytes]]) -> bytes:
    body = b"".join(segment(marker, payload) + scan for marker, payload, scan in parts)
    return b"\xff\xd8" + body + b"\xff\xd9"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


def change(data: bytes, marker: int, edit, which: int = 0) -> bytes:
    """The file with the payload of one of its segments edited; None as the result removes the segment."""
    parts = segments(data)
    i = [i for i, part in enumerate(parts) if part[0] == marker][which]
    payload = edit(parts[i][1])
    parts[i : i + 1] = [] if payload is None else [(marker, payload, parts[i][2])]
    return join(parts)


def huffman_segment(num_symbols: int) -> bytes:
    """A table that no scan uses."""
    return segment(0xC4, b"\x13" + bytes(14) + bytes([num_symbols - 255, 255]) + bytes(num_symbols))


def put(offset: int, value: int):
    return lambda payload: payload[:offset] + bytes([value]) + payload[offset + 1 :]


def with_segments(data: bytes, *inserted: bytes) -> bytes:
    return data[:2] + b"".join(inserted) + data[2:]


def tiff(byte_order: str, orientation: int, *, kind: str = "H") -> bytes:
    """A TIFF block whose first directory has a description, the orientation and a resolution, as cameras write it."""
    number = {"H": 3, "L": 4, "f": 11}[kind]
    value = struct.pack(byte_order + kind, orientation).ljust(4, b"\0")
    entries = struct.pack(byte_order + "HHLL", 0x010E, 2, 8, 50)
    entries += struct.pack(byte_order + "HHL", ORIENTATION_TAG, number, 1) + value
    entries += struct.pack(byte_order + "HHLL", 0x011A, 5, 1, 58)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[byte_order]
    directory = struct.pack(byte_order + "LH", 8, 3) + entries + bytes(4)
    return magic + directory + b"a camra\0" + struct.pack(byte_order + "LL", 72, 1)


def directory(*entries: tuple[int, int, int, int]) -> bytes:
    """A big-endian TIFF block of (tag, type, count, value or offset), then orientation 6, then some bytes."""
    packed = b"".join(struct.pack(">HHLL", *entry) for entry in entries)
    orientation_6 = struct.pack(">HHLHH", ORIENTATION_TAG, 3, 1, 6, 0)
    return b"MM\0*" + struct.pack(">LH", 8, len(entries) + 1) + packed + orientation_6 + bytes(40)


def exif_segment(block: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + block)


def xmp_segment(text: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + kind + payload + zlib.crc32(kind + payload).to_bytes(4, "big")


def make_png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def ihdr(width: int = 1, height: int = 1, depth: int = 8, color: int = 0, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, color, 0, 0, interlace))


ONE_PIXEL = chunk(b"IDAT", zlib.compress(b"\0\x80"))

BASELINE = encode(make_image("RGB"))
PROGRESSIVE = encode(make_image("RGB"), progressive=True)
GREY = encode(make_image("L"))
RESTARTS = encode(make_image("RGB"), restart_marker_blocks=1)
JPEGS = {
    "baseline": BASELINE,
    "progressive": PROGRESSIVE,
    "grey": GREY,
    "restarts": RESTARTS,
    "cmyk": encode(make_image("CMYK")),
    "optimised": encode(make_image("RGB"), optimize=True, subsampling=0),
    "progressive grey with restarts": encode(make_image("L"), progressive=True, restart_marker_blocks=1),
}
PNG = encode(make_image("RGB", (5, 4)), "PNG")
WEBP, BMP = (encode(make_image("RGB", (5, 4)), kind) for kind in ("WEBP", "BMP"))


def read_or_reject(data: bytes) -> ImageHeader | RejectedImage:
    """The header or the rejection; any other exception fails the test that called."""
    rejected = None
    try:
        header = read_header(data)
    except RejectedImage as error:
        rejected = error
    if rejected is not None:
        assert rejected.reason in REASONS
        assert rejected.message
        return rejected
    assert 0 < header.height * header.width <= DEFAULT_MAX_PIXELS
    assert header.orientation in range(1, 9)
    assert 0 <= header.trailing_bytes < len(data)
    return header


def pillow_orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        if image.format == "PNG":
            image.load()  # exif_transpose does; chunks may follow the image
        value = image.getexif().get(ORIENTATION_TAG, 1)
    return int(value) if value in range(1, 9) else 1


# --- good files say what Pillow says they say -----------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "options", "color", "coding"),
    [
        ("L", {}, "grey", "baseline"),
        ("L", {"progressive": True}, "grey", "progressive"),
        ("RGB", {}, "ycbcr", "baseline"),
        ("RGB", {"optimize": True}, "ycbcr", "baseline"),
        ("RGB", {"progressive": True, "optimize": True}, "ycbcr", "progressive"),
        ("RGB", {"restart_marker_blocks": 1}, "ycbcr", "baseline"),
        ("RGB", {"restart_marker_rows": 1, "progressive": True}, "ycbcr", "progressive"),
        ("RGB", {"subsampling": "4:4:4"}, "ycbcr", "baseline"),
        ("RGB", {"subsampling": "4:2:2"}, "ycbcr", "baseline"),
        ("RGB", {"subsampling": "4:2:0"}, "ycbcr", "baseline"),
        ("RGB", {"keep_rgb": True}, "rgb", "baseline"),
        ("RGB", {"quality": 1}, "ycbcr", "extended|baseline"),
        ("CMYK", {}, "cmyk", "baseline"),
        ("CMYK", {"progressive": True}, "cmyk", "progressive"),
    ],
)
def test_jpeg_header_equals_pillow(mode, options, color, coding):
    data = encode(make_image(mode, (37, 23)), **options)
    header = read_header(data)
    image = Image.open(io.BytesIO(data))
    assert (header.format, header.width, header.height) == ("JPEG", *image.size)
    assert (header.channels, header.precision) == (image.layers, image.bits)
    assert header.subsampling == ",".join(f"{h}x{v}" for _, h, v, _ in image.layer)
    assert (header.color, header.trailing_bytes, header.orientation) == (color, 0, 1)
    assert re.fullmatch(coding, header.coding)
    assert ("progressive" in header.coding) == bool(image.info.get("progressive"))
    assert (header.restart_interval > 0) == any(key.startswith("restart") for key in options)


@pytest.mark.parametrize(
    ("image", "kind", "color", "channels", "precision"),
    [
        (make_image("L").convert("1"), "plain", "grey", 1, 1),
        (make_image("L"), "plain", "grey", 1, 8),
        (Image.new("I;16", (24, 20)), "plain", "grey", 1, 16),
        (make_image("LA"), "plain", "grey+alpha", 2, 8),
        (make_image("RGB"), "plain", "rgb", 3, 8),
        (make_image("RGBA"), "plain", "rgb+alpha", 4, 8),
        (make_image("RGB").quantize(4), "plain", "palette", 3, 2),
        (make_image("RGB").quantize(200), "plain", "palette", 3, 8),
    ],
)
def test_png_header_equals_pillow(image, kind, color, channels, precision):
    header = read_header(encode(image, "PNG"))
    expected = ImageHeader("PNG", 20, 24, channels, 1, precision, kind, "", color, 0, 0, transparent="alpha" in color)
    assert header == expected


def test_interlaced_png():
    data = make_png(ihdr(interlace=1), ONE_PIXEL)  # one pixel has one Adam7 pass, which is its plain form
    assert Image.open(io.BytesIO(data)).info["interlace"] == 1
    assert read_header(data).coding == "interlaced"
    assert read_header(make_png(ihdr(), ONE_PIXEL)).coding == "plain"


@pytest.mark.parametrize("data", [BASELINE, PNG], ids=["jpeg", "png"])
def test_trailing_bytes_are_counted(data):
    assert read_header(data).trailing_bytes == 0
    assert read_header(data + b"\xff\xd9\0trailer").trailing_bytes == 10
    assert read_header(data + data).trailing_bytes == len(data)  # two images in one file, as MPO has


def test_fill_bytes_stray_bytes_and_tem_markers_are_stepped_over():
    padded = b"\xff\xd8" + b"\xff" * 50 + BASELINE[3:]
    assert read_header(padded) == read_header(BASELINE)
    parts = segments(BASELINE)
    stray = join([(marker, payload, scan or b"stray\xff\x00\xff\x01\xff\xd3") for marker, payload, scan in parts])
    assert read_header(stray) == read_header(BASELINE)


def test_the_pixel_limit_is_inclusive_and_settable():
    assert read_header(BASELINE, max_pixels=480).height == 20
    with pytest.raises(RejectedImage, match=r"20 x 24 = 480 pixels; the limit is 479"):
        read_header(BASELINE, max_pixels=479)


def test_tensorflows_own_pixel_limit_holds_above_any_other():
    assert read_header(make_png(ihdr(32_767, 16_384), ONE_PIXEL), max_pixels=2**40).width == 32_767
    with pytest.raises(RejectedImage, match="the limit is 536870911"):
        read_header(make_png(ihdr(32_768, 16_384), ONE_PIXEL), max_pixels=2**40)


def test_the_default_pixel_limit_is_that_of_pillows_bomb_error():
    assert 2 * Image.MAX_IMAGE_PIXELS in range(DEFAULT_MAX_PIXELS - 1, DEFAULT_MAX_PIXELS + 1)


def test_adobe_transforms_name_the_colours():
    def adobe(transform):
        return segment(0xEE, b"Adobe\0\x64" + bytes(4) + bytes([transform]))

    plain = change(BASELINE, 0xE0, lambda _: None)
    cmyk = change(JPEGS["cmyk"], 0xEE, lambda _: None)
    colors = {
        with_segments(plain, adobe(0)): "rgb",
        with_segments(plain, adobe(1)): "ycbcr",
        with_segments(BASELINE, adobe(0)): "ycbcr",  # JFIF goes before Adobe
        with_segments(cmyk, adobe(0)): "cmyk",
        with_segments(cmyk, adobe(2)): "ycck",
        cmyk: "cmyk",
    }
    assert [read_header(data).color for data in colors] == list(colors.values())


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_in_both_byte_orders(byte_order, orientation):
    block = tiff(byte_order, orientation)
    expected = orientation if 1 <= orientation <= 8 else 1
    for data in (with_segments(BASELINE, exif_segment(block)), make_png(ihdr(), chunk(b"eXIf", block), ONE_PIXEL)):
        assert read_header(data).orientation == expected == pillow_orientation(data)


@pytest.mark.parametrize("kind", ["H", "L", "f"])
def test_orientation_of_unusual_types(kind):
    data = with_segments(BASELINE, exif_segment(tiff(">", 6, kind=kind)))
    assert read_header(data).orientation == 6 == pillow_orientation(data)


XMP_8 = b'<x:xmpmeta tiff:Orientation="8">'
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13  # gives up at EXIF entries that lie, which 13 and our code step over
LYING_ENTRIES = (
    [exif_segment(directory((0x010F, 2, 5, 8), (0x010F, 2, 9, 1000)))],
    [exif_segment(directory((0x010F, 2, 5000, 8)))],
)


@pytest.mark.parametrize(
    ("expected", "inserted"),
    [
        (6, [xmp_segment(XMP_8), exif_segment(tiff("<", 6))]),
        (6, [exif_segment(tiff("<", 6)), xmp_segment(XMP_8)]),
        (8, [xmp_segment(XMP_8)]),
        (5, [xmp_segment(b"<tiff:Orientation>5</tiff:Orientation>")]),
        (6, [exif_segment(tiff(">", 6)), exif_segment(tiff(">", 3))]),
        (6, [exif_segment(tiff(">", 6)[:20]), exif_segment(tiff(">", 6)[20:])]),
        (1, [exif_segment(tiff(">", 6)[:30])]),
        (1, [exif_segment(b"neither II nor MM")]),
        (1, [segment(0xE1, tiff(">", 6))]),
        (6, [exif_segment(b"Exif\0\0" + tiff(">", 6))]),
        *((6, inserted) for inserted in LYING_ENTRIES),
        (1, [exif_segment(directory((0x010F, 2, 9, 1000)))]),
        (6, [exif_segment(directory((0x010F, 99, 9, 1000)))]),
    ],
    ids=[
        *("xmp first", "exif first", "xmp only", "xmp element", "first of two", "split", "cut", "junk", "no prefix"),
        *("two prefixes", "doubled tag", "too large a tag", "tag behind the end", "unknown type"),
    ],
)
def test_orientation_among_several_segments(expected, inserted):
    data = with_segments(BASELINE, *inserted)
    assert read_header(data).orientation == expected
    if b"neither" not in data and not (OLD_PILLOW and inserted in LYING_ENTRIES):  # of "neither" Pillow raises
        assert pillow_orientation(data) == expected


def test_exif_after_the_first_scan_is_not_the_images():
    data = BASELINE[:-2] + exif_segment(tiff(">", 6)) + BASELINE[-2:]
    assert read_header(data).orientation == 1 == pillow_orientation(data)


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_8),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_8)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 66\n" + tiff("<", 8).hex().encode())),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 66\n" + tiff("<", 8).hex().encode()),
    ],
    ids=["xmp", "compressed xmp", "compressed hex", "hex"],
)
def test_png_orientation_in_text_chunks(text):
    for data in (make_png(ihdr(), text, ONE_PIXEL), make_png(ihdr(), ONE_PIXEL, text)):
        assert read_header(data).orientation == 8 == pillow_orientation(data)


def test_a_text_chunk_that_inflates_to_gigabytes_costs_nothing():
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(200_000_000)))
    started = time.process_time()
    assert read_header(make_png(ihdr(), bomb, ONE_PIXEL)).orientation == 1
    assert time.process_time() - started < 1


@pytest.mark.skipif(OLD_PILLOW, reason="Pillow 13 or newer is needed: older ones read damaged EXIF otherwise")
@BOUNDED
@given(st.sampled_from("<>"), st.integers(0, 9), st.data())
def test_orientation_of_damaged_exif_equals_pillow(byte_order, orientation, data):
    block = bytearray(tiff(byte_order, orientation))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(4, len(block) - 1))] = data.draw(st.integers(0, 255))
    file = with_segments(BASELINE, exif_segment(bytes(block[: data.draw(st.integers(8, len(block)))])))
    assert read_header(file).orientation == pillow_orientation(file)


# --- files that are small and cost their decoder much ---------------------------------------------

COMPRESSED = {
    "zTXt": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"text")),
    "iTXt": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"text")),
    "iCCP": chunk(b"iCCP", b"k\0\0" + zlib.compress(b"profile")),
}
PLAIN_TEXT = (
    chunk(b"iTXt", b"k\0\0\1\0\0" + b"text") + chunk(b"tEXt", b"zTXt\0\1") + chunk(b"iTXt", b"") + chunk(b"iTXt", b"\1")
)


def with_scans(data: bytes, count: int) -> bytes:
    """The file with so many scans, all but its own empty copies of the last."""
    parts = segments(data)
    own = sum(part[0] == 0xDA for part in parts)
    return join([*parts, *[(0xDA, parts[-1][1], b"")] * (count - own)])


def with_compressed(count: int) -> bytes:
    kinds = itertools.islice(itertools.cycle(COMPRESSED.values()), count)
    return make_png(ihdr(), PLAIN_TEXT * 20, *kinds, ONE_PIXEL)


def test_scans_are_counted():
    assert read_header(with_scans(PROGRESSIVE, 100)) == read_header(PROGRESSIVE)
    one_by_one = change(GREY, 0xC0, lambda p: p[:5] + b"\3" + p[6:] + b"\2\x11\0" + b"\3\x11\0")
    assert read_header(with_scans(one_by_one, 100)).coding == "baseline"
    for data in (PROGRESSIVE, one_by_one):
        with pytest.raises(RejectedImage, match="101 times the first bytes of a scan; the limit is 100") as caught:
            read_header(with_scans(data, 101))
        assert caught.value.reason == "too_costly"


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_chunks_are_counted(kind):
    one, behind = COMPRESSED[kind], make_png(ihdr(), ONE_PIXEL)[:-12]
    for chunks in (make_png(ihdr(), PLAIN_TEXT * 20, one * 8, ONE_PIXEL), behind + one * 8 + chunk(b"IEND", b"")):
        assert read_header(chunks).height == 1
        with pytest.raises(RejectedImage, match="more than 8 chunks of compressed text") as caught:
            read_header(chunks.replace(one, one * 2, 1))
        assert caught.value.reason == "too_costly"


# --- bad files are rejected, each for its reason --------------------------------------------------

# (reason, part of the message, bytes)
REJECTED = [
    ("empty", "no bytes", b""),
    ("not_an_image", r"00 01 02 41 42 \(\.\.\.AB\)", b"\0\1\2AB"),
    ("not_an_image", "ff d8", b"\xff\xd8\0" + BASELINE[2:]),
    ("other_format", "GIF", encode(make_image("L"), "GIF")),
    ("unsupported_coding", "palette", encode(make_image("P"), "BMP")),
    ("other_format", "TIFF", encode(make_image("RGB"), "TIFF")),
    ("truncated", "RIFF", b"RIFF\x24\0\0\0WEBPVP8 "),
    ("animated", "animated WebP", encode(make_image("L"), "WEBP", save_all=True, append_images=[make_image("RGB")])),
    ("other_format", "PNM", encode(make_image("RGB"), "PPM")),
    ("other_format", "AVIF", b"\0\0\0\x1cftypavif\0\0\0\0"),
    ("other_format", "HEIC", b"\0\0\0\x1cftypheic\0\0\0\0"),
    ("other_format", "JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n\0\0"),
    ("other_format", "JPEG XL", b"\xff\x0a\xfa\x1f"),
    ("other_format", "SVG", b"<?xml version='1.0'?><svg/>"),
    ("other_format", "HTML", b"\n<!DOCTYPE html><title>404 Not Found</title>"),
    ("truncated", "no end-of-image marker", BASELINE[:-2]),
    ("truncated", "segment 0xdb of 67 bytes, 28 are left", BASELINE[:50]),
    ("truncated", "no IEND", PNG[:-12]),
    ("truncated", "chunk b'IDAT'", PNG[:-20]),
    ("unsupported_coding", "12 bits", change(BASELINE, 0xC0, put(0, 12))),
    ("unsupported_coding", "lossless", BASELINE.replace(b"\xff\xc0", b"\xff\xc3")),
    ("unsupported_coding", "hierarchical", BASELINE.replace(b"\xff\xc0", b"\xff\xc5")),
    ("unsupported_coding", "JPEG-LS", BASELINE.replace(b"\xff\xc0", b"\xff\xf7")),
    ("unsupported_coding", "do not divide", change(BASELINE, 0xC0, lambda p: put(7, 0x31)(put(10, 0x21)(p)))),
    ("unsupported_channels", "2 components", change(BASELINE, 0xC0, lambda p: p[:5] + b"\2" + p[6:12])),
    ("bad_dimensions", "height 0", change(BASELINE, 0xC0, put(2, 0))),
    ("bad_dimensions", "width 65535", change(BASELINE, 0xC0, lambda p: p[:3] + b"\xff\xff" + p[5:])),
    ("bad_dimensions", "height 0", make_png(ihdr(height=0), ONE_PIXEL)),
    (
        "too_many_pixels",
        "3600000000",
        change(BASELINE, 0xC0, lambda p: p[:1] + struct.pack(">HH", 60_000, 60_000) + p[5:]),
    ),
    ("too_many_pixels", "10000000000", make_png(ihdr(100_000, 100_000), ONE_PIXEL)),
    ("too_costly", "100000 times", BASELINE[:-2] + segment(0xDA, b"") * 99_999 + b"\xff\xd9"),
    ("too_costly", "compressed text", with_compressed(300)),
    ("damaged_header", "wrong length", change(BASELINE, 0xC0, lambda p: p + b"\0")),
    ("damaged_header", "sampling factors 0x2", change(BASELINE, 0xC0, put(7, 0x02))),
    ("damaged_header", "second start-of-frame", with_segments(BASELINE, segment(0xC0, segments(BASELINE)[3][1]))),
    ("damaged_header", "second start-of-image", with_segments(BASELINE, b"\xff\xd8")),
    ("damaged_header", "scan before the start of frame", change(BASELINE, 0xC0, lambda _: None)),
    ("damaged_header", "unknown marker 0x02", with_segments(BASELINE, segment(0x02, b""))),
    ("damaged_header", "length 1", with_segments(BASELINE, b"\xff\xdb\0\1")),
    ("damaged_header", "restart interval of 3 bytes", change(RESTARTS, 0xDD, lambda p: p + b"\0")),
    ("damaged_header", "IHDR is expected", make_png(ONE_PIXEL)),
    ("damaged_header", "IHDR of 12", make_png(chunk(b"IHDR", bytes(12)))),
    ("damaged_header", "colour type 2 of 4 bits", make_png(ihdr(depth=4, color=2), ONE_PIXEL)),
    ("damaged_header", "interlace 2", make_png(ihdr(interlace=2), ONE_PIXEL)),
    ("damaged_header", "repeated", make_png(ihdr(), ihdr(), ONE_PIXEL)),
    ("damaged_header", "unknown", make_png(ihdr(), chunk(b"ABCD", b""), ONE_PIXEL)),
    ("damaged_header", "not a chunk", make_png(ihdr(), chunk(b"a?cd", b""), ONE_PIXEL)),
    ("damaged_table", "quantisation table 4", change(BASELINE, 0xDB, put(0, 4))),
    ("damaged_table", "quantisation tables end 64 bytes", change(BASELINE, 0xDB, put(0, 0x10))),
    ("damaged_table", "byte too many", change(BASELINE, 0xC4, lambda p: p + b"\0")),
    ("damaged_table", "256? symbols|symbols in", change(BASELINE, 0xC4, put(16, 255))),
    ("damaged_table", "Huffman table 0x04", change(BASELINE, 0xC4, put(0, 4))),
    ("damaged_table", "codes of 1 bit ", change(BASELINE, 0xC4, lambda p: p[:1] + b"\2\0\0\0" + bytes(12) + b"\0\0")),
    ("damaged_table", "symbol above 15", change(BASELINE, 0xC4, put(20, 16))),
    ("damaged_table", "conditioning of 1", with_segments(BASELINE, segment(0xCC, b"\0"))),
    ("damaged_table", "conditioning 0x01", with_segments(BASELINE, segment(0xCC, b"\0\1"))),
    ("damaged_table", "of table 0x20", with_segments(BASELINE, segment(0xCC, b"\x20\0"))),
    ("damaged_table", "of 257 symbols", with_segments(BASELINE, huffman_segment(257))),
    ("damaged_table", "second PLTE", make_png(ihdr(color=3), *[chunk(b"PLTE", b"abc")] * 2, ONE_PIXEL)),
    ("damaged_table", "PLTE of 4 bytes", make_png(ihdr(color=3), chunk(b"PLTE", b"abcd"), ONE_PIXEL)),
    ("damaged_table", "empty PLTE", make_png(ihdr(color=2), chunk(b"PLTE", b""), ONE_PIXEL)),
    ("missing_table", "quantisation table 1", change(BASELINE, 0xDB, lambda _: None, 1)),
    ("missing_table", "DC Huffman table 0", change(PROGRESSIVE, 0xC4, lambda _: None)),
    ("missing_table", "AC Huffman table 2", change(BASELINE, 0xDA, put(2, 0x02))),
    ("missing_table", "before PLTE", make_png(ihdr(color=3), ONE_PIXEL)),
    ("damaged_scan", "wrong length", change(BASELINE, 0xDA, put(0, 2))),
    ("damaged_scan", "names component 9", change(BASELINE, 0xDA, put(1, 9))),
    ("damaged_scan", "names component 3 twice", change(BASELINE, 0xDA, lambda p: b"\3\3\0\2\0\3" + p[6:])),
    ("damaged_scan", "18 blocks", change(BASELINE, 0xC0, lambda p: put(7, 0x44)(put(10, 0x11)(p)))),
    ("damaged_scan", "another scan", join(segments(BASELINE) + segments(BASELINE)[-1:])),
    ("damaged_scan", "coefficients 0 to 63", change(PROGRESSIVE, 0xDA, put(8, 63))),
    ("damaged_scan", "bits 3 to 1", change(PROGRESSIVE, 0xDA, put(9, 0x31))),
    ("damaged_scan", "bits 0 to 14", change(PROGRESSIVE, 0xDA, put(9, 14))),
    ("damaged_scan", "unknown marker 0x3b", BASELINE[:-2] + b"\xff\x3b\xff\xd9"),
    ("no_image_data", "before any scan", change(BASELINE, 0xDA, lambda _: None)),
    ("no_image_data", "before any start of frame", b"\xff\xd8\xff\xd9"),
    ("no_image_data", "no IDAT", make_png(ihdr())),
    ("bad_checksum", "IDAT", PNG[:-17] + bytes([PNG[-17] ^ 1]) + PNG[-16:]),
]


@pytest.mark.parametrize(("reason", "message", "data"), REJECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_rejection_names_its_reason(reason, message, data):
    with pytest.raises(RejectedImage, match=message) as caught:
        read_header(data)
    assert caught.value.reason == reason
    assert caught.value.offset is None or 0 <= caught.value.offset <= len(data)


def test_every_reason_is_tested_and_explained():
    assert {reason for reason, _, _ in REJECTED} == set(REASONS)
    assert all(sentence.endswith(".") for sentence in REASONS.values())


def test_every_reason_in_the_source_is_listed():
    folder = Path(headers.__file__).parent
    source = "".join((folder / name).read_text() for name in ("headers.py", "jpeg.py", "png.py", "webp.py", "bmp.py"))
    used = set(re.findall(r'(?:_reject|RejectedImage)\(\s*"(\w+)"', source)) | {"damaged_scan"}
    assert used == set(REASONS)


THUMBNAIL = tiff("<", 6) + encode(make_image("RGB", (8, 8)))  # ends in an EOI of its own: a search for EOI would be content


@pytest.mark.parametrize(
    "data",
    [BASELINE, PROGRESSIVE, RESTARTS, with_segments(BASELINE, exif_segment(THUMBNAIL)), PNG, WEBP, BMP],
    ids=["baseline", "progressive", "restarts", "thumbnail", "png", "webp", "bmp"],
)
def test_g4_every_truncation_is_rejected(data):
    read_header(data)
    for length in range(len(data)):
        with pytest.raises(RejectedImage) as caught:
            read_header(data[:length])
        magic_bytes = {PNG[:3]: 8, WEBP[:3]: 12, BMP[:3]: 2}.get(data[:3], 3)
        expected = "empty" if length == 0 else "not_an_image" if length < magic_bytes else "truncated"
        assert caught.value.reason == expected


# --- any bytes whatsoever -------------------------------------------------------------------------


@BOUNDED
@given(st.binary(max_size=2000))
@example(b"\xff\xd8\xff")
@example(b"\xff\xd8\xff\xd9")
def test_arbitrary_bytes(data):
    read_or_reject(data)
    read_or_reject(b"\xff\xd8\xff" + data)
    read_or_reject(b"\x89PNG\r\n\x1a\n" + data)
    read_or_reject(make_png(ihdr(), chunk(b"eXIf", data), ONE_PIXEL))
    read_or_reject(with_segments(BASELINE, exif_segment(data)))


@BOUNDED
@given(st.lists(st.tuples(st.sampled_from(range(0xC0, 0xFF)), st.binary(max_size=40)), max_size=12))
def test_arbitrary_segments(parts):
    read_or_reject(join([(marker, payload, b"") for marker, payload in parts]))


@BOUNDED
@given(
    st.lists(
        st.tuples(st.sampled_from([b"IHDR", b"PLTE", b"IDAT", b"eXIf", b"zTXt", b"iTXt", b"tEXt"]), st.binary()),
        max_size=6,
    )
)
def test_arbitrary_chunks(parts):
    read_or_reject(make_png(*[chunk(kind, payload) for kind, payload in parts]))
    read_or_reject(make_png(ihdr(), *[chunk(kind, payload) for kind, payload in parts], ONE_PIXEL))


@BOUNDED
@given(st.sampled_from([*JPEGS.values(), PNG]), st.data())
def test_mutations_of_good_files(good, data):
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    read_or_reject(bytes(mutated))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 4_000_000,
        b"\xff\0" * 2_000_000,
        b"\xff\xd0" * 2_000_000,
        bytes(4_000_000),
        segment(0xC4, b"") * 200_000,
    ],
    ids=["fill bytes", "stuffed zeros", "restarts", "zeros", "empty tables"],
)
def test_hostile_megabytes_take_under_a_second(body):
    for data in (b"\xff\xd8\xff" + body, BASELINE[:-2] + body, BASELINE[:-2] + body + b"\xff\xd9"):
        started = time.process_time()
        read_or_reject(data)
        assert time.process_time() - started < 1


def test_a_photo_takes_milliseconds():
    data = encode(make_image("RGB", (640, 480)), quality=95)
    assert len(data) > 300_000
    best = min(_seconds(data) for _ in range(5))
    assert best < 0.005


def _seconds(data: bytes) -> float:
    started = time.process_time()
    read_or_reject(data)
    return time.process_time() - started


# --- TensorFlow decodes what is accepted, and refuses what is rejected ----------------------------


def tensorflow_shape(data: bytes) -> tuple[int, ...] | None:
    """What `decode_jpeg`, or tfpipe for WebP and BMP, makes of the bytes; None where it refuses them."""
    import tensorflow as tf

    from tfpipe.images.decoding import decode_image

    try:
        if data.startswith((b"RIFF", b"BM")):
            return tuple(decode_image(data).shape)
        return tuple(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").shape)
    except tf.errors.InvalidArgumentError:
        return None


def disagreement(data: bytes) -> str | None:
    """Where header and decoder part, in words."""
    verdict = read_or_reject(data)
    if isinstance(verdict, RejectedImage) and verdict.reason in ("too_many_pixels", "too_costly"):
        return None  # not to be decoded here
    shape = tensorflow_shape(data)
    if isinstance(verdict, RejectedImage):
        return None if shape is None else f"{verdict.reason}: {verdict.message}, and decodes to {shape}"
    return None if shape == (verdict.height, verdict.width, 3) else f"{verdict} and decodes to {shape}"


@pytest.mark.tf
@pytest.mark.parametrize("name", JPEGS)
def test_tensorflow_agrees_on_each_header_byte(name):
    good = JPEGS[name]
    assert disagreement(good) is None
    found = {}
    position = 2
    for marker, payload, scan in segments(good):
        end = position + 4 + len(payload)
        for i in range(position, end):
            for value in {0, 255, good[i] ^ 1, good[i] ^ 0x10, (i * 37) & 255} - {good[i]}:
                message = disagreement(good[:i] + bytes([value]) + good[i + 1 :])
                if message is not None:
                    found[hex(marker), i - position, value] = message
        position = end + len(scan)
    assert found == {}


@pytest.mark.tf
@pytest.mark.parametrize("name", JPEGS)
def test_tensorflow_agrees_on_removed_doubled_and_moved_segments(name):
    parts = segments(JPEGS[name])
    edits = {}
    for i, part in enumerate(parts):
        edits["removed", i] = parts[:i] + parts[i + 1 :]
        for j in range(len(parts)):
            edits["copied", i, j] = [*parts[:j], part, *parts[j:]]
            edits["moved", i, j] = [*edits["removed", i][:j], part, *edits["removed", i][j:]]
        for length in range(0, len(part[1]), 3):
            edits["cut", i, length] = [*parts[:i], (part[0], part[1][:length], part[2]), *parts[i + 1 :]]
    found = {edit: message for edit, edited in edits.items() if (message := disagreement(join(edited)))}
    assert found == {}


@pytest.mark.tf
def test_tensorflow_agrees_on_all_sampling_factors():
    factors = [16 * h + v for h in range(1, 5) for v in range(1, 5)]
    edited = {}
    for first in factors:
        one = change(BASELINE, 0xC0, put(7, first))
        edited |= {(first, second): change(one, 0xC0, put(10, second)) for second in factors}
    edited |= {(first,): change(GREY, 0xC0, put(7, first)) for first in factors}
    found = {sampling: message for sampling, data in edited.items() if (message := disagreement(data))}
    assert found == {}
    accepted = [data for data in edited.values() if isinstance(read_or_reject(data), ImageHeader)]
    assert 16 < len(accepted) < len(edited)


@pytest.mark.tf
def test_tensorflow_takes_a_table_of_256_symbols_too():
    data = with_segments(BASELINE, huffman_segment(256))
    assert isinstance(read_or_reject(data), ImageHeader)
    assert disagreement(data) is None


@pytest.mark.tf
def test_tensorflow_agrees_on_the_rejected_examples():
    found = {message for _, message, data in REJECTED if disagreement(data) is not None}
    assert found == {"GIF"}  # one frame, so a still image to TensorFlow; with more it refuses


@pytest.mark.tf
def test_tensorflow_agrees_on_png_chunks():
    palette = encode(make_image("RGB").quantize(16), "PNG")
    extras = [chunk(kind, body) for kind in (b"PLTE", b"tRNS", b"gAMA", b"eXIf", b"QQQQ", b"qqQq") for body in (b"", b"abc")]
    found = {}
    for name, good in {"rgb": PNG, "palette": palette, "grey": encode(make_image("L"), "PNG")}.items():
        assert disagreement(good) is None
        chunks = []
        position = 8
        while position < len(good):
            end = position + 12 + int.from_bytes(good[position : position + 4], "big")
            chunks.append(good[position:end])
            position = end
        for i in range(1, len(chunks)):  # behind IHDR: before it, TensorFlow lets optional chunks pass, the standard does not
            found[name, "removed", i] = disagreement(good[:8] + b"".join(chunks[:i] + chunks[i + 1 :]))
            found[name, "doubled", i] = disagreement(good[:8] + b"".join(chunks[: i + 1] + chunks[i:]))
            for extra in extras:
                found[name, "extra", i, extra] = disagreement(good[:8] + b"".join([*chunks[:i], extra, *chunks[i:]]))
    assert {edit: message for edit, message in found.items() if message} == {}


# --- real files -----------------------------------------------------------------------------------

# Rejected, and decoded by TensorFlow all the same. The four have restart markers, and a forbidden
# marker in the scan.
TOLERATED = {
    "7997b6b229f25315d33f5c7085e37500.jpg": "damaged_scan",
    "8e5e74dbf9b68a322fbb9512db837329.jpg": "damaged_scan",
    "b55977028a3a574336966b6536640fc9.jpg": "damaged_scan",
    "f6b4389c3cf0f5997b2e5a4b905aea8d.jpg": "damaged_scan",
}


def data_folder() -> Path:
    folder = os.environ.get("TFPIPE_TEST_DATA")
    if not folder:
        pytest.skip("TFPIPE_TEST_DATA is not set: no folder of real images")
    return Path(folder)


def corpus() -> list[Path]:
    files = sorted(path for path in (data_folder() / "jpeg").rglob("*") if path.is_file())
    assert len(files) > 500  # the test is about these files: an empty folder must not pass
    return files


def test_corpus_takes_under_a_second_each():
    seconds = {path.name: _seconds(path.read_bytes()) for path in corpus()}
    assert {name: time for name, time in seconds.items() if time >= 1} == {}


@pytest.mark.tf
def test_g4_corpus_verdicts_are_tensorflows():
    tolerated, found, num_accepted, num_decoded = {}, {}, 0, 0
    for path in corpus():
        data = path.read_bytes()
        try:
            header = read_header(data, max_pixels=10**9)
        except RejectedImage as rejected:
            reason = rejected.reason
            header = None
        num_accepted += header is not None
        if _declared_pixels(data) > 40_000_000:
            continue  # hundreds of megabytes to decode
        shape = tensorflow_shape(data)
        num_decoded += shape is not None
        if header is None and shape is not None:
            tolerated[path.name] = reason
        elif header is not None and shape != (header.height, header.width, 3):
            found[path.name] = shape
    assert found == {}
    assert tolerated == TOLERATED
    assert num_accepted > 250
    assert num_decoded > 250


def _declared_pixels(data: bytes) -> int:
    """The pixels of the first thing that looks like a frame header."""
    frame = re.search(rb"\xff[\xc0-\xc3\xc5-\xcb\xcd-\xcf]..\x08(..)(..)", data, re.DOTALL)
    return 0 if frame is None else int.from_bytes(frame[1], "big") * int.from_bytes(frame[2], "big")


def test_corpus_orientation_equals_pillow():
    paths = [
        *corpus(),
        *(data_folder() / "large").iterdir(),
        *sorted((data_folder() / "cats_dogs" / "test1").iterdir())[:50],
    ]
    seen = {}
    for path in paths:
        data = path.read_bytes()
        try:
            header = read_header(data)
        except RejectedImage:
            continue
        if header.format == "JPEG" or header.height * header.width < 10**6:
            assert pillow_orientation(data) == header.orientation, path.name
            seen[header.orientation] = seen.get(header.orientation, 0) + 1
    assert set(seen) == set(range(1, 9))  # the corpus has all of them, so none was right by chance


def test_real_photos_are_accepted():
    folder = data_folder()
    paths = [
        *(folder / "large").iterdir(),
        *(folder / "cats_dogs" / "train").rglob("*.jpg"),
        *(folder / "signs").rglob("*.jpg"),
    ]
    assert len(paths) > 3000
    assert {read_header(path.read_bytes()).coding for path in paths} >= {"baseline"}
