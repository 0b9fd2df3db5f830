"""A model that gives no numbers for some images: every way out of it says so, and of which, or that they are not valid."""

import itertools
import logging

import numpy as np
import pytest
import tensorflow as tf
from conftest import thin_out
from export_fixtures import FORMATS, asked_here
from report_fixtures import jpeg, make_classifier, write_splits

import tfpipe
from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.evaluation import calibration, feature_index
from tfpipe.exporting import half_precision, reference_images
from tfpipe.exporting.exporter import _specify
from tfpipe.models import explanation, predictions
from tfpipe.models.predictions import Predictions, are_probabilities
from tfpipe.networks import arithmetic
from tfpipe.page.answers import Answers, FileResult, Upload

pytestmark = pytest.mark.tf

__all__ = ["asked_here"]  # a fixture

SIDE = 16
WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)
FILES = ["saved_model", "frozen_image.pb", "frozen_bytes.pb", "model.keras", "model.tflite", "model.onnx"]


def dark(seed):
    return np.random.default_rng(seed).integers(0, 200, (SIDE, SIDE, 3), np.uint8)


def make_spoiled():
    """A classifier with a channel that is infinite where an image is white, and counts for nothing elsewhere."""
    classifier = make_classifier(["cat", "dog"], SIDE, pooling="max")
    kernel, bias = (weight.numpy() for weight in classifier.trunk.weights)
    kernel[..., 0] = 0
    kernel[1, 1, :, 0] = 1.15e38  # three of them at 1.0 are more than float32 holds
    for weight, value in zip(classifier.trunk.weights, (kernel, bias), strict=True):
        weight.assign(value)
    logits, offsets = classifier.model.get_layer("logits").get_weights()
    logits[0] = 0
    classifier.model.get_layer("logits").set_weights([logits, offsets])
    return classifier


