"""16 bits and transparency: what the audit says of them, and that all that makes pixels makes the same ones."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import struct
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_image, write
from PIL import Image, ImageCms
from prediction_fixtures import Averages
from test_headers import chunk, encode, ihdr, make_png

import tfpipe
from tfpipe.formats.specifications import Specification, from_json
from tfpipe.images import decoding, headers
from tfpipe.images.decoders import decode_stored
from tfpipe.networks.layers import Preprocessing
from tfpipe.page.answers import Answers
from tfpipe.prediction.models import Model
from tfpipe.records import manifest
from tfpipe.records.samples import BACKGROUNDS, PNG16, Samples
from tfpipe.records.summary import describe_manifest
from tfpipe.report.contact_sheet import as_read

pytestmark = pytest.mark.tf

NOISE = np.random.default_rng(1).integers(0, 1 << 16, (12, 16, 4))
RAMP = np.arange(4096).reshape(64, 64)


def png(samples: np.ndarray, sbit: tuple[int, ...] = (), trns: tuple[int, ...] = (), depth: int = 16) -> bytes:
    """A PNG file of 16 bits, of integers [H, W] or [H, W, C]; or of fewer, of [H, W] where W is a multiple of 8."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    if depth == 16:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    else:
        bits = np.unpackbits(samples.astype(np.uint8), axis=2)[..., 8 - depth :]
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    chunks = [ihdr(width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels])]
    chunks += [chunk(b"sBIT", bytes(sbit))] if sbit else []
    chunks += [chunk(b"tRNS", struct.pack(f">{len(trns)}H", *trns))] if trns else []
    return make_png(*chunks, chunk(b"IDAT", zlib.compress(rows)))


def transparent(mode: str) -> bytes:
    image = Image.fromarray((NOISE >> 8).astype(np.uint8), "RGBA")
    if mode == "P":
        return encode(image.convert("RGB").quantize(16), "PNG", transparency=bytes(range(0, 160, 10)))
    if mode in ("L", "RGB"):
        converted = image.convert(mode)
        return encode(converted, "PNG", transparency=converted.getpixel((0, 0)))
    return encode(image.convert(mode), "PNG")


