"""ONNX files: the same answers for any batch, a graph that others can read, and a word for what is none."""

import dataclasses
import json
import logging
import sys

import keras
import numpy as np
import pytest
from evaluation_fixtures import CLASS_NAMES, make_classifier
from export_fixtures import HAS_ONNX
from format_fixtures import SIZE, SPECIFICATION, as_function, draw_images, make_graph, written

from tfpipe.common.errors import DataError
from tfpipe.exporting import half_precision
from tfpipe.exporting.wrapping import wrap
from tfpipe.formats import frozen_graph, onnx_files

pytestmark = pytest.mark.tf
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra is not installed: pip install 'tfpipe[onnx]'")


@pytest.fixture(scope="module")
def graph():
    return make_graph()


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    if not HAS_ONNX:
        pytest.skip("the extra is not installed: pip install 'tfpipe[onnx]'")
    return written(tmp_path_factory.mktemp("größe 出") / "model.onnx", onnx_files.convert(graph, SPECIFICATION))


def test_batches_of_any_size_after_each_other_get_the_answers_of_the_graph(graph, path):
    model, answer = onnx_files.open_onnx(path), as_function(graph)
    for number in (2, 5, 1, 5, 3):
        images = draw_images(number, number)
        found = model.predict(images)
        assert (found.dtype, found.shape) == (np.float32, (number, len(CLASS_NAMES)))
        assert np.abs(found - answer(images)).max() < 1e-6
    assert np.ptp(answer(draw_images(9)), axis=0).max() > 0.1  # answers differ, or the comparison would say nothing


def test_an_empty_batch_gets_no_answers(path):
    assert onnx_files.open_onnx(path).predict(draw_images(0)).shape == (0, len(CLASS_NAMES))


@needs_onnx
def test_a_classifier_answers_as_in_keras():
    import onnxruntime

    classifier, specification = make_classifier(), dataclasses.replace(SPECIFICATION, image_size=(8, 8))
    data = onnx_files.convert(frozen_graph.freeze_images(classifier, specification, to_convert=True), specification)
    images = draw_images(4, size=(8, 8))
    found = onnxruntime.InferenceSession(data).run(["probabilities", "features"], {"image": images})
    for values, wanted in zip(found, classifier.predict_with_features(images), strict=True):
        assert np.abs(values - wanted).max() < 1e-5


