"""Files that TensorFlow cannot decode: refused by name with the line that converts them, or made into PNG without loss."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from test_headers import encode, make_image, tiff
from test_other_formats import ANIMATED

import tfpipe
from tfpipe.building.tasks import AuditTask, audit
from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.images.headers import read_header
from tfpipe.listing import conversion
from tfpipe.records.catalog import read_catalog
from tfpipe.verification.comparison import diff
from tfpipe.verification.extraction import extract
from tfpipe.verification.reading import read_shard

IMAGE = make_image("RGB", (23, 17))
TURNED = IMAGE.resize((40, 10))
OPTIONS: Any = {"name": "x", "layout": "folders", "workers": 1, "progress": False}


def frames(image_format: str) -> bytes:
    return encode(IMAGE, image_format, save_all=True, append_images=[IMAGE.rotate(90)])


def heif(image: Image.Image, **options: Any) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encode(image, "HEIF", **options)


def deep_avif() -> bytes:
    data = bytearray(encode(IMAGE, "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x40
    return bytes(data)


FILES = {
    "a.gif": encode(IMAGE.quantize(30), "GIF"),
    "b.tif": encode(IMAGE, "TIFF"),
    "c.tif": encode(make_image("L", (23, 17)).convert("I;16"), "TIFF"),
    "d.tif": encode(TURNED, "TIFF", exif=tiff("<", 6)),
    "e.tif": encode(make_image("RGBA", (23, 17)), "TIFF"),
    "f.avif": encode(TURNED, "AVIF", exif=tiff("<", 8)),
    "g.bmp": encode(IMAGE.quantize(30), "BMP"),
    "h.tif": encode(make_image("1", (23, 17)), "TIFF"),
}
TAGS = {"photometric": 262, "sample_format": 339}
ANIMATIONS = {"webp": ANIMATED, "gif": frames("GIF"), "png": frames("PNG"), "tif": frames("TIFF")}


def pixels(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright if "16" in upright.mode else upright.convert(mode))


@pytest.mark.parametrize("name", FILES)
def test_conversion_loses_nothing(name):
    made = conversion.to_png(FILES[name])
    header = read_header(made.data, decode=True)
    assert (header.format, header.orientation) == ("PNG", 1)
    assert made.sha256 == hashlib.sha256(FILES[name]).hexdigest()
    assert made == conversion.to_png(FILES[name])
    assert np.array_equal(pixels(made.data, "RGBA"), pixels(FILES[name], "RGBA"))
    assert header.precision == (16 if name == "c.tif" else header.precision)


def test_conversion_keeps_a_profile_and_heic():
    profile = bytes(128)
    made = conversion.to_png(encode(IMAGE, "TIFF", icc_profile=profile))
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.info["icc_profile"] == profile
    data = heif(TURNED, quality=-1, exif=tiff("<", 6))
    made = conversion.to_png(data)
    assert made.format == "HEIC"
    assert (read_header(made.data).height, read_header(made.data).width) == (40, 10)
    assert np.array_equal(pixels(made.data, "RGB"), pixels(data, "RGB"))


def test_of_several_heic_images_the_first_alone_must_be_shallow():
    """The primary image, wherever it is: other programs store thumbnails and depths beside it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    images = pillow_heif.from_pillow(IMAGE)
    images.add_frombytes("RGB;16", (16, 16), bytes(16 * 16 * 6))
    for primary, wanted in enumerate(["23 x 17", "mode RGB of 10 bits"]):
        file = io.BytesIO()
        images.save(file, primary_index=primary)
        try:
            header = read_header(conversion.to_png(file.getvalue()).data)
            found = f"{header.width} x {header.height}"
        except RejectedImage as error:
            found = str(error)
        assert wanted in found


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_of_several_images_the_first_is_taken(kind):
    made = conversion.to_png(ANIMATIONS[kind])
    assert made.is_first
    assert not read_header(made.data).animated
    assert np.array_equal(pixels(made.data, "RGB"), pixels(ANIMATIONS[kind], "RGB"))


def tagged(data: bytes, **values: int) -> bytes:
    """A TIFF whose directory has other values for some tags, or a new last tag in place of the last."""
    edited, (start,) = bytearray(data), struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    places = {struct.unpack_from("<H", data, place)[0]: place for place in range(start + 2, start + 2 + 12 * count, 12)}
    for name, value in values.items():
        place = places.get(TAGS[name], places[max(places)])
        struct.pack_into("<HHIHH", edited, place, TAGS[name], 3, 1, value, 0)
    return bytes(edited)


