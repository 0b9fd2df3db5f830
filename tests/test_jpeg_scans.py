"""The compressed data of JPEG and PNG files: sound ones pass, cut and damaged ones are told, as by TensorFlow's decoder."""

from __future__ import annotations

import io
import random
import re
import struct
import time
import zlib

import pytest
from PIL import Image

from tfpipe.common.errors import RejectedImage
from tfpipe.images import jpeg
from tfpipe.images.headers import read_header

END = b"\xff\xd9"
SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


def noise(mode: str, size: tuple[int, int], seed: int = 7) -> Image.Image:
    """Smooth here and rough there: blocks that are full, and runs of blocks that are empty."""
    drawn = random.Random(seed)
    bands = [Image.frombytes("L", (9, 9), drawn.randbytes(81)) for _ in Image.new(mode, (1, 1)).getbands()]
    smooth = Image.merge(mode, [band.resize(size, Image.Resampling.BICUBIC) for band in bands])
    half = (size[0] // 2, size[1])
    smooth.paste(Image.frombytes(mode, half, drawn.randbytes(half[0] * half[1] * len(bands))), (0, 0))
    return smooth


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without the segments of a marker."""
    kept, position = data[:2], 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        kept += data[position:end] if data[position + 1] != marker else b""
        position = end
    return kept + data[position:]


SOUND = {
    "colour 4:2:0": encode(noise("RGB", (61, 45))),
    "colour 4:2:2": encode(noise("RGB", (40, 33)), subsampling=1),
    "colour 4:4:4": encode(noise("RGB", (40, 33)), subsampling=0, quality=97),
    "grey": encode(noise("L", (50, 21))),
    "cmyk": encode(noise("CMYK", (30, 30))),
    "one pixel": encode(noise("L", (1, 1))),
    "tables of its own": encode(noise("RGB", (64, 64)), optimize=True),
    "restarts by block": encode(noise("RGB", (90, 40)), restart_marker_blocks=2),
    "restarts by row": encode(noise("L", (90, 80)), restart_marker_rows=1),
    "progressive": encode(noise("RGB", (61, 45)), progressive=True),
    "progressive, rough": encode(noise("RGB", (61, 45)), progressive=True, quality=98, subsampling=0),
    "progressive, grey": encode(noise("L", (130, 70)), progressive=True, quality=30),
    "progressive, restarts": encode(noise("RGB", (61, 45)), progressive=True, restart_marker_blocks=3),
    "flat": encode(Image.new("RGB", (160, 160), "grey")),
    "flat, progressive": encode(Image.new("RGB", (160, 160), "grey"), progressive=True),
    "motion JPEG": without(encode(noise("RGB", (61, 45))), 0xC4),
}


def scans_of(data: bytes) -> list[tuple[int, int]]:
    """Where each scan's data stand."""
    found = []
    for start in (match.end() for match in re.finditer(rb"\xff\xda\0[\x08-\x0e]", data)):
        begin = start - 2 + int.from_bytes(data[start - 2 : start], "big")
        found.append((begin, SEGMENT.search(data, begin).start()))
    return found


def complaint(data: bytes) -> str:
    """What the check says; "" for nothing."""
    try:
        read_header(data, decode=True)
    except RejectedImage as error:
        return f"{error.reason}: {error}"
    return ""


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_pass(name):
    assert scans_of(SOUND[name])
    assert complaint(SOUND[name]) == ""
    assert read_header(SOUND[name], decode=True) == read_header(SOUND[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SOUND)
def test_a_scan_that_is_cut_anywhere_and_ended_in_order_is_reported(name, thinned):
    data = SOUND[name]
    for start, end in scans_of(data):
        for cut in thinned(range(start, end), 50):
            ended = data[:cut] + END
            assert read_header(ended)  # headers and end are in order: this alone would take it
            assert "damaged_scan: Corrupt JPEG data: premature end of data segment, in unit " in complaint(ended), cut


def test_a_cut_is_reported_in_the_decoders_words_with_its_place():
    data = SOUND["colour 4:2:0"]
    [(start, end)] = scans_of(data)
    cut = (start + end) // 2
    with pytest.raises(RejectedImage, match=r"Corrupt JPEG data: premature end of data segment, in unit \d of 12$") as caught:
        read_header(data[:cut] + END, decode=True)
    assert (caught.value.reason, caught.value.offset) == ("damaged_scan", cut)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("grey", lambda d: d[:-2] + b"abc" + END, "3 extraneous bytes after unit 21 of 21$"),
        ("grey", lambda d: d[:-2] + b"a" + END, "1 extraneous byte after"),
        ("grey", lambda d: d.replace(b"\xff\xdb", b"ab\xff\xdb", 1), "2 extraneous bytes before marker 0xdb$"),
        ("restarts by row", lambda d: d.replace(b"\xff\xd1", b"\xff\xd2", 1), "found marker 0xd2 instead of RST1$"),
        ("restarts by row", lambda d: d.replace(b"\xff\xd1", b"", 1), "255 extraneous bytes after unit 24 of 120$"),
        ("grey", lambda d: d[:-2] + b"\xff\xd0ab" + END, "2 extraneous bytes after the last unit$"),
        ("progressive", lambda d: d[: d.index(b"\xff\xda")] + d[scans_of(d)[0][1] :], "inconsistent progression"),
    ],
)
def test_other_damage_is_reported_in_the_decoders_words(name, edit, message):
    damaged = edit(SOUND[name])
    assert damaged != SOUND[name]
    assert re.search(f"damaged_scan: .*Corrupt JPEG data: {message}", complaint(damaged)), complaint(damaged)


