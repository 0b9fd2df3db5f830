"""WebP and BMP: headers as Pillow and TensorFlow see them, pixels as Pillow's, and nothing animated decoded."""

from __future__ import annotations

import io
import re
import struct
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from test_headers import encode, make_image, tiff

import tfpipe
from tfpipe.common.errors import RejectedImage
from tfpipe.images.headers import ImageHeader, read_header
from tfpipe.records import catalog
from tfpipe.records.catalog import read_catalog
from tfpipe.records.samples import Samples
from tfpipe.records.summary import describe_manifest
from tfpipe.report import contact_sheet
from tfpipe.verification.extraction import extract

ALPHA = bytes.fromhex("000000ff")
IMAGE = make_image("RGB", (23, 17))
TRANSPARENT = make_image("RGBA", (23, 17))
BMP = encode(IMAGE, "BMP")
LOSSY = encode(IMAGE, "WEBP")
EXTENDED = encode(IMAGE, "WEBP", exif=tiff(">", 6))
ANIMATED = encode(IMAGE, "WEBP", save_all=True, append_images=[IMAGE.rotate(90)])


def put(data: bytes, place: int, layout: str, *values: int) -> bytes:
    new = struct.pack(layout, *values)
    return data[:place] + new + data[place + len(new) :]


def with_masks(alpha: bytes) -> bytes:
    """A BMP of 32 bits with a header of version 4, which names the masks of its colours."""
    pixels = encode(TRANSPARENT, "BMP")[54:]
    info = struct.pack("<IiiHHIIiiII", 108, 23, 17, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    info += bytes.fromhex("0000ff0000ff0000ff000000") + alpha + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


GOOD = {
    "lossy": (LOSSY, "lossy", "rgb"),
    "lossless": (encode(IMAGE, "WEBP", lossless=True), "lossless", "rgb"),
    "lossy alpha": (encode(TRANSPARENT, "WEBP"), "lossy", "rgb+alpha"),
    "lossless alpha": (encode(TRANSPARENT, "WEBP", lossless=True), "lossless", "rgb+alpha"),
    "grey": (encode(make_image("L", (23, 17)), "WEBP"), "lossy", "rgb"),
    **{f"exif {n}": (encode(IMAGE, "WEBP", exif=tiff("<", n)), "lossy", "rgb") for n in range(1, 9)},
    "xmp": (encode(IMAGE, "WEBP", xmp=xmp(3)), "lossy", "rgb"),
    "webp and more": (LOSSY + b"more", "lossy", "rgb"),
    "24 bits": (BMP, "plain", "rgb"),
    "32 bits": (encode(TRANSPARENT, "BMP"), "plain", "rgb"),
    "8 bits": (encode(make_image("L", (23, 17)), "BMP"), "plain", "grey"),
    "rows from the top": (put(BMP, 22, "<i", -17), "plain", "rgb"),
    "masks": (with_masks(bytes(4)), "plain", "rgb"),
    "masks with alpha": (with_masks(ALPHA), "plain", "rgb+alpha"),
    "bmp and more": (BMP + b"more", "plain", "rgb"),
}
VP8X = struct.pack("<B9x", 0)
BAD = {
    ("animated", "animated WebP"): ANIMATED,
    ("truncated", "RIFF"): LOSSY[:-1],
    ("truncated", "chunk b'VP8 '"): put(LOSSY, 16, "<I", len(LOSSY)),
    ("damaged_header", "first chunk"): riff((b"EXIF", b"abcd"), (b"VP8 ", LOSSY[20:])),
    ("damaged_header", "VP8X of 9 bytes"): riff((b"VP8X", VP8X[:9]), (b"VP8 ", LOSSY[20:])),
    ("damaged_header", "on a canvas of 1 x 1"): riff((b"VP8X", VP8X), (b"VP8 ", LOSSY[20:])),
    ("no_image_data", "no VP8"): riff((b"VP8X", VP8X), (b"EXIF", b"abcd")),
    ("damaged_header", "key frame"): put(LOSSY, 23, "<B", 0),
    ("damaged_header", "first partition"): put(LOSSY, 20, "<BBB", LOSSY[20], 255, 255),
    ("bad_dimensions", "width 0"): put(LOSSY, 26, "<H", 0),
    ("damaged_header", "version 0"): put(GOOD["lossless"][0], 24, "<B", 0xF0),
    ("truncated", "a header has 54"): BMP[:53],
    ("truncated", "pixels of"): BMP[:-1],
    ("unsupported_coding", "header of 12"): put(BMP, 14, "<I", 12),
    ("unsupported_coding", "1 bit "): encode(make_image("1", (23, 17)), "BMP"),
    ("unsupported_coding", "16 bits"): put(BMP, 28, "<H", 16),
    ("unsupported_coding", "compression 1"): put(BMP, 30, "<I", 1),
    ("unsupported_coding", "palette"): encode(make_image("RGB", (23, 17)).quantize(9), "BMP"),
    ("unsupported_coding", "masks"): with_masks(ALPHA[::-1]),
    ("bad_dimensions", "height 0"): put(BMP, 22, "<i", 0),
    ("bad_dimensions", "width -23"): put(BMP, 18, "<i", -23),
    ("damaged_header", "in the header"): put(BMP, 10, "<I", 53),
}


def pillow(data: bytes, background: str = "keep") -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if background == "keep":
            return np.asarray(upright.convert("RGB"))
        pixels = np.asarray(upright.convert("RGBA")).astype(np.int64)
    level = 255 if background == "white" else 0
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    return ((2 * (colours * alpha + (255 - alpha) * level) + 255) // 510).astype(np.uint8)


def verdict(data: bytes) -> ImageHeader | RejectedImage:
    try:
        return read_header(data)
    except RejectedImage as error:
        return error


@pytest.mark.parametrize("name", GOOD)
def test_g4_headers_are_those_of_pillow(name):
    data, coding, color = GOOD[name]
    header = read_header(data, decode=True)
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.format == image.format
        assert header.orientation == image.getexif().get(0x0112, 3 if name == "xmp" else 1)
    assert (header.coding, header.color, header.transparent) == (coding, color, "alpha" in color)
    assert header.trailing_bytes == (4 if "more" in name else 0)


def test_metadata_without_its_flag_does_not_count_as_in_pillow():
    assert read_header(EXTENDED).orientation == 6
    unflagged = put(EXTENDED, 20, "<B", 0)
    assert read_header(unflagged).orientation == 1
    with Image.open(io.BytesIO(unflagged)) as image:
        assert 0x0112 not in image.getexif()


@pytest.mark.parametrize("case", BAD, ids=": ".join)
def test_g4_bad_files_are_named(case):
    reason, message = case
    with pytest.raises(RejectedImage, match=message) as caught:
        read_header(BAD[case])
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["lossy", "lossless alpha"])
def test_pixels_that_end_too_early_are_found_by_decoding(name):
    data = GOOD[name][0]
    cut = riff((data[12:16], data[20 : len(data) * 3 // 4]))
    assert isinstance(verdict(cut), ImageHeader)
    with pytest.raises(RejectedImage, match="cannot be decoded"):
        read_header(cut, decode=True)


def test_a_large_webp_is_decoded_without_a_warning(monkeypatch, recwarn):
    """Above 89 megapixels: the limit is the caller's."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert read_header(LOSSY, decode=True).width == 23
    assert not recwarn.list


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([LOSSY, EXTENDED, GOOD["lossless alpha"][0], BMP, GOOD["masks with alpha"][0]]), st.data())
def test_g4_nothing_else_is_raised_for_any_bytes(data, draw):
    edited = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        edited[draw.draw(st.integers(0, min(len(edited) - 1, 160)))] = draw.draw(st.integers(0, 255))
    verdict(bytes(edited[: draw.draw(st.integers(0, len(edited)))]))
    verdict(bytes(edited))


# --- TensorFlow -----------------------------------------------------------------------------------


@cache
def in_graph(background: str) -> Any:
    import tensorflow as tf

    from tfpipe.images import decoding, graph_headers

    def run(data: Any) -> Any:
        header = graph_headers.read_header(data)
        with tf.control_dependencies(header):  # a decoder's error would cancel the walk, whose error may come first
            return header, decoding.decode_image(data, header.orientation, Samples(background=background))

    return tf.function(run, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


@cache
def graph_header() -> Any:
    import tensorflow as tf

    from tfpipe.images import graph_headers

    return tf.function(graph_headers.read_header, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


@pytest.mark.tf
@pytest.mark.parametrize("background", ["keep", "white", "black"])
def test_pixels_and_headers_in_graphs_are_those_of_pillow(background):
    for name, (data, *_) in GOOD.items():
        header, image = in_graph(background)(data)
        expected = read_header(data)
        assert header.readable.numpy(), name
        found = header.height.numpy(), header.width.numpy(), header.orientation.numpy()
        assert found == (expected.height, expected.width, expected.orientation), name
        assert np.array_equal(image.numpy(), pillow(data, background)), name


@pytest.mark.tf
def test_bad_files_are_refused_by_the_graph_or_its_decoder():
    import tensorflow as tf

    for case, data in BAD.items():
        with pytest.raises(tf.errors.InvalidArgumentError):
            in_graph("keep")(data)
        if case[0] in ("animated", "unsupported_coding", "truncated"):
            assert not graph_header()(data).readable.numpy(), case


@pytest.mark.tf
@pytest.mark.parametrize("place", [4, 16, 34, EXTENDED.index(b"EXIF") + 4])
def test_g4_a_size_that_lies_is_refused_by_the_graph_too(place):
    for size in (99, 2**32 - 1):
        data = put(EXTENDED, place, "<I", size)
        assert isinstance(verdict(data), RejectedImage)
        assert not graph_header()(data).readable.numpy()


@pytest.mark.tf
@pytest.mark.parametrize("name", ["lossy", "exif 6", "lossless alpha", "24 bits", "8 bits", "masks with alpha"])
def test_g4_tensorflow_agrees_on_each_header_byte(name):
    import tensorflow as tf

    good, found = GOOD[name][0], {}
    start = good.index(b"VP8X") if b"VP8X" in good else 0
    for place in range(start, 70):
        for value in {0, 1, 255, good[place] ^ 1, good[place] ^ 16, good[place] ^ 128} - {good[place]}:
            data = good[:place] + bytes([value]) + good[place + 1 :]
            expected = verdict(data)
            if getattr(expected, "reason", "") == "too_many_pixels":
                continue
            try:
                header, image = in_graph("keep")(data)
            except tf.errors.InvalidArgumentError:
                # Damage within the pixels, as of VP8 from here on, is the decoder's to find.
                if isinstance(expected, ImageHeader) and expected.format == "BMP":
                    found[place, value] = f"{expected} and cannot be decoded"
                continue
            if isinstance(expected, RejectedImage):
                if not header.readable.numpy():
                    continue  # an export gives it to no decoder
                found[place, value] = f"{expected.reason}: {expected}, and decodes to {image.shape}"
                continue
            seen = header.height.numpy(), header.width.numpy(), header.orientation.numpy()
            if seen != (expected.height, expected.width, expected.orientation):
                found[place, value] = f"{expected}, and the graph reads {seen}"
    assert found == {}


# --- a data set of all formats --------------------------------------------------------------------


OPTIONS: Any = {"layout": "folders", "background": "white", "name": "mixed", "workers": 1, "progress": False}
OPTIONS |= {"on_conflict": "keep"}  # equal pixels as PNG are equal bytes


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of JPEG, PNG, WebP and BMP, and in `photos` beside it the files."""
    folder = tmp_path_factory.mktemp("mixed")
    photo = make_image("RGB", (230, 170))
    files = {
        **{name: data for name, (data, *_) in GOOD.items()},
        "large": encode(photo, "WEBP", exif=tiff("<", 8)),
        "photo": encode(photo),
        "turned": encode(photo, exif=tiff("<", 5).join((b"Exif\0\0", b""))),
        "png": encode(TRANSPARENT, "PNG"),
    }
    for number, (name, data) in enumerate(files.items()):
        path = folder / "photos" / f"{number % 2}" / f"{name}.jpg"  # the bytes count, whatever the name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tfpipe.build_tfrecords(folder / "photos", folder / "shards", **OPTIONS)
    return folder / "shards"


def test_a_build_counts_and_verifies_each_format(mixed, tmp_path):
    content = tfpipe.load_manifest(mixed)
    traits = content.splits["train"].frames.traits
    assert (traits.png, traits.turned, traits.others) == (True, True, True)
    counts = Counter(row.format for row in read_catalog(mixed))
    assert counts == {"WEBP": 16, "BMP": 7, "PNG": 1, "JPEG": 2}
    assert {name: content.properties[name] for name in ("webp", "bmp", "png")} == {"webp": 16, "bmp": 7, "png": 1}
    assert '"format_version": 3' in (mixed / "manifest.json").read_text()
    assert "WebP" in describe_manifest(content)
    assert not tfpipe.verify(mixed, decode=True, progress=False).findings
    catalog.check_frames(mixed, content, "train")
    extract(mixed, tmp_path / "out", progress=False)
    for path in (mixed.parent / "photos").rglob("*.jpg"):
        assert (tmp_path / "out" / path.relative_to(mixed.parent / "photos")).read_bytes() == path.read_bytes()


@pytest.mark.tf
@pytest.mark.parametrize("background", ["keep", "white"])
def test_contact_sheets_show_what_readers_see(mixed, tmp_path, background):
    for name, (data, *_) in GOOD.items():
        seen = contact_sheet.as_read(data, Samples(background=background), 8)
        seen.getexif()[0x0112] = read_header(data).orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(seen)), pillow(data, background)), name
    contact_sheet.show(mixed, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_data_set_of_jpeg_and_png_alone_does_not_change(tmp_path):
    for name, image_format in {"a.jpg": "JPEG", "b.png": "PNG"}.items():
        (tmp_path / "photos" / name[0]).mkdir(parents=True)
        (tmp_path / "photos" / name[0] / name).write_bytes(encode(IMAGE, image_format))
    content = tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", name="x", workers=1, progress=False)
    text = (tmp_path / "shards" / "manifest.json").read_text()
    assert '"format_version": 2' in text
    assert not {"others", "webp", "bmp"} & {*content.properties, *re.findall(r'"(\w+)":', text)}


@pytest.mark.tf
def test_g10_all_readers_give_the_same_pixels(mixed):
    import tensorflow as tf

    from tfpipe.images.decoding import decode_batch, decode_image, resize_image

    samples, size, seen = Samples(background="white"), (16, 24), {}
    for batch in tfpipe.dataset(mixed, "train", batch_size=5, image_size=size, as_dict=True, training=False):
        for key, image in zip(batch["key"].numpy(), batch["image"].numpy(), strict=True):
            seen[key.decode()] = image
    files = {key: (mixed.parent / "photos" / key).read_bytes() for key in seen}
    found, valid = decode_batch(tf.constant(list(files.values())), size, "stretch", 10**6, samples)
    assert valid.numpy().all()
    for image, (key, data) in zip(found.numpy(), files.items(), strict=True):
        expected = resize_image(decode_image(data, read_header(data).orientation, samples), size).numpy()
        assert np.array_equal(seen[key], expected), key
        assert np.array_equal(image, expected), key
        if "bmp" not in key and "8 bits" not in key:
            assert np.abs(decode_image(data, read_header(data).orientation, samples).numpy() - pillow(data, "white")).max() == 0


def augmented(data_set: Path) -> dict[bytes, np.ndarray]:
    data = tfpipe.dataset(data_set, "train", batch_size=5, image_size=(16, 24), training=True, seed=3, as_dict=True)
    found = {}
    for batch in data:
        found |= dict(zip(batch["key"].numpy(), batch["image"].numpy(), strict=True))
    return found


@pytest.mark.tf
def test_g7_training_sees_webp_and_bmp_as_png(mixed, tmp_path):
    """The same pixels as PNG, augmented: all formats but JPEG are decoded whole."""
    for path in (mixed.parent / "photos").rglob("*.jpg"):
        data = path.read_bytes()
        target = tmp_path / "photos" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        is_other = read_header(data).format in ("WEBP", "BMP")
        target.write_bytes(encode(Image.fromarray(pillow(data, "white")), "PNG") if is_other else data)
    tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", **OPTIONS)
    batches = [augmented(path) for path in (mixed, tmp_path / "shards")]
    assert len(batches[0]) == len(list((mixed.parent / "photos").rglob("*.jpg")))
    for key in batches[0]:
        path = mixed.parent / "photos" / key.decode()
        far = np.abs(batches[0][key].astype(int) - batches[1][key])
        # Those with an EXIF orientation were turned when they became PNG: then a crop is sampled along another axis first.
        assert far.max() <= (0 if read_header(path.read_bytes()).orientation == 1 else 2), key