FILES = {
    "jpeg": make_image(1),
    "opaque": make_image(1, format="PNG"),
    **{f"transparent {mode}": transparent(mode) for mode in ("RGBA", "LA", "P", "L", "RGB")},
    "12 bits": png(RAMP),
    "12 bits, declared": png(RAMP, sbit=(12,)),
    "12 bits, moved up": png(RAMP * 16, sbit=(12,)),
    "dark, moved up": png(RAMP // 16 * 16, sbit=(12,)),
    "14 bits, declared": png(RAMP * 4 + 3, sbit=(14,)),
    "15 bits, declared": png(RAMP * 8 + 1, sbit=(15,)),
    "5 bits, declared": png(RAMP % 32, sbit=(5,)),
    "16 bits, declared": png(RAMP, sbit=(16,)),
    "declared wrongly": png(RAMP, sbit=(12, 12)),
    "16 bits, one level": png(np.full((3, 5), 999)),
    **{f"16 bits, {count} channels": png(NOISE[..., :count]) for count in (1, 2, 3, 4)},
    **{f"12 bits, {count} channels": png(NOISE[..., :count] >> 4, sbit=(12, 9, 12, 16)[:count]) for count in (2, 3, 4)},
    **{f"a transparent grey of {bits} bits": png(RAMP % (1 << bits), trns=(1,), depth=bits) for bits in (1, 2, 4)},
    "a transparent grey beyond its bits": png(RAMP % 16, trns=(20,), depth=4),
    "16 bits, a transparent grey": png(RAMP * 16, trns=(1600,)),
    "16 bits, a transparent colour": png(NOISE[..., :3], trns=tuple(NOISE[3, 4, :3])),
}


@functools.cache
def decoder(samples: Samples):
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(lambda data: decode_stored(data, samples), input_signature=signature, autograph=False)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("png16", PNG16)
def test_sheets_show_what_is_trained_on(png16, background):
    samples = Samples(png16, background)
    for name, data in FILES.items():
        found, shown = decoder(samples)(data).numpy().astype(int), np.asarray(as_read(data, samples, 1000)).astype(int)
        np.testing.assert_array_equal(found, shown, err_msg=name)


def read(name: str, **options: str) -> np.ndarray:
    return decoder(Samples(**options))(FILES[name]).numpy()


def test_the_levels_that_a_file_declares_go_before_any_option():
    for png16 in PNG16:
        assert (read("12 bits, declared", png16=png16)[..., 0] == RAMP >> 4).all()
        assert (read("12 bits, moved up", png16=png16)[..., 0] == RAMP >> 4).all()
        assert (read("dark, moved up", png16=png16)[..., 0] == RAMP >> 8).all()
        assert (read("14 bits, declared", png16=png16)[..., 0] == RAMP >> 4).all()
        assert (read("15 bits, declared", png16=png16)[..., 0] == RAMP >> 4).all()
        assert (read("5 bits, declared", png16=png16)[..., 0] == RAMP % 32 * 8).all()
    for name in ("16 bits, declared", "declared wrongly"):
        assert read(name).max() == 15
        assert read(name, png16="full_range").max() == 255


def test_levels_by_option():
    assert (read("12 bits")[..., 1] == RAMP >> 8).all()
    assert (read("12 bits", png16="full_range")[..., 1] == np.floor(RAMP * 255 / 4095 + 0.5)).all()
    low, high = np.sort(RAMP, None)[[40, 4055]]  # the 41st of 4,096 is the first that more than 1 % do not exceed
    expected = ((RAMP - low) * 255 / (high - low) + 0.5).clip(0, 255)
    assert (read("12 bits", png16="percentile")[..., 1] == np.floor(expected)).all()
    assert not read("16 bits, one level", png16="percentile").any()
    assert (read("16 bits, 3 channels") == NOISE[..., :3] >> 8).all()


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_a_background_is_laid_behind(background, level):
    colours, alpha = NOISE[..., :3] >> 8, NOISE[..., 3:] >> 8
    expected = np.floor((colours * alpha + level * (255 - alpha)) / 255 + 0.5)
    for name in ("transparent RGBA", "16 bits, 4 channels"):
        assert (read(name, background=background) == expected).all()
    hidden = read("16 bits, a transparent grey", background=background) != read("16 bits, a transparent grey")
    assert hidden[..., 0].sum() == 1
    assert hidden[1, 36].all()
    assert (read("opaque", background=background) == read("opaque")).all()


def test_usual_files_are_read_as_before():
    for name in ("jpeg", "opaque", "transparent RGBA", "transparent P", "16 bits, 2 channels"):
        assert (read(name) == tf.io.decode_jpeg(FILES[name], channels=3, dct_method="INTEGER_ACCURATE").numpy()).all()


# --- the audit ------------------------------------------------------------------------------------


def traits(data: bytes) -> tuple[int, int, bool, bool]:
    header = headers.read_header(data)
    return header.precision, header.significant_bits, header.transparent, header.has_profile


def test_headers_say_what_decoding_loses():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.new("RGB", (3, 2))
    assert traits(FILES["jpeg"]) == (8, 0, False, False)
    assert traits(encode(image, icc_profile=profile)) == (8, 0, False, True)
    assert traits(encode(image, "PNG", icc_profile=profile)) == (8, 0, False, True)
    assert traits(FILES["opaque"]) == (8, 0, False, False)
    assert [traits(transparent(mode))[2] for mode in ("RGBA", "LA", "P", "L", "RGB")] == [True] * 5
    assert traits(FILES["12 bits, declared"]) == (16, 12, False, False)
    assert traits(FILES["12 bits, 4 channels"]) == (16, 12, True, False)
    assert traits(FILES["declared wrongly"]) == (16, 0, False, False)


def write_all(root):
    """One file of each kind, and one of 16 bits that is bright."""
    names = {"a.jpg": "jpeg", "b.png": "opaque", "c.png": "transparent LA", "d.png": "12 bits", "e.png": "12 bits, declared"}
    for name, kind in {**names, "f.png": "16 bits, 3 channels", "g.png": "16 bits, one level"}.items():
        write(root / name, FILES[kind])
    write(root / "h.png", png(NOISE[..., :3] // 16))
    return root


def build(root, output, **options) -> manifest.Manifest:
    return tfpipe.build_tfrecords(root, output, layout="flat", splits={"train": 1.0}, progress=False, **options)


def test_the_build_counts_and_names_what_is_lost(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tfpipe"):
        content = build(write_all(tmp_path / "in"), tmp_path / "out")
    assert {name: content.properties[name] for name in ("png16", "dim16", "transparent")} == {
        "png16": 5,
        "dim16": 3,
        "transparent": 1,
    }
    assert "png16" not in content.options
    assert "background" not in content.options
    warned = [record.getMessage() for record in caplog.records]
    assert "3 images of 16 bits will be nearly of one colour (fewer than 5 bits hold the high bytes)" in warned[0]
    assert all(f"{tmp_path}/in/{name}.png" in warned[0] for name in "dgh")
    assert "1 image with an alpha channel will be read without it" in warned[1]
    assert warned[1].endswith(f"{tmp_path}/in/c.png")
    summary = describe_manifest(content)
    assert "16-bit PNG                5 (read by high_byte)" in summary
    assert "alpha channel             1 (dropped)" in summary


def test_options_are_kept_and_nothing_else_changes(tmp_path, caplog):
    usual = build(write_all(tmp_path / "in"), tmp_path / "usual")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tfpipe"):
        content = build(tmp_path / "in", tmp_path / "out", png16="percentile", background="white")
    assert not caplog.records
    assert (content.options["png16"], content.options["background"]) == ("percentile", "white")
    assert content.root_hash == usual.root_hash
    assert {**usual.properties, "dim16": 0} == {**content.properties, "dim16": 0}
    assert "1 (on white)" in describe_manifest(content)
    with pytest.raises(ValueError, match="background was 'white' and is 'keep'"):
        build(tmp_path / "in", tmp_path / "out", png16="percentile")
    with pytest.raises(ValueError, match="png16 must be one of high_byte, full_range, percentile"):
        build(tmp_path / "in", tmp_path / "no", png16="low_byte")
    with pytest.raises(ValueError, match="background must be one of keep, white, black"):
        build(tmp_path / "in", tmp_path / "no", background="grey")


# --- all that makes pixels ------------------------------------------------------------------------


class Wanting(Averages):
    """A predictor that says how files are to be read."""

    samples = Samples("percentile", "white")


def test_all_that_makes_pixels_makes_the_same(tmp_path):
    root, size = write_all(tmp_path / "in"), (16, 24)
    samples = Wanting.samples
    build(root, tmp_path / "usual")
    build(root, tmp_path / "out", **dataclasses.asdict(samples))
    files = sorted(root.iterdir())
    expected = np.stack([decoding.resize_image(decoder(samples)(file.read_bytes()), size).numpy() for file in files])

    def ordered(rows):
        return np.stack([image for _, image in sorted(rows, key=lambda row: row[0])])

    read = tfpipe.dataset(tmp_path / "out", "train", batch_size=None, image_size=size, as_dict=True).as_numpy_iterator()
    assert (ordered([(row["key"], row["image"]) for row in read]) == expected).all()
    options = {"seed": 0, "epoch": 0, "image_size": size, "augment": "none"}
    replayed = [tfpipe.replay(tmp_path / "out", "train", file.name, **options) for file in files]
    assert np.abs(np.stack(replayed).astype(int) - expected).max() <= 1  # sampled two by two
    found, valid = decoding.decode_batch(tf.constant([file.read_bytes() for file in files]), size, "stretch", 10**6, samples)
    assert valid.numpy().all()
    assert (found.numpy() == expected).all()
    model = Wanting(image_size=size)
    Model(model).predict(files)
    assert (model.images == expected).all()
    assert (np.stack([Answers(model).answer(str(file)).seen for file in files]) == expected).all()
    for source in (root, tmp_path / "usual"):  # a model goes before the data set
        model = Wanting(image_size=size)
        tfpipe.predict(model, source, tmp_path / f"{source.name}.csv", progress=False)
        assert sorted(image.tobytes() for image in model.images) == sorted(image.tobytes() for image in expected)


def test_models_and_exports_carry_it():
    samples = Samples("full_range", "black")
    layer = Preprocessing("tf", "crop", samples)
    assert Preprocessing.from_config(layer.get_config()).samples == samples
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer)).samples == samples
    assert "samples" not in Preprocessing("tf").get_config()
    specification = Specification(("a", "b"), (8, 8), "stretch", "tf", "0" * 64, samples=samples)
    assert from_json(specification.to_json(), "x") == specification
    usual = dataclasses.replace(specification, samples=Samples())
    assert "samples" not in json.loads(usual.to_json())
    assert from_json(usual.to_json(), "x") == usual


def test_a_run_takes_it_from_its_data_set(tmp_path):
    for index in range(12):
        icon = np.zeros((8, 8, 4), np.uint8)
        icon[index % 3 : 6, 2 : 4 + index % 2 * 3, 3] = 255
        write(tmp_path / "in" / "ab"[index % 2] / f"{index}.png", encode(Image.fromarray(icon, "RGBA"), "PNG"))
    built = tfpipe.build_tfrecords(
        tmp_path / "in", tmp_path / "data", layout="folders", background="white", allow_leaks=True, progress=False
    )
    assert built.options["background"] == "white"
    options = {"backbone": "lenet", "mode": "scratch", "image_size": 8, "epochs": 1, "batch_size": 4, "log": None}
    tfpipe.train(tmp_path / "data", tmp_path / "run", progress=False, tensorboard=False, augment="none", **options)
    model = tfpipe.load(tmp_path / "run")
    assert model.samples == Samples(background="white")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["background"] == "white"
    drawn = io.BytesIO()
    Image.fromarray(model._pixels(str(tmp_path / "in" / "a" / "0.png"))).save(drawn, "PNG")
    assert np.asarray(Image.open(drawn)).max() == 255


@pytest.mark.parametrize(("given", "background"), [({}, "white"), ({"background": "black"}, "black")], ids=str)
def test_a_model_of_another_program_is_exported_as_its_data_set_is_read(tmp_path, given, background):
    for index in range(2):
        write(tmp_path / "photos" / f"{'ab'[index]}" / f"{index}.png", transparent("RGBA"))
    tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", png16="percentile", background="white", on_conflict="keep")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")])
    said = []
    known = {"data": tmp_path / "shards", "split": "train", "class_names": ["a", "b"], "formats": ("keras",), **given}
    tfpipe.export(model, tmp_path / "export", **known, log=said.append)
    assert f"png16=percentile, background={background}" in said[0]
    assert from_json((tmp_path / "export" / "preprocessing.json").read_text(), "x").samples == Samples("percentile", background)


