import hashlib
import io
import logging
import os

import numpy as np
import pytest
from conftest import make_image, write
from inspection_fixtures import build_tiny, forge, replaced
from PIL import Image, ImageFont, ImageOps

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.records.samples import Samples
from tfpipe.report import contact_sheet, fonts, sheets
from tfpipe.report.contact_sheet import as_read, show

RED, BLUE = (230, 20, 20), (20, 20, 230)


def two_halves(orientation, kind="JPEG"):
    """Red above blue when turned as its EXIF says."""
    upright = Image.new("RGB", (40, 60), RED)
    upright.paste(BLUE, (0, 30, 40, 60))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes what a viewer does
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turned[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    stored.save(out, kind, exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue()))).size == (40, 60)
    return out.getvalue()


def near(pixel, color):
    return all(abs(a - b) < 60 for a, b in zip(pixel, color, strict=True))


def places_of(sheet, color):
    """Where a sheet has a color, or one near it."""
    ys, xs = np.nonzero((np.abs(np.asarray(sheet, int) - color) < 60).all(-1))
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def drawn(out, path, **options):
    show(out, path, **options)
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_with_its_aspect(tmp_path, orientation, kind):
    write(tmp_path / "in" / "x" / "a.jpg", two_halves(orientation, kind))
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", layout="folders", progress=False)
    sheet = drawn(tmp_path / "out", tmp_path / "sheet.png", tile=120)
    reds, blues = places_of(sheet, RED), places_of(sheet, BLUE)
    assert max(y for _, y in reds) < min(y for _, y in blues) + 3
    xs, ys = zip(*reds, *blues, strict=True)
    assert abs(max(xs) - min(xs) - 79) <= 2
    assert abs(max(ys) - min(ys) - 119) <= 2


def test_size_grows_with_classes_and_samples(photos, tmp_path):
    tfpipe.build_tfrecords(photos, tmp_path / "out", layout="folders", progress=False)
    few = drawn(tmp_path / "out", tmp_path / "a.png", per_class=9, tile=64)
    more = drawn(tmp_path / "out", tmp_path / "b.png", per_class=12, tile=64)
    fewer = drawn(tmp_path / "out", tmp_path / "c.png", per_class=9, tile=64, max_classes=2)
    assert more.width > few.width
    assert fewer.height < few.height
    assert len(few.getcolors(1 << 20)) > 100


def test_equal_arguments_equal_bytes_another_seed_other_images(photos, tmp_path):
    tfpipe.build_tfrecords(photos, tmp_path / "a", layout="folders", num_shards=1, progress=False)
    tfpipe.build_tfrecords(photos, tmp_path / "b", layout="folders", num_shards=5, seed=5, progress=False)
    sheets = []
    for directory, seed in (("a", 0), ("b", 0), ("a", 1)):
        show(tmp_path / directory, tmp_path / "sheet.png", seed=seed, per_class=3)
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1]
    without_header = [Image.open(io.BytesIO(sheet)).crop((0, 120, 400, 300)).tobytes() for sheet in sheets]
    assert without_header[0] != without_header[2]


def test_samples_come_from_the_split_and_of_their_class(photos, tmp_path):
    tfpipe.build_tfrecords({"train": photos / "cat", "bare": photos / "dog"}, tmp_path / "flat", layout="flat", progress=False)
    manifest = manifests.load(tmp_path / "flat")
    groups = contact_sheet._groups(tmp_path / "flat", manifest, ["bare"], 5, 50, 0)
    assert [(group.name, group.num_records, len(group.samples)) for group in groups] == [("bare (no labels)", 8, 5)]
    tfpipe.build_tfrecords(photos, tmp_path / "out", layout="folders", progress=False)
    for group in contact_sheet._groups(tmp_path / "out", manifests.load(tmp_path / "out"), ["train"], 5, 50, 0):
        assert {sample.row.class_name for sample in group.samples} == {group.name}
        assert len({sample.row.key for sample in group.samples}) == 5