@pytest.mark.parametrize(
    ("reason", "message", "data"),
    [
        ("unconvertible", "CMYK", encode(IMAGE.convert("CMYK"), "TIFF")),
        ("unconvertible", "mode F", encode(make_image("L").convert("F"), "TIFF")),
        ("unconvertible", "cannot decode", encode(IMAGE, "AVIF")[:400]),
        ("unconvertible", "8 bits a sample", deep_avif()),
        ("unconvertible", "inverted or signed.*16 bits", tagged(FILES["c.tif"], photometric=0)),
        ("unconvertible", "inverted or signed.*8 bits", tagged(encode(make_image("L"), "TIFF"), sample_format=2)),
        ("too_many_pixels", "limit", encode(IMAGE, "TIFF")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_lose_is_refused(reason, message, data):
    with pytest.raises(RejectedImage, match=message) as caught:
        conversion.to_png(data, 100 if reason == "too_many_pixels" else 10**6)
    assert caught.value.reason == reason


def write(folder: Path) -> Path:
    files = {
        "a/photo.jpg": encode(IMAGE),
        **{f"{number % 2}/{name}": data for number, (name, data) in enumerate(FILES.items())},
    }
    files |= {f"1/moving.{kind}": data for kind, data in ANIMATIONS.items()}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_files_are_refused_by_name_with_the_line_that_converts_them(tmp_path):
    photos = write(tmp_path / "photos")
    (photos / "0" / "z.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0")
    with pytest.raises(DataError) as caught:
        tfpipe.build_tfrecords(photos, tmp_path / "shards", **OPTIONS)
    assert len(caught.value.problems) == len(FILES) + len(ANIMATIONS) + 1
    for problem in caught.value.problems:
        assert "PNG: --convert=png" in problem.message
        assert ("first image" in problem.message) == (problem.path.endswith(("moving.webp", "moving.png")))
        assert ("tfpipe[heif]" in problem.message) == problem.path.endswith("heic")
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_converted_images_name_their_files(tmp_path, caplog):
    photos = write(tmp_path / "photos")
    caplog.set_level(logging.INFO, "tfpipe")
    content = tfpipe.build_tfrecords(photos, tmp_path / "shards", convert="png", **OPTIONS)
    assert content.options["convert"] == "png"
    assert content.options["converter"].startswith("Pillow ")
    converted = {name: count for name, count in content.properties.items() if name.startswith("converted")}
    expected = {"AVIF": 1, "BMP": 1, "GIF": 2, "PNG": 1, "TIFF": 6, "WEBP": 1}
    assert converted == {f"converted: {name}": count for name, count in expected.items()}
    assert content.properties["first_of_several"] == 4
    assert "only the first is packed" in caplog.text
    assert "of format AVIF: stored as PNG, without loss, by Pillow" in caplog.text
    assert "1 PNG image of 16 bits: stored as they are, read as 8 bits by png16=high_byte" in caplog.text
    assert "with a palette: stored as they are, read in its colours" in caplog.text
    seen = {}
    for shard in content.splits["train"].shards:
        seen |= {record.key: record for _, record in read_shard(tmp_path / "shards", shard)}
    for key, record in seen.items():
        source = (photos / key).read_bytes()
        if key == "a/photo.jpg":
            assert (record.encoded, record.source_format, record.source_sha256) == (source, None, None)
            continue
        assert (record.format, record.filename) == ("PNG", f"{key}.png")
        assert record.source_sha256 == hashlib.sha256(source).hexdigest()
        assert record.encoded == conversion.to_png(source).data
        assert record.source_format == conversion.format_of(source)
    assert not tfpipe.verify(tmp_path / "shards", decode=True, progress=False).findings
    assert {row.filename for row in read_catalog(tmp_path / "shards")} == {record.filename for record in seen.values()}
    again = tfpipe.build_tfrecords(photos, tmp_path / "again", convert="png", **{**OPTIONS, "workers": 2})
    assert again.root_hash == content.root_hash
    assert tfpipe.build_tfrecords(photos, tmp_path / "shards", convert="png", **OPTIONS) == content
    with pytest.raises(ValueError, match="convert was 'png' and is None"):
        tfpipe.build_tfrecords(photos, tmp_path / "shards", **OPTIONS)


def test_a_converted_data_set_is_compared_with_its_folder_and_with_what_was_extracted(tmp_path):
    photos, out = write(tmp_path / "photos"), tmp_path / "shards"
    tfpipe.build_tfrecords(photos, out, convert="png", **OPTIONS)
    extract(out, tmp_path / "back", progress=False)
    assert list(diff(out, photos)) == list(diff(photos, out)) == list(diff(out, tmp_path / "back")) == []
    (photos / "0" / "a.gif").write_bytes(FILES["b.tif"])
    (photos / "1" / "b.tif").unlink()
    assert [found[:2] for found in diff(out, photos)] == [("removed", "1/b.tif"), ("changed", "0/a.gif")]
    (tmp_path / "back" / "1" / "b.tif.png").unlink()
    assert [found[:2] for found in diff(tmp_path / "back", out)] == [("added", "1/b.tif")]


def test_other_software_is_another_option(tmp_path, monkeypatch):
    photos = write(tmp_path / "photos")
    tfpipe.build_tfrecords(photos, tmp_path / "shards", convert="png", **OPTIONS)
    monkeypatch.setattr(conversion, "versions", lambda: "Pillow 1")
    with pytest.raises(ValueError, match=r"converter was 'Pillow \d.*' and is 'Pillow 1'"):
        tfpipe.build_tfrecords(photos, tmp_path / "shards", convert="png", **OPTIONS)
    task = AuditTask([(0, "file", str(photos / "0/a.gif"), 0)], 1000, converter="Pillow 2")  # as another machine's
    with pytest.raises(DataError, match="by Pillow 2, and this machine has Pillow 1: install the same"):
        audit(task, lambda *_: None)