def test_runs_that_lead_out_of_a_block_and_codes_that_no_table_has_are_reported():
    data = SOUND["colour 4:4:4"]
    [(start, end)] = scans_of(data)
    drawn, told = random.Random(3), set()
    for _ in range(300):
        damaged = bytearray(data)
        place = drawn.randrange(start, end - 40)
        damaged[place : place + 30] = bytes(byte & 0x7F for byte in drawn.randbytes(30))
        told |= set(re.findall("bad Huffman code|leads out of its block|premature end|extraneous", complaint(bytes(damaged))))
    assert told == {"bad Huffman code", "leads out of its block", "premature end", "extraneous"}


def test_what_follows_the_end_of_the_image_is_none_of_the_scans_business():
    assert complaint(SOUND["grey"] + b"abc\xff\xd8\xff\xda") == ""
    assert complaint(SOUND["grey"][:-2] + b"\xff\xff\xff" + END) == ""  # fill bytes
    assert complaint(SOUND["restarts by row"][:-2] + b"\xff\xd2" + END) == ""  # a restart too many, with nothing after it


def test_the_usual_tables_are_those_of_an_encoder_without_its_own():
    tables = {key: (sum(table[:16]), len(table) - 16) for key, table in jpeg._usual_tables().items()}
    assert tables == {0: (12, 12), 1: (12, 12), 16: (162, 162), 17: (162, 162)}  # T.81 K.3


def test_a_large_image_of_few_bytes_takes_seconds():
    large = encode(Image.new("L", (8000, 8000)), progressive=True)
    assert len(large) < 300_000
    started = time.process_time()
    assert complaint(large) == ""
    assert time.process_time() - started < 10  # of a million blocks and ten scans


def tensorflows_warning(data: bytes, capfd: pytest.CaptureFixture[str]) -> str:
    """What TensorFlow's decoder writes to stderr, past Python."""
    import tensorflow as tf

    capfd.readouterr()
    try:
        tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    except tf.errors.InvalidArgumentError:
        return "refused"
    return capfd.readouterr().err


