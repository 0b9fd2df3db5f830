"""TFLite files: the same answers for any batch, labels where others look for them, nothing damaged gets to the interpreter."""

import dataclasses
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from evaluation_fixtures import CLASS_NAMES, make_classifier
from format_fixtures import SIZE, SPECIFICATION, as_function, draw_images, make_graph, written

from tfpipe.common.errors import DataError
from tfpipe.exporting import half_precision
from tfpipe.formats import frozen_graph, tflite_files, tflite_metadata

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def graph():
    return make_graph()


@pytest.fixture(scope="module")
def answer(graph):
    return as_function(graph)


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    data = tflite_files.convert(graph, SPECIFICATION, dynamic_range=False)
    return written(tmp_path_factory.mktemp("größe 出") / "model.tflite", data)


def number_at(data, place, size=4, *, signed=False):
    return int.from_bytes(data[place : place + size], "little", signed=signed)


def field(data, table, slot):
    """Place of a field of a flatbuffer's table."""
    layout = table - number_at(data, table, signed=True)
    return table + number_at(data, layout + 4 + 2 * slot, 2)


def follow(data, place):
    return place + number_at(data, place)


def only(data, place):
    """Place of the one table of a vector that a field leads to."""
    vector = follow(data, place)
    assert number_at(data, vector) == 1
    return follow(data, vector + 4)


def text_at(data, place):
    string = follow(data, place)
    return data[string + 4 : string + 4 + number_at(data, string)]


def test_batches_of_any_size_after_each_other_get_the_answers_of_the_graph(answer, path):
    model = tflite_files.open_tflite(path)
    for number in (2, 5, 1, 5, 3):
        images = draw_images(number, number)
        found = model.predict(images)
        assert (found.dtype, found.shape) == (np.float32, (number, len(CLASS_NAMES)))
        assert np.abs(found - answer(images)).max() < 1e-6
    assert np.ptp(answer(draw_images(9)), axis=0).max() > 0.1  # answers differ, or the comparison would say nothing


def test_an_empty_batch_gets_no_answers(path):
    """Asked for one, the interpreter refuses or ends the process, as the model is."""
    model = tflite_files.open_tflite(path)
    model.run._run = None
    assert model.predict(draw_images(0)).shape == (0, len(CLASS_NAMES))


def test_a_classifier_answers_as_in_keras(tmp_path):
    classifier, specification = make_classifier(), dataclasses.replace(SPECIFICATION, image_size=(8, 8))
    frozen = frozen_graph.freeze_images(classifier, specification, to_convert=True)
    file = written(tmp_path / "model.tflite", tflite_files.convert(frozen, specification, dynamic_range=False))
    images = draw_images(4, size=(8, 8))
    assert np.abs(tflite_files.open_tflite(file).predict(images) - classifier.predict(images)).max() < 1e-5


def test_threads_take_turns(answer, path):
    """The interpreter has one set of buffers."""
    model = tflite_files.open_tflite(path)
    batches = [draw_images(1 + index % 3, index) for index in range(8)]
    ask, inside = model.run._run, []

    def watched(image):
        inside.append(image)
        time.sleep(0.005)
        answers = ask(image=image)
        assert len(inside) == 1
        inside.clear()
        return answers

    model.run._run = watched
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.predict, batches))
    assert all(np.abs(found[index] - answer(images)).max() < 1e-6 for index, images in enumerate(batches))


@pytest.mark.parametrize("images", [draw_images(2).astype(np.float32), draw_images(2)[:, :-1], draw_images(2)[0]])
def test_what_is_not_a_batch_of_images_is_refused(path, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 12, 10, 3\] \(got .*\)"):
        tflite_files.open_tflite(path).predict(images)


def test_the_specification_comes_back(path):
    model = tflite_files.open_tflite(path)
    assert model.specification == SPECIFICATION
    assert (model.class_names, model.image_size, model.resize, model.sha256) == (CLASS_NAMES, SIZE, "pad", "5" * 64)


def test_opening_reports_nothing(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite_files.open_tflite(path)


def test_any_program_finds_its_way_by_the_signature(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["probabilities"]}}
    (given,) = interpreter.get_input_details()
    assert (given["name"], given["dtype"], given["shape_signature"].tolist()) == ("image", np.uint8, [-1, *SIZE, 3])
    assert [output["name"] for output in interpreter.get_output_details()] == ["probabilities"]
    assert not [name for name in interpreter._get_ops_details() if name["op_name"].startswith("Flex")]


