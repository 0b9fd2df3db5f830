"""Decoding: pixels are Pillow's, exactly where the image is only decoded, within 1.5 levels where it is resized."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pipeline_fixtures import make_image

from tfpipe.images import decoders
from tfpipe.images.decoding import RESIZES, decode_image, parse_batch, parse_example, resize_image, turn_image
from tfpipe.images.resizing import scaled_size
from tfpipe.records import example, samples, schema

pytestmark = pytest.mark.tf

RECORD = schema.Record(b"\xff\xd8", "JPEG", 3, 4, 1, 6, "a/ü.jpg", "a/ü.jpg", "0" * 64, 2, "ü")


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


def difference(ours: tf.Tensor, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    assert ours.dtype == tf.uint8
    return int(np.abs(ours.numpy().astype(int) - theirs).max())


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth and noisy parts, so that aliasing and rounding would both show."""
    random = np.random.default_rng([height, width])
    smooth = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = random.integers(-60, 60, (height, width, 3))
    return np.clip(np.asarray(smooth) + noise * (np.arange(width) % 40 < 20)[None, :, None], 0, 255).astype(np.uint8)


# Parsing


def test_a_record_comes_back_feature_by_feature():
    features = parse_example(schema.encode(RECORD))
    assert features[schema.ENCODED].numpy() == RECORD.encoded
    assert features[schema.FILENAME].numpy().decode() == RECORD.filename
    assert features[schema.CLASS_NAME].numpy().decode() == RECORD.class_name
    integers = {schema.HEIGHT: 3, schema.WIDTH: 4, schema.CHANNELS: 1, schema.ORIENTATION: 6, schema.LABEL: 2}
    assert {name: int(features[name]) for name in integers} == integers
    assert set(features) == set(example.decode(schema.encode(RECORD)))


def without(name: str) -> bytes:
    features = example.decode(schema.encode(RECORD))
    del features[name]
    return example.encode(features)


@pytest.mark.parametrize("serialized", [b"", b"not an Example", without(schema.ENCODED), without(schema.LABEL)])
def test_what_is_not_an_example_with_every_feature_is_refused(serialized: bytes):
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_example(serialized)


def test_a_batch_is_parsed_feature_by_feature_as_one():
    records = [
        schema.Record(b"\xff\xd8%d" % i, "JPEG" if i % 2 else "PNG", 3 + i, 4, 3, 1 + i % 8, f"{i}/ü", f"k{i}", "0", i - 1, "")
        for i in range(20)
    ]
    serialized = [schema.encode(record) for record in records]
    batch, one_by_one = parse_batch(tf.constant(serialized)), [parse_example(example) for example in serialized]
    # All that a pipeline needs; what only people read is left out.
    assert set(one_by_one[0]) - set(batch) == {schema.CHANNELS, schema.SHA256, schema.CLASS_NAME}
    for name, values in batch.items():
        assert values.dtype == one_by_one[0][name].dtype
        assert values.numpy().tolist() == [features[name].numpy() for features in one_by_one]
    assert len(set(batch[schema.ENCODED].numpy())) == 20


NEEDED = (
    schema.ENCODED,
    schema.FORMAT,
    schema.FILENAME,
    schema.KEY,
    schema.HEIGHT,
    schema.WIDTH,
    schema.ORIENTATION,
    schema.LABEL,
)


def test_an_example_without_a_feature_has_no_image_and_its_neighbours_have_theirs():
    whole = schema.encode(RECORD)
    for name in NEEDED:
        batch = parse_batch(tf.constant([whole, without(name), b"", whole]))
        first, *absent, last = batch[schema.ENCODED].numpy().tolist()
        assert first == last == RECORD.encoded, name
        for encoded in absent:
            with pytest.raises(tf.errors.InvalidArgumentError):
                decode_image(encoded)
        assert batch[schema.LABEL].numpy()[[0, 3]].tolist() == [RECORD.label] * 2
    for name in set(example.decode(whole)) - set(NEEDED):  # twin
        assert parse_batch(tf.constant([without(name)]))[schema.ENCODED].numpy().tolist() == [RECORD.encoded], name


def test_values_at_the_ends_are_not_taken_for_absent_ones():
    record = dataclasses.replace(RECORD, filename="", label=-1, class_name="")
    (encoded,) = parse_batch(tf.constant([schema.encode(record)]))[schema.ENCODED].numpy()
    assert encoded == RECORD.encoded


def with_feature(name: str, value: object) -> bytes:
    return example.encode({**example.decode(schema.encode(RECORD)), name: value})


@pytest.mark.parametrize("wrong", [b"not an Example", b"\xff" * 9, schema.encode(RECORD)[:-1]])
def test_a_batch_with_what_is_not_an_example_is_refused(wrong: bytes):
    batch = tf.constant([schema.encode(RECORD), wrong])
    with pytest.raises((tf.errors.InvalidArgumentError, UnicodeDecodeError)):  # TensorFlow's message may hold the bytes
        parse_batch(batch)
    assert len(list(tf.data.Dataset.from_tensors(batch).map(parse_batch).ignore_errors())) == 0
    assert len(list(tf.data.Dataset.from_tensors(batch[:1]).map(parse_batch).ignore_errors())) == 1