@pytest.mark.tf
@pytest.mark.parametrize("name", SOUND)
def test_whatever_tensorflow_warns_of_is_reported(name, capfd):
    data = SOUND[name]
    assert tensorflows_warning(data, capfd) == ""
    drawn, warned, told = random.Random(name), 0, 0
    for _ in range(150):
        start, end = drawn.choice(scans_of(data))
        damaged = bytearray(data)
        for _ in range(drawn.randrange(1, 4)):
            damaged[drawn.randrange(start, max(end, start + 1))] = drawn.randrange(256)
        said = tensorflows_warning(bytes(damaged), capfd)
        warned += bool(said)
        told += bool(complaint(bytes(damaged)))
        assert complaint(bytes(damaged)) or not said, (damaged.hex(), said)
    assert 0 < warned <= told


# PNG


def png(width: int, height: int, depth: int, color: int, interlaced: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(6)) if color == 3 else b""
    data = b"".join(chunk(b"IDAT", pixels[i : i + 50]) for i in range(0, len(pixels), 50))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


def pass_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Columns and rows of the seven passes, counted pixel by pixel from the specification's drawing of them."""
    pattern = ("16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777")
    sizes = []
    for number in "1234567":
        places = [(x, y) for y in range(height) for x in range(width) if pattern[y % 8][x % 8] == number]
        sizes.append((len({x for x, _ in places}), len({y for _, y in places})))
    return sizes


@pytest.mark.parametrize(("depth", "color", "bits"), [(8, 2, 24), (1, 0, 1), (2, 3, 2), (16, 4, 32), (8, 6, 32)])
@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 17), (200, 5)])
def test_png_pixels_must_fill_the_image(size, interlaced, depth, color, bits):
    passes = pass_sizes(*size) if interlaced else [size]
    raw = b"".join(bytes(1 + -(-columns * bits // 8)) * rows for columns, rows in passes if columns)
    sound = png(*size, depth, color, interlaced, zlib.compress(raw))
    assert complaint(sound) == ""
    Image.open(io.BytesIO(sound)).load()
    short = png(*size, depth, color, interlaced, zlib.compress(raw[:-1]))
    assert read_header(short)
    assert re.match("damaged_scan: the compressed data end in row ", complaint(short))


def test_png_pixels_must_be_as_they_were_compressed():
    raw = random.Random(0).randbytes(61) * 40
    raw = b"".join(b"\0" + raw[i + 1 : i + 61] for i in range(0, len(raw), 61))
    sound = zlib.compress(raw)
    assert complaint(png(20, 40, 8, 2, 0, sound)) == ""
    assert "incorrect data check" in complaint(png(20, 40, 8, 2, 0, sound[:-1] + bytes([sound[-1] ^ 1])))
    assert "the compressed data are damaged" in complaint(png(20, 40, 8, 2, 0, b"\x78\x9c" + b"\xff" * 30))
    assert "the compressed data end in row 0 of 40" in complaint(png(20, 40, 8, 2, 0, zlib.compress(b"")))
    assert "filter 5 in row 1 of 40" in complaint(png(20, 40, 8, 2, 0, zlib.compress(raw[:61] + b"\5" + raw[62:])))
    assert complaint(encode(noise("RGB", (300, 200)), "PNG")) == ""


# Real files


def test_real_photos_pass_and_cut_ones_are_reported(test_data):
    files = sorted((test_data / "cats_dogs").rglob("*.jpg"))
    drawn = random.Random(0)
    assert len(files) > 1000
    for file in drawn.sample(files, 40):
        data = file.read_bytes()
        assert complaint(data) == "", file
        start, end = scans_of(data)[-1]
        assert "damaged_scan: " in complaint(data[: drawn.randrange(start, end)] + END), file


@pytest.mark.tf
def test_of_a_corpus_those_are_reported_that_tensorflow_warns_of(test_data, capfd):
    warned, told, num_files = set(), set(), 0
    for file in sorted(path for path in (test_data / "jpeg").rglob("*") if path.is_file()):
        data = file.read_bytes()
        try:
            header = read_header(data, max_pixels=40_000_000)
        except RejectedImage:
            continue
        if header.format == "JPEG":
            num_files += 1
            warned |= {file} if tensorflows_warning(data, capfd) else set()
            told |= {file} if complaint(data) else set()
    assert told == warned
    assert num_files > 250
    assert len(told) == 10
