"""Pixels from bytes in a graph: those of evaluation, each image for itself, whatever the bytes."""

from __future__ import annotations

import random
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pipeline_fixtures import damaged
from test_headers import BASELINE, JPEGS, PNG, chunk, encode, exif_segment, ihdr, make_image, make_png, tiff, with_segments
from test_other_formats import ANIMATED

from tfpipe.common.errors import RejectedImage
from tfpipe.images import decoding, headers
from tfpipe.images.decoding import RESIZES, Resize

pytestmark = pytest.mark.tf

SIZE = (12, 16)
MAX_PIXELS = 40_000_000
FEW_PIXELS = 3000
TURNED = {f"orientation {value}": with_segments(BASELINE, exif_segment(tiff("<", value))) for value in range(1, 9)}
PNGS = {
    "png": PNG,
    "16 bits": make_png(ihdr(3, 2, 16, 2), chunk(b"IDAT", zlib.compress((b"\0" + random.Random(1).randbytes(18)) * 2))),
    "palette": encode(make_image("P"), "PNG"),
    "grey png": encode(make_image("L"), "PNG"),
    "alpha": encode(make_image("RGBA"), "PNG"),
    "turned png": encode(make_image("RGB"), "PNG", exif=tiff(">", 8)),
}
GOOD = {
    **JPEGS,
    **TURNED,
    **PNGS,
    "one pixel": encode(make_image("RGB", (1, 1))),
    "one pixel png": encode(make_image("RGB", (1, 1)), "PNG"),
    "a strip": encode(make_image("RGB", (1, 3000))),
}


def declaring(height: int, width: int) -> bytes:
    frame = BASELINE.index(b"\xff\xc0") + 5
    return BASELINE[:frame] + struct.pack(">HH", height, width) + BASELINE[frame + 4 :]


def with_precision(bits: int) -> bytes:
    place = BASELINE.index(b"\xff\xc0") + 4
    return BASELINE[:place] + bytes([bits]) + BASELINE[place + 1 :]