@needs_onnx
def test_gelu_which_tensorflow_computes_by_erfc(tmp_path):
    """Of ConvNeXt and Vision Transformers; ONNX has no such operation."""
    layers = [keras.layers.Dense(2, "gelu"), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    network = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    classifier = wrap(network, class_names=("a", "b"), preprocessing="tf")
    specification = dataclasses.replace(SPECIFICATION, image_size=(8, 8), class_names=("a", "b"))
    graph = frozen_graph.freeze_images(classifier, specification, to_convert=True)
    assert "Erfc" in {node.op for node in graph.node}
    (path := tmp_path / "model.onnx").write_bytes(onnx_files.convert(graph, specification))
    images = draw_images(4, size=(8, 8))
    assert np.abs(onnx_files.open_onnx(path).predict(images) - classifier.predict(images)).max() < 1e-6


def test_others_can_read_it(graph, path):
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [onnx_files.OPSET]
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": ["batch", *SIZE, 3], "probabilities": ["batch", 3], "features": ["batch", 32]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["class_names"]) == list(CLASS_NAMES)
    assert facts["tfpipe"] == SPECIFICATION.to_json()


def test_features_are_those_of_the_graph(graph, path):
    import onnxruntime

    images = draw_images(3)
    (found,) = onnxruntime.InferenceSession(path).run(["features"], {"image": images})
    assert np.abs(found - as_function(graph, "features")(images)).max() < 1e-4
    assert found.max() > 1


@needs_onnx
def test_a_graph_without_features_has_none(graph):
    import onnx

    renamed = type(graph).FromString(graph.SerializeToString().replace(b"features", b"internal"))
    model = onnx.load_from_string(onnx_files.convert(renamed, SPECIFICATION))
    assert [value.name for value in model.graph.output] == ["probabilities"]


def test_the_specification_comes_back(path):
    model = onnx_files.open_onnx(path)
    assert model.specification == SPECIFICATION
    assert (model.class_names, model.image_size, model.resize, model.sha256) == (CLASS_NAMES, SIZE, "pad", "5" * 64)


def test_equal_models_give_equal_bytes(graph, path):
    """tf2onnx counts the names it makes on from one model to the next."""
    assert onnx_files.convert(graph, SPECIFICATION) == path.read_bytes()


@needs_onnx
def test_halves_stay_halves_and_nothing_is_lost(graph, tmp_path):
    import onnx

    halves = half_precision.store_half(graph)
    data = onnx_files.convert(halves, SPECIFICATION)
    stored = {tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer if np.prod(tensor.dims) >= 1024}
    assert stored == {onnx.TensorProto.FLOAT16}
    assert onnx_files.convert(halves, SPECIFICATION) == data
    images = draw_images(5)
    found = onnx_files.open_onnx(written(tmp_path / "half.onnx", data)).predict(images)
    assert np.abs(found - as_function(graph)(images)).max() < 1e-6


@needs_onnx
def test_converting_reports_nothing_and_leaves_the_logs_as_they_were(graph, caplog, capfd):
    names = ("tensorflow", "tf2onnx")
    for name in names:
        caplog.set_level(logging.INFO, name)
        logging.getLogger(name).info("heard")
    onnx_files.convert(graph, SPECIFICATION)
    assert [record.message for record in caplog.records if record.name.split(".")[0] in names] == ["heard"] * 2
    assert capfd.readouterr().out == ""
    assert [logging.getLogger(name).level for name in names] == [logging.INFO] * 2


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        onnx_files.open_onnx(path.with_name("none.onnx"))


@needs_onnx
@pytest.mark.parametrize("data", [b"", b"<html></html>", bytes(100)])
def test_what_is_not_an_onnx_file_is_named(tmp_path, data, capfd):
    file = written(tmp_path / "other.onnx", data)
    with pytest.raises(DataError, match=r"other\.onnx: cannot be run as an ONNX model") as caught:
        onnx_files.open_onnx(file)
    assert caught.value.path == str(file)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_a_cut_file_is_named(path, tmp_path, part):
    data = path.read_bytes()
    with pytest.raises(DataError, match=r"cut\.onnx: cannot be run as an ONNX model: it is truncated"):
        onnx_files.open_onnx(written(tmp_path / "cut.onnx", data[: int(len(data) * part)]))


@pytest.mark.parametrize("text", ["小", "batch"])
def test_words_that_are_not_utf8_are_damage(path, tmp_path, capfd, text):
    """In a dimension's name onnxruntime would try once more and print that it does."""
    damaged = path.read_bytes().replace(text.encode(), b"\xff" * len(text.encode()))
    with pytest.raises(DataError, match=r"words\.onnx: cannot be run as an ONNX model"):
        onnx_files.open_onnx(written(tmp_path / "words.onnx", damaged))
    assert capfd.readouterr() == ("", "")


def test_a_model_of_someone_else_is_named(path, tmp_path):
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    with pytest.raises(DataError, match=r"bare\.onnx: an ONNX file without 'tfpipe' in its metadata: not one that tfpipe"):
        onnx_files.open_onnx(written(tmp_path / "bare.onnx", model.SerializeToString()))


@pytest.mark.parametrize("missing", ["onnx", "tf2onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_way_to_install_it(graph, monkeypatch, missing):
    if not HAS_ONNX and missing != "onnx":
        pytest.skip("the extra is not installed: the first missing package is named")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"the package {missing} .*pip install 'tfpipe\[onnx\]'"):
        onnx_files.convert(graph, SPECIFICATION)


def test_a_flipped_bit_that_can_still_be_run_is_damage(path, tmp_path):
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 20):  # most are in a weight
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(DataError):
            onnx_files.open_onnx(written(tmp_path / "damaged.onnx", bytes(damaged)))