def test_an_image_that_cannot_be_decoded_is_a_crossed_tile(tmp_path, caplog):
    out = build_tiny(tmp_path)
    forge(out, replaced(1, encoded=b"no image", sha256=hashlib.sha256(b"no image").hexdigest()))
    with caplog.at_level(logging.WARNING, "tfpipe"):
        sheet = drawn(out, tmp_path / "sheet.png", tile=120)
    assert "Pillow cannot decode it" in caplog.text
    assert sum(count for count, color in sheet.getcolors(1 << 20) if near(color, (179, 65, 46))) > 300


def test_a_damaged_record_is_a_crossed_tile(tmp_path, caplog):
    out = build_tiny(tmp_path)
    path = out / manifests.load(out).splits["train"].shards[0].file
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "tfpipe"):
        show(out, tmp_path / "sheet.png")
    assert "does not match its CRC" in caplog.text


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nothing", "the shard cannot be read: No such file or directory"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
    ],
)
def test_a_shard_that_is_not_there_is_crossed_tiles(tmp_path, caplog, place, reason):
    out = build_tiny(tmp_path)
    path = out / manifests.load(out).splits["train"].shards[0].file
    path.unlink()
    if place != "nothing":
        path.mkdir() if place == "folder" else os.mkfifo(path)
    with caplog.at_level(logging.WARNING, "tfpipe"):
        sheet = drawn(out, tmp_path / "sheet.png", tile=120)
    assert caplog.text.count(f"{path}: {reason}") == 1
    assert sum(count for count, color in sheet.getcolors(1 << 20) if near(color, (179, 65, 46))) > 900