BAD = {
    "empty": b"",
    "one byte": b"\xff",
    "start only": b"\xff\xd8\xff",
    "html": b"<!doctype html><html><body>not found</body></html>",
    "gif": encode(make_image("L"), "GIF"),
    "bmp": encode(make_image("P"), "BMP"),
    "animated webp": ANIMATED,
    "webp": b"RIFF\x1a\0\0\0WEBPVP8L" + bytes(20),
    "12 bits": with_precision(12),
    "lossless": BASELINE.replace(b"\xff\xc0", b"\xff\xc3", 1),
    "half": BASELINE[: len(BASELINE) // 2],
    "no end": BASELINE[:-2],
    "damaged scan": damaged(encode(make_image("RGB", (64, 64)))),
    "huge jpeg": declaring(65_535, 65_535),
    "large jpeg": declaring(65_500, 65_500),
    "huge png": make_png(ihdr(2**31 - 1, 2**31 - 1, 8, 2), chunk(b"IDAT", zlib.compress(bytes(100)))),
    "half a png": PNG[: len(PNG) // 2],
}


@cache
def batch_decoder(resize: Resize = "stretch", max_pixels: int = MAX_PIXELS) -> Any:
    def decode(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return decoding.decode_batch(encoded, SIZE, resize, max_pixels)

    return tf.function(decode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)


def decode(*files: bytes, resize: Resize = "stretch", max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
    found, valid = batch_decoder(resize, max_pixels)(tf.constant(files, tf.string, [len(files)]))
    assert found.shape == (len(files), *SIZE, 3)
    assert found.dtype == tf.uint8
    assert valid.shape == (len(files),)
    assert not found.numpy()[~valid.numpy()].any()
    return found.numpy(), valid.numpy()


@cache
def evaluation(resize: Resize) -> Any:
    def decode(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        return decoding.resize_image(decoding.decode_image(encoded, orientation), SIZE, resize)

    signature = [tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)]
    return tf.function(decode, input_signature=signature, autograph=False)


def evaluated(data: bytes, resize: Resize = "stretch") -> np.ndarray | None:
    """The pixels that evaluation sees; None for what the audit or the decoder refuses."""
    try:
        return evaluation(resize)(data, headers.read_header(data, max_pixels=MAX_PIXELS).orientation).numpy()
    except (RejectedImage, tf.errors.InvalidArgumentError):
        return None


def compare(*files: bytes, resize: Resize = "stretch", max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, np.ndarray]:
    """Which files evaluation takes, bool [N], all of which have the same pixels here; and which are valid here, bool [N]."""
    found, valid = decode(*files, resize=resize, max_pixels=max_pixels)
    expected = [evaluated(data, resize) for data in files]
    for index, image in enumerate(expected):
        assert image is None or (valid[index] and (found[index] == image).all()), index
    return np.array([image is not None for image in expected]), valid


# --- the pixels of evaluation ---------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZES)
def test_pixels_are_those_of_evaluation(resize):
    # A function is traced for each pair; the one of "crop" is that of the pixel limit's test, too.
    taken, _ = compare(*GOOD.values(), resize=resize, max_pixels=FEW_PIXELS if resize == "crop" else MAX_PIXELS)
    assert taken.all()


def test_orientations_differ():
    found, valid = decode(*TURNED.values())
    assert valid.all()
    assert len({image.tobytes() for image in found}) == 8


@cache
def one_decoder() -> Any:
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return decoding.decode_file(encoded, SIZE, "stretch", MAX_PIXELS)

    return tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def test_one_image_is_as_in_a_batch():
    found, _ = decode(*GOOD.values())
    for index, data in enumerate(GOOD.values()):
        assert (one_decoder()(data).numpy() == found[index]).all()
        assert (decode(data)[0][0] == found[index]).all()


def test_real_images(test_data: Path):
    hostile = sorted(path for path in (test_data / "jpeg").rglob("*") if path.is_file())
    paths = [
        *hostile,
        *sorted((test_data / "large").iterdir())[::5],
        *sorted((test_data / "cats_dogs" / "train").iterdir())[::40],
        *sorted((test_data / "signs" / "test_signs").iterdir())[::10],
    ]
    files = [path.read_bytes() for path in paths]
    taken, valid = compare(*files)
    assert taken.sum() > 285 + 50 + 12
    # Nothing is valid that the audit rejects, but for damaged scans, which the decoder mends in its
    # way.
    surplus = [files[index] for index in np.flatnonzero(valid & ~taken)]
    assert {reason(data) for data in surplus} == {"damaged_scan"}
    assert len(surplus) == 4


def reason(data: bytes) -> str:
    with pytest.raises(RejectedImage) as rejected:
        headers.read_header(data, max_pixels=MAX_PIXELS)
    return rejected.value.reason


# --- bad images, each for itself ----------------------------------------------------------------


def test_bad_images_do_not_touch_the_others():
    names = [name for pair in zip(GOOD, [*BAD, *BAD], strict=False) for name in pair]
    found, valid = decode(*[{**GOOD, **BAD}[name] for name in names])
    assert dict(zip(names, valid.tolist(), strict=True)) == {name: name in GOOD for name in names}
    alone, _ = decode(*GOOD.values())
    assert (found[valid] == alone[: valid.sum()]).all()


@pytest.mark.parametrize("name", BAD)
def test_bad_alone(name):
    assert decode(BAD[name])[1].tolist() == [False]
    with pytest.raises(tf.errors.InvalidArgumentError):
        one_decoder()(BAD[name])


def test_no_image_and_no_good_image():
    assert decode()[1].tolist() == []
    assert decode(*BAD.values())[1].tolist() == [False] * len(BAD)


def test_a_thousand_with_one_bad():
    files = [BASELINE, PNG] * 500
    files[617] = BAD["half"]
    found, valid = decode(*files)
    assert np.flatnonzero(~valid).tolist() == [617]
    alone, _ = decode(BASELINE, PNG)
    assert all((found[index] == alone[index % 2]).all() for index in np.flatnonzero(valid))


def test_truncated_anywhere():
    for data in (JPEGS["progressive"], PNG):
        cuts = range(0, len(data), 7)
        _, valid = decode(*[data[:cut] for cut in cuts])
        accepted = [cut for cut in cuts if evaluated(data[:cut]) is not None]
        assert accepted == []
        assert not valid.any()


def test_the_pixel_limit_is_inclusive_and_counts_before_turning():
    sizes = [(60, 50), (50, 60), (2999, 1), (1, 3001), (75, 40)]
    files = [encode(Image.new("RGB", size), kind, exif=tiff("<", 6)) for kind in ("JPEG", "PNG") for size in sizes]
    assert decode(*files, resize="crop", max_pixels=FEW_PIXELS)[1].tolist() == [True, True, True, False, True] * 2


def bomb() -> bytes:
    """30,000 x 30,000 pixels in 9 kB; enough for a decoder to make room for them all."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(90_001)) for _ in range(100)) + packer.flush()
    return make_png(ihdr(30_000, 30_000, 8, 2), chunk(b"IDAT", packed))


@pytest.mark.parametrize("max_pixels", [headers.DEFAULT_MAX_PIXELS, 10**12])
def test_bombs_do_not_come_to_the_decoder(max_pixels, monkeypatch):
    seen, decoder = [], decoding.decode_stored
    monkeypatch.setattr(
        decoding, "decode_stored", lambda data, *rest, **more: seen.append(data.numpy()) or decoder(data, *rest, **more)
    )
    for data in (bomb(), BAD["large jpeg"], BAD["huge png"], BASELINE):
        try:
            decoding.decode_file(tf.constant(data), SIZE, "stretch", max_pixels)
        except tf.errors.InvalidArgumentError:
            continue
    assert seen == [b"", b"", b"", BASELINE]


@settings(max_examples=40)
@given(st.sampled_from([*GOOD.values()]), st.data())
def test_mutations(good, data):
    mutated = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    _, valid = compare(good, bytes(mutated))
    assert valid[0]


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_arbitrary_bytes(bodies, signature):
    assert not decode(*[signature + body for body in bodies])[1].any()


# --- graphs that are stored -----------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    module = tf.Module()
    module.decode = batch_decoder()
    tf.saved_model.save(module, str(tmp_path))
    _check_copy(tf.saved_model.load(str(tmp_path)).decode)


def test_frozen_and_imported():
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(batch_decoder().get_concrete_function())
    definition = tf.compat.v1.GraphDef.FromString(frozen.graph.as_graph_def().SerializeToString())
    names = [tensor.name for tensor in (*frozen.inputs, *frozen.outputs)]
    loaded = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
    _check_copy(loaded.prune(names[0], names[1:]))
    operations = {node.op for function in definition.library.function for node in function.node_def}
    operations |= {node.op for node in definition.node}
    assert not {name for name in operations if "Py" in name or "Table" in name or "Variable" in name}


def _check_copy(copy: Any) -> None:
    files = [*GOOD.values(), *BAD.values()]
    for some in (files, files[:1], []):
        expected, expected_valid = decode(*some)
        found, valid = copy(tf.constant(some, tf.string, [len(some)]))
        assert (found.numpy() == expected).all()
        assert (valid.numpy() == expected_valid).all()