def test_labels_lie_where_tensorflow_lite_looks_for_them(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode() == "".join(f"{name}\n" for name in CLASS_NAMES)
    model = tflite_metadata.flatbuffer_utils.convert_bytearray_to_object(path.read_bytes())
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    # By the field numbers of metadata_schema.fbs.
    graph = only(data, field(data, number_at(data, 0), 3))
    labels = only(data, field(data, only(data, field(data, graph, 3)), 6))
    assert text_at(data, field(data, labels, 0)) == b"labels.txt"
    assert number_at(data, field(data, labels, 2), 1) == 2  # TENSOR_AXIS_LABELS
    content = follow(data, field(data, only(data, field(data, graph, 2)), 3))
    assert number_at(data, field(data, content, 0), 1) == 2  # ImageProperties
    size = follow(data, field(data, follow(data, field(data, content, 1)), 1))
    assert (number_at(data, field(data, size, 1)), number_at(data, field(data, size, 0))) == SIZE


def test_a_graph_is_as_it_was_when_it_has_been_converted(graph):
    before = graph.SerializeToString(deterministic=True)
    tflite_files.convert(graph, SPECIFICATION, dynamic_range=False)
    assert graph.SerializeToString(deterministic=True) == before


def test_equal_models_give_equal_bytes(graph, path):
    assert tflite_files.convert(graph, SPECIFICATION, dynamic_range=False) == path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}  # zip's own precision is two seconds


def stored_types(data):
    """Types of the large constants of a model."""
    (graph,) = tflite_metadata.flatbuffer_utils.convert_bytearray_to_object(data).subgraphs
    return {
        tensor.type
        for tensor in graph.tensors
        if tensor.shape is not None and np.prod(tensor.shape) in (3 * 3 * 3 * 64, 64 * 32)
    }


@pytest.mark.parametrize(("kind", "type_name", "error"), [("dynamic_range", "INT8", 0.02), ("half", "FLOAT16", 1e-3)])
def test_smaller_numbers_answer_nearly_alike(graph, answer, path, tmp_path, kind, type_name, error):
    asked = half_precision.store_half(graph) if kind == "half" else graph
    data = tflite_files.convert(asked, SPECIFICATION, dynamic_range=kind == "dynamic_range")
    wanted = getattr(tflite_metadata.schema.TensorType, type_name)
    assert wanted in stored_types(data)
    assert wanted not in stored_types(path.read_bytes())
    model = tflite_files.open_tflite(written(tmp_path / "model.tflite", data))
    images = draw_images(6)
    difference = np.abs(model.predict(images) - answer(images)).max()
    assert 0 < difference < error


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        tflite_files.open_tflite(tmp_path / "none.tflite")


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\0\0\0\0TFL", b"PK\3\4" + bytes(30)])
def test_what_is_not_a_tflite_file_is_named(tmp_path, data):
    file = written(tmp_path / "other.tflite", data)
    with pytest.raises(DataError, match=r"other\.tflite: not a TFLite file: it begins differently") as caught:
        tflite_files.open_tflite(file)
    assert caught.value.path == str(file)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_a_cut_file_is_named(path, tmp_path, part):
    data = path.read_bytes()
    with pytest.raises(DataError, match=r"cut\.tflite: a TFLite file without preprocessing\.json in it.*or truncated"):
        tflite_files.open_tflite(written(tmp_path / "cut.tflite", data[: int(len(data) * part)]))


def test_a_model_of_someone_else_is_named(path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        bare = path.read_bytes()[: archive.infolist()[0].header_offset]
    with pytest.raises(DataError, match="not one that tfpipe exported"):
        tflite_files.open_tflite(written(tmp_path / "bare.tflite", bare))


def test_one_flipped_bit_anywhere_in_the_model_is_seen(path, tmp_path):
    """Of 60 files with a flipped bit, the interpreter alone runs 52 and crashes of one."""
    with zipfile.ZipFile(path) as archive:
        num_bytes = archive.infolist()[0].header_offset
    data = bytearray(path.read_bytes())
    for place in np.linspace(8, num_bytes - 1, 25, dtype=int):
        data[place] ^= 1
        with pytest.raises(DataError, match=r"bit\.tflite: a damaged TFLite file"):
            tflite_files.open_tflite(written(tmp_path / "bit.tflite", data))
        data[place] ^= 1
    tflite_files.open_tflite(written(tmp_path / "bit.tflite", data))


def test_a_model_that_the_interpreter_refuses_is_named(tmp_path):
    nothing = tflite_metadata._append_files(b"\0\0\0\0TFL3" + bytes(64), {"preprocessing.json": SPECIFICATION.to_json()})
    with pytest.raises(DataError, match=r"refused\.tflite: cannot be run as a TFLite model"):
        tflite_files.open_tflite(written(tmp_path / "refused.tflite", nothing))