@pytest.mark.parametrize(("name", "value"), [(schema.LABEL, [b"cat"]), (schema.ENCODED, [7]), (schema.HEIGHT, [3, 4])])
def test_a_batch_with_a_feature_of_another_type_is_refused(name: str, value: object):
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_batch(tf.constant([schema.encode(RECORD), with_feature(name, value)]))


# Decoding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_orientation_turns_as_pillow_does(orientation: int, image_format: str):
    encoded = make_image(orientation, 23, 37, image_format=image_format, orientation=orientation)
    assert difference(decode_image(encoded, orientation), pillow(encoded)) == 0


def test_the_eight_orientations_give_eight_images():
    # Twin of the test above: an image whose symmetry hides a wrong turn would prove nothing.
    turned = {decode_image(make_image(1, 16, 16), orientation).numpy().tobytes() for orientation in range(1, 9)}
    assert len(turned) == 8


@pytest.mark.parametrize("orientation", [-1, 0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_turns_nothing(orientation: int):
    encoded = make_image(1, 23, 37)
    assert difference(decode_image(encoded, tf.constant(orientation, tf.int64)), pillow(encoded)) == 0


TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", range(-1, 11))
def test_turning_is_pillows_transpose(orientation: int):
    image = photograph(23, 37)
    expected = Image.fromarray(image)
    if orientation in TRANSPOSES:
        expected = expected.transpose(TRANSPOSES[orientation])
    for dtype in (tf.uint8, tf.float32):
        turned = turn_image(tf.constant(image, dtype), tf.constant(orientation))
        assert turned.dtype == dtype
        assert (turned.numpy() == np.asarray(expected)).all()


@pytest.mark.parametrize("quality", [10, 75, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decodes_as_pillow_decodes_it(quality: int, subsampling: int, mode: str):
    file = io.BytesIO()
    image = Image.fromarray(photograph(45, 61)).convert(mode)
    image.save(
        file,
        "JPEG",
        quality=quality,
        progressive=quality == 75,
        **({} if mode == "L" else {"subsampling": subsampling}),
    )
    assert difference(decode_image(file.getvalue()), pillow(file.getvalue())) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_a_png_decodes_as_pillow_decodes_it(mode: str):
    file = io.BytesIO()
    Image.fromarray(photograph(45, 61)).convert(mode).save(file, "PNG")
    assert difference(decode_image(file.getvalue()), pillow(file.getvalue())) == 0


def test_cmyk_differs_from_pillow_by_one_level_at_most():
    file = io.BytesIO()
    Image.fromarray(photograph(45, 61)).convert("CMYK").save(file, "JPEG", quality=95)
    assert difference(decode_image(file.getvalue()), pillow(file.getvalue())) <= 1


@pytest.mark.parametrize("encoded", [b"", b"\xff\xd8\xff", b"<html>", make_image(0)[:-40]])
def test_what_cannot_be_decoded_raises(encoded: bytes):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(encoded)


def test_shapes_are_static_in_a_graph():
    data = tf.data.Dataset.from_tensors((make_image(0), 6)).map(decode_image)
    assert data.element_spec == tf.TensorSpec([None, None, 3], tf.uint8)
    data = data.map(lambda image: resize_image(image, (5, 7), "crop"))
    assert data.element_spec == tf.TensorSpec([5, 7, 3], tf.uint8)
    assert len(list(data)) == 1


@pytest.mark.skipif("TFPIPE_TEST_DATA" not in os.environ, reason="TFPIPE_TEST_DATA is unset: no real images")
def test_real_exif_files_decode_as_pillow_decodes_them():
    files = sorted((Path(os.environ["TFPIPE_TEST_DATA"]) / "jpeg" / "exif_orientation_recurser").glob("*.jpg"))
    turned = 0
    for file in files:
        encoded = file.read_bytes()
        orientation = Image.open(io.BytesIO(encoded)).getexif().get(0x0112, 1)
        turned += orientation > 1
        assert difference(decode_image(encoded, orientation), pillow(encoded)) == 0, file.name
    assert turned >= 14


# Resizing


def reference(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    """The slow, obvious way: the whole image scaled by Pillow, then cut or laid on zeros."""
    height, width = image.shape[:2]
    if mode == "stretch":
        scaled = size
    else:
        scale = (max if mode == "crop" else min)(size[0] / height, size[1] / width)
        scaled = [max(1, int(side * scale + 0.5 + 1e-9)) for side in (height, width)]
    resized = np.asarray(Image.fromarray(image).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR))
    result = np.zeros([*size, 3], np.uint8)
    ours, theirs = [], []
    for have, want in zip(scaled, size, strict=True):
        both = min(have, want)
        ours.append(slice((want - both) // 2, (want - both) // 2 + both))
        theirs.append(slice((have - both) // 2, (have - both) // 2 + both))
    result[tuple(ours)] = resized[tuple(theirs)]
    return result


SOURCES = [(375, 500), (500, 375), (64, 64), (17, 301), (1, 9), (224, 224)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize("size", [(224, 224), (50, 81)])
def test_resize_is_within_a_level_and_a_half_of_pillow(source: tuple[int, int], size: tuple[int, int], mode: str):
    image = photograph(*source)
    assert difference(resize_image(image, size, mode), reference(image, size, mode)) <= 1


sides = st.integers(1, 40)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(RESIZES))
@settings(max_examples=150, deadline=None)
def test_resize_any_size_to_any_size(source: tuple[int, int], size: tuple[int, int], mode: str):
    image = photograph(*source)
    assert difference(resize_image(image, size, mode), reference(image, size, mode)) <= 1


@pytest.mark.parametrize("mode", RESIZES)
def test_an_image_of_the_right_size_is_not_changed(mode: str):
    image = photograph(31, 47)
    assert difference(resize_image(image, (31, 47), mode), image) == 0


def test_fine_detail_is_averaged_and_not_sampled():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    image = resize_image(stripes, (16, 16)).numpy()
    assert (np.abs(image.astype(int) - 100) <= 7).all()  # 0 and 200 where every fourth column is taken


def test_a_strip_is_cropped_without_being_scaled_as_a_whole():
    # 60,000 x 1 scaled to cover 224 x 224 would be 13,440,000 x 224 pixels: 36 GB as float32.
    strip = np.full((1, 60_000, 3), 77, np.uint8)
    start = time.monotonic()
    assert np.unique(resize_image(strip, (224, 224), "crop")).tolist() == [77]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("size", [0, (224,), (224, 0), (224, -1), (2.5, 3), (True, 3), "ab", None])
def test_a_wrong_size_is_named(size: object):
    with pytest.raises(ValueError, match=r"^size must be \(height, width\)") as error:
        resize_image(photograph(4, 4), size)
    assert repr(size) in str(error.value)


def test_a_wrong_mode_is_named():
    with pytest.raises(ValueError, match=r"stretch, crop, pad \(got 'squash'\)"):
        resize_image(photograph(4, 4), (2, 2), "squash")


@pytest.mark.parametrize("source", [(60_000, 1), (1, 60_000)])
def test_a_strip_is_padded_to_one_pixel_at_least(source: tuple[int, int]):
    assert resize_image(tf.fill([*source, 3], tf.constant(200, tf.uint8)), (64, 64), "pad").shape == [64, 64, 3]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", RESIZES)
def test_resize_is_one_antialiased_sampling_bit_for_bit(source: tuple[int, int], mode: str):
    # Axis by axis is a matter of speed alone.
    image = photograph(*source)
    if mode == "stretch":
        whole = tf.image.resize(image, (50, 81), antialias=True)
    else:
        scale = (max if mode == "crop" else min)(50 / source[0], 81 / source[1])
        scaled = [max(1, int(side * scale + 0.5 + 1e-9)) for side in source]
        whole = tf.raw_ops.ScaleAndTranslate(
            images=image[np.newaxis],
            size=(50, 81),
            scale=[np.float32(have / side) for have, side in zip(scaled, source, strict=True)],
            translation=[float(int((want - have) / 2)) for have, want in zip(scaled, (50, 81), strict=True)],
            kernel_type="triangle",
            antialias=True,
        )[0]
    assert (resize_image(image, (50, 81), mode).numpy() == np.round(whole).astype(np.uint8)).all()


# Twice the product of two sides overflows int32; the product is the scaled size, and does not.
lengths = st.one_of(st.integers(1, 300), st.integers(1, 65_535))
wanted = st.one_of(st.integers(1, 300), st.integers(1, 32_767))


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=5), st.tuples(wanted, wanted))
@settings(max_examples=100)
def test_a_scaled_image_covers_or_fits_and_keeps_its_aspect(sources: list[tuple[int, int]], target: tuple[int, int]):
    covered, padded = (scaled_size(tf.constant(sources), tf.constant([target]), mode).numpy() for mode in ("crop", "pad"))
    for source, cover, fit in zip(sources, covered.tolist(), padded.tolist(), strict=True):
        most, least = (pick(Fraction(target[axis], source[axis]) for axis in (0, 1)) for pick in (max, min))
        for scaled, scale in ((cover, most), (fit, least)):
            assert scaled == [max(1, math.floor(side * scale + Fraction(1, 2))) for side in source]
        assert all(have >= want for have, want in zip(cover, target, strict=True))
        assert all(have <= want for have, want in zip(fit, target, strict=True))
    assert (scaled_size(tf.constant(sources), tf.constant([target]), "stretch").numpy() == target).all()


def test_the_bytes_of_many_files_share_one_graph_at_once():
    traced: list[int] = []

    def measure(encoded: tf.Tensor) -> tf.Tensor:
        traced.append(1)
        return tf.zeros([tf.strings.length(encoded), 1, 3], tf.uint8)

    length = decoders.apart(measure)
    found = [len(decoders._again(lambda _: length, samples.USUAL, data)) for data in (b"1", b"12", tf.constant(b"123"))]
    assert found == [1, 2, 3]
    assert len(traced) == 1