@pytest.fixture(scope="module")
def spoiled():
    return make_spoiled()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train: all sound; val and test: the second image is white."""
    images = {"train": [jpeg(dark(seed)) for seed in range(4)]}
    images |= {split: [jpeg(dark(50)), jpeg(WHITE), *map(jpeg, map(dark, range(51, 54)))] for split in ("val", "test")}
    return write_splits(tmp_path_factory.mktemp("spoiled"), images)


@pytest.fixture(scope="module")
def export(spoiled, data, asked_here, tmp_path_factory):
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logging.getLogger("tfpipe").addHandler(handler)
    folder = tmp_path_factory.mktemp("export") / "out"
    formats = [name for name in FORMATS if name != "openvino"]
    done = tfpipe.export(spoiled, folder, formats=formats, data=data)
    logging.getLogger("tfpipe").removeHandler(handler)
    return done, [record.getMessage() for record in records]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, image in {"dark.jpg": dark(1), "white.jpg": WHITE, "other.jpg": dark(2)}.items():
        (folder / name).write_bytes(jpeg(image))
    return folder


def model_of(spoiled, export, name):
    if name == "model.onnx" and "onnx" not in FORMATS:
        pytest.skip("the extra onnx is not installed")
    return spoiled if name == "run" else tfpipe.load(export[0].folder / name)


@pytest.mark.parametrize("name", FILES)
def test_load_names_the_image_and_answers_the_others(export, spoiled, files, name):
    model = model_of(spoiled, export, name)
    paths = [str(files / name) for name in ("dark.jpg", "white.jpg", "other.jpg")]
    with pytest.raises(DataError, match=f"^model [0-9a-f]{{12}}: its probabilities of '{paths[1]}' are not numbers in 0"):
        model.predict(paths)
    with pytest.raises(DataError, match=r"probabilities of 'input 1' are not"):
        model.predict([dark(1), WHITE])
    assert [found.class_name is not None for found in model.predict([paths[0], paths[2]])] == [True, True]


OUT = {
    "predict": lambda model, data, files, folder: tfpipe.predict(model, files, folder / "out.csv", progress=False),
    "predict, label": lambda model, data, files, folder: tfpipe.predict(
        model, files, folder / "out.csv", columns="label", progress=False
    ),
    "evaluate": lambda model, data, files, folder: tfpipe.evaluate(model, data, "test", folder, progress=False),
    "evaluate, calibrated": lambda model, data, files, folder: tfpipe.evaluate(
        model, data, "train", folder, calibrate="val", progress=False
    ),
}


# A SavedModel's ways are those of a run behind its answers: two of them show that.
@pytest.mark.parametrize(
    ("name", "out"),
    thin_out(itertools.product(("run", "saved_model"), OUT), lambda name, out: name == "run" or out in ("predict", "evaluate")),
)
def test_every_way_out_raises_and_names_the_image(spoiled, export, data, files, tmp_path, out, name):
    with pytest.raises(DataError, match=r"^model [0-9a-f]{12}: its probabilities of '\S*(white|1)\.jpg' are not numbers"):
        OUT[out](model_of(spoiled, export, name), data, files, tmp_path)
    assert not any(path.suffix in (".csv", ".json", ".html") for path in tmp_path.iterdir())


def test_rounding_is_not_measured_on_what_is_not_a_number(spoiled, data):
    with pytest.raises(DataError, match=r"'val/1\.jpg' are not numbers"):
        half_precision.measure_cost(spoiled, spoiled, data, "val")


def test_a_table_without_probabilities_is_not_calibrated():
    table = Predictions(["1", "two"], ["", ""], np.array([0, 0]), np.array([[0.4, 0.6], [np.nan, 1]]), ["a", "b"])
    for act in (calibration.fit_temperature, lambda table: calibration.scale(table, 2.0)):
        with pytest.raises(DataError, match="'two' are not numbers"):
            act(table)


def test_the_page_reports_it_of_the_image_alone(spoiled, export, files):
    for predictor in (spoiled, tfpipe.load(export[0].folder / "saved_model").predictor):
        answers = Answers(predictor)
        uploads = [Upload(name, str(files / name)) for name in ("dark.jpg", "white.jpg", "other.jpg")]
        said = answers.answer(uploads[1].path)
        assert isinstance(said, RejectedImage)
        assert said.reason == "no_probabilities"
        rows = list(answers.rows(uploads))
        shown = [isinstance(row, FileResult) and row.problem[:32] for row in rows]
        assert shown == [
            "",
            "the model gives no probabilities",
            "",
        ]
        assert [row.probabilities is None for row in rows] == [False, True, False]
        assert not isinstance(answers.answer(uploads[0].path), RejectedImage)


def test_training_images_without_features_are_reported(spoiled, data):
    assert len(feature_index.collect(spoiled, data, "train", progress=False).keys) == 4
    with pytest.raises(DataError, match=r"features of 'test/1.jpg' are not finite"):
        feature_index.collect(spoiled, data, "test", progress=False)


def test_heat_is_all_zeros_where_there_are_no_numbers(spoiled):
    images = np.stack([dark(1), WHITE])
    heat = explanation.explain(spoiled, images, [0, 0])
    assert np.isfinite(heat).all()
    assert not heat[1].any()
    np.testing.assert_array_equal(heat[0], explanation.explain(spoiled, images[:1], [0])[0])
    assert explanation.overlay(images[1], heat[1]).tolist() == WHITE.tolist()


# ---- exports


@arithmetic.exact()
def test_in_an_export_such_an_image_is_not_valid_and_the_others_keep_their_bits(spoiled, export):
    contents = [jpeg(dark(1)), jpeg(WHITE), b"no image", jpeg(dark(2))]
    served = tf.saved_model.load(str(export[0].folder / "saved_model"))
    found = [{key: value.numpy() for key, value in served.signatures["serving_default"](tf.constant(contents)).items()}]
    found.append(tfpipe.load_frozen(export[0].folder / "frozen_bytes.pb")(contents))
    pixels = served.signatures["pixels"](tf.constant(contents))
    assert pixels["valid"].numpy().tolist() == [True, True, False, True]
    expected = spoiled.predict(pixels["image"])
    for answers in found:
        assert answers["valid"].tolist() == [True, False, False, True]
        np.testing.assert_array_equal(answers["probabilities"][[0, 3]], expected[[0, 3]])
        for name in ("probabilities", "scores"):
            assert not answers[name][1:3].any()
        assert answers["classes"][1:3].tolist() == [[b"", b""]] * 2
    described = served.signatures["features"](tf.constant(contents))
    assert described["valid"].numpy().tolist() == [True, False, False, True]
    assert not described["features"].numpy()[1:3].any()
    image = served.signatures["image"](pixels["image"])
    assert not image["probabilities"].numpy()[1].any()
    assert image["classes"].numpy()[1].tolist() == [b"", b""]
    np.testing.assert_array_equal(image["probabilities"].numpy()[[0, 3]], expected[[0, 3]])


def test_a_frozen_graph_of_pixels_raises(export):
    frozen = tfpipe.load_frozen(export[0].folder / "frozen_image.pb")
    with pytest.raises(DataError, match="'input 1' are not numbers"):
        frozen(np.stack([dark(1), WHITE]))
    assert are_probabilities(frozen(dark(1)[np.newaxis])["probabilities"]).all()


def test_an_export_is_compared_on_the_rest_and_reports_which_image_fails(export):
    done, warned = export
    assert any("val/1.jpg" in line and "not valid" in line for line in warned)
    exact = [row for row in done.parity if row.artefact in ("saved_model", "frozen_bytes.pb", "frozen_image.pb")]
    assert {row.difference for row in exact if row.device == "CPU"} == {0}


def test_a_model_that_fails_at_most_images_is_not_exported(tmp_path, asked_here):
    broken = make_classifier(["cat", "dog"], SIDE)
    broken.model.get_layer("logits").bias.assign([np.nan] * 2)
    with pytest.raises(
        DataError, match=r"only 0 of 37 files could be compared: the model gives no probabilities for colour.jpg"
    ):
        tfpipe.export(broken, tmp_path / "out", formats=["pb"])
    assert list(tmp_path.iterdir()) == []


# ---- the rule


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ([0.25, 0.75], True),
        ([0, 1], True),
        ([0.253, 0.753], True),
        ([np.nan, np.nan], False),
        ([np.nan, 1], False),
        ([np.inf, 0], False),
        ([np.inf, -np.inf], False),
        ([0, 0], False),
        ([0.25, 0.8], False),
        ([1.5, -0.5], False),
    ],
)
def test_the_rule_is_one_here_and_in_the_graph(spoiled, row, good, recwarn):
    from tfpipe.formats import signatures

    values = np.array([row], np.float32)
    assert are_probabilities(values).tolist() == [good]
    found = signatures._with_classes(_specify(spoiled, 2, 100), {"probabilities": tf.constant(values)})
    assert found["valid"].numpy().tolist() == [good]
    assert (found["classes"].numpy() != b"").all() == good
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_many_are_named_in_part():
    values = np.full((8, 2), np.nan)
    with pytest.raises(DataError, match=r"^the model's probabilities of '0', '1', '2', '3', '4' and 3 more are not numbers"):
        predictions.check(values, [str(index) for index in range(8)])
    assert len(reference_images.make()) == 37
