"""Test-time augmentation: the same views everywhere, their mean in one way, and a record of it."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from evaluation_fixtures import build_images, make_classifier
from export_fixtures import HAS_ONNX, HAS_OPENVINO
from PIL import Image

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.exporting import parity, parity_process
from tfpipe.images import resizing
from tfpipe.models import tta
from tfpipe.models.tta import Tta
from tfpipe.pipeline.presets import Augmentation

pytestmark = pytest.mark.tf

DRAWN = Tta("6", Augmentation.named("standard"))
WAYS = [Tta("flip"), Tta("five"), DRAWN, Tta("3", Augmentation(horizontal_flip=0.5, vertical_flip=0.5, contrast=0.3))]


def draw(number, size=(24, 18), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *size, 3), dtype=np.uint8)


def seen(images, way):
    return tta.views(tf.constant(images), way).numpy().reshape(way.num_views, *images.shape)


def test_flip_is_the_image_and_its_mirror_image():
    images = draw(3)
    plain, mirrored = seen(images, Tta("flip"))
    assert (plain == images).all()
    assert (mirrored == images[:, :, ::-1]).all()


def test_five_are_the_centre_and_corners_resized_as_the_pipeline_does():
    images = draw(2, (64, 48))
    found = seen(images, Tta("five"))
    places = [(4, 3), (0, 0), (0, 6), (8, 0), (8, 6)]  # of 56 x 42, 7/8 of each side
    for view, (top, left) in zip(found, places, strict=True):
        cut = images[0, top : top + 56, left : left + 42]
        scale = tf.constant([64 / 56, 48 / 42], tf.float32)
        wanted = resizing.sample_image(tf.constant(cut), (64, 48), scale, tf.zeros(2)).numpy()
        assert np.abs(view[0] - wanted).max() <= 1.25  # half a level of rounding, and weights in 1/256
        assert np.abs(view[0] - wanted).mean() < 0.3
    assert len({view.tobytes() for view in found}) == 5


def test_drawn_views_follow_the_augmentation_and_the_seed_alone():
    images = draw(4)
    found = seen(images, DRAWN)
    assert (found[0] == images).all()
    assert len({view.tobytes() for view in found}) == 6
    assert (seen(images[2:3], DRAWN)[:, 0] == found[:, 2]).all()  # whatever else is in the batch
    more = seen(images, dataclasses.replace(DRAWN, name="8"))
    assert (more[:6] == found).all()  # more views do not change the first ones
    flips = seen(images, Tta("9", Augmentation(vertical_flip=0.5)))
    kinds = [(view == images).all() + 2 * (view == images[:, ::-1]).all() for view in flips]
    assert set(kinds) == {1, 2}


def test_colours_are_those_of_the_augmentation_within_a_level_or_two():
    """The mean colour, which contrast is about, is taken of other pixels."""
    flat = np.broadcast_to(np.array([200, 90, 30], np.uint8), (1, 16, 16, 3))
    augmentation = Augmentation(brightness=0.2, contrast=0.5, saturation=0.5, hue=0.2)
    found = seen(flat, Tta("5", augmentation))
    for number in range(1, 5):
        key = f"view {number}"
        wanted = tfpipe.augment_image(tf.constant(flat[0]), (16, 16), augmentation, key=key, seed=0, epoch=0).numpy()
        assert np.abs(found[number, 0].astype(int) - wanted).max() <= 2
        assert np.abs(found[number, 0].astype(int) - flat[0]).max() > 5


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_views_are_exact_in_any_order_of_sums(way):
    """As float64 and as float32: no product or sum is rounded, so that every program gives these bits."""
    images = draw(2, (21, 34))
    graph = tf.function(lambda batch: tta.views(batch, way), jit_compile=True, autograph=False)
    assert (graph(tf.constant(images)).numpy().reshape(-1, *images.shape) == seen(images, way)).all()
    views = tta._views_of(way, 21, 34)
    for view, found in zip(views, seen(images, way), strict=True):
        top, left, high, wide = map(int, view.window)
        if (high, wide) == (21, 34):
            continue
        levels = tta._sampled(tf.cast(images, tf.float32), 1, top, high, turned=view.upside_down)
        levels = tta._sampled(levels, 2, left, wide, turned=view.mirrored).numpy()
        assert (levels * 2**16 == np.floor(levels * 2**16)).all()
        if view.colour is None:
            assert (found == np.floor(levels.astype(np.float64) + 0.5)).all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_mean_is_the_same_for_any_batch_and_in_a_graph(way):
    classifier, images = make_classifier(), draw(7, (8, 8))
    averaged = tta.averaged(classifier, way)
    found = averaged.predict(images)
    by_view = np.stack([classifier.predict(view) for view in seen(images, way)])
    assert found.dtype == np.float32
    assert np.abs(found - by_view.astype(np.float64).mean(axis=0)).max() < 1e-6
    for size in (1, 2, 5):
        parts = np.concatenate([averaged.predict(images[start : start + size]) for start in range(0, 7, size)])
        assert np.abs(parts - found).max() < 1e-6
    graph = tf.function(tta.averaging(classifier.trace, way), autograph=False)
    assert np.abs(graph(tf.constant(images))["probabilities"].numpy() - found).max() < 1e-6
    assert np.abs(found - classifier.predict(images)).max() > 0.01  # or the comparison would show nothing


@pytest.mark.parametrize("word", ["", "fliip", "1", "65", "-2", "2.5", True, 1.5, 0])
def test_another_word_is_refused(word):
    with pytest.raises(ValueError, match="tta must be flip, five or a number of views from 2 to 64"):
        tta.find(word, "runs/a")


def test_a_number_needs_an_augmentation_to_draw_from(tmp_path):
    with pytest.raises(ValueError, match=r"tta=8: a number of views is drawn from the augmentation of a run, .*run's folder"):
        tta.find(8, tmp_path, make_classifier())
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"augment": "none"}, "chosen": {}}))
    with pytest.raises(ValueError, match=r"tta=8: the run's augmentation \(none\) has no crop, flip or colour"):
        tta.find("8", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"augment": None}, "chosen": {"augment": {"crop": 0.5}}}))
    assert tta.find("8", tmp_path / "model.keras") == Tta("8", Augmentation(crop=0.5))
    (tmp_path / "cv" / "fold0").mkdir(parents=True)
    (tmp_path / "run.json").rename(tmp_path / "cv" / "fold0" / "run.json")
    (tmp_path / "cv" / "folds.json").write_text(
        json.dumps({"format_version": 1, "root_hash": "", "folds": [["fold0", "", ""]]})
    )
    assert tta.find("8", tmp_path / "cv") == Tta("8", Augmentation(crop=0.5))
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"augment": {"crop": 7}}}))
    with pytest.raises(DataError, match=r"run\.json: its augmentation cannot be read: crop"):
        tta.find("8", tmp_path)
    with pytest.raises(ValueError, match=r"itself averages views already \(flip\)"):
        tta.averaged(tta.averaged(make_classifier(), Tta("flip")), Tta("five"))


def test_evaluation_and_prediction_record_it_and_compare_notes_it(tmp_path, caplog):
    classifier = make_classifier()
    build_images(tmp_path, {"test": {"cat": 9, "小 猫": 4}}, splits=None)
    given = {"report": False, "progress": False}
    plain = tfpipe.evaluate(classifier, tmp_path / "shards", "test", tmp_path / "plain", **given)
    flipped = tfpipe.evaluate(classifier, tmp_path / "shards", "test", tmp_path / "flip", tta="flip", batch_size=5, **given)
    again = tfpipe.evaluate(classifier, tmp_path / "shards", "test", tmp_path / "again", tta="flip", batch_size=64, **given)
    assert "tta" not in plain.receipt["options"]
    assert "tta" not in plain.metrics
    assert flipped.receipt["options"]["tta"] == flipped.metrics["tta"] == {"name": "flip"}
    assert flipped.receipt == again.receipt
    assert flipped.metrics["log_loss"] != plain.metrics["log_loss"]

    compared = tfpipe.compare(tmp_path / "plain", tmp_path / "flip")
    assert compared.tta == ("none", "flip")
    assert "not the same test-time augmentation" in caplog.text
    assert tfpipe.compare(tmp_path / "again", tmp_path / "flip").tta is None

    image = draw(1, (8, 8))[0]
    Image.fromarray(image).save(tmp_path / "one.png")
    tfpipe.predict(classifier, tmp_path / "one.png", tmp_path / "one.jsonl", tta="flip", progress=False)
    row = json.loads((tmp_path / "one.jsonl").read_text("utf-8"))
    wanted = (classifier.predict(image[np.newaxis]) + classifier.predict(image[np.newaxis, :, ::-1]))[0] / 2
    assert np.abs(np.array([*row["probabilities"].values()]) - wanted).max() < 1e-6


def test_an_export_has_the_means_and_its_other_files_are_as_without(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "_run_process", parity_process.run_all)  # here, which is faster
    classifier, way = make_classifier(), dataclasses.replace(DRAWN, name="3")
    formats = ["saved_model", "pb", "tflite", *(["onnx"] if HAS_ONNX else []), *(["openvino"] if HAS_OPENVINO else [])]
    done = tfpipe.export(classifier, tmp_path / "tta", formats=formats, tta=way)
    rows = {(row.artefact, row.output): row for row in done.parity}
    assert rows["saved_model", "tta.probabilities"].difference == rows["saved_model", "image_tta.probabilities"].difference == 0
    assert rows["frozen_image_tta.pb", "image.probabilities"].difference == 0
    images = draw(3, (8, 8))
    wanted = tta.averaged(classifier, way).predict(images)
    names = ["frozen_image_tta.pb", "model_tta.tflite", *["model_tta.onnx"] * HAS_ONNX, *["model_tta.xml"] * HAS_OPENVINO]
    for name in names:
        assert rows[name, "image.probabilities"].difference <= 1e-5
        model = tfpipe.load(tmp_path / "tta" / name)
        assert model.predictor.tta == way
        for count in (0, 1, 3):
            found = model.predictor.predict(images[:count])
            assert found.shape == (count, wanted.shape[1])
            assert (np.abs(found - wanted[:count]) < 1e-5).all()
    signatures = tf.saved_model.load(tmp_path / "tta" / "saved_model").signatures
    files = [tf.io.encode_png(image).numpy() for image in images]
    for count in (0, 1, 3):
        for found in (
            signatures["tta"](tf.constant(files[:count], tf.string))["probabilities"],
            signatures["image_tta"](tf.constant(images[:count]))["probabilities"],
        ):
            assert found.shape == (count, wanted.shape[1])
            assert (np.abs(found - wanted[:count]) < 1e-5).all()
    saved = tfpipe.load(tmp_path / "tta")
    assert saved.predictor.tta is None
    found = saved.predict(images, tta=3)  # a number, too: the export knows what it was drawn from
    assert np.abs(np.stack([one.probabilities for one in found]) - wanted).max() < 1e-5
    with pytest.raises(ValueError, match="averages views already"):
        model.predict(images, tta="flip")
    assert f"tta: {way}" in (tmp_path / "tta" / "model_card.md").read_text("utf-8")

    tfpipe.export(classifier, tmp_path / "plain", formats=["pb", "tflite"])
    for name in ("frozen_image.pb", "frozen_bytes.pb", "model.tflite", "model_dynamic_range.tflite"):
        assert (tmp_path / "tta" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
