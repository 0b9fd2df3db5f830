"""Whole numbers of 8 bits: every operation in them, calibrated on images by seed, the loss measured and written down."""

import json
import re
import warnings

import numpy as np
import pytest
import tensorflow as tf
from evaluation_fixtures import build_images, make_classifier
from format_fixtures import SIZE, SPECIFICATION, as_function, draw_images, make_graph, written

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.exporting import calibration, formats, parity, parity_process
from tfpipe.formats import opening, quantization, tflite_files

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def graph():
    return make_graph()


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    data = quantization.convert(graph, SPECIFICATION, draw_images(64, 3))
    return written(tmp_path_factory.mktemp("int8") / "model.tflite", data)


def test_all_but_the_output_is_in_whole_numbers(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path))
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], given["quantization"]) == (np.uint8, (1.0, 0))  # a step is a level
    assert found["dtype"] == np.float32
    floats = [tensor["name"] for tensor in interpreter.get_tensor_details() if np.issubdtype(tensor["dtype"], np.floating)]
    assert floats == [found["name"]]
    assert [operation["op_name"] for operation in interpreter._get_ops_details()][-1] == "DEQUANTIZE"


def test_it_answers_nearly_alike_for_any_batch(graph, path):
    model, answer = tflite_files.open_tflite(path), as_function(graph)
    images = np.concatenate([draw_images(number, number) for number in (2, 5, 1)])
    found = np.concatenate([model.predict(images[start : start + 3]) for start in range(0, 8, 3)])
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-6  # which whole numbers of 1/256 do not have
    assert np.abs(found - answer(images)).max() < 0.05  # 0.18 where RGB made BGR loses its scale
    assert (model.predict(images) == found).all()
    assert model.predict(draw_images(0)).shape == (0, 3)
    assert (tflite_files._with_sum_1(np.zeros((1, 4), np.float32)) == 0.25).all()


def test_bytes_follow_from_the_graph_and_the_images(graph, path):
    assert quantization.convert(graph, SPECIFICATION, draw_images(64, 3)) == path.read_bytes()
    dark = quantization.convert(graph, SPECIFICATION, draw_images(64, 3) // 4)
    assert dark != path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (given,) = tf.lite.Interpreter(model_content=dark).get_input_details()
    assert given["quantization"] == (1.0, 0)  # whatever the images are


def test_a_graph_that_computes_with_levels_is_refused():
    with tf.Graph().as_default() as other:
        image = tf.compat.v1.placeholder(tf.uint8, [None, *SIZE, 3], name="image")
        values = tf.reduce_mean(tf.cast(tf.reverse(image, [2]), tf.float32), [1, 2])
        tf.nn.softmax(values, name="probabilities")
    with pytest.raises(ValueError, match="it computes with pixels of 8 bits"):
        quantization.convert(other.as_graph_def(), SPECIFICATION, draw_images(2))
    with tf.Graph().as_default() as other:
        image = tf.compat.v1.placeholder(tf.float32, [None, *SIZE, 3], name="image")
        tf.reverse(image, [1, -1], name="probabilities")
    with pytest.raises(ValueError, match=r"it reverses axes \(probabilities\) that are not constants"):
        quantization._without_reversals(other.as_graph_def())


@pytest.mark.parametrize("axes", [[3], [-1], [1, 2], [-3, -1]])
def test_slices_reverse_as_the_operation_does(axes):
    with tf.Graph().as_default() as other:
        image = tf.compat.v1.placeholder(tf.uint8, [None, *SIZE, 3], name="image")
        tf.reverse(image, axes, name="probabilities")
    sliced = quantization._without_reversals(other.as_graph_def())
    assert "ReverseV2" not in {node.op for node in sliced.node}
    assert (as_function(sliced)(draw_images(3)) == as_function(other.as_graph_def())(draw_images(3))).all()


def test_an_export_measures_the_loss_and_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "_run_process", parity_process.run_all)  # here, which is faster
    counts = {"train": {"cat": 5, "小 猫": 4}, "val": {"cat": 3, "小 猫": 2}}
    build_images(tmp_path, counts, splits=None)
    classifier, shards = make_classifier(), tmp_path / "shards"
    done = tfpipe.export(classifier, tmp_path / "out", formats=["tflite_int8"], calibration_data=shards)
    (row,) = done.parity
    assert (row.artefact, row.allowed) == ("model_int8.tflite", formats.INT8_TOLERANCE)
    assert 0 < row.difference < formats.INT8_TOLERANCE
    facts = json.loads((tmp_path / "out" / "parity.json").read_text("utf-8"))
    assert facts["int8"] == done.int8
    assert done.int8["num_pictures"] == 5
    assert 0 < done.int8["largest_difference"] < 0.5
    card = (tmp_path / "out" / "model_card.md").read_text("utf-8")
    assert f"| accuracy in 8 bits | {done.int8['accuracy']:.3g} |" in re.sub(" +", " ", card)
    model = opening.load(tmp_path / "out" / "model_int8.tflite")
    assert model.sha256 != classifier.sha256

    specification = model.specification
    drawn = calibration.draw_images(shards, specification)
    assert drawn.shape == (9, 8, 8, 3)
    monkeypatch.setattr(calibration, "NUM_IMAGES", 4)
    assert (calibration.draw_images(shards, specification) == drawn[:4]).all()
    monkeypatch.setattr(formats, "INT8_TOLERANCE", row.difference / 2)
    with pytest.raises(DataError, match=r"does not reproduce the model: model_int8\.tflite differs at its probabilities"):
        tfpipe.export(classifier, tmp_path / "other", formats=["tflite_int8"], calibration_data=shards)
    assert not (tmp_path / "other").exists()


def test_data_are_needed_and_said(tmp_path):
    classifier = make_classifier()
    with pytest.raises(ValueError, match=r"tflite_int8 is calibrated on training images: give .*--calibration_data"):
        tfpipe.export(classifier, tmp_path / "out", formats=["tflite_int8"])
    with pytest.raises(ValueError, match="calibration_data is for the format tflite_int8"):
        tfpipe.export(classifier, tmp_path / "out", formats=["pb"], calibration_data=tmp_path)
    build_images(tmp_path, {"test": {"cat": 2}}, splits=None)
    with pytest.raises(ValueError, match="'train'"):
        tfpipe.export(classifier, tmp_path / "out", formats=["tflite_int8"], calibration_data=tmp_path / "shards")