@pytest.mark.parametrize("limit", [100_000, 50_000])
def test_more_pixels_than_pillow_likes_are_a_crossed_tile_and_no_warning(tmp_path, caplog, recwarn, monkeypatch, limit):
    out = build_tiny(tmp_path, num=2)
    big = make_image(9, (400, 300))  # above one limit, and above twice the other, which Pillow makes an error
    forge(out, replaced(0, encoded=big, sha256=hashlib.sha256(big).hexdigest(), width=400, height=300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with caplog.at_level(logging.WARNING, "tfpipe"):
        show(out, tmp_path / "sheet.png")
    assert caplog.text.count(f"400 x 300 pixels are more than Pillow's limit of {limit:,}") == 1
    assert "Pillow cannot decode" not in caplog.text
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]


def test_an_image_in_rgb_is_not_copied():
    assert as_read(make_image(1), Samples(), 1000).format == "JPEG"  # of a copy, None


def test_transparent_parts_show_what_training_sees():
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    half.paste((*RED, 255), (0, 0, 40, 20))
    out = io.BytesIO()
    half.save(out, "PNG")
    for background, level in {"keep": 0, "white": 255, "black": 0}.items():
        small = sheets.fit(as_read(out.getvalue(), Samples(background=background), 160), 80)
        assert (small.mode, small.size) == ("RGB", (80, 80))
        assert (small.getpixel((40, 10)), small.getpixel((40, 70))) == (RED, (level, level, level))


@pytest.mark.parametrize("kind", ["photo", "cut", "empty", "folder", "link", "pipe"])
def test_nothing_but_a_png_is_replaced(tmp_path, kind, monkeypatch):
    out, target = build_tiny(tmp_path), tmp_path / "target"
    photo = write(tmp_path / "photo.png", make_image(1, format="PNG"))
    if kind in ("photo", "cut", "empty"):
        target.write_bytes({"photo": make_image(1), "cut": photo.read_bytes()[:7], "empty": b""}[kind])
    else:
        {"folder": target.mkdir, "link": lambda: target.symlink_to(photo), "pipe": lambda: os.mkfifo(target)}[kind]()
    before = os.lstat(target)
    monkeypatch.setattr(contact_sheet, "_groups", None)  # refused before anything is drawn
    what = "a folder" if kind == "folder" else "something else than a PNG file"
    with pytest.raises(FileExistsError, match=f"{target}: {what} is there; it was not overwritten"):
        show(out, target)
    assert os.lstat(target) == before


def test_a_png_is_replaced(tmp_path):
    out = build_tiny(tmp_path)
    target = write(tmp_path / "sheet.png", make_image(1, format="PNG"))
    show(out, target)
    assert Image.open(target).width > 24


def test_where_no_sheet_can_be_written(tmp_path):
    out = build_tiny(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/nowhere: no such folder, for the contact sheet a.png$"):
        show(out, tmp_path / "nowhere" / "a.png")
    for inside in ("a.png", "index/a.png", "manifest.json"):
        with pytest.raises(ValueError, match="must be written outside the data set's folder"):
            show(out, out / inside)


def test_a_sheet_that_is_too_large_is_refused(tmp_path):
    for index in range(60):
        write(tmp_path / "in" / f"class {index}" / "a.jpg", make_image(index))
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", layout="folders", progress=False)
    for options, advice in (
        ({"tile": 100_000}, "--tile"),
        ({"tile": 2000, "max_classes": 60}, "--tile or --max_classes"),
        ({"tile": 2000, "per_class": 20}, "--tile or --per_class"),
    ):
        with pytest.raises(ValueError, match=f"pixels, at most 100,000,000 can be drawn: lower {advice}$"):
            show(tmp_path / "out", tmp_path / "sheet.png", **options)
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_modes(tmp_path, mode):
    out = io.BytesIO()
    Image.new(mode, (30, 20), 40_000 if mode == "I;16" else None).save(out, "JPEG" if mode == "CMYK" else "PNG")
    write(tmp_path / "in" / "a.png", out.getvalue())
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", layout="flat", progress=False)
    sheet = drawn(tmp_path / "out", tmp_path / "sheet.png", tile=64)
    if mode == "I;16":
        assert any(near(color, (156, 156, 156)) and count > 1000 for count, color in sheet.getcolors(1 << 20))


def test_names_that_no_font_has_are_escaped_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fonts, "_NAMES", ())  # what is left is Pillow's own font, which has no Chinese
    out = build_tiny(tmp_path)
    with caplog.at_level(logging.WARNING, "tfpipe"):
        show(out, tmp_path / "sheet.png")
    assert "2 characters in no font found here, drawn as escapes" in caplog.text
    assert "can be given with --font (in Python font=), or installed: Debian calls it fonts-noto-cjk" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tfpipe"):
        fonts.choose("小")
    assert "1 character in no font found here, drawn as escapes: 小; a font file that has them" in caplog.text
    chosen = fonts.choose("小 cat")
    assert chosen.shown("小 cat\n") == "\\u5c0f cat\\n"
    assert fonts.choose("cat").missing == frozenset()


def test_fonts_that_are_none(tmp_path):
    out = build_tiny(tmp_path)
    with pytest.raises(OSError, match="cannot be read as a font"):
        show(out, tmp_path / "sheet.png", font=write(tmp_path / "x.ttf", b"x"))


def test_long_names_are_cut_in_the_middle():
    font = ImageFont.load_default(12)
    text = fonts.shortened("a/very/long/path/to/a/image_000123.jpg", font, 120)
    assert font.getlength(text) <= 120
    assert text.startswith("a/")
    assert text.endswith("123.jpg")
    assert "\u2026" in text
    assert fonts.shortened("short", font, 120) == "short"
    assert fonts.shortened("wide", font, 1) == ""


def test_wrong_arguments(tmp_path):
    out = build_tiny(tmp_path)
    for options, message in (
        ({"per_class": 0}, "per_class"),
        ({"tile": 8}, "tile"),
        ({"split": "nix"}, "split must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            show(out, tmp_path / "sheet.png", **options)
    (out / "index" / os.listdir(out / "index")[0]).unlink()
    with pytest.raises(DataError, match="idx: missing, though the manifest lists it"):
        show(out, tmp_path / "sheet.png")


def test_many_classes_are_capped_and_the_header_reports_it(tmp_path):
    for index in range(5):
        write(tmp_path / "in" / f"class {index}" / "a.jpg", make_image(index))
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", layout="folders", progress=False)
    manifest = manifests.load(tmp_path / "out")
    assert [group.label for group in contact_sheet._groups(tmp_path / "out", manifest, ["train"], 8, 3, 0)] == [0, 1, 2]
    assert "the first 3 of 5 classes" in contact_sheet._header(manifest, ["train"], 8, 3, 0)


def test_real_photographs(test_data, tmp_path):
    tfpipe.build_tfrecords(test_data / "large", tmp_path / "out", layout="flat", progress=False)
    sheet = drawn(tmp_path / "out", tmp_path / "sheet.png", per_class=14)
    assert sheet.width > 14 * 160