def test_a_data_set_that_nobody_counted_is_read_as_its_files_say(tmp_path):
    """Versions before the count of 16-bit PNG wrote manifests without it."""
    write(tmp_path / "photos" / "a" / "0.png", png(RAMP, sbit=(12,)))
    write(tmp_path / "photos" / "b" / "1.jpg", make_image(1))
    built = tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", layout="folders")
    assert built.properties["png16"] == 1

    def read():
        dataset = tfpipe.dataset(tmp_path / "shards", "train", as_dict=True, batch_size=2, image_size=(8, 8))
        return {
            key.decode(): image for batch in dataset for key, image in zip(batch["key"].numpy(), batch["image"], strict=True)
        }

    before = read()
    assert before["a/0.png"].numpy().max() > 200
    uncounted = {name: count for name, count in built.properties.items() if name != "png16"}
    manifest.save(dataclasses.replace(built, properties=uncounted), tmp_path / "shards")
    assert np.array_equal(read()["a/0.png"], before["a/0.png"])


def test_manifests_with_options_that_there_are_not_are_refused(tmp_path):
    write(tmp_path / "photos" / "a" / "0.jpg", make_image(0))
    write(tmp_path / "photos" / "b" / "1.jpg", make_image(1))
    built = tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", layout="folders")
    wrong = {"options": {"png16": "evil"}}, {"options": {"background": ["x"]}}, {"properties": {"grey": -1}}
    for changes in wrong:
        ((field, entry),) = changes.items()
        manifest.save(dataclasses.replace(built, **{field: {**getattr(built, field), **entry}}), tmp_path / "shards")
        with pytest.raises(tfpipe.DataError, match=rf"manifest\.json: .*{field}\.{next(iter(entry))}"):
            tfpipe.load_manifest(tmp_path / "shards")
